"""Edits of activations on small tensors, and through a tiny model against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from by_hand import apply, batch_of, tiny_gpt2
from torch import Tensor

import interp
from interp import At, BadAddress, BadInput, Batch, Site
from interp.edits.base import Edit

GPT2 = tiny_gpt2()
PROMPTS = batch_of([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
RAGGED = interp.encode(GPT2, [[0, 2, 3, 4], [0, 6], [0, 10, 11]])
LEFT = interp.encode(GPT2, [[0, 2, 3, 4], [0, 6], [0, 10, 11]], padding_side="left")


def read(edits: list[Edit], at: At, batch: Batch = PROMPTS) -> Tensor:
    """What ``at`` sees with ``edits`` in force."""
    return interp.run(GPT2, batch, read=[at], edits=edits)[at]


def forwards(action: Callable[[], Any]) -> int:
    """How often the model ran during ``action``."""
    calls: list[int] = []
    handle = GPT2.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        action()
    finally:
        handle.remove()
    return len(calls)


# ---- zero, gate, scale, add -----------------------------------------------------------------------------------------


def test_zero_is_zero_and_leaves_blocked_scores_blocked() -> None:
    assert torch.equal(apply(interp.zero(At("z", 0)), torch.randn(1, 3, 2, 4)), torch.zeros(1, 3, 2, 4))
    scores = torch.tensor([[[[1.5, -math.inf], [2.0, -3.0]]]])
    assert apply(interp.zero(At("scores", 0)), scores, rows=2).tolist() == [[[[0.0, -math.inf], [0.0, 0.0]]]]


def test_gate_and_scale_multiply_by_hand() -> None:
    x = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
    assert apply(interp.gate(At("z", 0), [0.5, 1.0]), x).tolist() == [[[[0.5, -1.0], [3.0, 4.0]]]]
    assert apply(interp.scale(At("z", 0), by=-2.0), x).tolist() == [[[[-2.0, 4.0], [-6.0, -8.0]]]]
    blocked = torch.tensor([[[[1.0, -math.inf]]]])
    assert apply(interp.scale(At("scores", 0), by=-1.0), blocked, rows=1, keys=2).tolist() == [[[[-1.0, -math.inf]]]]
    assert apply(interp.gate(At("scores", 0), 0.0), blocked, rows=1, keys=2).tolist() == [[[[0.0, -math.inf]]]]


@pytest.mark.parametrize("value", [1.01, -0.01, [0.5, 2.0]])
def test_a_gate_outside_its_range_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"a gate lies in \[0, 1\]\. Use interp\.scale"):
        interp.gate(At("z", 0), value)


def test_scale_of_heads_makes_one_address_per_layer() -> None:
    edit = interp.scale(heads=["L1.H0", (1, 1), "2.0", "vision.L1.H0"], by=2.0)
    assert edit.at == (At("z", 1, heads=(0, 1)), At("z", 2, heads=(0,)), At("z", 1, heads=(0,), stack="vision"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": At("z")}, "by= is missing"),
        ({"by": 1.0}, "give either an address or heads="),
        ({"at": At("z"), "heads": ["0.0"], "by": 1.0}, "give either an address or heads="),
        ({"heads": [], "by": 1.0}, r"heads=\[\] names no head"),
        ({"heads": ["0.0"], "by": [1.0]}, "by= must be one number"),
        ({"heads": ["0.0", "L0.H0"], "by": 1.0}, "names the same head twice"),
    ],
)
def test_scale_refuses_what_it_cannot_mean(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        interp.scale(**arguments)


def test_add_adds_its_vector_by_a_strength() -> None:
    x = torch.zeros(1, 2, 3)
    edit = interp.add(At("resid_post", 0), [1.0, 2.0, 3.0], axes="d_model", by=-2.0)
    assert apply(edit, x, rows=2)[0].tolist() == [[-2.0, -4.0, -6.0]] * 2


@pytest.mark.parametrize(
    "make", [interp.mean, interp.resample, lambda at: interp.add(at, 1.0), lambda at: interp.noise(at, std=1)]
)
@pytest.mark.parametrize("site", ["scores", "pattern"])
def test_edits_of_vectors_are_refused_at_maps(make: Callable[[At], Edit], site: str) -> None:
    with pytest.raises(BadInput, match=f"not at Site.{site.upper()}"):
        make(At(site, 0))


def test_pos_and_heads_bound_an_edit_and_the_rest_keeps_its_bits() -> None:
    plain = read([], At("z", 0), LEFT)
    edited = read([interp.zero(At("z", 0, heads=1, pos=-1))], At("z", 0), LEFT)
    touched = torch.zeros_like(plain, dtype=torch.bool)
    touched[torch.arange(3), [3, 3, 3], 1] = True
    assert torch.equal(edited, plain.masked_fill(touched, 0.0))
    right = read([interp.zero(At("z", 0, heads=1, pos=-1))], At("z", 0), RAGGED)
    assert [right[row, column, 1].abs().sum().item() for row, column in enumerate([3, 1, 2])] == [0.0] * 3
    assert float(right[1, 0, 1].abs().sum()) > 0


def test_edits_at_one_site_apply_in_their_order_and_otherwise_order_is_nothing() -> None:
    at, later = At("z", 0), At("z", 1)
    double, one = interp.scale(at, by=2.0), interp.add(at, 1.0)
    plain = read([], at)
    assert torch.equal(read([double, one], at), plain * 2 + 1)
    assert torch.equal(read([one, double], at), (plain + 1) * 2)
    zero = interp.zero(later)
    a = interp.run(GPT2, PROMPTS, edits=[zero, double]).logits
    assert torch.equal(a, interp.run(GPT2, PROMPTS, edits=[double, zero]).logits)


# ---- noise ----------------------------------------------------------------------------------------------------------


def drawn(edits: list[Edit], batch: Batch, at: At) -> Tensor:
    """What noise added at ``at`` in the last of ``edits``."""
    return read(edits, at, batch) - read(edits[:-1], at, batch)


def test_noise_has_the_mean_and_spread_that_were_asked_for() -> None:
    made = apply(interp.noise(At("resid_pre", 0), std=2.0, seed=3), torch.zeros(8, 100, 64), rows=100, prompts=8) / 2.0
    n = made.numel()
    assert abs(float(made.mean())) < 4 / math.sqrt(n)
    assert abs(float(made.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((made**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    for axis in range(3):  # neighbours along no axis are correlated
        a, b = made.narrow(axis, 0, made.shape[axis] - 1), made.narrow(axis, 1, made.shape[axis] - 1)
        assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())


def test_noise_depends_on_seed_layer_head_and_position() -> None:
    zeros = torch.zeros(1, 3, 2, 4)
    base = apply(interp.noise(At("z", 0), std=1.0, seed=0), zeros)
    assert torch.equal(base, apply(interp.noise(At("z", 0), std=1.0, seed=0), zeros))
    others = [
        apply(interp.noise(At("z", 0), std=1.0, seed=1), zeros),
        apply(interp.noise(At("z", 0), std=1.0, seed=0), zeros, layer=1),
        base.flip(2),
        base.roll(1, 1),
    ]
    assert all(not torch.isclose(base, other).any() for other in others)


def test_one_head_of_the_noise_is_that_head_of_the_whole() -> None:
    whole = apply(interp.noise(At("z", 0), std=1.0), torch.zeros(1, 3, 2, 4))
    one = apply(interp.noise(At("z", 0, heads=1), std=1.0), torch.zeros(1, 3, 1, 4))
    assert torch.equal(one, whole[:, :, 1:])


def test_a_cached_step_draws_what_the_uncached_run_draws() -> None:
    edit = interp.noise(At("z", 0), std=1.0)
    whole = apply(edit, torch.zeros(1, 5, 2, 4), rows=5)
    assert torch.equal(apply(edit, torch.zeros(1, 1, 2, 4), rows=1, first=4), whole[:, 4:])


def test_batch_order_batch_size_and_padding_change_no_draw() -> None:
    at = At("z", 0)
    edit = interp.noise(at, std=1.0, seed=5)
    base = drawn([edit], PROMPTS, at)
    order = [2, 0, 1]
    torch.testing.assert_close(drawn([edit], PROMPTS.select(order), at), base[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(drawn([edit], PROMPTS.select([1]), at), base[1:2], atol=1e-5, rtol=0)
    right, left = drawn([edit], RAGGED, at), drawn([edit], LEFT, at)
    alone = drawn([edit], interp.encode(GPT2, [[0, 6]]), at)
    torch.testing.assert_close(right[1, :2], alone[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(left[1, 2:], alone[0], atol=1e-5, rtol=0)


def test_other_edits_in_the_list_change_no_draw_but_a_second_noise_there_is_another() -> None:
    at = At("z", 1)
    edit = interp.noise(at, std=1.0)
    base = drawn([edit], PROMPTS, at)
    for before in ([interp.scale(At("z", 2), by=1.0)], [interp.noise(At("z", 2), std=1.0)], [interp.scale(at, by=1.0)]):
        torch.testing.assert_close(drawn([*before, edit], PROMPTS, at), base, atol=1e-5, rtol=0)
    twice = drawn([edit, edit], PROMPTS, at)
    assert not torch.isclose(twice, base, atol=1e-3).all()


def test_prompts_that_differ_draw_differently_and_equal_prompts_alike() -> None:
    made = drawn([interp.noise(At("z", 0), std=1.0)], batch_of([[1, 2, 3], [1, 2, 4], [1, 2, 3]]), At("z", 0))
    assert not torch.isclose(made[0], made[1], atol=1e-3).any()
    torch.testing.assert_close(made[0], made[2], atol=1e-6, rtol=0)


def test_noise_of_no_spread_is_exactly_nothing() -> None:
    x = torch.randn(1, 3, 2, 4)
    assert torch.equal(apply(interp.noise(At("z", 0), std=0.0), x), x)


@pytest.mark.parametrize(
    ("std", "seed"), [(-1.0, 0), (math.nan, 0), (math.inf, 0), ("1", 0), (True, 0), (1.0, 0.5), (1.0, 2**64)]
)
def test_noise_refuses_bad_spreads_and_seeds(std: Any, seed: Any) -> None:
    with pytest.raises(BadInput, match=r"noise: (std|seed)="):
        interp.noise(At("z", 0), std=std, seed=seed)


# ---- mean -----------------------------------------------------------------------------------------------------------


def test_mean_by_position_is_the_mean_over_the_reference_at_each_position() -> None:
    reference = batch_of([[3, 1, 4, 1], [5, 9, 2, 6]])
    wanted = read([], At("z", 1), reference).mean(0)
    made = read([interp.mean(At("z", 1), reference)], At("z", 1))
    torch.testing.assert_close(made, wanted.expand(3, -1, -1, -1))


def test_mean_over_positions_leaves_out_padding_and_bos() -> None:
    reference = interp.encode(GPT2, [[0, 3, 1], [0, 5, 9, 2, 6]], padding_side="left")
    z = read([], At("z", 1), reference)
    model = interp.load(GPT2.hf, tokenizer=_Bos(), check=False)
    with_bos = interp.encode(
        model, torch.tensor([[0, 3, 1, 0, 0], [0, 5, 9, 2, 6]]), mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    )
    assert with_bos.bos == 0
    rows = [z[0, 3], z[0, 4], z[1, 1], z[1, 2], z[1, 3], z[1, 4]]  # five columns, the first two of prompt 0 are padding
    wanted = torch.stack(rows).mean(0)
    made = interp.run(GPT2, PROMPTS, read=[At("z", 1)], edits=[interp.mean(At("z", 1), with_bos)])[At("z", 1)]
    torch.testing.assert_close(made, wanted.expand(3, 4, -1, -1), atol=1e-5, rtol=1e-4)


class _Bos:
    """As much of a tokenizer as a batch of ids asks for."""

    bos_token_id = 0
    pad_token_id = 0

    def decode(self, ids: list[int]) -> str:
        return str(ids[0])


def test_without_a_reference_each_prompt_gets_the_mean_of_the_others() -> None:
    z = read([], At("z", 1))
    edit = interp.mean(At("z", 1))
    assert edit.name == "mean-self"
    made = read([edit], At("z", 1))
    for prompt in range(3):
        others = torch.stack([z[other] for other in range(3) if other != prompt]).mean(0)
        torch.testing.assert_close(made[prompt], others)


def test_without_a_reference_and_with_unequal_lengths_the_others_positions_are_pooled() -> None:
    z = read([], At("z", 1), RAGGED)
    made = read([interp.mean(At("z", 1))], At("z", 1), RAGGED)
    lengths = [4, 2, 3]
    for prompt in range(3):
        rows = [z[other, column] for other in range(3) if other != prompt for column in range(lengths[other])]
        torch.testing.assert_close(made[prompt], torch.stack(rows).mean(0).expand(4, -1, -1))


def test_mean_at_one_position_takes_that_position_of_the_reference() -> None:
    z = read([], At("z", 1))
    made = read([interp.mean(At("z", 1, heads=1, pos=2), PROMPTS)], At("z", 1))
    wanted = z.clone()
    wanted[:, 2, 1] = z[:, 2, 1].mean(0)
    torch.testing.assert_close(made, wanted)


def test_mean_of_several_layers_takes_each_layer_from_an_unedited_run() -> None:
    z = read([], At("z"))
    made = read([interp.mean(At("z"), PROMPTS)], At("z"))
    torch.testing.assert_close(made, z.mean(1, keepdim=True).expand_as(z))


def test_mean_at_spans_of_other_lengths_is_pooled() -> None:
    spans = {"late": RAGGED.mask & (torch.arange(4) > 0)}
    batch = interp.encode(GPT2, [[0, 2, 3, 4], [0, 6], [0, 10, 11]], spans=spans)
    z = read([], At("z", 0), batch)
    made = read([interp.mean(At("z", 0, pos="late"), PROMPTS)], At("z", 0), batch)
    pooled = read([], At("z", 0)).mean((0, 1))
    wanted = torch.where(spans["late"][:, :, None, None], pooled.expand_as(z), z)
    torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize(
    ("edit", "batch", "message"),
    [
        (interp.mean(At("z", 0)), PROMPTS.select([0]), "one prompt has no others to average over; give reference="),
        (interp.mean(At("z", 0), RAGGED, positions=True), PROMPTS, "positions=True needs prompts of one length"),
        (interp.resample(At("z", 0)), PROMPTS.select([0]), "one prompt has no other to draw from; give source="),
        (interp.resample(At("z", 0), RAGGED), PROMPTS, "unequal lengths"),
    ],
)
def test_means_and_draws_that_cannot_be_are_refused_before_any_forward(edit: Edit, batch: Batch, message: str) -> None:
    def ask() -> None:
        with pytest.raises(BadInput, match=message):
            interp.run(GPT2, batch, edits=[edit])

    assert forwards(ask) == 0


# ---- resample -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_resample_gives_every_prompt_another_ones_and_each_once(seed: int) -> None:
    z = read([], At("z", 0))
    made = read([interp.resample(At("z", 0), seed=seed)], At("z", 0))
    donors = [[torch.equal(made[i], z[j]) for j in range(3)].index(True) for i in range(3)]
    assert sorted(donors) == [0, 1, 2]
    assert all(donor != prompt for prompt, donor in enumerate(donors))
    assert torch.equal(made, read([interp.resample(At("z", 0), seed=seed)], At("z", 0)))


def test_resample_draws_differ_between_seeds_and_are_shared_between_layers() -> None:
    z = read([], At("z"))
    draws = set()
    for seed in range(8):
        made = read([interp.resample(At("z"), seed=seed)], At("z"))
        donors = tuple(
            tuple([torch.equal(made[layer, i], z[layer, j]) for j in range(3)].index(True) for i in range(3))
            for layer in range(3)
        )
        assert len(set(donors)) == 1  # one donor stands for a prompt in every layer
        draws.add(donors[0])
    assert draws == {(1, 2, 0), (2, 0, 1)}  # both cycles of three


def test_resample_from_a_source_takes_whole_prompts_of_it() -> None:
    source = batch_of([[2, 2, 2, 2], [7, 7, 7, 7]])
    theirs = read([], At("z", 0), source)
    made = read([interp.resample(At("z", 0), source, seed=1)], At("z", 0))
    assert all(any(torch.equal(made[i], theirs[j]) for j in range(2)) for i in range(3))


# ---- patch ----------------------------------------------------------------------------------------------------------

CLEAN = batch_of([[2, 4, 6, 8], [1, 3, 5, 7], [3, 3, 3, 3]])


def test_patching_the_last_residual_gives_the_sources_logits() -> None:
    wanted = interp.run(GPT2, CLEAN).logits
    for source in (CLEAN, interp.run(GPT2, CLEAN, read=[At("resid_post", 2)])):
        assert torch.equal(interp.run(GPT2, PROMPTS, edits=[interp.patch(At("resid_post", 2), source)]).logits, wanted)


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out", "q", "k", "v", "scores", "pattern", "result"])
def test_a_patch_with_its_own_value_changes_no_bit(site: str) -> None:
    at = At(site, (0, 2))
    edited = interp.run(GPT2, PROMPTS, edits=[interp.patch(at, PROMPTS)])
    plain = interp.run(GPT2, PROMPTS, kernels=edited.kernels)
    assert torch.equal(edited.logits, plain.logits)


def test_patching_heads_and_positions_moves_these_alone() -> None:
    ours, theirs = read([], At("z", 1)), read([], At("z", 1), CLEAN)
    wanted = ours.clone()
    wanted[:, 3, 1] = theirs[:, 3, 1]
    at = At("z", 1, heads=1, pos=-1)
    for source in (CLEAN, interp.run(GPT2, CLEAN, read=[At("z")]), theirs[:, 3:, 1:]):
        assert torch.equal(read([interp.patch(at, source)], At("z", 1)), wanted)


def test_patching_between_layers_and_positions() -> None:
    theirs = read([], At("resid_post", 0), CLEAN)
    edit = interp.patch(At("resid_pre", 2, pos=0), CLEAN, source_at=At("resid_post", 0, pos=2))
    made = read([edit], At("resid_pre", 2))
    assert torch.equal(made[:, 0], theirs[:, 2])
    assert torch.equal(made[:, 1:], read([], At("resid_pre", 2))[:, 1:])


def test_columns_are_patched_in_the_order_they_are_given() -> None:
    columns = torch.tensor([[3, 0], [1, 2], [2, 1]])
    theirs = read([], At("z", 0, pos=columns), CLEAN)
    ours = read([], At("z", 0))
    wanted = ours.clone()
    for prompt in range(3):
        for place in range(2):
            wanted[prompt, columns[prompt, place]] = theirs[prompt, place]
    assert torch.equal(read([interp.patch(At("z", 0, pos=columns), CLEAN)], At("z", 0)), wanted)
    assert torch.equal(read([interp.patch(At("z", 0, pos=columns), theirs)], At("z", 0)), wanted)
    everything = torch.tensor([[3, 2, 1, 0]])  # as many as there are columns, in another order
    backwards = ours.flip(1)
    assert torch.equal(read([interp.patch(At("z", 0, pos=everything), ours)], At("z", 0)), backwards)


def test_a_span_of_one_length_is_patched_where_it_stands_in_each_prompt() -> None:
    spans = {"pair": torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)}
    target = batch_of([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], spans=spans)
    theirs = read([], At("z", 0, pos=slice(0, 2)), CLEAN)
    made = read(
        [interp.patch(At("z", 0, pos="pair"), CLEAN, source_at=At("z", 0, pos=slice(0, 2)))], At("z", 0), target
    )
    wanted = read([], At("z", 0), target).clone()
    for prompt in range(3):
        wanted[prompt, prompt : prompt + 2] = theirs[prompt]
    assert torch.equal(made, wanted)


def test_patching_by_the_last_position_of_prompts_of_unequal_length() -> None:
    other = interp.encode(GPT2, [[0, 3], [0, 5, 9], [0, 1, 1, 1]])
    theirs, ours = read([], At("z", 0), other), read([], At("z", 0), RAGGED)
    made = read([interp.patch(At("z", 0, pos=-1), other)], At("z", 0), RAGGED)
    wanted = ours.clone()
    for prompt, (mine, his) in enumerate(zip([3, 1, 2], [1, 2, 3], strict=True)):
        wanted[prompt, mine] = theirs[prompt, his]
    assert torch.equal(made, wanted)


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        (RAGGED, {}, "unequal lengths"),
        (PROMPTS.select([0, 1]), {}, "2 source prompts for 3 prompts; expected as many, or one"),
        (torch.zeros(3, 3, 2, 4), {}, "has 3 along 'pos' at .*, expected 4 or 1"),
        (torch.zeros(2, 4, 2, 4), {}, "has 2 along 'batch' at .*, expected 3 or 1"),
        (torch.zeros(3, 4, 1, 4), {}, "has 1 along 'head' at .*, expected 2"),
        (torch.zeros(4, 2, 4), {}, "expected the axes batch pos head d_head"),
        (PROMPTS, {"source_at": At("z", 0, pos=slice(0, 2))}, "has 2 along 'pos' at .*, expected 4 or 1"),
        (5, {}, "source is a int; expected a Run, a Batch or a tensor"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_before_the_edited_run(
    source: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        interp.run(GPT2, PROMPTS, edits=[interp.patch(At("z", 1), source, **more)])


def test_a_patch_from_a_run_that_read_something_else_says_what_it_read() -> None:
    run = interp.run(GPT2, CLEAN, read=[At("z", 0)])
    with pytest.raises(KeyError, match=r"At\(Site.Z, layer=1\) was not read. Read: At\(Site.Z, layer=0\)"):
        interp.run(GPT2, PROMPTS, edits=[interp.patch(At("z", 1), run)])


def test_one_source_prompt_serves_all() -> None:
    made = read([interp.patch(At("z", 1), torch.ones(1, 4, 2, 4))], At("z", 1))
    assert torch.equal(made, torch.ones_like(made))


# ---- custom ---------------------------------------------------------------------------------------------------------


def test_custom_sees_the_addressed_heads_and_what_was_read_before() -> None:
    seen: list[tuple[Any, ...]] = []

    def halve(x: Tensor, ctx: interp.edits.Context) -> Tensor:  # type: ignore[name-defined]
        pattern = ctx.reads[At("pattern", 0)]
        seen.append(
            (tuple(x.shape), tuple(pattern.shape), ctx.layer, ctx.step, ctx.phase, ctx.rows.tolist(), ctx.batch)
        )
        return x * pattern[:, 0, :, 0][:, :, None, None]

    edit = interp.custom(At("z", 1, heads=1), halve, reads=[At("pattern", 0)])
    run = interp.run(GPT2, PROMPTS, read=[At("z", 1), At("pattern", 0)], edits=[edit])
    assert seen == [((3, 4, 1, 4), (3, 2, 4, 4), 1, 0, "prefill", [0, 1, 2, 3], PROMPTS)]
    plain = interp.run(GPT2, PROMPTS, read=[At("z", 1)], kernels=run.kernels)[At("z", 1)]
    wanted = plain.clone()
    wanted[:, :, 1] *= run[At("pattern", 0)][:, 0, :, :1]
    torch.testing.assert_close(run[At("z", 1)], wanted)


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ([At("z", 1)], "comes later in the forward"),
        ([At("resid_post", 1)], "comes later in the forward"),
        ([At("z", 2)], "comes later in the forward"),
        ([At("z")], "must name one layer"),
        ([At("z", (0,))], "must name one layer"),
        ([At("z", 0, pos=-1)], "leave pos= out and slice it"),
        ([At("z", 9)], "Layer 9 is not there"),
    ],
)
def test_reads_that_come_too_late_or_name_no_one_tensor_are_refused(reads: list[At], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        interp.run(GPT2, PROMPTS, edits=[interp.custom(At("z", 1), lambda x, ctx: x, reads=reads)])


@pytest.mark.parametrize(
    ("fn", "came"),
    [
        (lambda x, ctx: x[:, :1], r"torch.float32 \[3, 1, 2, 4\]"),
        (lambda x, ctx: x.double(), r"torch.float64 \[3, 4, 2, 4\]"),
        (lambda x, ctx: None, "NoneType"),
    ],
)
def test_a_function_that_returns_something_else_is_named(fn: Any, came: str) -> None:
    with pytest.raises(BadInput, match=rf"mine at .* returned {came}, expected torch.float32 \[3, 4, 2, 4\]"):
        interp.run(GPT2, PROMPTS, edits=[interp.custom(At("z", 1), fn, name="mine")])


def test_an_error_inside_a_function_says_where_it_was() -> None:
    def fail(x: Tensor, ctx: Any) -> Tensor:
        raise ZeroDivisionError("by hand")

    with pytest.raises(ZeroDivisionError) as caught:
        interp.run(GPT2, PROMPTS, edits=[interp.custom(At("z", 1), fail)])
    assert any("at layer 1 of stack 'text'" in note for note in caught.value.__notes__)
    assert torch.equal(interp.run(GPT2, PROMPTS).logits, GPT2.hf(**PROMPTS.inputs).logits)


# ---- phases, dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prompt", None, "Decode"])
def test_an_unknown_phase_is_refused(phase: Any) -> None:
    with pytest.raises(BadInput, match="expected 'prefill', 'decode' or 'both'"):
        interp.zero(At("z"), phase=phase)
    with pytest.raises(BadInput, match="expected 'prefill', 'decode' or 'both'"):
        interp.zero(At("z")).with_phase(phase)


def test_a_phase_is_by_query_position() -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    rows: dict[str, list[int]] = {}
    for phase in ("prefill", "decode", "both"):
        batch = interp.encode(GPT2, ids)
        with interp.edited(GPT2, [interp.zero(At("z", 0), phase=phase)], batch=batch, prompt=3) as hf:  # type: ignore[arg-type]
            taken: list[Tensor] = []
            out = GPT2.stack().layer(0).out
            handle = out.register_forward_pre_hook(lambda module, args, taken=taken: taken.append(args[0]))
            hf(ids)
            handle.remove()
        rows[phase] = (taken[0][0].abs().sum(-1) == 0).nonzero()[:, 0].tolist()
    assert rows == {"prefill": [0, 1, 2], "decode": [3], "both": [0, 1, 2, 3]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_edits_keep_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = tiny_gpt2(dtype=dtype)
    batch = interp.encode(model, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    every: list[Callable[[], Edit]] = [
        lambda: interp.mean(At("z")),
        lambda: interp.noise(At("z"), std=0.1),
        lambda: interp.gate(At("z"), torch.rand(2, 3, 2)),
        lambda: interp.add(At("resid_post", 0), torch.ones(8), axes="d_model"),
        lambda: interp.resample(At("z")),
        lambda: interp.uniform(At("pattern")),
        lambda: interp.knockout(slice(1, None), 0),
        lambda: interp.sharpen(At("scores"), 0.5),
        lambda: interp.boost(At("scores"), 0, 1.0),
        lambda: interp.to_identity(At("pattern"), 0.5),
        lambda: interp.redistribute(At("pattern"), 0, 0.5),
        interp.freeze_pattern,
        lambda: interp.patch(At("z"), batch),
    ]
    for make in every:
        run = interp.run(model, batch, read=[At("z"), At("pattern")], edits=[make()])
        assert run.logits is not None and run.logits.dtype == dtype
        assert run[At("z")].dtype == run[At("pattern")].dtype == dtype
        assert not torch.equal(run.logits, interp.run(model, batch).logits) or make().name in (
            "patch",
            "freeze_pattern",
        )


def test_the_mean_in_double_precision_is_taken_in_double_precision() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = interp.encode(model, PROMPTS.ids)
    z = interp.run(model, batch, read=[At("z", 0)])[At("z", 0)]
    made = interp.run(model, batch, read=[At("z", 0)], edits=[interp.mean(At("z", 0), batch)])[At("z", 0)]
    torch.testing.assert_close(made[0], z.mean(0), atol=1e-14, rtol=1e-13)


def test_what_is_no_edit_is_refused() -> None:
    with pytest.raises(BadInput, match=r"is a At; expected edits such as interp\.zero"):
        interp.run(GPT2, PROMPTS, edits=[At("z")])  # type: ignore[list-item]


def test_a_position_outside_the_shortest_prompt_is_refused_before_the_run() -> None:
    def ask() -> None:
        with pytest.raises(BadAddress, match="Position 2 is outside the shortest prompt, which has 2 tokens"):
            interp.run(GPT2, RAGGED, edits=[interp.zero(At("z", 0, pos=2))])

    assert forwards(ask) == 0


def test_every_site_that_edits_name_is_a_site() -> None:
    assert {edit.at[0].site for edit in (interp.zero("blocks.1.attn.hook_z"), interp.zero(Site.Z))} == {Site.Z}
