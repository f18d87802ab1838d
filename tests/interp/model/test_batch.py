"""Batches: columns of positions, spans, padding, selection, content keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import batch_of

from interp import BadAddress, BadInput, Batch

#        own positions: 0 1 2 3 / . . 0 1 / . 0 1 2
LEFT = batch_of([[1, 2, 3, 4], [0, 0, 5, 6], [0, 7, 8, 9]], [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
RIGHT = batch_of([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]], [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def test_lengths_and_width() -> None:
    assert (len(LEFT), LEFT.width, LEFT.lengths) == (3, 4, [4, 2, 3])


@pytest.mark.parametrize(
    ("pos", "left", "right"),
    [
        (0, [[0], [2], [1]], [[0], [0], [0]]),
        (1, [[1], [3], [2]], [[1], [1], [1]]),
        (-1, [[3], [3], [3]], [[3], [1], [2]]),
        (-2, [[2], [2], [2]], [[2], [0], [1]]),
        (slice(0, 2), [[0, 1], [2, 3], [1, 2]], [[0, 1], [0, 1], [0, 1]]),
        (slice(-2, None), [[2, 3], [2, 3], [2, 3]], [[2, 3], [0, 1], [1, 2]]),
    ],
)
def test_positions_count_over_each_prompts_own_tokens(pos: Any, left: list[list[int]], right: list[list[int]]) -> None:
    assert LEFT.columns(pos).tolist() == left
    assert RIGHT.columns(pos).tolist() == right


def test_columns_are_taken_as_given_and_one_row_serves_all() -> None:
    assert LEFT.columns(torch.tensor([[3, 0]])).tolist() == [[3, 0]] * 3
    own = torch.tensor([[0], [2], [1]])
    assert torch.equal(LEFT.columns(own), own)


@pytest.mark.parametrize(
    ("pos", "message"),
    [
        (2, r"Position 2 is outside the shortest prompt, which has 2 tokens \(positions 0 to 1, or -2 to -1\)"),
        (-3, "Position -3 is outside"),
        (slice(None), r"means \[2, 3, 4\] positions in different prompts"),
        (slice(2, None), r"means \[0, 1, 2\] positions"),
        (slice(5, 9), "means no position at all"),
        ("name", "Unknown span 'name'. Known: none"),
        (torch.tensor([[4]]), "Columns from 4 to 4 were given, but the prompts have columns 0 to 3"),
        (torch.tensor([[0], [1]]), r"Columns of shape \[2, 1\] were given"),
        (torch.tensor([0]), r"Columns of shape \[1\] were given"),
        (1.0, "is not a group of positions"),
    ],
)
def test_positions_that_cannot_be_are_refused(pos: Any, message: str) -> None:
    with pytest.raises(BadAddress, match=message):
        LEFT.columns(pos)


def test_select_takes_everything_that_belongs_to_a_prompt_along() -> None:
    spans = {"all": RIGHT.mask}
    batch = Batch(
        inputs={**RIGHT.inputs, "position_ids": torch.arange(4).expand(3, -1), "use_cache": False},
        mask=RIGHT.mask,
        ids=RIGHT.ids,
        read_at=torch.tensor([3, 1, 2]),
        answers=torch.tensor([[1], [2], [3]]),
        spans=spans,
        tokens=(("a",), ("b",), ("c",)),
        texts=("x", "y", "z"),
    )
    made = batch.select([2, 0, 2])
    assert made.ids is not None and made.ids.tolist() == [[7, 8, 9, 0], [1, 2, 3, 4], [7, 8, 9, 0]]
    assert made.inputs["input_ids"].tolist() == made.ids.tolist() and made.inputs["use_cache"] is False
    assert made.read_at.tolist() == [2, 3, 2] and made.answers is not None and made.answers.tolist() == [[3], [1], [3]]
    assert torch.equal(made.spans["all"], RIGHT.mask[[2, 0, 2]])
    assert (made.tokens, made.texts) == ((("c",), ("a",), ("c",)), ("z", "x", "z"))
    assert batch.select(slice(1, None)).texts == batch.select(torch.tensor([1, 2])).texts == ("y", "z")
    assert batch.select([-1]).texts == ("z",)


@pytest.mark.parametrize("bad", [[], [3], [-4], [0.5], torch.tensor([True, False, True]), 1])
def test_select_refuses_what_names_no_prompt(bad: Any) -> None:
    with pytest.raises(BadInput, match="select: "):
        RIGHT.select(bad)


def test_packed_images_cannot_be_taken_apart() -> None:
    inputs = {**RIGHT.inputs, "pixel_values": torch.zeros(12, 5)}
    batch = Batch(inputs=inputs, mask=RIGHT.mask, ids=RIGHT.ids, read_at=RIGHT.read_at)
    with pytest.raises(BadInput, match=r"the inputs \['pixel_values'\] have no prompt axis"):
        batch.select([0])
    assert torch.equal(batch.select([0, 1, 2]).inputs["pixel_values"], inputs["pixel_values"])
    alone = Batch(inputs={"pixel_values": torch.zeros(12, 5)}, mask=RIGHT.mask[:1], ids=None, read_at=RIGHT.read_at[:1])
    with pytest.raises(BadInput, match="have no prompt axis"):
        alone.select([0, 0])


def test_positions_of_three_axes_are_selected_along_their_prompt_axis() -> None:
    positions = torch.arange(3 * 3 * 4).view(3, 3, 4)  # time, height, width; prompt; column
    batch = Batch(
        inputs={**RIGHT.inputs, "position_ids": positions}, mask=RIGHT.mask, ids=RIGHT.ids, read_at=RIGHT.read_at
    )
    assert torch.equal(batch.select([2, 0]).inputs["position_ids"], positions[:, [2, 0]])


def test_masks_of_other_stacks() -> None:
    encoder = torch.ones(3, 6, dtype=torch.bool)
    both = Batch(
        inputs={}, mask=RIGHT.mask, ids=None, read_at=RIGHT.read_at, encoder_mask=encoder, default_stack="decoder"
    )
    assert both.row_mask(None) is both.row_mask("decoder") is both.row_mask("cross") is both.mask
    assert both.row_mask("encoder") is encoder
    assert both.key_mask("cross") is both.key_mask("encoder") is encoder and both.key_mask("decoder") is both.mask
    assert both.columns(5, stack="encoder").tolist() == [[5]] * 3
    assert RIGHT.row_mask("vision") is None
    with pytest.raises(BadAddress, match=r"needs the number of positions of stack 'vision'; give a LongTensor"):
        RIGHT.columns(-1, stack="vision")
    assert (
        RIGHT.columns(torch.tensor([[9]]), stack="vision").tolist() == [[9]] * 3
    )  # images have their own number of rows


def test_a_span_belongs_to_the_stack_it_was_named_on() -> None:
    encoder = torch.ones(3, 4, dtype=torch.bool)
    both = Batch(
        inputs={}, mask=RIGHT.mask, ids=None, read_at=RIGHT.read_at, encoder_mask=encoder, default_stack="decoder",
        spans={"first": torch.arange(4).expand(3, -1) == 0},
    )  # fmt: skip
    assert both.columns("first", stack="encoder").tolist() == [[0]] * 3
    with pytest.raises(BadAddress, match="Span 'first' is over the encoder's tokens"):
        both.columns("first")
    pictured = batch_of([[1, 2]], spans={"word": torch.tensor([[True, False]])})
    with pytest.raises(BadAddress, match="Span 'word' is over the tokens of stack 'text', not"):
        pictured.columns("word", stack="vision")


def test_content_keys_depend_on_content_and_not_on_padding_or_order() -> None:
    assert LEFT.content_keys.tolist() == RIGHT.content_keys.tolist()
    assert LEFT.select([2, 0]).content_keys.tolist() == LEFT.content_keys[[2, 0]].tolist()
    assert len(set(LEFT.content_keys.tolist())) == 3
    images = Batch(inputs={"pixel_values": torch.randn(2, 3, 4, 4)}, mask=torch.ones(2, 1, dtype=torch.bool), ids=None,
                   read_at=torch.zeros(2, dtype=torch.long))  # fmt: skip
    assert len(set(images.content_keys.tolist())) == 2


def test_repr_counts_prompts_and_tokens() -> None:
    assert repr(LEFT) == "Batch(3 prompts of 2-4 tokens; attention_mask, input_ids)"
