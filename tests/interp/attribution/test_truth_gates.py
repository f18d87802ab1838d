"""Causal head gating on models worked out on paper: where the gates come to rest follows from the loss in closed form.

A gate that rests inside (0, 1), with its logit inside the clip of 4, balances loss and push:
``|dNLL/dg| g (1 - g) = lam / (number of heads)``. The losses are those of ``interp.zoo.interferer``, ``twins``,
``backup``, ``handmade`` and ``and_or``; lam = 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from known_circuits import answered, loaded
from scipy.optimize import brentq
from torch import Tensor

import interp
from interp import Batch, Model
from interp.attribution.gating.contrastive import fit_contrastive_gates
from interp.attribution.gating.fit import fit_gates
from interp.attribution.gating.gates import Gates
from interp.attribution.gating.validate import cumulative_ablation

LAM = 0.1
CARD = (0.37, 0.61, 0.52)  # the starting gates that the reference numbers belong to
STARTS = (CARD, (0.76, 0.28, 0.40), (0.10, 0.60, 0.70))


def predicting_the_last(model: Model, rows: list[list[int]]) -> Batch:
    return interp.encode(model, rows, spans={"loss": range(len(rows[0]) - 1, len(rows[0]))})


def interferer(strengths: tuple[float, ...], **asked: Any) -> Gates:
    """Gates of the interferer on two prompts, one living and one lifeless; the loss of both is softplus(-S)."""
    model = answered(strengths).model
    cat, cup, it, yes, no = model.tokenizer.convert_tokens_to_ids(["cat", "cup", "it", "yes", "no"])
    batch = predicting_the_last(model, [[0, cat, it, it, yes], [0, cup, it, it, no]])
    return fit_gates(model, batch, lam=LAM, **asked)


def starting(*starts: tuple[float, ...]) -> dict[str, Any]:
    return {"init": torch.tensor(starts)[:, None], "seeds": len(starts)}


def toy(strengths: tuple[float, ...], start: tuple[float, ...], updates: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three fits of one seed with torch's own Adam on the closed loss."""
    c = torch.tensor(strengths)

    def fit(theta: Tensor, lam: float, first: float, last: float) -> Tensor:
        theta = theta.clone().requires_grad_()
        adam = torch.optim.Adam([theta], lr=first)
        for update in range(updates):
            adam.param_groups[0]["lr"] = first + (last - first) * update / updates
            loss = torch.nn.functional.softplus(-(theta.sigmoid() * c).sum()) - lam * theta.clamp(-4, 4).mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([theta], 1.0)
            adam.step()
        return theta.detach()

    warm = fit(torch.tensor(start).logit(), 0.0, 0.1, 0.01)
    return tuple(each.sigmoid() for each in (warm, fit(warm, LAM, 0.5, 0.1), fit(warm, -LAM, 0.5, 0.1)))  # type: ignore[return-value]


@pytest.mark.parametrize("strengths", [(1.0, -1.0, 0.0), (3.0, -3.0, 0.0), (10.0, -10.0, 0.0), (3.0, 3.0, 0.0)])
def test_every_fit_is_that_of_the_closed_toy(strengths: tuple[float, ...]) -> None:
    """Second road, update for update: the model's fits end where the toy's do, from three starts in one batch."""
    found = interferer(strengths, updates=60, **starting(*STARTS))
    wanted = [torch.stack(each) for each in zip(*(toy(strengths, start, 60) for start in STARTS), strict=True)]
    for fit, toys in zip((found.warm, found.retain, found.remove), wanted, strict=True):
        np.testing.assert_allclose(fit[:, 0], toys, atol=2e-3)


@pytest.mark.parametrize(
    ("strengths", "retain", "remove"),
    [
        ((3.0, -3.0, 0.0), (1, 0.174, 1), (0.826, 0, 0)),
        pytest.param((1.0, -1.0, 0.0), (1, 0, 1), (1, 0, 0), marks=pytest.mark.slow),
        pytest.param((10.0, -10.0, 0.0), (1, 0.572, 1), (0.428, 0, 0), marks=pytest.mark.slow),
        pytest.param((3.0, 3.0, 0.0), (1, 1, 1), (0, 1, 0), marks=pytest.mark.slow),
    ],
)
def test_the_reference_numbers(
    strengths: tuple[float, ...], retain: tuple[float, ...], remove: tuple[float, ...]
) -> None:
    """500 updates from (0.37, 0.61, 0.52). 0.174 and 0.572 are where ``(1 - σ(c - c g)) c g (1 - g) = λ/3``."""
    found = interferer(strengths, updates=500, **starting(CARD))
    assert found.retain[0, 0] == pytest.approx(retain, abs=0.02)
    assert found.remove[0, 0] == pytest.approx(remove, abs=0.02)


