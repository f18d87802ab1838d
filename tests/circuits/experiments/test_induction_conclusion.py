"""The sentences of the induction experiment say what the numbers say, and never more."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from circuits.experiments.induction.conclusion import conclude, foresees
from circuits.experiments.induction.findings import (
    Emergence,
    Findings,
    SingleHeads,
    adjusted_for_each_other,
    group_of,
    single_heads,
)
from circuits.experiments.induction.grouping import BY_EFFECT, INDUCTION_HEADS, PREVIOUS_HEADS
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
    assert (
        "In the model 'toy', L1.H0 (0.90) completes repeated text, and L0.H1 (0.80) looks one token back" in said.answer
    )
    assert "is foreseen" in said.answer and "rises by 5.00" in said.answer
    assert "against 0.10 on average over the 25 other sets of as many heads per layer (p = 0.038)" in said.answer
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
    assert "there is no induction head (highest score 0.1" in said.answer
    assert "and L0.H1 (0.80) looks one token back" in said.answer and "is hardly foreseen" in said.answer
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
    assert "too few for a p-value" in said.answer and "p =" not in said.answer
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


def test_a_head_that_works_through_patterns_is_told_and_one_that_does_not_is_not() -> None:
    looks_back = group(PREVIOUS_HEADS, [Head(0, 1)], 5.0, 0.1, 25)
    for left, told in ((0.1, True), (4.0, False)):
        held = dataclasses.replace(looks_back, held=dataclasses.replace(looks_back.effect, mean=left))
        both = adjusted_for_each_other([group(INDUCTION_HEADS, [Head(1, 0)], 3.0, 0.1, 25), held])
        said = conclude(findings(groups=both)).answer
        assert ("Without L0.H1 it rises by 5.00, and by 0.10 with every attention pattern held still" in said) is told


def test_heads_beyond_a_few_are_counted() -> None:
    many = grid(L1H0=0.9, L1H1=0.8, L1H2=0.7, L1H3=0.6, L1H4=0.5)
    said = conclude(findings(scores={"induction": score("induction", many), "previous_token": score("p", grid())}))
    assert "5 heads (L1.H0 0.90, L1.H1 0.8" in said.answer and "and 1 more) complete repeated" in said.answer
    assert "no head looks one token back" in said.answer


def test_emergence_names_the_fall_and_the_first_head() -> None:
    scores = np.stack([grid(), grid(L1H2=0.5), grid(L1H2=0.9, L1H0=0.95)])
    grown = Emergence([0, 100, 300], [6.0, 6.0, 6.0], [6.0, 5.5, 0.1], {"induction": scores})
    assert grown.steepest_fall() == (100, 300)
    assert grown.first_above("induction", 0.4) == (100, Head(1, 2)) and grown.first_above("induction", 0.99) is None
    assert Emergence([0, 100], [6.0, 6.0], [5.0, 6.0], {}).steepest_fall() is None


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
    unedited = {"loss": np.zeros(2), "lead": np.zeros(25)}
    strong, weak = np.zeros(25), np.zeros(25)
    strong[0], weak[0] = -10.0, -1.0  # sums over two prompts
    weak[1:] = 2.0
    weak[7] = 20.0
    without = {
        Head(0, 0): {"loss": np.array([1.0, 3.0]), "lead": strong},
        Head(0, 1): {"loss": np.array([0.0, 0.0]), "lead": weak},
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
