"""Intervals and nulls against scipy, closed forms and complete enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from interp import Head
from interp.errors import BadInput
from interp.stats import (
    benjamini_hochberg,
    bootstrap_means,
    compare_with_null,
    largest_effect_p,
    matched_random_sets,
    mean_interval,
    p_value,
    rank_agreement,
)
from interp.stats.nulls import Tail


def test_the_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    ours = mean_interval(values, draws=20_000)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours.mean == pytest.approx(values.mean())
    assert abs(ours.low - theirs.low) < 0.03 * spread and abs(ours.high - theirs.high) < 0.03 * spread


def test_the_interval_of_two_values_is_known_exactly() -> None:
    # resampled means of (0, 1) are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert (mean_interval([0.0, 1.0]).low, mean_interval([0.0, 1.0]).high) == (0.0, 1.0)
    narrow = mean_interval([0.0, 1.0], confidence=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(2).normal(size=(60, 1500))
    low, high = bootstrap_means(samples, draws=600)
    covered = ((low < 0) & (high > 0)).mean()
    assert 0.92 < covered < 0.97


def test_nan_samples_are_left_out_and_cells_do_not_mix() -> None:
    samples = np.random.default_rng(3).normal(size=(30, 2, 3))
    samples[::2, 1, 1] = np.nan
    samples[:, 0, 2] = np.nan
    samples[1:, 1, 2] = np.nan
    low, high = bootstrap_means(samples)
    assert np.isnan(low[0, 2]) and np.isnan(low[1, 2])
    alone = bootstrap_means(samples[:, :1, :1])
    assert (alone[0][0, 0], alone[1][0, 0]) == (low[0, 0], high[0, 0])
    kept = samples[1::2, 1, 1]
    by_formula = 1.96 * kept.std() / math.sqrt(len(kept))
    assert (high[1, 1] - low[1, 1]) / 2 == pytest.approx(by_formula, rel=0.2)


def test_the_seed_fixes_the_interval() -> None:
    values = np.random.default_rng(4).normal(size=25)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)


def test_clusters_are_resampled_together() -> None:
    means = np.random.default_rng(5).normal(size=12)
    repeated = np.repeat(means, 7)
    tied = mean_interval(repeated, cluster=np.repeat(np.arange(12), 7).tolist())
    alone = mean_interval(means)
    assert (tied.low, tied.high) == pytest.approx((alone.low, alone.high), rel=1e-9)
    assert (tied.n, tied.n_clusters) == (84, 12)
    assert math.isnan(mean_interval(repeated, cluster=["one"] * 84).low)


def test_equal_values_have_an_interval_of_no_width() -> None:
    interval = mean_interval([0.1] * 7)
    assert interval.low == interval.high == pytest.approx(0.1)
    assert str(mean_interval([2.0])) == "2.000 (no interval from 1 sample)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"confidence": 95}, "confidence=95"), ({"draws": 0}, "draws=0"), ({"cluster": ["a"]}, "1 labels for 3 samples")],
)
def test_impossible_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        mean_interval([1.0, 2.0, 3.0], **changes)


def test_all_matched_sets_are_listed_where_they_are_few() -> None:
    chosen = [Head(0, 1), Head(1, 0), Head(1, 3)]
    drawn = matched_random_sets(chosen, [5, 6])
    others = [[Head(0, i) for i in (0, 2, 3, 4)], [Head(1, i) for i in (1, 2, 4, 5)]]
    by_hand = {
        frozenset(one + two)
        for one in itertools.combinations(others[0], 1)
        for two in itertools.combinations(others[1], 2)
    }
    assert drawn.exhaustive and not drawn.overlap and drawn.n_possible == len(by_hand) == 24
    assert {frozenset(one) for one in drawn.sets} == by_hand and len(drawn.sets) == 24
    assert str(drawn) == "All 24 sets with as many heads per layer."


def test_many_sets_are_drawn_distinct_matched_and_seeded() -> None:
    chosen = [Head(0, 0), Head(0, 1), Head(3, 7)]
    left_out = [Head(3, 6), Head(0, 5)]
    drawn = matched_random_sets(chosen, [12] * 4, exclude=left_out)
    assert (len(drawn.sets), len(set(drawn.sets)), drawn.exhaustive) == (200, 200, False)
    assert drawn.n_possible == math.comb(9, 2) * 10
    for one in drawn.sets:
        assert sorted(head.layer for head in one) == [0, 0, 3]
        assert len(set(one)) == 3 and not set(one) & {*chosen, *left_out}
    again = matched_random_sets(chosen, [12] * 4, exclude=left_out)
    assert again.sets == drawn.sets
    assert matched_random_sets(chosen, [12] * 4, exclude=left_out, seed=1).sets != drawn.sets


def test_drawn_sets_are_spread_evenly() -> None:
    counts = np.zeros(30)
    for seed in range(300):
        for (head,) in matched_random_sets([Head(0, 0)], [31], n_draws=10, seed=seed).sets:
            counts[head.index - 1] += 1
    assert scipy_stats.chisquare(counts).pvalue > 1e-3


def test_too_few_other_heads_allow_an_overlap_and_say_so() -> None:
    chosen = [Head(0, 0), Head(0, 1), Head(0, 2), Head(1, 0)]
    drawn = matched_random_sets(chosen, [4, 8])
    assert drawn.overlap and drawn.n_possible == math.comb(4, 3) * 8 - 1 == len(drawn.sets)
    assert frozenset(chosen) not in {frozenset(one) for one in drawn.sets}
    assert "may share heads with the chosen one" in str(drawn)
    small = matched_random_sets([Head(0, 0)], [4])
    assert len(small.sets) == 3 and not small.overlap and "fewer than 20, so no p-value" in str(small)
    whole = matched_random_sets([Head(0, 0)], [1])
    assert whole.sets == () and str(whole).startswith("No other head set")


def test_sets_may_span_stacks() -> None:
    chosen = [Head(0, 0), Head(1, 1, "vision")]
    drawn = matched_random_sets(chosen, {None: [6], "vision": [0, 9]})
    assert len(drawn.sets) == 5 * 8
    assert {tuple(sorted((head.stack or "", head.layer) for head in one)) for one in drawn.sets} == {
        (("", 0), ("vision", 1))
    }


def test_heads_outside_the_pool_are_refused() -> None:
    with pytest.raises(BadInput, match=r"L2\.H0 is not in the pool"):
        matched_random_sets([Head(2, 0)], [4, 4])
    with pytest.raises(BadInput, match="stands twice"):
        matched_random_sets([Head(0, 0), Head(0, 0)], [4])
    with pytest.raises(BadInput, match="no head was given"):
        matched_random_sets([], [4])


def test_a_quick_run_shows_an_interval_and_no_p_value() -> None:
    null = np.linspace(-0.1, 0.1, 10)
    quick = compare_with_null(2.0, null)
    assert quick.p is None and (quick.low, quick.high) == pytest.approx((-0.095, 0.095))
    assert str(quick).endswith("10 sets are too few for a p-value.")
    full = compare_with_null(2.0, np.linspace(-1, 1, 199))
    assert full.p == 1 / 200 and "p = 0.005" in str(full)
    assert compare_with_null(1.0, []).p is None


@pytest.mark.parametrize(("tail", "at_least"), [("greater", 2), ("less", 3), ("two-sided", 3)])
def test_the_p_value_counts_ties_and_the_observed_value(tail: Tail, at_least: int) -> None:
    assert p_value(1.0, np.array([-2.0, 1.0, 1.5, 0.0]), tail=tail) == (1 + at_least) / 5


def test_p_values_are_uniform_under_the_null() -> None:
    generator = np.random.default_rng(6)
    p = [p_value(draw[0], draw[1:], tail="greater") for draw in generator.normal(size=(2000, 40))]
    assert scipy_stats.kstest(p, scipy_stats.uniform(0, 1).cdf).statistic < 0.05


def test_a_head_must_beat_the_largest_effect_of_each_permutation() -> None:
    generator = np.random.default_rng(7)
    permuted = generator.normal(size=(99, 2, 3))
    permuted[:, 1, 2] = np.nan
    observed = np.array([[0.1, -50.0, 2.0], [1.0, 0.0, np.nan]])
    p = largest_effect_p(observed, permuted)
    for layer, head in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        reached = sum(
            max(abs(value) for value in draw.ravel() if not math.isnan(value)) >= abs(observed[layer, head])
            for draw in permuted
        )
        assert p[layer, head] == (1 + reached) / 100
    assert np.isnan(p[1, 2]) and p[0, 1] == 0.01
    with pytest.raises(BadInput, match="one draw axis before"):
        largest_effect_p(observed, permuted[:, :1])


def test_benjamini_hochberg_by_its_definition() -> None:
    p = np.array([[0.001, 0.2, np.nan], [0.03, 0.02, 0.9]])
    result = benjamini_hochberg(p, level=0.05)
    flat = np.sort(p[np.isfinite(p)])
    passing = [k for k, value in enumerate(flat, start=1) if value <= 0.05 * k / len(flat)]
    assert result.found.sum() == max(passing) == 3
    assert np.isnan(result.adjusted[0, 2]) and not result.found[0, 2]
    assert str(result) == "3 of 5 pass at a false discovery rate of 5 % (Benjamini-Hochberg)."
    assert benjamini_hochberg(np.array([np.nan])).found.sum() == 0


def test_rank_agreement_against_scipy_and_by_hand() -> None:
    generator = np.random.default_rng(8)
    first, second = generator.normal(size=(2, 4, 5))
    first[0, 0] = np.nan
    result = rank_agreement(first, second, top=3)
    a, b = first.ravel()[1:], second.ravel()[1:]
    assert result.n == 19
    assert result.spearman == pytest.approx(scipy_stats.spearmanr(a, b).statistic)
    pairs = list(itertools.combinations(range(19), 2))
    kendall = sum(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs) / len(pairs)
    assert result.kendall == pytest.approx(kendall)
    shared = set(np.argsort(a)[-3:]) & set(np.argsort(b)[-3:])
    assert result.top_overlap == len(shared) / 3
    assert math.isnan(rank_agreement(np.ones(4), np.arange(4.0)).spearman)


def test_sets_may_be_asked_to_share_heads_and_then_p_is_exact() -> None:
    chosen = [Head(0, 0), Head(1, 0)]
    made = matched_random_sets(chosen, [4, 4], overlap=True)
    every = {
        frozenset(one) for one in itertools.product([Head(0, i) for i in range(4)], [Head(1, i) for i in range(4)])
    }
    assert {frozenset(one) for one in made.sets} == every - {frozenset(chosen)}
    assert "16" not in str(made) and str(made).endswith(
        "per layer; a set may share heads with the chosen one; fewer than 20, so no p-value."
    )
    assert len(matched_random_sets(chosen, [4, 4], overlap=False).sets) == 9


def test_sets_that_keep_clear_scatter_less_than_the_chosen_one() -> None:
    # heads all alike, effects that add up: p is exact with overlap, and somewhat too small without
    effects = np.random.default_rng(0).normal(size=(3000, 12))
    chosen = [Head(0, i) for i in range(4)]
    low = {}
    for share in (True, False):
        sets = matched_random_sets(chosen, [12], overlap=share).sets
        null = np.stack([effects[:, [head.index for head in one]].sum(1) for one in sets], axis=1)
        low[share] = np.mean([p_value(own, row) <= 0.05 for own, row in zip(effects[:, :4].sum(1), null, strict=True)])
    assert 0.035 < low[True] < 0.065
    assert 0.085 < low[False] < 0.13
