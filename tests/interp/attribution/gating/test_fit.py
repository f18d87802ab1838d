"""Fits of gates: what they find where the truth is known, independence of seeds, resuming, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp import At, BadInput, Site, UnknownName
from interp.attribution.gating.fit import Moment, starting_gates
from interp.attribution.gating.settings import Settings, seeds_of
from interp.attribution.gating.targets import minibatch
from interp.zoo.repeats import evaluation_rows

HANDMADE = interp.load("handmade")
INDUCTION = interp.load("induction")


def repeats(n_prompts: int = 4) -> interp.Batch:
    """``<bos> a b c a b``: the second b is told by the induction head alone."""
    words = list(itertools.permutations(range(3, 9), 3))[::7][:n_prompts]
    ids = [[0, a, b, c, a, b] for a, b, c in words]
    return interp.encode(HANDMADE, ids, spans={"loss": range(5, 6)})


def induction_batch(n_prompts: int = 8, length: int = 10) -> interp.Batch:
    ids = evaluation_rows(n_prompts, length=length)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, length + 2 :] = True
    return interp.encode(INDUCTION, ids, spans={"loss": mask})


class Shelf:
    """A store in memory that counts, and breaks at the ``breaks_at``-th put."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        self.puts, self.breaks_at = 0, breaks_at

    def get(self, key: str) -> Mapping[str, np.ndarray] | None:
        return self.kept.get(key)

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.puts += 1
        if self.puts == self.breaks_at:
            raise KeyboardInterrupt
        self.kept[key] = {name: np.array(array) for name, array in arrays.items()}


