"""The sentences of the induction experiment say what the numbers say, and never more."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from circuits.experiments.induction.conclusion import conclude, foresees
from circuits.experiments.induction.findings import (
    Findings,
    SingleHeads,
    adjusted_for_each_other,
    group_of,
    single_heads,
)
from circuits.experiments.induction.grouping import BY_EFFECT, INDUCTION_HEADS
from circuits.experiments.induction.offsets import OFFSETS
from circuits.experiments.induction.reading import Losses
from interp.address import Head
from interp.results import HeadScores
from interp.stats import MatchedSets, matched_random_sets

N = 12
WIDTHS = [6, 6]


def around(middle: float | np.ndarray, seed: int = 0) -> np.ndarray:
    """``N`` samples around a number or a grid."""
    middle = np.asarray(middle, dtype=float)
    return middle + 0.01 * np.random.default_rng(seed).standard_normal((N, *middle.shape))


def grid(**heads: float) -> np.ndarray:
    """``[layer, head]`` of zeros but for ``L0H1=0.9``."""
    values = np.zeros((2, 6))
    for name, value in heads.items():
        values[int(name[1]), int(name[3])] = value
    return values


def score(name: str, values: np.ndarray) -> HeadScores:
    return HeadScores.from_array(around(values), name=name, sample_axis="prompt")


def losses(first: float, second: float) -> Losses:
    return Losses(np.zeros((N, 4), np.float32), around(first), around(second))


def single(effects: np.ndarray, passing: list[Head] | None) -> SingleHeads:
    table = HeadScores.from_array(around(effects), name="e", quantity="effect", sense=1, sample_axis="prompt")
    if passing is None:
        return SingleHeads(table, None)
    adjusted = np.ones((2, 6))
    for head in passing:
        adjusted[head.layer, head.index] = 0.01
    return SingleHeads(table, adjusted)


def group(name: str, heads: list[Head], effect: float, random: float, draws: int) -> Any:
    matched = matched_random_sets(heads, WIDTHS, n_draws=draws)
    base = around(1.0)
    rows = np.stack([base + around(random, seed) for seed in range(len(matched.sets))])
    return group_of(name, heads, base=base, without=base + effect, random=rows, matched=matched, confidence=0.95)


def findings(**changes: Any) -> Findings:
    offsets = np.zeros((N, 2, 6, len(OFFSETS)))
    made = Findings(
        model="toy",
        confidence=0.95,
        threshold=0.4,
        ablation="mean",
        segment=50,
        scores={
            "induction": score("induction", grid(L1H0=0.9)),
            "previous_token": score("previous_token", grid(L0H1=0.8)),
        },
        losses=losses(6.0, 0.1),
        offsets=offsets,
        single=single(grid(L1H0=3.0, L0H1=2.0), [Head(1, 0), Head(0, 1)]),
        groups=adjusted_for_each_other([group(BY_EFFECT, [Head(0, 1), Head(1, 0)], 5.0, 0.1, 25)]),
    )
    return dataclasses.replace(made, **changes)


def test_induction_heads_are_named_with_their_scores_and_what_they_need() -> None:
    said = conclude(findings())
    assert "1 head completes repeated text in toy (L1.H0 0.90)" in said.answer
    assert "L0.H1 0.80" in said.answer and "is foreseen" in said.answer
    assert "rises by 5.00" in said.answer and "25 other sets" in said.answer
    assert "L1.H0, L0.H1 also belong to a set that beats random heads" in said.doubt


def test_without_induction_heads_none_is_invented() -> None:
    said = conclude(
        findings(
            scores={
                "induction": score("induction", grid(L1H0=0.12)),
                "previous_token": score("previous_token", grid(L0H1=0.8)),
            },
            losses=losses(6.0, 5.9),
            single=single(grid(), []),
            groups=[],
        )
    )
    assert "toy has no induction head (highest score 0.1" in said.answer
    assert "1 head looks one token back (L0.H1 0.80)" in said.answer and "is hardly foreseen" in said.answer
    assert "complete" not in said.answer and "matter by both" not in said.doubt


def test_shifted_induction_is_told_apart_from_its_absence() -> None:
    offsets = np.zeros((N, 2, 6, len(OFFSETS)))
    offsets[:, 1, 3, OFFSETS.index(2)] = 0.8
    said = conclude(
        findings(
            scores={"induction": score("induction", grid()), "previous_token": score("p", grid())}, offsets=offsets
        )
    )
    assert "L1.H3 looks 2 tokens after the earlier copy with 0.80" in said.answer and "not its absence" in said.answer


def test_a_shared_look_back_is_called_shared() -> None:
    shared = score("previous_token", grid(L0H0=0.3, L0H1=0.3, L0H2=0.25))
    said = conclude(findings(scores={"induction": score("induction", grid(L1H0=0.9)), "previous_token": shared}))
    assert "is shared, no head giving 0.4 to it (L0.H" in said.answer


def test_a_quick_run_shows_an_interval_and_no_p() -> None:
    few = adjusted_for_each_other([group(BY_EFFECT, [Head(0, 1), Head(1, 0)], 5.0, 0.1, 10)])
    said = conclude(findings(single=single(grid(L1H0=3.0), None), groups=few))
    assert "too few sets for a p-value" in said.answer and "p =" not in said.answer
    assert "No head is said to matter" in said.doubt


def test_a_set_like_random_ones_carries_no_claim() -> None:
    alike = adjusted_for_each_other([group(BY_EFFECT, [Head(0, 1), Head(1, 0)], 0.1, 0.1, 25)])
    said = conclude(findings(groups=alike))
    assert "not told apart from random heads" in said.answer and "matter by both" not in said.doubt
    assert "no set beats random heads" in said.doubt


def test_no_other_heads_means_nothing_to_compare_with() -> None:
    alone = group_of(
        BY_EFFECT, [Head(0, 0)], base=around(1.0), without=around(3.0), random=np.zeros((0, N)),
        matched=MatchedSets((), 0, True, False), confidence=0.95,
    )  # fmt: skip
    assert "nothing to compare it with" in conclude(findings(groups=adjusted_for_each_other([alone]))).answer


def test_heads_that_stand_in_for_each_other_are_told() -> None:
    both = [Head(1, 0), Head(1, 1)]
    groups = adjusted_for_each_other([group(INDUCTION_HEADS, both, 5.0, 0.1, 25)])
    said = conclude(findings(single=single(grid(L1H0=0.2, L1H1=0.3), []), groups=groups))
    assert "stand in for each other: together they cost 5.00 nats, the costliest alone 0.3" in said.doubt
    lone = conclude(findings(single=single(grid(L1H0=4.0, L1H1=0.3), []), groups=groups))
    assert "stand in" not in lone.doubt


def test_zeroing_is_called_off_distribution() -> None:
    assert "off-distribution" in conclude(findings(ablation="zero")).doubt
    assert "off-distribution" not in conclude(findings()).doubt


@pytest.mark.parametrize(("first", "second", "expected"), [(6.0, 0.1, True), (6.0, 5.9, False), (6.0, 7.0, False)])
def test_foreseen_needs_a_clear_gain(first: float, second: float, expected: bool) -> None:
    assert foresees(findings(losses=losses(first, second))) is expected


def test_an_effect_with_an_interval_around_zero_does_not_stand_out_whatever_p_says() -> None:
    one = dataclasses.replace(findings().groups[0], adjusted=0.01)
    assert one.stands_out() is True
    uncertain = dataclasses.replace(one, effect=dataclasses.replace(one.effect, low=-0.1))
    assert uncertain.stands_out() is False


def test_p_values_of_heads_come_from_the_largest_effect_of_any_head() -> None:
    """By hand: 24 reassignments whose largest effect is 1 in every draw but one, where it is 10."""
    unedited = {"loss": np.zeros(2), "difference": np.zeros((2, 25))}
    strong, weak = np.zeros((2, 25)), np.zeros((2, 25))
    strong[:, 0], weak[:, 0] = -5.0, -0.5
    weak[:, 1:] = 1.0
    weak[:, 7] = 10.0
    without = {
        Head(0, 0): {"loss": np.array([1.0, 3.0]), "difference": strong},
        Head(0, 1): {"loss": np.array([0.0, 0.0]), "difference": weak},
    }
    found = single_heads(unedited, without, [2], ablation="mean")
    assert found.effect.values.tolist() == [[2.0, 0.0]]
    # strong: (1 + 1) / 25 = 0.08, weak: 25 / 25 = 1; Benjamini-Hochberg over two tests: 0.16 and 1
    np.testing.assert_allclose(found.adjusted, [[0.16, 1.0]])


def test_the_long_table_has_a_row_for_every_head_and_quantity() -> None:
    table = findings().table()
    assert sorted(table["quantity"].unique()) == ["effect_of_mean_ablation", "induction", "previous_token"]
    assert len(table) == 3 * 12 and {"stack", "layer", "head", "value", "low", "high", "p_adjusted"} <= set(
        table.columns
    )
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    wide = findings().wide()
    assert wide["head"][0] == "L1.H0" and wide["induction"][0] == pytest.approx(0.9, abs=0.02)
