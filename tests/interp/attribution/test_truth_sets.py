"""Pairs, Shapley values, pruning, weakening and greedy search on models worked out on paper.

The derivations stand in the docstrings of ``interp.zoo.handmade``, ``twins``, ``backup``, ``interferer``, ``and_or``
and, where a test needs more, in its own. Where single heads say nothing, sets do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from known_circuits import Scene, agrees, answered, attribute, first_words, four_words, handmade

import interp
from interp import Head, Model
from interp.attribution.greedy import greedy_heads
from interp.attribution.pruning import pruning_curve
from interp.attribution.weakening import weakening_curves

H00, H01, H02, H03, H10 = "L0.H0", "L0.H1", "L0.H2", "L0.H3", "L1.H0"
STRENGTHS = (3.0, -1.0, 0.0)


def scene_of(name: str) -> Scene:
    if name in ("twins", "backup"):
        return first_words(name)
    return {"handmade": handmade, "interferer": answered, "and_or": four_words}[name]()


def interactions(scene: Scene, side: str = "clean", method: str = "zero", **asked: Any) -> dict[tuple[str, str], float]:
    """Pair of heads -> interaction, of all pairs of the model, where it is not 0."""
    found = interp.head_pairs(scene.model, getattr(scene, side), scene.model.heads(), method, **asked)
    assert np.allclose(found.interaction, found.interaction[:1], atol=1e-4), "the prompts are alike"
    rows = found.table()
    return {(row.first, row.second): row.value for row in rows.itertuples() if abs(row.value) > 1e-4}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("handmade", {(H00, H10): 10}),
        ("twins", {(H00, H01): -10}),
        ("backup", {(H00, H10): -10}),
        ("interferer", {}),
        ("and_or", {(H00, H01): 8, (H02, H03): -8}),
    ],
)
def test_pairs(name: str, wanted: dict[tuple[str, str], float]) -> None:
    """Heads on one path, or both needed: +, because the second has nothing left to break. Heads that stand in for each
    other: -. Heads whose votes add up, and pairs across the two circuits of and-or: 0."""
    assert interactions(scene_of(name)) == pytest.approx(wanted, abs=1e-4)


def test_pairs_patched() -> None:
    """And-or in either direction: both ANDs denoised +8 for 0 + 0, both ORs +8 for 8 + 8; noised -8 for -8 - 8, and -8
    for 0 + 0. Twins with their words exchanged: +20 for 10 + 10, so that patching shows *no* interaction where zero
    shows -10. The chain: any link denoised brings all of 10, so -10; any noised takes it, so +10."""
    scene = scene_of("and_or")
    wanted = {(H00, H01): 8, (H02, H03): -8}
    assert interactions(scene, "corrupted", "patch", source=scene.clean) == pytest.approx(wanted, abs=1e-4)
    assert interactions(scene, "clean", "patch", source=scene.corrupted, direction="noise") == pytest.approx(wanted)
    scene = scene_of("twins")
    assert interactions(scene, "corrupted", "patch", source=scene.clean) == {}
    scene = scene_of("handmade")
    chain = (H00, H10)
    assert interactions(scene, "corrupted", "patch", source=scene.clean) == pytest.approx({chain: -10})
    assert interactions(scene, "clean", "patch", source=scene.corrupted, direction="noise") == pytest.approx(
        {chain: 10}
    )


def test_self_repair_is_no_interaction_once_the_patterns_are_frozen() -> None:
    """Frozen, the backup stays silent: -10 alone, 0 alone, -10 together."""
    for freeze in ("patterns", "other_heads"):
        assert interactions(scene_of("backup"), freeze=freeze) == {}
    assert interactions(scene_of("backup"), freeze="norms") == pytest.approx({(H00, H10): -10})


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("handmade", {H00: 5, H10: 5}),
        ("twins", {H00: 5, H01: 5}),
        ("backup", {H00: 5, H10: 5}),
        ("interferer", dict(zip((H00, H01, H02), STRENGTHS, strict=True))),
        ("and_or", {H00: 4, H01: 4, H02: 4, H03: 4}),
    ],
)
@pytest.mark.parametrize("orders", ["all", 8])
def test_shapley(name: str, wanted: dict[str, float], orders: Any) -> None:
    """Chain, AND, twins, backup, OR: in half of the orders a head is the one that makes the difference, so each gets a
    half. Eight sampled orders, each with its reverse, are exact as well: in one of the two the one comes first, in the
    other the other."""
    found = attribute(scene_of(name), "shapley", permutations=orders)
    agrees(found, wanted)
    sums = np.nansum(found.samples, axis=(1, 2))
    assert sums == pytest.approx([sum(wanted.values())] * len(sums), abs=1e-4), "efficiency, order by order"


def test_shapley_by_single_orders_scatters_as_a_coin() -> None:
    """Without reversed orders each twin gets 10 or 0 by a fair coin: the values sum to 10 and lie within four standard
    errors of 5, and the reported error is that of a coin, 5 / sqrt(n)."""
    found = attribute(scene_of("twins"), "shapley", permutations=100, antithetic=False, seed=3)
    first, second, nothing = found.values[0]
    assert set(np.round(found.samples[:, 0, 0], 3)) == {0.0, 10.0}
    assert first + second == pytest.approx(10, abs=1e-4) and nothing == pytest.approx(0, abs=1e-4)
    assert abs(first - 5) < 4 * 0.5
    assert found.metadata["standard_error"] == pytest.approx(0.5, rel=0.1)


def test_shapley_depends_on_what_an_absent_head_leaves_behind() -> None:
    """The backup's prompts, absent = the mean over them: a primary that is a mean still says DONE, so the backup never
    speaks (0), and it holds X with 1/6, so all of ``10 - 10/6`` is the primary's."""
    scene = scene_of("backup")
    agrees(attribute(scene, "shapley", permutations="all", reference=scene.clean), {H00: 25 / 3})


