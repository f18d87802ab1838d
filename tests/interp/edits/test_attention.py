"""Edits of attention maps on written-out matrices, and their refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import apply, batch_of, causal, tiny_gpt2
from torch import Tensor

import interp
from interp import At, BadAddress, BadInput, Site
from interp.edits.attention import redistribute_mass
from interp.edits.base import Edit

GPT2 = tiny_gpt2()
PROMPTS = batch_of([[1, 2, 3, 4], [5, 6, 7, 8]])
LEFT = interp.encode(GPT2, [[0, 2, 3, 4], [0, 6]], padding_side="left")
NO = -math.inf
SCORES = torch.tensor([[[[1.0, NO, NO], [2.0, 3.0, NO], [4.0, 5.0, 6.0]]]])
PATTERN = torch.tensor([[[[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.3, 0.2]]]])


def on_map(edit: Edit, x: Tensor, **about: Any) -> Tensor:
    return apply(edit, x, visible=causal(x.shape[-1]), **about)


def read(edits: list[Edit], at: At, batch: interp.Batch = PROMPTS) -> Tensor:
    return interp.run(GPT2, batch, read=[at], edits=edits, kernels="eager")[at]


# ---- before the softmax ---------------------------------------------------------------------------------------------


def test_knockout_blocks_the_named_edges_alone() -> None:
    assert on_map(interp.knockout(2, 0), SCORES).tolist() == [[[[1.0, NO, NO], [2.0, 3.0, NO], [NO, 5.0, 6.0]]]]
    assert on_map(interp.knockout(slice(1, None), slice(0, 2)), SCORES).tolist() == [
        [[[1.0, NO, NO], [NO, NO, NO], [NO, NO, 6.0]]]
    ]
    assert on_map(interp.knockout(None, None), SCORES).isneginf().all()


def test_knockout_counts_over_each_prompts_own_tokens() -> None:
    batch = batch_of([[1, 2, 3], [9, 1, 2]], [[1, 1, 1], [0, 1, 1]])
    made = on_map(interp.knockout(-1, 0), SCORES.expand(2, 1, 3, 3), batch=batch)
    assert made[0, 0, 2].tolist() == [NO, 5.0, 6.0]
    assert made[1, 0, 2].tolist() == [4.0, NO, 6.0]  # its first own token stands in column 1
    assert torch.equal(made[:, :, :2], SCORES.expand(2, 1, 3, 3)[:, :, :2])


def test_knockout_takes_spans_masks_and_columns() -> None:
    spans = {"subject": torch.tensor([[True, False, False], [False, True, False]])}
    batch = batch_of([[1, 2, 3], [4, 5, 6]], spans=spans)
    x = SCORES.expand(2, 1, 3, 3)
    by_span = on_map(interp.knockout(2, "subject"), x, batch=batch)
    assert by_span[:, 0, 2].tolist() == [[NO, 5.0, 6.0], [4.0, NO, 6.0]]
    assert torch.equal(by_span, on_map(interp.knockout(2, spans["subject"]), x, batch=batch))
    assert torch.equal(by_span, on_map(interp.knockout(torch.tensor([[2]]), torch.tensor([[0], [1]])), x, batch=batch))


def test_knockout_at_a_cached_step_blocks_what_the_uncached_run_blocks() -> None:
    batch = batch_of([[1, 2, 3]])
    edit = interp.knockout(slice(1, None), 1)
    step = apply(
        edit, torch.ones(1, 1, 1, 4), batch=batch, rows=1, first=3, visible=torch.ones(1, 1, 1, 4, dtype=torch.bool)
    )
    assert step.tolist() == [[[[1.0, NO, 1.0, 1.0]]]]
    assert on_map(interp.knockout(1, 0), torch.ones(1, 1, 4, 4), batch=batch, rows=4)[
        0, 0
    ].isneginf().nonzero().tolist() == [[1, 0]]


def test_a_row_without_a_key_attends_to_nothing_and_passes_no_nan_on() -> None:
    edit = interp.knockout(1, slice(0, 2), layers=1, heads=0)
    made = interp.run(GPT2, PROMPTS, read=[At("pattern", 1), At("z", 1), At("resid_pre", 1)], edits=[edit], grad=_last)
    assert made[At("pattern", 1)][:, 0, 1].abs().max() == 0 and made[At("z", 1)][:, 1, 0].abs().max() == 0
    torch.testing.assert_close(made[At("pattern", 1)][:, 1].sum(-1), torch.ones(2, 4))
    assert made.grad is not None
    assert bool(made.grad[At("resid_pre", 1)].isfinite().all())
    everything = interp.run(GPT2, PROMPTS, read=[At("z", 1)], edits=[interp.knockout(None, None, layers=1)], grad=_last)
    assert everything[At("z", 1)].abs().max() == 0
    assert everything.grad is not None and bool(everything.grad[At("z", 1)].isfinite().all())


def _last(logits: Tensor, batch: interp.Batch) -> Tensor:
    return logits[:, -1].logsumexp(-1)


def test_the_rest_of_a_knocked_out_row_is_renormalised() -> None:
    plain = read([], At("pattern", 1))
    made = read([interp.knockout(3, 0, layers=1)], At("pattern", 1))
    wanted = plain.clone()
    wanted[:, :, 3, 0] = 0
    wanted[:, :, 3] /= wanted[:, :, 3].sum(-1, keepdim=True)
    torch.testing.assert_close(made, wanted)


def test_sharpen_divides_and_boost_adds() -> None:
    assert on_map(interp.sharpen(At("scores", 0), 0.5), SCORES)[0, 0, 2].tolist() == [8.0, 10.0, 12.0]
    assert torch.equal(on_map(interp.sharpen(At("scores", 0), 2.0), SCORES).isneginf(), SCORES.isneginf())
    made = on_map(interp.boost(At("scores", 0), slice(1, None), 10.0), SCORES)
    assert made.tolist() == [[[[1.0, NO, NO], [2.0, 13.0, NO], [4.0, 15.0, 16.0]]]]


def test_boosting_by_log_two_doubles_the_odds() -> None:
    plain = read([], At("pattern", 0))[:, :, 3]
    made = read([interp.boost(At("z", 0, pos=3), 1, math.log(2.0))], At("pattern", 0))
    weights = plain * torch.tensor([1.0, 2.0, 1.0, 1.0])
    torch.testing.assert_close(made[:, :, 3], weights / weights.sum(-1, keepdim=True))
    torch.testing.assert_close(made[:, :, :3], read([], At("pattern", 0))[:, :, :3])


def test_maps_are_named_by_any_site_of_their_head() -> None:
    for at in (At("scores", 1, heads=0), At("pattern", 1, heads=0), At("z", 1, heads=0)):
        assert interp.sharpen(at, 2.0).at == (At("scores", 1, heads=0),)
        assert interp.boost(at, 0, 1.0).at == (At("scores", 1, heads=0),)
    assert interp.uniform(At("z", 1)).at == (At("pattern", 1),)
    for make in (interp.uniform, lambda at: interp.sharpen(at, 1.0)):
        with pytest.raises(BadInput, match=r"not at Site.MLP_OUT"):
            make(At("mlp_out", 1))


# ---- after the softmax ----------------------------------------------------------------------------------------------


def test_uniform_is_one_over_the_visible_keys() -> None:
    assert on_map(interp.uniform(At("pattern", 0)), PATTERN).tolist() == [
        [[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [pytest.approx(1 / 3)] * 3]]
    ]
    nobody = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    assert apply(interp.uniform(At("pattern", 0)), PATTERN, visible=nobody).abs().max() == 0
    made = read([interp.uniform(At("pattern", 0))], At("pattern", 0), LEFT)
    assert made[1, 0].tolist() == [[0.0] * 4, [0.0] * 4, [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.5, 0.5]]


def test_uniform_counts_exactly_in_half_precision() -> None:
    x = torch.zeros(1, 1, 1, 4001, dtype=torch.bfloat16)
    visible = torch.ones(1, 1, 1, 4001, dtype=torch.bool)
    made = apply(interp.uniform(At("pattern", 0)), x, visible=visible, rows=1, first=4000)
    assert made[0, 0, 0, 0] == torch.tensor(1 / 4001).to(torch.bfloat16)


def test_to_identity_blends_with_the_identity() -> None:
    made = on_map(interp.to_identity(At("pattern", 0), 0.5), PATTERN)
    wanted = [[[[1.0, 0.0, 0.0], [0.125, 0.875, 0.0], [0.25, 0.15, 0.6]]]]
    torch.testing.assert_close(made, torch.tensor(wanted))
    assert torch.equal(on_map(interp.to_identity(At("pattern", 0), 0.0), PATTERN), PATTERN)
    cached = apply(interp.to_identity(At("pattern", 0), 1.0), torch.full((1, 1, 1, 4), 0.25), rows=1, first=3)
    assert cached.tolist() == [[[[0.0, 0.0, 0.0, 1.0]]]]


def test_set_pattern_is_used_as_given() -> None:
    value = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    edit = interp.set_pattern(At("pattern", 1, heads=1), value, axes="query key")
    run = interp.run(GPT2, PROMPTS, read=[At("pattern", 1), At("z", 1), At("v", 1)], edits=[edit])
    assert torch.equal(run[At("pattern", 1, heads=1)], value.expand(2, 1, 4, 4))
    mixed = torch.einsum("qk,bkd->bqd", value, run[At("v", 1)][:, :, 1])
    torch.testing.assert_close(run[At("z", 1)][:, :, 1], mixed)


def test_set_pattern_of_one_row_leaves_the_others() -> None:
    plain = read([], At("pattern", 0))
    made = read([interp.set_pattern(At("pattern", 0, pos=-1), [0.0, 1.0, 0.0, 0.0], axes="key")], At("pattern", 0))
    assert made[:, :, 3].tolist() == [[[0.0, 1.0, 0.0, 0.0]] * 2] * 2
    assert torch.equal(made[:, :, :3], plain[:, :, :3])


@pytest.mark.parametrize(
    ("value", "axes", "message"),
    [
        (torch.tensor([[-0.1, 1.1], [0.5, 0.5]]), "query key", "negative entries are not attention"),
        (torch.full((2, 2), math.nan), "query key", "NaN or infinity"),
        (torch.ones(4, 4), None, "set_pattern's value of shape"),
        (torch.ones(4, 4), "query pos", "expected one distinct name per axis"),
    ],
)
def test_set_pattern_refuses_what_is_no_pattern(value: Tensor, axes: str | None, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        interp.set_pattern(At("pattern", 0), value, axes=axes)


def test_freezing_holds_every_pattern_while_something_below_changes() -> None:
    plain = interp.run(GPT2, PROMPTS, read=[At("pattern")], kernels="eager")
    below = interp.scale(At("resid_post", 0), by=3.0)
    moved = interp.run(GPT2, PROMPTS, read=[At("pattern")], edits=[below], kernels="eager")
    assert not torch.allclose(moved[At("pattern", 2)], plain[At("pattern", 2)], atol=1e-3)
    frozen = interp.run(GPT2, PROMPTS, read=[At("pattern")], edits=[below, interp.freeze_pattern()])
    assert torch.equal(frozen[At("pattern")], plain[At("pattern")])
    assert not torch.equal(frozen.logits, plain.logits)


def test_freezing_alone_changes_no_bit_with_padding_on_either_side() -> None:
    right = interp.encode(GPT2, [[0, 2, 3, 4], [0, 6]])
    for batch in (PROMPTS, LEFT, right):
        plain = interp.run(GPT2, batch, kernels="eager").logits
        assert plain is not None
        assert torch.equal(interp.run(GPT2, batch, edits=[interp.freeze_pattern()]).logits, plain)


def test_freezing_at_another_batchs_patterns() -> None:
    other = batch_of([[9, 1, 9, 1], [2, 2, 3, 3]])
    theirs = read([], At("pattern"), other)
    for source in (other, interp.run(GPT2, other, read=[At("pattern")], kernels="eager")):
        assert torch.equal(read([interp.freeze_pattern(At("pattern", 1), source)], At("pattern", 1)), theirs[1])
    half = read([interp.freeze_pattern(At("pattern", 1, pos=slice(2, None)), other)], At("pattern", 1))
    assert torch.equal(half[:, :, 2:], theirs[1][:, :, 2:])
    assert torch.equal(half[:, :, :2], read([], At("pattern", 1))[:, :, :2])
    with pytest.raises(BadInput, match=r"freeze_pattern: .*unequal lengths"):
        read([interp.freeze_pattern(At("pattern"), batch_of([[1, 2], [3, 4]]))], At("z"))


def test_redistribute_moves_a_share_in_proportion() -> None:
    made = on_map(interp.redistribute(At("pattern", 0), 0, 0.5), PATTERN)
    # row 2: 0.25 of 0.5 goes to 0.3 and 0.2 in the ratio 3 : 2; row 0: nobody could receive
    wanted = [[[[1.0, 0.0, 0.0], [0.125, 0.875, 0.0], [0.25, 0.45, 0.3]]]]
    torch.testing.assert_close(made, torch.tensor(wanted))
    named = on_map(interp.redistribute(At("pattern", 0), 0, 1.0, to=2), PATTERN)
    torch.testing.assert_close(named[0, 0, 2], torch.tensor([0.0, 0.3, 0.7]))
    assert torch.equal(on_map(interp.redistribute(At("pattern", 0), 0, 0.0), PATTERN), PATTERN)


def test_redistribution_keeps_row_sums_and_the_ratios_among_those_who_receive() -> None:
    pattern = torch.rand(2, 3, 5, 5).tril()
    pattern = 0.7 * pattern / pattern.sum(-1, keepdim=True)  # a sink holds the rest
    giving = torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    giving[0, ..., 0], giving[1, ..., 2] = True, True
    receiving = ~giving
    receiving[..., 4] = False
    made = redistribute_mass(pattern, giving, receiving, 0.3)
    torch.testing.assert_close(made.sum(-1), pattern.sum(-1))
    stays = (~giving & ~receiving).expand_as(pattern)
    assert torch.equal(made[stays], pattern[stays])
    possible = (pattern * receiving).sum(-1, keepdim=True) > 0
    gave = (giving & possible).expand_as(pattern)
    torch.testing.assert_close(made[gave], 0.7 * pattern[gave])
    ratio = (made / pattern).masked_fill(~(receiving.expand_as(pattern) & (pattern > 0)), math.nan)
    low = ratio.nan_to_num(nan=math.inf).amin(-1)
    high = ratio.nan_to_num(nan=-math.inf).amax(-1)
    there = high > 0
    torch.testing.assert_close(low[there], high[there])


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interp.to_identity(At("pattern"), 1.5), r"strength lies in \[0, 1\]"),
        (lambda: interp.to_identity(At("pattern", stack="cross"), 0.5), "cross-attention has no identity map"),
        (lambda: interp.sharpen(At("scores"), 0.0), "temperature must be positive"),
        (lambda: interp.redistribute(At("pattern"), 0, 1.2), r"budget=1\.2, expected a share in \[0, 1\]"),
        (lambda: interp.uniform(At("q", 0)), "uniform works at Site.PATTERN, not at Site.Q"),
        (lambda: interp.set_pattern(At("scores", 0), 1.0), "set_pattern works at Site.PATTERN"),
        (lambda: interp.knockout(0, 0, heads=(1, 1)), "names the same head twice"),
        (lambda: interp.knockout(0, 0, layers=()), "an empty list"),
    ],
)
def test_bad_settings_are_refused_where_the_edit_is_made(make: Callable[[], Edit], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (interp.knockout(7, 0), "Position 7 is outside the shortest prompt, which has 4 tokens"),
        (interp.knockout(0, -5), "Position -5 is outside"),
        (interp.knockout("subject", 0), "Unknown span 'subject'. Known: none. Name spans with encode"),
        (interp.knockout(0, "subject"), "Unknown span 'subject'"),
        (interp.boost(At("scores"), 4, 1.0), "Position 4 is outside"),
        (interp.redistribute(At("pattern"), 0, 0.5, to=9), "Position 9 is outside"),
        (
            interp.knockout(torch.tensor([[4]]), None),
            "Columns from 4 to 4 were given, but the prompts have columns 0 to 3",
        ),
        (interp.knockout(None, torch.tensor([[-1]])), "Columns from -1 to -1"),
        (
            interp.knockout(torch.ones(2, 3, dtype=torch.bool), None),
            r"A mask of shape \[2, 3\] was given, expected \[2, 4\]",
        ),
        (interp.knockout(torch.ones(3, 4, dtype=torch.bool), None), r"A mask of shape \[3, 4\]"),
        (interp.knockout(torch.ones(3, 1, dtype=torch.long), None), r"Columns of shape \[3, 1\]"),
        (interp.knockout(1.5, None), "1.5 is not a group of positions"),
        (interp.knockout(None, None, layers=9), "Layer 9 is not there: stack 'text' has 3 layers"),
        (interp.knockout(None, None, heads=2), "Head 2 is not there: layer 0 of stack 'text' has 2 query heads"),
        (interp.knockout(None, None, stack="vision"), "Unknown stack 'vision'"),
    ],
)
def test_groups_outside_the_prompt_are_refused_before_any_forward(edit: Edit, message: str) -> None:
    calls: list[int] = []
    handle = GPT2.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises((BadAddress, BadInput), match=message):
            interp.run(GPT2, PROMPTS, edits=[edit])
    finally:
        handle.remove()
    assert not calls


def test_edits_of_one_window_leave_the_kernels_of_other_layers() -> None:
    run = interp.run(GPT2, PROMPTS, edits=[interp.knockout(3, 0, layers=(0, 1))])
    assert run.kernels == {("text", 0): "eager", ("text", 1): "eager", ("text", 2): "sdpa"}
    assert interp.run(GPT2, PROMPTS, read=[At(Site.PATTERN)]).kernels == {("text", layer): "sdpa" for layer in range(3)}
