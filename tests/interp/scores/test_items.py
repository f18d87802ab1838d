"""Attention per item slot and the attention basin: contents rotated away, sinks kept out, ranks in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import ask_for, reduced, uniform_causal

import interp
from interp.errors import BadInput
from interp.results import HeadScores
from interp.scores.groups.basin import AttentionBasin, attention_rank, rotated_items
from interp.scores.groups.items import item_attention, item_shares

IDS = torch.tensor([[0, 3, 4, 5, 3, 4, 5, 2]])
SLOTS = {"a": slice(1, 3), "b": slice(3, 5), "c": slice(5, 7)}


def test_uniform_attention_over_items_of_one_length_is_flat() -> None:
    ask = ask_for(8, ids=IDS)
    found = reduced(item_attention(ask, items=SLOTS), uniform_causal(8))
    assert found[0, 0].tolist() == pytest.approx([1 / 3] * 3)


def test_unequal_lengths_per_token() -> None:
    ask = ask_for(8, ids=IDS)
    items = {"long": slice(1, 5), "short": slice(5, 7)}
    assert reduced(item_attention(ask, items=items), uniform_causal(8))[0, 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    flat = reduced(item_attention(ask, items=items, per_token=True), uniform_causal(8))
    assert flat[0, 0].tolist() == pytest.approx([0.5, 0.5])
    raw = reduced(item_attention(ask, items=items, shares=False), uniform_causal(8))
    assert raw[0, 0].tolist() == pytest.approx([4 / 8, 2 / 8])


@pytest.mark.parametrize("rows_per_block", [1, 3, 20])
def test_rows_are_averaged_before_shares_are_taken(rows_per_block: int) -> None:
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, :2] = False
    pattern = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).tril() * mask[:, None, None]
    pattern = pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-9)
    ask = ask_for(8, ids=IDS.repeat(2, 1), mask=mask)
    items = {"a": slice(1, 3), "b": slice(3, 4)}
    found = reduced(item_attention(ask, items=items, queries=slice(-2, None)), pattern, rows_per_block=rows_per_block)
    for prompt, start in ((0, 0), (1, 2)):
        rows = pattern[prompt][:, -2:]
        mass = torch.stack([rows[..., start + 1 : start + 3].sum(-1), rows[..., start + 3]], -1).mean(1)
        torch.testing.assert_close(found[prompt].float(), item_shares(mass))


def test_the_first_token_belongs_to_no_item() -> None:
    """A head that sinks all but a little on BOS: with BOS counted the first item would have it all."""
    ask = ask_for(8, ids=IDS)
    sinking = torch.zeros(8, 8)
    sinking[:, 0] = 0.94
    sinking[7, 1:7] = 0.01
    found = reduced(item_attention(ask, items={"a": slice(0, 3), "b": slice(3, 5), "c": slice(5, 7)}), sinking)
    assert found[0, 0].tolist() == pytest.approx([1 / 3] * 3)
    dropped = torch.zeros(1, 8, dtype=torch.bool)
    dropped[0, :2] = True
    without = ask_for(8, ids=IDS, dropped=dropped)
    found = reduced(item_attention(without, items=SLOTS, per_token=True), sinking)
    assert found[0, 0].tolist() == pytest.approx([1 / 3] * 3), "means over the tokens that are left"


def test_no_attention_to_items_is_nan_and_refusals() -> None:
    ask = ask_for(8, ids=IDS)
    nowhere = torch.zeros(8, 8)
    nowhere[:, 0] = 1
    assert reduced(item_attention(ask, items=SLOTS), nowhere).isnan().all()
    with pytest.raises(BadInput, match="no span begins with 'item '"):
        item_attention(ask)
    with pytest.raises(BadInput, match="is one item; give at least two"):
        item_attention(ask, items={"a": slice(1, 3)})
    with pytest.raises(BadInput, match=r"'a' and 'b' share 1 token\(s\), the first at column 2 of prompt 0"):
        item_attention(ask, items={"a": slice(1, 3), "b": slice(2, 4)})
    with pytest.raises(BadInput, match="'a' is the first token alone in prompts"):
        item_attention(ask, items={"a": slice(0, 1), "b": slice(2, 4)})


# ---- basin ----------------------------------------------------------------------------------------------------------

LISTS = [["the cat", "a dog", "my hat", "one cup"], ["the river", "a nose", "my lamp", "one moon"]]


def test_every_item_stands_once_at_every_place() -> None:
    model = interp.load("induction")
    said = {"template": "so {items} {question}", "item": "{number} {item}", "separator": " and "}
    with pytest.warns(UserWarning, match="unknown token"):  # the numbers
        made = rotated_items(model, LISTS, ["what", "who"], **said)
    assert len(made.batch) == 8 and made.probe == (0,) * 4 + (1,) * 4
    for probe in (0, 1):
        own = made.placed[[p == probe for p in made.probe]]
        assert (np.sort(own, axis=0) == np.arange(4)[:, None]).all() and (np.sort(own, axis=1) == np.arange(4)).all()
    assert made.batch.texts[1] == "so 1 a dog and 2 my hat and 3 one cup and 4 the cat what"
    for slot in range(4):
        member = made.batch.spans[f"item {slot + 1}"]
        assert (member.sum(-1) == 3).all()
    with pytest.raises(BadInput, match=r"lists of \[2, 3\] items"):
        rotated_items(model, [["a", "b"], ["a", "b", "c"]])
    with pytest.raises(BadInput, match="1 questions for 2 lists"):
        rotated_items(model, LISTS, ["what"])
    with pytest.raises(BadInput, match=r"expected \{items\} once"):
        rotated_items(model, LISTS, template="{question}")


def test_contents_cancel_out_of_the_curve() -> None:
    """Two lists of very different contents: the curves agree far better than single prompts do."""
    model = interp.load("induction")
    made = rotated_items(model, LISTS, "the", separator=" ", template="{items} {question}")
    found = interp.attention_basin(model, made, layers=1)
    assert found.curve.sum() == pytest.approx(1) and found.cluster == made.probe
    first, second = found.per_prompt[:4].mean(0), found.per_prompt[4:].mean(0)
    single = np.abs(found.per_prompt[0] - found.per_prompt[1]).max()
    assert np.abs(first - second).max() < single
    table = found.table()
    assert table["place"].tolist() == [f"item {k}" for k in range(1, 5)] and (table["low"] <= table["high"]).all()
    exact = interp.score(model, made.batch, "item_attention")["item_attention"].samples[:, 1].mean(1)
    np.testing.assert_allclose(found.per_prompt, exact)
    with pytest.raises(BadInput, match=r"layers=7; expected some of \[0, 1\]"):
        interp.attention_basin(model, made, layers=7)


def test_depth_of_a_basin() -> None:
    nothing = HeadScores.from_array(np.zeros((2, 1, 1, 4)), name="n", sample_axis="prompt", positions="abcd")
    deep = AttentionBasin(nothing, (0,), np.array([[0.4, 0.1, 0.1, 0.4], [0.4, 0.2, 0.0, 0.4]]))
    depth = deep.depth()
    assert depth.mean == pytest.approx((0.4 - 0.05) * 4) and depth.low <= depth.mean <= depth.high
    flat = AttentionBasin(nothing, (0,), np.full((2, 4), 0.25))
    assert flat.depth().mean == pytest.approx(0)
    with pytest.raises(BadInput, match="2 places have no inside"):
        AttentionBasin(nothing, (0,), np.full((2, 2), 0.5)).depth()


def test_attention_rank_is_a_bijection() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        curve, worth = generator.random(6), generator.random(6)
        order = attention_rank(curve, worth)
        assert sorted(order) == list(range(6))
        assert (np.argsort(-curve) == np.array([order.index(i) for i in np.argsort(-worth)])).all()
    falling = attention_rank([0.4, 0.3, 0.2, 0.1], [1, 4, 2, 3])
    assert falling == [1, 3, 2, 0], "a falling curve sorts by relevance"
    assert attention_rank([0.3, 0.3, 0.4], [1, 1, 1]) == [1, 2, 0], "ties keep their order"
    with pytest.raises(BadInput, match="one finite number for each"):
        attention_rank([0.1, 0.2], [1, 2, 3])