def balance(slope: Callable[[float], float], heads: int, low: float, high: float) -> float:
    """The gate in (low, high) at which ``slope(g) g (1 - g) = lam / heads``."""
    return brentq(lambda g: slope(g) * g * (1 - g) - LAM / heads, low, high)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("c", [1.0, 3.0])
def test_a_planted_interferer_is_found_in_every_seed(c: float) -> None:
    """Its gate, pushed up, stays at 0 (beyond the clip before the push began) or at the balance; the helper's mirrors
    it. Either way all three roles are right in all ten seeds."""
    found = interferer((c, -c, 0.0), updates=100, seeds=10)
    rest = balance(lambda g: (1 - sigma(c - c * g)) * c, 3, 0.01, 0.5)
    assert np.minimum(abs(found.retain[:, 0, 1]), abs(found.retain[:, 0, 1] - rest)).max() < 0.01
    assert np.minimum(abs(found.remove[:, 0, 0] - 1), abs(found.remove[:, 0, 0] - (1 - rest))).max() < 0.01
    roles = found.taxonomy().set_index("label")
    assert roles.role.tolist() == ["facilitation", "interference", "irrelevance"]
    assert roles.facilitation_always["L0.H0"] and roles.interference_always["L0.H1"]
    assert roles.irrelevance_always["L0.H2"]


def test_a_saturated_interferer_is_missed() -> None:
    """c = 10: the loss is flat, the push wins, and helper and interferer rest at 0.43 and 0.57, on the wrong side of
    1/2: the one does not facilitate and the other does not interfere. Removed, they matter more than ever."""
    found = interferer((10.0, -10.0, 0.0), updates=100, **starting(*STARTS))
    rest = balance(lambda g: (1 - sigma(10 - 10 * g)) * 10, 3, 0.01, 0.9)
    assert rest == pytest.approx(0.571, abs=0.001)
    np.testing.assert_allclose(found.retain[:, 0], [[1, rest, 1]] * 3, atol=0.01)
    np.testing.assert_allclose(found.remove[:, 0], [[1 - rest, 0, 0]] * 3, atol=0.01)
    roles = found.taxonomy().set_index("label")
    assert not roles.facilitation_any["L0.H0"] and not roles.interference_any["L0.H1"]
    scene = answered((10.0, -10.0, 0.0))
    assert interp.attribute(scene.model, scene.clean, "zero").values[0] == pytest.approx([-10, 10, 0], abs=1e-4)


def test_of_two_helpers_some_seed_drops_each() -> None:
    """(3, 3, 0): one is enough, at the balance ``(1 - σ(3 g)) 3 g (1 - g) = λ/3``."""
    found = interferer((3.0, 3.0, 0.0), updates=100, **starting(*STARTS[:2]))
    rest = balance(lambda g: (1 - sigma(3 * g)) * 3, 3, 0.5, 0.99)
    np.testing.assert_allclose(found.remove[:, 0], [[0, rest, 0], [rest, 0, 0]], atol=0.01)
    assert (found.retain > 0.98).all(), "nobody interferes"
    roles = found.taxonomy().set_index("label")
    assert roles.facilitation_any[["L0.H0", "L0.H1"]].all() and not roles.facilitation_always.any()


def test_a_weak_interferer_beside_a_strong_helper_has_no_place_to_rest() -> None:
    """(3, -1, 0): ``(1 - σ(3 - g)) g (1 - g)`` is nowhere as large as λ/3, so a gate inside the clip is pushed to 1,
    and the interferer passes for irrelevant. It is found only where its logit is below -4 before the push begins,
    where a long fit without a push (500 updates) or a fortunate start brings it."""
    largest = max((1 - sigma(3 - g)) * g * (1 - g) for g in np.linspace(0, 1, 1001))
    assert largest < LAM / 3
    found = interferer((3.0, -1.0, 0.0), updates=60, **starting(CARD, (0.37, 0.005, 0.52)))
    assert (found.warm[:, 0, 1] > sigma(-4)).tolist() == [True, False]
    assert found.retain[:, 0, 1] == pytest.approx([1, 0], abs=0.02)


