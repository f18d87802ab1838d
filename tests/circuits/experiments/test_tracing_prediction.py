"""How well traces predict a reference: against scipy, on planted traces, and with what is left out."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from circuits.experiments.explanation.comparing import compared_rows
from circuits.experiments.tracing.config import TracingConfig
from circuits.experiments.tracing.predicting import (
    How,
    agreement_grid,
    layer_rows,
    predicted,
    predictions_of,
    random_correlations,
    references_of,
    verdict_of,
)
from circuits.experiments.tracing.rows import Rows, Traced
from circuits.experiments.tracing.spread import row_spread
from circuits.experiments.tracing.words import verdict_sentence
from interp.errors import BadInput
from interp.tracing import METHODS

_stats: Any = scipy_stats
N, T = 24, 12
HOW = How(random_orders=50)


def planted(noise: float, seed: int, method: str) -> Rows:
    """Traces that are the reference with noise."""
    draw = np.random.default_rng(seed)
    truth = np.abs(np.random.default_rng(0).normal(size=(N, T)))
    return Rows(method, truth + noise * np.abs(draw.normal(size=(N, T))))


REFERENCE = planted(0.0, 0, "blank-out")
EVERYWHERE = np.ones((N, T), dtype=bool)
OTHERS = MappingProxyType(
    {"raw": planted(9.0, 1, "raw"), "rollout": planted(0.4, 2, "rollout"), "occlusion": planted(0.01, 3, "occlusion")}
)


def test_correlations_are_scipys_with_ties_over_the_counted_sources() -> None:
    draw = np.random.default_rng(5)
    reference = Rows("blank-out", draw.integers(-2, 3, size=(6, T)).astype(float))
    tied = Rows("rollout", draw.integers(0, 3, size=(6, T)).astype(float))
    counted = draw.random((6, T)) < 0.8
    reference.values[0, 3] = np.nan
    found = predicted(reference, {"rollout": tied}, counted, HOW)
    for prompt in range(6):
        here = counted[prompt] & np.isfinite(reference.values[prompt])
        expected = _stats.spearmanr(tied.values[prompt, here], np.abs(reference.values[prompt, here])).statistic
        assert found.values["rollout"][prompt] == pytest.approx(expected)
    signed = predicted(reference, {"rollout": tied}, counted, How(absolute=False, random_orders=2))
    here = counted[1]
    expected = _stats.spearmanr(tied.values[1, here], reference.values[1, here]).statistic
    assert signed.values["rollout"][1] == pytest.approx(expected)


def test_the_planted_order_of_methods_is_found_and_interventions_are_set_apart() -> None:
    found = predicted(REFERENCE, {**OTHERS, "blank-out": REFERENCE}, EVERYWHERE, HOW)
    assert found.order == ("occlusion", "rollout", "raw") and found.among(interventions=False) == ("rollout", "raw")
    assert set(found.first_in) == {"rollout", "raw"} and found.first_in["rollout"] == 1.0
    verdict = verdict_of(found)
    assert verdict is not None and (verdict.best, verdict.runner_up, verdict.decided) == ("rollout", "raw", True)
    judged = found.values["rollout"][1::2] - found.values["raw"][1::2]
    assert verdict.ahead is not None and verdict.ahead.mean == pytest.approx(judged.mean())
    assert verdict.p <= 1 / 40 and verdict.over_random.low > 0.5
    table = found.table().set_index("method")
    assert table.loc["rollout", "correlation"] == pytest.approx(found.values["rollout"].mean())
    assert "'rollout' best predicts what blanking out a token changes" in verdict_sentence(verdict, "m", "spearman")


def test_noise_alone_predicts_nothing_and_the_sentence_says_so() -> None:
    draw = np.random.default_rng(8)
    noise = {name: Rows(name, draw.random((N, T))) for name in ("raw", "rollout")}
    found = predicted(REFERENCE, noise, EVERYWHERE, HOW)
    verdict = verdict_of(found)
    assert verdict is not None and verdict.p > 0.05
    assert verdict_sentence(verdict, "m", "spearman").startswith("No method predicts")


def test_random_rankings_are_centred_at_zero_and_a_function_of_seed_and_prompt() -> None:
    first = random_correlations(REFERENCE.values, EVERYWHERE, How(random_orders=400))
    assert abs(first.mean()) < 0.02 and first.std() == pytest.approx(1 / np.sqrt(T - 1), rel=0.1)
    again = random_correlations(REFERENCE.values[:3], EVERYWHERE[:3], How(random_orders=400))
    np.testing.assert_array_equal(first[:, :3], again)


@pytest.mark.parametrize(("rule", "mean"), [("zero", 0.5), ("drop", 1.0)])
def test_what_does_not_vary_counts_as_zero_or_not_at_all(rule: str, mean: float) -> None:
    same = Rows("raw", REFERENCE.values.copy())
    same.values[::2] = 1.0
    found = predicted(REFERENCE, {"raw": same}, EVERYWHERE, How(undefined=rule, random_orders=2))
    assert found.undefined["raw"] == N // 2 and found.interval("raw").mean == pytest.approx(mean)


def test_every_layer_counts_the_same_prompts_once() -> None:
    """The released script pools layer l with those below; here layer 1 is its own whatever layer 0 is."""
    exact, noise = REFERENCE.values, np.random.default_rng(3).random((N, T))
    rows = Rows("rollout", exact, np.stack([noise, exact]))
    found = predicted(REFERENCE, {"rollout": rows}, EVERYWHERE, HOW)
    table = layer_rows({"blank-out": found})
    assert table["mean"].to_numpy()[1] == pytest.approx(1.0) and abs(table["mean"].to_numpy()[0]) < 0.3
    assert table["layer"].tolist() == [0, 1]


def test_prompts_of_one_cluster_stay_in_one_half() -> None:
    cluster = [str(place // 4) for place in range(N)]
    found = predicted(REFERENCE, OTHERS, EVERYWHERE, HOW, cluster)
    verdict = verdict_of(found)
    assert verdict is not None and verdict.interval.n == N // 2 and verdict.interval.n_clusters == 3


def test_signed_predictions_hold_signed_methods_alone() -> None:
    rows = {"gradient-input": Rows("gradient-input", -REFERENCE.values), **OTHERS}
    found = predictions_of({"blank-out": REFERENCE}, rows, EVERYWHERE, HOW, signed=True)["blank-out"]
    assert set(found.values) == {name for name in rows if METHODS[name].signed}
    assert found.interval("gradient-input").mean == pytest.approx(-1.0)


def test_the_grid_of_methods_is_symmetric_with_ones() -> None:
    grid = agreement_grid(OTHERS, EVERYWHERE, HOW)
    np.testing.assert_allclose(grid, grid.T)
    np.testing.assert_array_equal(np.diag(grid), 1.0)
    assert grid[1, 2] > grid[0, 2]


def test_a_model_without_any_reference_is_refused_with_the_reasons() -> None:
    traced = Traced({"raw": OTHERS["raw"]}, {"blank-out": "no token to put in"})
    with pytest.raises(BadInput, match="no token to put in"):
        references_of(traced, ["blank-out"], "m")


def test_the_methods_asked_for_hold_the_references_once_each() -> None:
    def config(**settings: object) -> TracingConfig:
        return TracingConfig.model_validate({"about": "x", **settings})

    assert config(methods=("rollout",), references=("blank-out",)).asked == tuple(
        name for name in METHODS if name in ("rollout", "blank-out")
    )
    assert "lime" not in config(leave_out=("lime",)).asked and set(config().asked) == set(METHODS)
    with pytest.raises(ValueError, match="Did you mean 'rollout'"):
        config(methods=("rolout",))
    with pytest.raises(ValueError, match="method of this run"):
        config(methods=("raw",), options={"lime": {"samples": 3}})


def test_spread_is_zero_where_the_target_makes_no_difference() -> None:
    own = np.random.default_rng(1).random(8)
    same = np.tile(own, (5, 1))
    assert row_spread(same, np.arange(5)) == 0.0
    causal = np.tril(np.random.default_rng(2).random((6, 6)))
    expected = [causal[j + 1 :, j] for j in range(6) if len(causal[j + 1 :, j]) >= 2]
    by_hand = np.mean([x.std() for x in expected]) / np.mean([x.mean() for x in expected])
    assert row_spread(causal) == pytest.approx(by_hand)
    with pytest.raises(BadInput, match="one each"):
        row_spread(same, np.arange(4))


def test_attention_beside_explanations_by_hand() -> None:
    attention = {"a": np.array([[0.7, 0.2, 0.1, 0.0]])}
    explanations = {"x": np.array([[-3.0, 2.0, 1.0, 0.5]]), "y": np.array([[0.1, 0.2, 0.3, 0.4]])}
    found = compared_rows(attention, explanations, ["x"], np.ones((1, 4), dtype=bool), top=2, confidence=0.95)
    assert found.values["kendall"]["a", "x"][0] == 1.0 and found.values["kendall"]["a", "y"][0] == -1.0
    assert found.values["signs"]["a", "x"][0] == 0.5 and ("a", "y") not in found.values["signs"]
    assert found.values["overlap"]["a", "y"][0] == 0.0 and found.chance[0] == 0.5
    assert found.of("a")[0] == 0.0 and found.against["x"][0] == 0.25
    themselves = found.themselves()
    assert themselves is not None and themselves[0] == -1.0


def test_two_methods_that_the_prompts_do_not_tell_apart_are_both_named() -> None:
    close = {"raw": planted(0.5, 11, "raw"), "rollout": planted(0.5, 12, "rollout")}
    verdict = verdict_of(predicted(REFERENCE, close, EVERYWHERE, HOW))
    assert verdict is not None and not verdict.decided
    said = verdict_sentence(verdict, "m", "spearman")
    assert "'raw'" in said and "'rollout'" in said and "do not tell them apart" in said