def same(one: interp.Gates, other: interp.Gates) -> None:
    for name in ("retain", "remove", "warm"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name, array in one.history.arrays().items():
        np.testing.assert_array_equal(array, other.history.arrays()[name])


# ---- what is found --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handmade_gates() -> interp.Gates:
    return interp.fit_gates(HANDMADE, repeats(), seeds=3, updates=100)


def test_on_the_handmade_model_the_one_circuit_is_found(handmade_gates: interp.Gates) -> None:
    roles = handmade_gates.taxonomy().set_index("label")["role"].to_dict()
    assert roles["L1.H1"] == roles["L0.H1"] == "irrelevance"  # nobody reads the one, the other writes nothing
    assert roles["L0.H0"] == roles["L1.H0"] == "facilitation"
    rows = handmade_gates.taxonomy().set_index("label")
    assert rows.loc["L1.H1", "irrelevance_always"] and not rows.loc["L1.H1", "facilitation_any"]


def test_the_scores_are_those_of_the_papers_table(handmade_gates: interp.Gates) -> None:
    plus, minus = handmade_gates.retain.astype(float), handmade_gates.remove.astype(float)
    np.testing.assert_array_equal(handmade_gates.facilitation.samples, minus)
    np.testing.assert_array_equal(handmade_gates.interference.samples, 1 - plus)
    np.testing.assert_array_equal(handmade_gates.irrelevance.samples, plus * (1 - minus))
    total = sum(handmade_gates.score(name).samples for name in ("facilitation", "interference", "irrelevance"))
    np.testing.assert_allclose(total, 1 + minus * (1 - plus), atol=1e-12)
    np.testing.assert_allclose(total - 1, handmade_gates.anomaly.samples, atol=1e-12)
    assert handmade_gates.facilitation.sample_axis == "seed" and handmade_gates.facilitation.sense == 1


def test_the_history_belongs_to_the_gates(handmade_gates: interp.Gates) -> None:
    history = handmade_gates.history
    assert history.fits == ("warm", "retain", "remove")
    assert history.loss.shape == (3, 100, 3) and history.gates.shape[:3] == (3, 50, 3)
    assert np.isfinite(history.loss).all()
    np.testing.assert_array_equal(history.gates[1, 0], handmade_gates.warm)  # both start where the first ended
    np.testing.assert_array_equal(history.gates[2, 0], handmade_gates.warm)
    np.testing.assert_allclose(history.mean[0, 0], history.gates[0, 0].mean((1, 2)), rtol=1e-5)
    assert (history.nll[0, -1] < history.nll[0, 0]).all()  # the loss went down
    assert (history.entropy[2, -1] < history.entropy[2, 0]).all()  # and the gates were decided
    np.testing.assert_array_equal(history.loss[0], history.nll[0])  # no regulariser


def test_the_heads_that_matter_for_certain_have_the_sign_of_exact_ablation() -> None:
    batch = induction_batch()
    gates = interp.fit_gates(INDUCTION, batch, seeds=2, updates=40, batch_size=8)
    whole = interp.loss(interp.run(INDUCTION, batch).logits, batch).mean()
    variants = [[interp.zero(At(Site.Z, head.layer, heads=(head.index,)))] for head in INDUCTION.heads()]
    effects = interp.sweep(INDUCTION, batch, variants, interp.loss).values.mean(1) - whole
    helpful = gates.strongest("facilitation").values.ravel()
    harmful = gates.strongest("interference").values.ravel()
    clear = (effects > 1).nonzero()[:, 0].tolist()
    assert [str(INDUCTION.heads()[place]) for place in clear] == ["L0.H0", "L1.H0"]
    others = [place for place in range(8) if place not in clear]
    assert helpful[clear].min() > 0.3 > helpful[others].max()
    assert (helpful[clear] > harmful[clear]).all()


@pytest.mark.slow
def test_a_whole_fit_on_the_induction_model_agrees_with_exact_ablation() -> None:
    batch = induction_batch(32, 12)
    gates = interp.fit_gates(INDUCTION, batch, seeds=10, batch_size=16)
    whole = interp.loss(interp.run(INDUCTION, batch).logits, batch).mean()
    variants = [[interp.zero(At(Site.Z, head.layer, heads=(head.index,)))] for head in INDUCTION.heads()]
    effects = (interp.sweep(INDUCTION, batch, variants, interp.loss).values.mean(1) - whole).numpy()
    signed = (gates.strongest("facilitation").values - gates.strongest("interference").values).ravel()
    clear = np.abs(effects) > 1
    assert clear.sum() == 2 and (np.sign(signed[clear]) == np.sign(effects[clear])).all()
    assert signed[clear].min() > signed[~clear].max()


# ---- seeds, updates, minibatches ------------------------------------------------------------------------------------


def test_seeds_are_fits_of_their_own() -> None:
    batch = repeats(3)
    together = interp.fit_gates(HANDMADE, batch, seeds=3, updates=12, batch_size=2)
    for place in range(3):
        alone = interp.fit_gates(HANDMADE, batch, seeds=[place], updates=12, batch_size=2)
        np.testing.assert_allclose(alone.retain[0], together.retain[place], atol=1e-5)
        np.testing.assert_allclose(alone.remove[0], together.remove[place], atol=1e-5)
    swapped = interp.fit_gates(HANDMADE, batch, seeds=[2, 0], updates=12, batch_size=2)
    np.testing.assert_allclose(swapped.remove, together.remove[[2, 0]], atol=1e-5)
    assert np.abs(together.warm[0] - together.warm[1]).max() > 0.05


def test_a_fit_is_made_of_what_is_asked_alone() -> None:
    batch = repeats(4)
    torch.manual_seed(1)
    first = interp.fit_gates(HANDMADE, batch, seeds=2, updates=6, batch_size=2)
    torch.manual_seed(2)
    torch.rand(7)
    same(first, interp.fit_gates(HANDMADE, batch, seeds=2, updates=6, batch_size=2))
    other = interp.fit_gates(HANDMADE, batch, seeds=2, updates=6, batch_size=2, seed=1)
    assert np.abs(first.retain - other.retain).max() > 1e-3


@pytest.mark.parametrize("options", [{"rows": 3}, {"checkpointing": True}], ids=str)
def test_how_the_work_is_cut_changes_nothing_but_rounding(options: dict[str, Any]) -> None:
    batch = repeats(4)
    whole = interp.fit_gates(HANDMADE, batch, seeds=2, updates=8)
    np.testing.assert_allclose(
        interp.fit_gates(HANDMADE, batch, seeds=2, updates=8, **options).remove, whole.remove, atol=1e-4
    )


def test_minibatches_depend_on_seed_fit_and_update_alone() -> None:
    drawn = minibatch(50, 8, 0, "warm", 3)
    assert drawn.tolist() == minibatch(50, 8, 0, "warm", 3).tolist() and len(set(drawn.tolist())) == 8
    others = [minibatch(50, 8, *parts).tolist() for parts in ((1, "warm", 3), (0, "signed", 3), (0, "warm", 4))]
    assert drawn.tolist() not in others
    seen = {prompt for update in range(60) for prompt in minibatch(50, 8, 0, "warm", update).tolist()}
    assert seen == set(range(50))


def test_starting_gates_are_uniform_and_the_callers_are_taken_as_they_are() -> None:
    exists = torch.ones(20, 20, dtype=torch.bool)
    drawn = starting_gates((4, 5), exists)
    assert 0.45 < float(drawn.mean()) < 0.55 and float(drawn.min()) < 0.02 and float(drawn.max()) > 0.98
    assert torch.equal(starting_gates((5,), exists)[0], drawn[1])
    start = np.full((1, 2, 2), 0.25)
    gates = interp.fit_gates(HANDMADE, repeats(2), seeds=1, updates=1, init=start)
    np.testing.assert_allclose(gates.history.gates[0, 0, 0], 0.25, atol=1e-6)


def test_the_schedule_of_the_code_moves_further_at_first() -> None:
    paper = interp.fit_gates(HANDMADE, repeats(2), seeds=1, updates=1, schedule="paper")
    code = interp.fit_gates(HANDMADE, repeats(2), seeds=1, updates=1, schedule="code")
    start = paper.history.gates[0, 0]
    moved = [np.abs(np.log(g.warm / (1 - g.warm)) - np.log(start / (1 - start))).max() for g in (paper, code)]
    assert moved == pytest.approx([0.1, 1.0], rel=1e-3)


def test_only_the_caller_stops_a_fit_early() -> None:
    seen: list[Moment] = []

    def stop(moment: Moment) -> bool:
        seen.append(moment)
        return moment.fit == "warm" and moment.update == 3

    gates = interp.fit_gates(HANDMADE, repeats(2), seeds=2, updates=5, early_stop=stop)
    assert [(moment.fit, moment.update) for moment in seen[:4]] == [
        ("warm", 1),
        ("warm", 2),
        ("warm", 3),
        ("signed", 1),
    ]
    assert seen[-1].update == 5 and seen[-1].loss.shape == (5, 4) and seen[-1].gates.shape == (4, 2, 2)
    assert np.isnan(gates.history.loss[0, 3:]).all() and np.isfinite(gates.history.loss[1:]).all()


def test_progress_counts_updates() -> None:
    told: list[int] = []
    interp.fit_gates(HANDMADE, repeats(2), seeds=1, updates=4, progress=told.append)
    assert sum(told) == 8


# ---- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks_at", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_fit_that_was_killed_goes_on_and_ends_the_same(breaks_at: int) -> None:
    def fit(store: Any) -> interp.Gates:
        return interp.fit_gates(HANDMADE, repeats(4), seeds=2, updates=9, batch_size=2, store=store, keep_every=3)

    whole = interp.fit_gates(HANDMADE, repeats(4), seeds=2, updates=9, batch_size=2)
    shelf = Shelf(breaks_at)
    with pytest.raises(KeyboardInterrupt):
        fit(shelf)
    shelf.breaks_at = None
    same(fit(shelf), whole)
    told: list[int] = []
    done = interp.fit_gates(
        HANDMADE, repeats(4), seeds=2, updates=9, batch_size=2, store=shelf, keep_every=3, progress=told.append
    )
    same(done, whole)
    assert told == [9, 9]  # nothing was computed again


def test_a_store_of_another_fit_is_refused() -> None:
    shelf = Shelf()
    interp.fit_gates(HANDMADE, repeats(2), seeds=1, updates=2, store=shelf)
    for options in ({"seeds": 2}, {"seeds": 1, "lam": 0.2}, {"seeds": 1, "seed": 3}):
        with pytest.raises(BadInput, match="the state of another fit under 'warm'"):
            interp.fit_gates(HANDMADE, repeats(2), updates=2, store=shelf, **options)
    with pytest.raises(BadInput, match="another fit"):
        interp.fit_gates(HANDMADE, repeats(3), seeds=1, updates=2, store=shelf)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"init": np.zeros((1, 2, 3))}, r"init has shape \[1, 2, 3\]; expected \[seed, layer, head\] = \[1, 2, 2\]"),
        ({"init": np.full((1, 2, 2), 1.5)}, r"outside \[0, 1\]"),
        ({"init": np.full((1, 2, 2), np.nan)}, "or NaN"),
        ({"init": "open"}, "expected gates"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": 1.5}, "seeds=1.5"),
        ({"updates": 0}, "updates=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"lam": -0.1}, "lam=-0.1"),
        ({"clip": 0}, "clip=0"),
        ({"grad_clip": -1}, "grad_clip=-1"),
        ({"regulariser": "max"}, "Unknown regulariser"),
        ({"keep_every": 0}, "keep_every=0"),
        ({"rows": 0}, "rows=0"),
        ({"stack": "vision"}, "Unknown stack"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_any_forward(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        interp.fit_gates(HANDMADE, repeats(2), **{"seeds": 1, **options})


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(UnknownName, match="Known: code, paper"):
        Settings(schedule="papers")
    assert seeds_of(2) == (0, 1)


def test_a_loss_mask_without_a_target_names_the_prompts() -> None:
    batch = interp.encode(HANDMADE, [[0, 3, 4], [0, 5, 6]], spans={"loss": [range(0, 1), range(2, 3)]})
    with pytest.raises(BadInput, match="Prompts without a target: 0 "):
        interp.fit_gates(HANDMADE, batch, seeds=1, updates=1)