def loss_slope(logit: float, others: int = 15) -> float:
    """``-dNLL/dlogit`` of the right token against ``others`` of logit 0."""
    return others * math.exp(-logit) / (1 + others * math.exp(-logit))


def test_twins_have_one_survivor_and_a_silent_start_has_none() -> None:
    """NLL = ln(1 + 15 e^-L), L = 10 step(a + b). Pushed down, one twin goes to 0 and the other rests on the ramp of the
    step, where ``20 · slope(L) g (1 - g) = λ/3``. Where a + b < 1/4 at the start the step is flat, nothing calls either
    back, and both are lost, although either does the whole job."""
    model = loaded("twins")
    batch = predicting_the_last(model, [[0, x, 9, 10, 11, x] for x in range(3, 9)])
    found = fit_gates(model, batch, updates=100, **starting((0.3, 0.8, 0.5), (0.8, 0.3, 0.5), (0.1, 0.1, 0.5)))
    rest = balance(lambda g: 20 * loss_slope(20 * (g - 0.25)), 3, 0.5, 0.74)
    np.testing.assert_allclose(found.remove[:, 0], [[0, rest, 0], [rest, 0, 0], [0, 0, 0]], atol=0.02)
    assert (found.retain > 0.95).all()


def test_the_backup_or_the_primary_is_kept_by_where_the_fit_starts() -> None:
    """One of the two speaks alone, ``L = 10 g``: it rests where ``10 · slope(10 g) g (1 - g) = λ/4``. A primary that
    starts above 1/2 keeps the backup silent and survives; below, the backup speaks, and the primary goes."""
    model = loaded("backup")
    batch = predicting_the_last(model, [[0, x, 9, 10, 11, x] for x in range(3, 9)])
    starts = torch.tensor([[[0.8, 0.5], [0.5, 0.5]], [[0.2, 0.5], [0.8, 0.5]]])
    found = fit_gates(model, batch, updates=100, init=starts, seeds=2)
    rest = balance(lambda g: 10 * loss_slope(10 * g), 4, 0.5, 0.9)
    wanted = np.array([[[rest, 0], [0, 0]], [[0, 0], [rest, 0]]])
    np.testing.assert_allclose(found.remove, wanted, atol=0.02)


def test_both_links_of_the_induction_chain_facilitate() -> None:
    """L = 10 g1 p(g0), ``p = e^(60 g0) / (e^(60 g0) + e^30 + 3)``: at rest both links balance, and the first sits on
    the shoulder of its look-up. The others are irrelevant."""
    model = loaded("handmade")
    batch = predicting_the_last(model, [[0, 3, 4, 5, 3, 4], [0, 6, 7, 8, 6, 7]])
    found = fit_gates(model, batch, updates=100, init=torch.full((1, 2, 2), 0.6), seeds=1)
    g0, g1 = float(found.remove[0, 0, 0]), float(found.remove[0, 1, 0])
    p = math.exp(60 * g0 - 30) / (math.exp(60 * g0 - 30) + 1 + 3 * math.exp(-30))
    slope = 10 * loss_slope(10 * g1 * p)
    assert slope * p * g1 * (1 - g1) == pytest.approx(LAM / 4, rel=0.1)
    assert slope * g1 * 60 * p * (1 - p) * g0 * (1 - g0) == pytest.approx(LAM / 4, rel=0.1)
    assert found.taxonomy().role.tolist() == ["facilitation", "irrelevance", "facilitation", "irrelevance"]


def test_an_and_is_found_only_by_a_fit_that_starts_where_it_works() -> None:
    """Prompts of which one needs the AND and one the OR. From 0.9 on both ANDs the conjunction calls them back; from
    0.3 ``and`` is flat at 0 (0.6 < 3/2), no gradient leads there, and the pair is called irrelevant. One OR stays."""
    model = loaded("and_or")
    yes, on, off = 3, 5, 6
    batch = predicting_the_last(model, [[0, on, on, off, off, yes], [0, off, off, on, on, yes]])
    found = fit_gates(model, batch, updates=100, **starting((0.9, 0.9, 0.9, 0.4), (0.3, 0.3, 0.4, 0.9)))
    assert (found.remove[0, 0, :2] > 0.8).all() and (found.remove[1, 0, :2] < 0.02).all()
    survivors = found.remove[:, 0, 2:]
    assert (survivors.max(1) > 0.5).all() and (survivors.min(1) < 0.1).all()
    assert (found.retain > 0.95).all()