def test_shapley_among_some_heads_while_the_others_stay() -> None:
    """One twin among itself and the idle head: nothing, because the other twin stays. One OR beside both ANDs: each AND
    still gets 4, the OR nothing."""
    found = attribute(scene_of("twins"), "shapley", permutations="all", heads=[H00, H02])
    assert found.values[0, [0, 2]] == pytest.approx([0, 0], abs=1e-4) and np.isnan(found.values[0, 1])
    found = attribute(scene_of("and_or"), "shapley", permutations="all", heads=[H00, H01, H02])
    assert found.values[0, :3] == pytest.approx([4, 4, 0], abs=1e-4)


def curve(scene: Scene, ranking: Any, **asked: Any) -> tuple[list[str], list[float]]:
    """The order in which heads went, and the logit difference with all heads, one less, ..., none."""
    n_heads = len(scene.model.heads())
    asked = {"selection": scene.clean} | asked  # every prompt is like every other here
    made = pruning_curve(scene.model, scene.clean, ranking, steps=n_heads, random=0, **asked)
    assert made.kept.tolist() == list(range(n_heads, -1, -1))
    return [str(head) for head in made.order], made.values.mean(1).round(3).tolist()


def test_pruning_by_zero_effects_walks_into_redundancy() -> None:
    """All heads of ``twins`` and ``backup`` have zero effect 0, so they go in their order, and the second of the pair
    takes everything along. Ranked anew after each head, the survivor is worth 10 and stays to the end. In ``and_or``
    the two ORs (0 each) go first, one after the other, and then the ANDs."""
    for name, once, last, anew in (
        ("twins", [10, 10, 0, 0], H01, [10, 10, 10, 0]),
        ("backup", [10, 10, 10, 0, 0], H10, [10, 10, 10, 10, 0]),
    ):
        scene = scene_of(name)
        ranking = exact_zeros(attribute(scene, "zero"))
        assert curve(scene, ranking)[1] == pytest.approx(once, abs=1e-3)
        found, values = curve(scene, ranking, recompute="removal", selection=scene.clean)
        assert values == pytest.approx(anew, abs=1e-3) and found[-1] == last
    scene = scene_of("and_or")
    order, values = curve(scene, exact_zeros(attribute(scene, "zero")))
    assert order == [H02, H03, H00, H01] and values == pytest.approx([12, 12, 4, -4, -4], abs=1e-3)


def exact_zeros(scores: interp.HeadScores) -> list[Head]:
    """The heads by importance, with rounding taken for what it is: ties go by layer and index."""
    importance = scores.importance().round(3)
    places = [tuple(place) for place in np.argwhere(np.isfinite(importance))]
    return [Head(*map(int, place)) for place in sorted(places, key=lambda place: importance[place])]


