"""Pruning curves: by paper on models whose heads add up, against loops of single runs, and against random rankings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from sum_of_heads import prompts, sum_of_heads
from torch import Tensor

import interp
from interp import At, BadInput, Batch, Head, HeadScores, Model, Site
from interp.attribution.curve import area, step_counts
from interp.attribution.halves import halves
from interp.attribution.pruning import PruningCurve, pruning_curve

STRENGTHS = np.array([[0.5, -1.0, 4.0, 2.0, 0.0, 1.0], [3.0, -0.25, 0.75, 5.0, 0.1, -2.0]])
TINY = tiny_gpt2()
TINY_HEADS = TINY.heads()


@pytest.fixture(scope="module")
def added() -> Model:
    return sum_of_heads(STRENGTHS.tolist())


@pytest.fixture(scope="module")
def handmade() -> Model:
    return interp.load("handmade")


def tiny_batch(rows: int = 4, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 13, (rows, 5), generator=generator)
    return interp.encode(TINY, ids, answers=[(2, 3)] * rows)


def of_strengths() -> HeadScores:
    return HeadScores.from_array(STRENGTHS, name="strength", quantity="contribution", sense=1)


def brute(batch: Batch, edits: list[Any], metric: Any = interp.logit_difference, model: Model = TINY) -> np.ndarray:
    logits = interp.run(model, batch, edits=edits).logits
    assert logits is not None
    return metric(logits, batch).detach().double().numpy()


# ---- on paper -------------------------------------------------------------------------------------------------------


def test_a_sum_of_heads_prunes_along_the_partial_sums(added: Model) -> None:
    batch, weights = prompts(added)
    curve = pruning_curve(added, batch, of_strengths(), steps=12, random=0)
    ascending = np.sort(STRENGTHS.ravel())
    left = STRENGTHS.sum() - np.concatenate([[0.0], np.cumsum(ascending)])
    np.testing.assert_allclose(curve.values, left[:, None] * np.array(weights), atol=2e-4)
    assert curve.kept.tolist() == list(range(12, -1, -1)) and curve.share[0] == 1.0
    assert [STRENGTHS[head.layer, head.index] for head in curve.order] == ascending.tolist()
    by_hand = np.mean(weights) * (left[:-1] + left[1:]).sum() / 2 / 12
    assert curve.area.mean == pytest.approx(by_hand, rel=1e-4)


def test_most_important_first_and_absolute_importance_turn_the_order(added: Model) -> None:
    batch, _ = prompts(added)
    most = pruning_curve(added, batch, of_strengths(), steps=[12, 0], order="most", random=0)
    assert [STRENGTHS[head.layer, head.index] for head in most.order] == np.sort(STRENGTHS.ravel())[::-1].tolist()
    absolute = pruning_curve(added, batch, of_strengths(), steps=[12, 0], by="abs", random=0)
    assert [abs(STRENGTHS[h.layer, h.index]) for h in absolute.order] == sorted(np.abs(STRENGTHS.ravel()))


def test_an_effect_of_a_metric_to_be_minimised_ranks_the_same_heads(added: Model) -> None:
    def negative(logits: Tensor, batch: Batch) -> Tensor:
        return -interp.logit_difference(logits, batch)

    negative.sense = -1  # type: ignore[attr-defined]
    batch, _ = prompts(added)
    effects = HeadScores.from_array(STRENGTHS, name="zero", quantity="effect", sense=1)  # of the negative metric
    curve = pruning_curve(added, batch, effects, metric=negative, steps=12, random=25)
    plain = pruning_curve(added, batch, of_strengths(), steps=12, random=25)
    np.testing.assert_allclose(curve.values, -plain.values, atol=1e-5)
    assert curve.order == plain.order and curve.p == plain.p == pytest.approx(1 / 26)
    assert curve.lead.mean == pytest.approx(plain.lead.mean, rel=1e-5) and curve.lead.low > 0


def test_the_best_heads_of_each_layer_are_kept(added: Model) -> None:
    batch, _ = prompts(added)
    curve = pruning_curve(added, batch, of_strengths(), keep_per_layer=1, steps=10, random=3)
    assert curve.kept.tolist() == list(range(12, 1, -1)) and len(curve.order) == 10
    assert {Head(0, 2), Head(1, 3)}.isdisjoint(curve.order)
    with pytest.raises(BadInput, match=r"numbers of heads from 2 to 12"):
        pruning_curve(added, batch, of_strengths(), keep_per_layer=1, steps=[12, 1], random=0)


def test_rescaling_multiplies_the_heads_that_stay(added: Model) -> None:
    batch, weights = prompts(added)
    order = [Head(0, 0), Head(0, 1), Head(0, 2), Head(1, 3)]
    curve = pruning_curve(added, batch, order, steps=[4, 0], rescale=True, random=0)
    expected = 2.0 * STRENGTHS[0, 3:].sum() + 6 / 5 * (STRENGTHS[1].sum() - STRENGTHS[1, 3])
    np.testing.assert_allclose(curve.values[-1], expected * np.array(weights), atol=2e-4)


def test_handmade_stands_until_its_one_path_is_cut(handmade: Model) -> None:
    ids = [[0, 3, 4, 3], [0, 5, 6, 5], [0, 7, 8, 7], [0, 9, 4, 9]]
    batch = interp.encode(handmade, ids, answers=[(4, 5), (6, 4), (8, 5), (4, 6)])
    curve = pruning_curve(handmade, batch, "zero", steps=4, random=0)
    assert curve.values.mean(1).round(2).tolist() == [10.0, 10.0, 10.0, 0.0, 0.0]
    assert set(curve.order[:2]) == {Head(0, 1), Head(1, 1)}
    assert curve.values.shape[1] == 2 and curve.metadata["disjoint"] is True


def test_recomputing_keeps_one_of_two_twins() -> None:
    """Each twin alone looks idle, so one ranking may take both; ranked anew, the second one is known to matter."""
    model = interp.load("twins")
    ids = [[0, word, 5, 6] for word in (7, 8, 9, 10)]
    batch = interp.encode(model, ids, answers=[(word, 5) for word in (7, 8, 9, 10)])
    once = pruning_curve(model, batch, "zero", steps=3, random=0)
    again = pruning_curve(model, batch, "zero", steps=3, random=0, recompute=True)
    # ties go by index: the twins L0.H0 and L0.H1 come before the idle L0.H2
    assert once.values.mean(1).round(2).tolist() == [10.0, 10.0, 0.0, 0.0]
    assert again.values.mean(1).round(2).tolist() == [10.0, 10.0, 10.0, 0.0]
    assert again.order == (Head(0, 0), Head(0, 2), Head(0, 1)) and again.name == "zero, recomputed by removal"


# ---- against loops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", ["zero", "mean", "resample", "uniform"])
def test_every_point_equals_a_run_of_its_own(replacement: str) -> None:
    batch, reference = tiny_batch(), tiny_batch(6, seed=5)
    given = reference if replacement in ("mean", "resample") else None
    order = [Head(1, 0), Head(0, 1), Head(2, 1), Head(1, 1), Head(0, 0), Head(2, 0)]
    curve = pruning_curve(TINY, batch, order, steps=6, replacement=replacement, reference=given, random=0, seed=3)
    make = {
        "zero": interp.zero,
        "mean": lambda at: interp.mean(at, reference),
        "resample": lambda at: interp.resample(at, reference, seed=3),
        "uniform": lambda at: interp.uniform(at.with_(site=Site.PATTERN)),
    }[replacement]
    for step in range(7):
        edits = [make(At(Site.Z, layer=head.layer, heads=(head.index,))) for head in order[:step]]
        np.testing.assert_allclose(curve.values[step], brute(batch, edits), atol=1e-5)


def test_without_a_reference_the_mean_is_that_of_the_other_prompts() -> None:
    batch = tiny_batch()
    curve = pruning_curve(TINY, batch, TINY_HEADS, steps=[6, 3], replacement="mean", random=0, batch_size=2)
    edits = [interp.mean(At(Site.Z, layer=head.layer, heads=(head.index,))) for head in TINY_HEADS[:3]]
    np.testing.assert_allclose(curve.values[1], brute(batch, edits), atol=1e-5)


def test_recomputed_exactly_is_greedy_removal() -> None:
    batch, choosing = tiny_batch(), tiny_batch(5, seed=8)
    first = interp.attribute(TINY, choosing, "zero")
    curve = pruning_curve(TINY, batch, first, selection=choosing, steps=6, recompute="removal", random=0)
    gone: list[Head] = []
    while len(gone) < 6:
        left = [head for head in TINY_HEADS if Head(*head) not in gone]
        means = [
            brute(choosing, [interp.zero(At(Site.Z, h.layer, heads=(h.index,))) for h in [*gone, head]]).mean()
            for head in left
        ]
        gone.append(Head(*left[int(np.argmax(means))]))
    assert list(curve.order) == gone


@pytest.mark.parametrize("method", ["gradient", "gate_gradient_abs"])
def test_recomputed_by_slopes_agrees_with_finite_differences(method: str) -> None:
    choosing = tiny_batch(5, seed=8)
    first = interp.HeadScores.from_array(np.arange(6.0).reshape(3, 2), name="by hand", sense=1)
    curve = pruning_curve(TINY, tiny_batch(), first, selection=choosing, steps=6, recompute=method, random=0)
    gone = [Head(0, 0)]
    while len(gone) < 6:
        left = [Head(*head) for head in TINY_HEADS if Head(*head) not in gone]
        zeros = [interp.zero(At(Site.Z, h.layer, heads=(h.index,))) for h in gone]
        slopes = []
        for head in left:
            ends = [
                brute(choosing, [*zeros, interp.scale(At(Site.Z, head.layer, heads=(head.index,)), 1 + step)])
                for step in (-0.01, 0.01)
            ]
            slopes.append((ends[1] - ends[0]) / 0.02)
        importance = [slope.mean() if method == "gradient" else np.abs(slope).mean() for slope in slopes]
        gone.append(left[int(np.argmin(importance))])
    assert list(curve.order) == gone


# ---- random rankings ------------------------------------------------------------------------------------------------


def test_random_rankings_go_through_the_same_procedure_and_depend_on_the_seed_alone(added: Model) -> None:
    batch, weights = prompts(added)
    curve = pruning_curve(added, batch, of_strengths(), steps=12, random=100, seed=4)
    assert curve.random.shape == (100, 13, 8)
    # one head of twelve goes at each step, whichever it is: the mean over random orders is a straight line
    line = STRENGTHS.sum() * np.arange(12, -1, -1) / 12 * np.mean(weights)
    spread = STRENGTHS.std() * 12**0.5 * np.mean(weights) / 100**0.5
    assert np.abs(curve.random.mean((0, 2)) - line).max() < 4 * spread
    again = pruning_curve(added, batch, of_strengths(), steps=12, random=100, seed=4)
    np.testing.assert_array_equal(again.random, curve.random)
    assert not np.array_equal(pruning_curve(added, batch, of_strengths(), random=5, seed=5).random, curve.random[:5])


def test_a_random_ranking_is_not_told_apart_from_random_rankings(added: Model) -> None:
    batch, _ = prompts(added)
    generator = np.random.default_rng(0)
    found = []
    for draw in range(30):
        nonsense = HeadScores.from_array(generator.normal(size=(2, 6)), name="nonsense", sense=1)
        found.append(pruning_curve(added, batch, nonsense, steps=3, random=20, seed=draw).p)
    share = np.mean(np.array(found, dtype=float) <= 0.1)
    assert share <= 0.3 and np.mean(np.array(found, dtype=float)) > 0.35  # uniform: 0.1 and 0.5


def test_no_p_from_fewer_than_twenty_orders(added: Model) -> None:
    batch, _ = prompts(added)
    curve = pruning_curve(added, batch, of_strengths(), steps=2, random=10)
    assert curve.p is None and "too few for a p-value" in str(curve)
    without = pruning_curve(added, batch, of_strengths(), steps=2, random=0)
    assert without.table()["random"].isna().all()
    with pytest.raises(BadInput, match="no random orders"):
        _ = without.lead


# ---- prompts, tables, files -----------------------------------------------------------------------------------------


def test_heads_are_tested_on_prompts_that_did_not_choose_them(added: Model) -> None:
    batch, weights = prompts(added)
    first, second, first_labels, labels, *_ = halves(batch, cluster=list("aabbccdd"), seed=0)
    assert not set(first.content_keys.tolist()) & set(second.content_keys.tolist())
    assert first_labels and labels and not set(first_labels) & set(labels) and len(labels) == len(second) == 4
    curve = pruning_curve(added, batch, "zero", steps=2, random=0, cluster=list("aabbccdd"))
    np.testing.assert_allclose(curve.values[0], [STRENGTHS.sum() * w for w, name in
                               zip(weights, "aabbccdd", strict=True) if name in labels], atol=2e-4)  # fmt: skip
    assert curve.cluster == labels
    same = pruning_curve(added, batch, of_strengths(), selection=batch.select([3]), steps=2, random=0)
    assert same.metadata["disjoint"] is False and same.values.shape[1] == 8
    with pytest.raises(BadInput, match="one different prompt"):
        pruning_curve(added, batch.select([2, 2]), "zero")


def test_the_table_holds_intervals_and_the_file_holds_all(added: Model, tmp_path: Path) -> None:
    batch, _ = prompts(added)
    curve = pruning_curve(added, batch, of_strengths(), steps=3, random=21, cluster=list("aabbccdd"))
    rows = curve.table()
    assert list(rows.columns) == ["kept", "share", "value", "low", "high", "random", "random_low", "random_high"]
    assert (rows["low"] < rows["value"]).iloc[:-1].all() and (rows["random_low"] <= rows["random_high"]).all()
    back = PruningCurve.open(curve.save(tmp_path / "curve.safetensors"))
    np.testing.assert_array_equal(back.values, curve.values)
    np.testing.assert_array_equal(back.random, curve.random)
    assert (back.order, back.cluster, str(back)) == (curve.order, curve.cluster, str(curve))
    with pytest.raises(BadInput, match="not of a pruning curve"):
        PruningCurve.open(of_strengths().save(tmp_path / "scores.safetensors"))


def test_areas_and_steps_by_hand() -> None:
    assert area(np.array([1.0, 0.5, 0.0]), np.array([4.0, 2.0, 0.0])) == pytest.approx(2.0)
    assert area(np.array([0.0, 0.1, 1.0]), np.array([1.0, 1.0, 3.0])) == pytest.approx(0.1 + 0.9 * 2)
    assert step_counts(3, 4) == [0, 1, 3, 4] and step_counts([1.0, 0.25], 8) == [2, 8]


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"steps": [1.0, 1.5]}, "as shares"),
        ({"steps": [13, 2]}, "numbers of heads from 0 to 12"),
        ({"steps": [3]}, "a curve needs two"),
        ({"replacement": "nought"}, "Unknown replacement 'nought'"),
        ({"replacement": "mean", "rescale": True}, "rescale=True goes with replacement='zero'"),
        ({"recompute": "shapley"}, "Unknown way to recompute a ranking 'shapley'"),
        ({"order": "ascending"}, "Unknown order of removal"),
        ({"by": "size"}, "Unknown order of heads"),
        ({"cluster": ["a"]}, "1 labels for 8 prompts"),
        ({"metric": lambda logits, batch: logits[:, -1, :2]}, "a curve needs one"),
    ],
)
def test_what_cannot_be_is_refused(added: Model, changes: dict[str, Any], message: str) -> None:
    batch, _ = prompts(added)
    with pytest.raises(BadInput, match=message):
        pruning_curve(added, batch, of_strengths(), **{"random": 0, **changes})


def test_strange_rankings_are_refused(added: Model) -> None:
    batch, _ = prompts(added)
    with pytest.raises(BadInput, match=r"L5\.H0 is not in"):
        pruning_curve(added, batch, [Head(5, 0), Head(0, 0)])
    with pytest.raises(BadInput, match="stands twice"):
        pruning_curve(added, batch, [Head(0, 0), Head(0, 0)])
    with pytest.raises(BadInput, match="KV heads"):
        pruning_curve(added, batch, HeadScores.from_array(STRENGTHS, name="kv", unit="kv"))
    with pytest.raises(BadInput, match="no use for it"):
        pruning_curve(added, batch, of_strengths(), reference=batch)


# ---- other stacks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_heads_of_every_stack_take_part(name: str, case_of: Any) -> None:
    """Heads of all stacks in one order, against single runs; a head named by the default stack is the same head."""
    case = case_of(name)
    model, batch = case.model, case.batch()

    def first_logit(logits: Tensor, batch: Batch) -> Tensor:
        return logits[:, -1, 0].double()

    stacks = list(model.stacks)
    order = [Head(*head)._replace(stack=stack) for stack in stacks for head in model.heads(stack)]
    curve = pruning_curve(model, batch, order, metric=first_logit, steps=3, random=2)
    assert {head.stack or model.default_stack for head in curve.order} == set(stacks)
    for step, kept in enumerate(curve.kept):
        edits = [interp.zero(At(Site.Z, h.layer, heads=(h.index,), stack=h.stack)) for h in order[: len(order) - kept]]
        np.testing.assert_allclose(curve.values[step], brute(batch, edits, first_logit, model), atol=2e-5)


def test_a_function_may_rank(added: Model) -> None:
    batch, _ = prompts(added)
    seen: list[int] = []

    def by_direct(chosen: Batch) -> HeadScores:
        seen.append(len(chosen))
        return interp.attribute(added, chosen, "zero")

    curve = pruning_curve(added, batch, by_direct, steps=2, random=0)
    assert seen == [4] and curve.order == pruning_curve(added, batch, "zero", steps=2, random=0).order
    with pytest.raises(BadInput, match="the function gave a list"):
        pruning_curve(added, batch, lambda chosen: [1], steps=2, random=0)  # type: ignore[arg-type, return-value]