@pytest.mark.parametrize(("by", "first"), [("facilitation", 0), ("interference", 1), ("irrelevance", 2)])
def test_cumulative_ablation_in_the_context_of_the_open_gates(by: str, first: int) -> None:
    """With ``G+ = (a, i, r)`` and strengths (3, -3, 0) the targets have ``-softplus(-S)``. The first head of each order
    has its gate at 1 (retained) or 0 (ablated), the others theirs: below 0 for the helper, above for the interferer,
    0 for the third."""
    strengths = (3.0, -3.0, 0.0)
    found = interferer(strengths, updates=100, **starting(CARD))
    model = answered(strengths).model
    dog, box, it, yes, no = model.tokenizer.convert_tokens_to_ids(["dog", "box", "it", "yes", "no"])
    batch = predicting_the_last(model, [[0, dog, it, it, yes], [0, box, it, it, no]])
    made = cumulative_ablation(model, found, batch, by=by, heads=1)
    assert [str(head) for head in made.heads] == [f"L0.H{first}"]
    for gate, values in ((1.0, made.retained), (0.0, made.ablated)):
        gates = found.retain[0, 0].astype(float).copy()
        gates[first] = gate
        assert values[0] == pytest.approx([-math.log1p(math.exp(-float(gates @ strengths)))] * 2, abs=1e-4)
    assert np.sign(made.effects[0].round(4)).tolist() == [(-1, 1, 0)[first]] * 2


def test_contrast_keeps_the_and_and_loses_the_or() -> None:
    """Retained prompts are answered by the AND alone, forgotten ones by the OR alone; lam = -0.1. The ORs are closed to
    a sum below 1/4, where ``or`` is 0. The ANDs rest together where ``16 σ(-L) g (1 - g) = λ/4``, ``L = 32 g - 28``."""
    model = loaded("and_or")
    yes, on, off = 3, 5, 6
    needs_and, needs_or = (
        predicting_the_last(model, [[0, *words, yes]]) for words in ([on, on, off, off], [off, off, on, on])
    )
    starts = torch.tensor([[[0.9, 0.9, 0.6, 0.5]], [[0.8, 0.9, 0.2, 0.3]]])
    asked: dict[str, Any] = {"init": starts, "seeds": 2, "updates": 150}
    found = fit_contrastive_gates(model, needs_and, needs_or, **asked).values[:, 0]
    rest = balance(lambda g: 16 * sigma(28 - 32 * g), 4, 0.95, 0.99)
    np.testing.assert_allclose(found[:, :2], rest, atol=0.01)
    assert (found[:, 2:].sum(1) < 0.25).all()
    asked = {"init": starts[1:], "seeds": 1, "updates": 300}
    turned = fit_contrastive_gates(model, needs_or, needs_and, **asked).values[:, 0]
    assert (turned[:, :2].sum(1) < 1.5).all() and (turned[:, 2:].max(1) > 0.5).all()


def test_contrast_with_a_pull_to_open_forgets_only_where_the_loss_has_a_slope() -> None:
    """lam = +0.1: ORs that start at 0.6 and 0.5 stand on the flat of their step (11/10 > 3/4), nothing but the pull
    moves them, and they open; from 0.2 and 0.3 (on the ramp) the forgotten prompts close them."""
    model = loaded("and_or")
    yes, on, off = 3, 5, 6
    needs_and, needs_or = (
        predicting_the_last(model, [[0, *words, yes]]) for words in ([on, on, off, off], [off, off, on, on])
    )
    starts = torch.tensor([[[0.9, 0.9, 0.6, 0.5]], [[0.8, 0.9, 0.2, 0.3]]])
    found = fit_contrastive_gates(model, needs_and, needs_or, init=starts, seeds=2, updates=100, lam=0.1).values[:, 0]
    assert (found[0] > 0.95).all()
    assert (found[1, :2] > 0.95).all() and found[1, 2:].sum() < 0.25
