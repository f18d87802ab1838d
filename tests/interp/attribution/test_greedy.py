"""Greedy search: exact where effects add up, equal to loops of single runs where they do not, honest on new prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from sum_of_heads import prompts, sum_of_heads
from torch import Tensor

import interp
from interp import At, BadInput, Batch, Head, Model, Site
from interp.attribution.greedy import greedy_heads
from interp.attribution.greedy_search import GreedySearch
from interp.attribution.slopes import edit_slopes
from interp.edits.base import Edit

STRENGTHS = np.array([[0.5, -1.0, 4.0, 2.0, 0.0, 1.0], [3.0, -0.25, 0.75, 5.0, 0.1, -2.0]])
ALL = [Head(layer, index) for layer in range(2) for index in range(6)]
TINY = tiny_gpt2()


@pytest.fixture(scope="module")
def added() -> Model:
    return sum_of_heads(STRENGTHS.tolist())


def tiny_batch(rows: int = 4, seed: int = 1) -> Batch:
    ids = torch.randint(1, 13, (rows, 5), generator=torch.Generator().manual_seed(seed))
    return interp.encode(TINY, ids, answers=[(2, 3)] * rows)


def to_itself(head: Head) -> Edit:
    return interp.to_identity(At(Site.PATTERN, head.layer, heads=(head.index,)), 0.5)


def silence(head: Head) -> Edit:
    return interp.zero(At(Site.Z, head.layer, heads=(head.index,)))


def mean_effect(batch: Batch, edits: Sequence[Edit], model: Model = TINY) -> float:
    """By one run with the edits, and one without through the same kernels."""
    edited = interp.run(model, batch, edits=list(edits))
    plain = interp.run(model, batch, kernels=edited.kernels)
    assert edited.logits is not None and plain.logits is not None
    change = interp.logit_difference(edited.logits, batch) - interp.logit_difference(plain.logits, batch)
    return float(change.double().mean())


# ---- where effects add up -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_round", [1, 2, 5])
@pytest.mark.parametrize("maximise", [True, False])
def test_with_additive_effects_the_best_heads_are_found(added: Model, per_round: int, maximise: bool) -> None:
    batch, weights = prompts(added)
    search = greedy_heads(added, batch, maximise=maximise, rounds=2, per_round=per_round)
    signed = -STRENGTHS.ravel() if maximise else STRENGTHS.ravel()  # zeroing a head takes its strength away
    order = np.argsort(-signed, kind="stable")[: 2 * per_round]
    assert list(search.heads) == [ALL[place] for place in order]
    gains = (1 if maximise else -1) * np.cumsum(signed[order])[per_round - 1 :: per_round] * np.mean(weights)
    np.testing.assert_allclose(search.objective, gains, atol=3e-4)


def test_a_metric_of_ones_own_that_adds_up(added: Model) -> None:
    """yes + no - <unk> is another sum over the same heads, here three times as steep."""

    def steep(logits: Tensor, batch: Batch) -> Tensor:
        return 3.0 * interp.logit_difference(logits, batch)

    batch, _ = prompts(added)
    found, plain = (greedy_heads(added, batch, metric=metric, rounds=4) for metric in (steep, interp.logit_difference))
    assert found.heads == plain.heads and found.metric == "steep"
    np.testing.assert_allclose(found.rounds, 3 * plain.rounds, atol=1e-3)


def test_one_round_is_the_ranking_of_single_heads(added: Model) -> None:
    batch, _ = prompts(added)
    search = greedy_heads(added, batch, maximise=False, rounds=1, per_round=12)
    single = interp.attribute(added, batch, "zero")
    np.testing.assert_allclose(search.of_round(0).per_prompt, single.per_prompt, atol=1e-5)
    assert search.of_round(0).sense == single.sense == -1
    assert [str(head) for head in search.heads[:4]] == single.top(4, by="helps").label.tolist()


# ---- where they do not ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [to_itself, silence])
def test_every_cell_of_the_table_equals_a_run_of_its_own(edit: Any) -> None:
    batch = tiny_batch()
    heads = [Head(*head) for head in TINY.heads()]
    search = greedy_heads(TINY, batch, edit, rounds=3)
    chosen: list[Head] = []
    for number in range(3):
        means = [
            np.nan if head in chosen else mean_effect(batch, [edit(one) for one in [*chosen, head]]) for head in heads
        ]
        np.testing.assert_allclose(search.rounds[number], means, atol=1e-5)
        chosen.append(heads[int(np.nanargmax(means))])
        assert search.objective[number] == pytest.approx(np.nanmax(means), abs=1e-5)
    assert list(search.heads) == chosen


def test_two_heads_a_round_are_measured_together() -> None:
    batch = tiny_batch()
    search = greedy_heads(TINY, batch, maximise=False, rounds=2, per_round=2, batch_size=3)
    assert [len(each) for each in search.added] == [2, 2]
    for number in range(2):
        heads = search.heads[: 2 * number + 2]
        assert search.objective[number] == pytest.approx(mean_effect(batch, [silence(h) for h in heads]), abs=1e-5)


def test_the_search_needs_two_rounds_to_see_a_pair_of_twins() -> None:
    model = interp.load("twins")
    batch = interp.encode(model, [[0, 7, 5, 6], [0, 8, 5, 6]], answers=[(7, 5), (8, 5)])
    search = greedy_heads(model, batch, maximise=False, rounds=2)
    assert search.objective.round(2).tolist() == [0.0, -10.0]  # on paper: one twin does the whole job
    assert search.heads == (Head(0, 0), Head(0, 1)) == search.best


# ---- the screen -----------------------------------------------------------------------------------------------------


def test_slopes_are_finite_differences_along_the_blend() -> None:
    model, batch = tiny_gpt2(dtype=torch.float64), tiny_batch()
    heads = [Head(*head) for head in model.heads()]
    base = [silence(heads[0])]
    slopes = edit_slopes(model, batch, [[to_itself(head)] for head in heads[1:]], interp.logit_difference, base=base)
    for head, slope in zip(heads[1:], slopes, strict=True):
        at = At(Site.PATTERN, head.layer, heads=(head.index,))
        ends = [
            interp.run(model, batch, edits=[*base, interp.to_identity(at, 0.5 * step)]).logits for step in (0.0, 1e-5)
        ]
        values = [interp.logit_difference(one, batch).numpy() for one in ends if one is not None]
        np.testing.assert_allclose(slope, (values[1] - values[0]) / 1e-5, rtol=1e-3, atol=1e-4)


def test_the_slope_is_the_effect_where_the_metric_is_linear(added: Model) -> None:
    batch, weights = prompts(added)
    slopes = edit_slopes(added, batch, [[silence(head)] for head in ALL], interp.logit_difference)
    np.testing.assert_allclose(slopes, -STRENGTHS.reshape(-1, 1) * np.array(weights), atol=1e-4)


def test_a_screen_runs_the_best_slopes_alone_and_finds_the_same_heads(added: Model) -> None:
    batch, _ = prompts(added)
    exact = greedy_heads(added, batch, maximise=False, rounds=3)
    quick = greedy_heads(added, batch, maximise=False, rounds=3, screen="gradient", screened=2)
    assert quick.heads == exact.heads
    assert np.isfinite(quick.rounds).sum(1).tolist() == [2, 2, 2]
    there = np.isfinite(quick.rounds)
    np.testing.assert_allclose(quick.rounds[there], exact.rounds[there], atol=1e-5)


def test_an_edit_without_a_slope_is_refused() -> None:
    def forbid(head: Head) -> Edit:
        return interp.knockout(None, 0, layers=head.layer, heads=head.index)

    with pytest.raises(BadInput, match=r"knockout.* leads to infinity, .* run it exactly"):
        greedy_heads(TINY, tiny_batch(), forbid, screen="gradient", screened=1)


# ---- held-out prompts -----------------------------------------------------------------------------------------------


def test_the_set_is_measured_on_prompts_that_the_search_did_not_see() -> None:
    batch, other = tiny_batch(), tiny_batch(6, seed=9)
    search = greedy_heads(TINY, batch, rounds=4, held_out=other)
    assert search.held_out is not None and search.held_out_samples is not None
    assert search.held_out_samples.shape == (4, 6) and search.metadata["disjoint"] is True
    for number in range(4):
        by_hand = mean_effect(other, [silence(head) for head in search.heads[: number + 1]])
        assert search.held_out[number] == pytest.approx(by_hand, abs=1e-5)
    top = int(search.held_out.argmax())
    assert search.best == (search.heads[: top + 1] if search.held_out[top] > 0 else ())
    assert list(search.table().columns)[-3:] == ["held_out", "held_out_low", "held_out_high"]


def test_the_winner_flatters_itself_on_noise() -> None:
    """A metric that is noise: the best of six heads looks better than it is on prompts that did not choose it."""

    def noisy(logits: Tensor, batch: Batch) -> Tensor:
        return torch.sin(1e4 * logits[:, -1].double().sum(-1))

    flattery = []
    for seed in range(20):
        search = greedy_heads(
            TINY, tiny_batch(3, seed=seed), metric=noisy, rounds=1, held_out=tiny_batch(3, seed=100 + seed)
        )
        assert search.held_out is not None
        flattery.append(search.objective[0] - search.held_out[0])
    assert np.mean(flattery) > 3 * np.std(flattery) / 20**0.5


def test_patience_stops_the_search(added: Model) -> None:
    batch, _ = prompts(added)
    # three heads hurt, so zeroing a fourth cannot help: the fourth round is no better, nor is the fifth
    search = greedy_heads(added, batch, rounds=12, patience=2)
    assert len(search.added) == 5 and search.metadata["stopped_early"] is True
    assert search.best == (Head(1, 5), Head(0, 1), Head(1, 1))
    whole = greedy_heads(added, batch, rounds=40)
    assert len(whole.added) == 12 and whole.best == search.best


# ---- tables, files, refusals ----------------------------------------------------------------------------------------


def test_the_table_and_the_file_hold_all(added: Model, tmp_path: Path) -> None:
    batch, _ = prompts(added)
    search = greedy_heads(added, batch, rounds=2, per_round=2, held_out=batch, cluster=list("aabbccdd"))
    rows = search.table()
    assert rows["heads"].tolist() == ["L1.H5 L0.H1", "L1.H1 L0.H4"] and rows["size"].tolist() == [2, 4]
    assert (rows["low"] < rows["value"]).all() and search.metadata["disjoint"] is False
    back = GreedySearch.open(search.save(tmp_path / "search.safetensors"))
    np.testing.assert_array_equal(back.table_samples, search.table_samples)
    assert (str(back), back.heads, back.cluster) == (str(search), search.heads, search.cluster)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds=0: expected an int of at least 1"),
        ({"per_round": 13}, "there are 12 candidates"),
        ({"patience": 0}, "patience=0"),
        ({"screen": "magic"}, "Unknown screen 'magic'"),
        ({"candidates": []}, "names no head"),
        ({"candidates": ["L9.H0"]}, r"L9\.H0 is not in"),
        ({"edit": "nought"}, "Unknown edit 'nought'"),
        ({"edit": lambda head: "zero"}, "expected an edit, or a list of edits"),
        ({"metric": lambda logits, batch: logits[:, -1, :2]}, "a search needs one"),
    ],
)
def test_what_cannot_be_is_refused(added: Model, changes: dict[str, Any], message: str) -> None:
    batch, _ = prompts(added)
    with pytest.raises(BadInput, match=message):
        greedy_heads(added, batch, **changes)
