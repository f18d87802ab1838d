"""Values with named axes: which shapes are accepted without names, which lengths fit, and that nothing is guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import apply, batch_of, context, tiny_gpt2
from torch import Tensor

import interp
from interp import At, BadInput
from interp.edits.base import Value

GPT2 = tiny_gpt2()
BATCH = batch_of([[1, 2, 3], [4, 5, 6]])


def scaled(at: At, value: Any, axes: str | None = None, **about: Any) -> Tensor:
    x = torch.ones(2, 3, 2, 4) if at.site is not interp.Site.RESID_PRE else torch.ones(2, 3, 8)
    return apply(interp.scale(at, value, axes=axes), x, batch=BATCH, **about)


def test_a_scalar_reaches_everything() -> None:
    assert torch.equal(scaled(At("z", 0), 3), torch.full((2, 3, 2, 4), 3.0))
    assert torch.equal(scaled(At("z", 0), torch.tensor(3)), torch.full((2, 3, 2, 4), 3.0))


def test_one_axis_at_one_layer_is_the_heads() -> None:
    made = scaled(At("z", 0), [2.0, 5.0])
    assert torch.equal(made[..., 0, :], torch.full((2, 3, 4), 2.0))
    assert torch.equal(made[..., 1, :], torch.full((2, 3, 4), 5.0))
    assert torch.equal(scaled(At("z", (0,)), [2.0, 5.0]), made)


def test_two_axes_at_several_layers_are_layer_and_head_in_the_address_order() -> None:
    values = [[1.0, 2.0], [3.0, 4.0]]
    at = At("z", (2, 0))  # row 0 of the value is layer 2
    assert scaled(at, values, layer=2)[0, 0, :, 0].tolist() == [1.0, 2.0]
    assert scaled(at, values, layer=0)[0, 0, :, 0].tolist() == [3.0, 4.0]


def test_three_axes_are_batch_layer_and_head() -> None:
    values = torch.arange(1.0, 9.0).view(2, 2, 2)  # prompt, layer, head
    made = scaled(At("z", (0, 1)), values, layer=1)
    assert made[:, 0, :, 0].tolist() == [[3.0, 4.0], [7.0, 8.0]]


def test_named_axes_are_laid_where_their_names_say_in_any_order() -> None:
    values = torch.arange(1.0, 7.0).view(3, 2)  # pos, batch
    made = scaled(At("z", 0), values, "pos batch")
    for prompt in range(2):
        for pos in range(3):
            assert torch.equal(made[prompt, pos], torch.full((2, 4), float(values[pos, prompt])))
    channels = scaled(At("z", 0), [1.0, 2.0, 3.0, 4.0], "d_head")
    assert channels[0, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_value_per_position_is_looked_up_by_absolute_column() -> None:
    edit = interp.scale(At("z", 0), [1.0, 2.0, 3.0], axes="pos")
    cached = apply(edit, torch.ones(1, 1, 2, 4), rows=1, first=2)  # the third column alone
    assert torch.equal(cached, torch.full((1, 1, 2, 4), 3.0))
    assert edit.prompt_only and not interp.scale(At("z", 0), 2.0).prompt_only


def test_beams_of_one_prompt_share_its_value() -> None:
    edit = interp.scale(At("z", 0), [[2.0], [3.0]], axes="batch pos")
    made = apply(edit, torch.ones(4, 3, 2, 4), prompts=4)
    assert made[:, 0, 0, 0].tolist() == [2.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("at", "shape"),
    [
        (At("z"), (2,)),  # [head] at several layers
        (At("z", 0), (3, 2)),  # [layer, head] at one layer
        (At("z", 0), (3, 1, 2, 4)),
        (At("resid_pre", 0), (8,)),  # no head axis: always named
        (At("resid_pre"), (3, 8)),
    ],
)
def test_other_shapes_without_names_are_refused(at: At, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"without axes= only a scalar, \[head\] at one layer"):
        interp.scale(at, torch.ones(shape))


@pytest.mark.parametrize("axes", ["head head", "head", "head query", "vocab head", "head pos d_head"])
def test_axes_that_do_not_fit_the_site_or_the_shape_are_refused(axes: str) -> None:
    with pytest.raises(BadInput, match="expected one distinct name per axis among layer batch pos head d_head"):
        interp.scale(At("z"), torch.ones(3, 2), axes=axes)


def test_a_layer_axis_at_one_layer_is_refused() -> None:
    with pytest.raises(BadInput, match="has a layer axis of 3 but At"):
        interp.gate(At("z", 0), torch.ones(2, 3, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "two", None, [[1], [1, 2]], 1j])
def test_what_is_no_finite_number_is_refused(bad: object) -> None:
    with pytest.raises(BadInput, match=r"expected (finite numbers|a number or a tensor|real numbers)"):
        Value.of(bad, None, At("z", 0), "the value")


@pytest.mark.parametrize(
    ("at", "shape", "axes", "message"),
    [
        (At("z", 0), (3,), None, r"has 3 along 'head' at At\(Site.Z, layer=0\), expected 2"),
        (At("z", 0), (1,), None, "has 1 along 'head'"),  # never broadcast
        (At("z", 0, heads=1), (2,), None, "has 2 along 'head' at .*, expected 1"),
        (At("z"), (2, 2), None, "has 2 along 'layer' at .*, expected 3"),
        (At("z"), (1, 2), None, "has 1 along 'layer'"),
        (At("z"), (3, 3, 2), None, "has 3 along 'batch' at .*, expected 2 or 1"),
        (At("z", 0), (4,), "pos", "has 4 along 'pos' at .*, expected 3 or 1"),
        (At("z", 0), (3,), "d_head", "has 3 along 'd_head' at .*, expected 4"),
        (At("resid_post", 0), (7,), "d_model", "has 7 along 'd_model' at .*, expected 8"),
        (At("resid_post", 0), (1,), "d_model", "has 1 along 'd_model'"),
        (At("pattern", 0), (4,), "key", "has 4 along 'key' at .*, expected 3"),
        (At("pattern", 0), (2,), "query", "has 2 along 'query' at .*, expected 3 or 1"),
    ],
)
def test_lengths_that_do_not_fit_the_run_are_refused_before_it(
    at: At, shape: tuple[int, ...], axes: str | None, message: str
) -> None:
    calls: list[int] = []
    handle = GPT2.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(BadInput, match=message):
            interp.run(GPT2, BATCH, edits=[interp.scale(at, torch.full(shape, 0.5), axes=axes)])
    finally:
        handle.remove()
    assert not calls


def test_a_value_for_the_wrong_number_of_prompts_is_refused_in_foreign_code() -> None:
    edit = interp.gate(At("z"), torch.ones(2, 3, 2))
    refused = pytest.raises(BadInput, match="is for 2 prompts, but the model ran a batch of 3")
    with refused, interp.edited(GPT2, [edit]) as hf:
        hf(torch.ones(3, 2, dtype=torch.long))


def test_a_value_takes_the_dtype_of_what_it_meets() -> None:
    edit = interp.scale(At("z", 0), torch.tensor([2.0, 0.5], dtype=torch.float64))
    assert edit.function is not None
    made = edit.function(torch.ones(1, 3, 2, 4, dtype=torch.bfloat16), context(edit))
    assert made.dtype == torch.bfloat16 and made[0, 0, :, 0].tolist() == [2.0, 0.5]