def test_pruning_by_shapley_values_spares_one_of_each_kind() -> None:
    """``twins``: the idle head goes first, then one twin, and the other holds the job."""
    scene = scene_of("twins")
    ranking = exact_zeros(attribute(scene, "shapley", permutations="all"))
    assert curve(scene, ranking) == ([H02, H00, H01], pytest.approx([10, 10, 10, 0], abs=1e-3))


def test_pruning_an_interferer_first_makes_the_model_better() -> None:
    """Signed: -1 goes first and the logit difference rises from 2 to 3. By absolute value it goes after the idle head.
    The most important first: 2, -1, -1 (idle), 0."""
    scene = scene_of("interferer")
    zero = attribute(scene, "zero")
    assert curve(scene, zero) == ([H01, H02, H00], pytest.approx([2, 3, 3, 0], abs=1e-3))
    assert curve(scene, zero, by="abs") == ([H02, H01, H00], pytest.approx([2, 2, 3, 0], abs=1e-3))
    assert curve(scene, zero, order="most") == ([H00, H02, H01], pytest.approx([2, -1, -1, 0], abs=1e-3))


def test_a_gradient_recomputed_does_not_see_redundancy() -> None:
    """And-or: both ORs are flat, and the one that is left is flat as well (1 is beyond 3/4), so both go before the
    ANDs, although the second costs 8."""
    scene = scene_of("and_or")
    order, values = curve(scene, attribute(scene, "gradient"), recompute="gradient", selection=scene.clean)
    assert sorted(order[:2]) == [H02, H03] and values == pytest.approx([12, 12, 4, -4, -4], abs=1e-3)


def test_weakening_in_the_interferer_is_a_sum() -> None:
    """Heads multiplied by f: ``S - (1 - f) sum of c over the weakened``. With f = -2, most relevant first (3, 0, -1):
    2, -7, -7, -4; least relevant first: 2, 5, 5, -4. With f = 1 nothing changes."""
    scene = scene_of("interferer")
    zero = attribute(scene, "zero")
    made = weakening_curves(scene.model, scene.clean, zero, factor=-2.0, steps=3, random=0, selection=scene.clean)
    assert made.most.mean(1) == pytest.approx([2, -7, -7, -4], abs=1e-3)
    assert made.least.mean(1) == pytest.approx([2, 5, 5, -4], abs=1e-3)
    same = weakening_curves(scene.model, scene.clean, zero, factor=1.0, steps=3, random=0, selection=scene.clean)
    assert same.most.mean(1) == pytest.approx([2] * 4, abs=1e-3)


def greedy(model: Model, scene: Scene, **asked: Any) -> tuple[list[str], list[float]]:
    made = greedy_heads(model, scene.clean, **asked)
    return [str(head) for head in made.heads], made.objective.round(3).tolist()


def test_greedy_search_for_heads_to_remove() -> None:
    """To raise the logit difference: the interferer (+1), then the idle head (still +1), then nothing is left but the
    helper (2 - 3 + 1 = 0 is -2). To lower it in ``handmade``: one link (-10), and no second head adds to it."""
    scene = scene_of("interferer")
    heads, objective = greedy(scene.model, scene, rounds=3)
    assert heads == [H01, H02, H00] and objective == pytest.approx([1, 1, -2], abs=1e-3)
    scene = scene_of("handmade")
    heads, objective = greedy(scene.model, scene, rounds=2, maximise=False)
    assert heads[0] in (H00, H10) and objective == pytest.approx([-10, -10], abs=1e-3)


def test_greedy_search_stops_at_redundancy_and_pairs_do_not() -> None:
    """Among the two ORs alone the first round sees 0 and 0, and the second -8: with ``patience=1`` the search has
    stopped before it gets there. The pair's interaction shows it at once."""
    scene = scene_of("and_or")
    asked: dict[str, Any] = {"candidates": [H02, H03], "maximise": False, "rounds": 2}
    assert greedy(scene.model, scene, **asked)[1] == pytest.approx([0, -8], abs=1e-3)
    found = interp.head_pairs(scene.model, scene.clean, [H02, H03])
    assert found.together.mean() == pytest.approx(-8, abs=1e-3)
