"""Gates put to the test: cumulative ablation against brute force, and the mediation test against scipy's parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import interp
from interp import At, BadInput, HeadScores, Site
from interp.attribution.gating.history import History
from interp.attribution.gating.validate import cumulative_ablation, mediation_test

MODEL = interp.load("handmade")


def prompts(*words: tuple[int, ...]) -> interp.Batch:
    return interp.encode(MODEL, [[0, *row] for row in words], spans={"loss": range(5, 6)})


FITTED = prompts((3, 4, 5, 3, 4), (6, 7, 8, 6, 7))
OTHER = prompts((5, 4, 3, 5, 4), (8, 7, 6, 8, 7), (4, 3, 6, 4, 3))


def gates(remove: np.ndarray, retain: np.ndarray | None = None) -> interp.Gates:
    n, layers, heads = remove.shape
    none = History((), *[np.zeros((0, 0, n))] * 4, np.zeros((0, 0, n, layers, heads)), np.zeros(0, dtype=int))
    plus = np.ones(remove.shape) if retain is None else retain
    keys = FITTED.content_keys.numpy()
    return interp.Gates(plus, remove, plus, tuple(range(n)), none, prompt_keys=keys)


MADE = gates(np.array([[[0.9, 0.2], [0.7, 0.1]], [[0.1, 0.2], [0.3, 0.4]]]), np.random.default_rng(0).random((2, 2, 2)))


def test_each_step_is_the_run_with_those_gates() -> None:
    found = cumulative_ablation(MODEL, MADE, OTHER)
    assert [str(head) for head in found.heads] == ["L0.H0", "L1.H0", "L0.H1", "L1.H1"]
    for name, factor in (("retained", 1.0), ("ablated", 0.0)):
        context = torch.tensor(MADE.retain[0].tolist())
        for step, head in enumerate(found.heads):
            context[head.layer, head.index] = factor
            logits = interp.run(MODEL, OTHER, edits=[interp.gate(At(Site.Z), context.clone())]).logits
            np.testing.assert_allclose(getattr(found, name)[step], -interp.loss(logits, OTHER).numpy(), atol=1e-5)
    np.testing.assert_allclose(found.effects, found.ablated - found.retained)


def test_removing_what_facilitates_hurts_and_what_is_irrelevant_does_not() -> None:
    fitted = interp.fit_gates(MODEL, FITTED, seeds=1, updates=80)
    harmful = cumulative_ablation(MODEL, fitted, OTHER, heads=1)
    assert harmful.effects.shape == (1, 3) and (harmful.effects < -1).all()
    harmless = cumulative_ablation(MODEL, fitted, OTHER, by="irrelevance", heads=2)
    assert {str(head) for head in harmless.heads} == {"L0.H1", "L1.H1"}
    assert np.abs(harmless.effects).max() < 1e-3


def test_the_table_has_a_row_for_each_step_and_draws() -> None:
    found = cumulative_ablation(MODEL, MADE, OTHER, seed=1, by="interference")
    rows = found.table()
    assert rows["step"].tolist() == [1, 2, 3, 4] and (rows["low"] <= rows["effect"]).all()
    assert found.seed == 1 and found.score == "interference"
    np.testing.assert_allclose(found.plot().data[-1].y, rows["effect"])
    alone = cumulative_ablation(MODEL, MADE, OTHER.select([0]))
    assert alone.table()["low"].isna().all() and len(alone.plot().data) == 1


def test_prompts_of_the_fit_are_refused_unless_the_caller_says_so() -> None:
    mixed = prompts((5, 4, 3, 5, 4), (6, 7, 8, 6, 7))
    with pytest.raises(BadInput, match=r"fitted on 1 of the 2 prompts \(first \[1\]\)"):
        cumulative_ablation(MODEL, MADE, mixed)
    assert cumulative_ablation(MODEL, MADE, mixed, same_prompts=True).effects.shape == (4, 2)
    one, two = interp.split(prompts((5, 4, 3, 5, 4), (6, 7, 8, 6, 7), (4, 3, 6, 4, 3), (3, 4, 5, 3, 4)))
    fitted = interp.fit_gates(MODEL, one, seeds=1, updates=1)
    assert cumulative_ablation(MODEL, fitted, two).effects.shape == (4, 2)


def test_gates_of_another_model_and_seeds_that_are_not_there_are_refused() -> None:
    with pytest.raises(BadInput, match="gates are of 1 layers with 3 heads"):
        cumulative_ablation(MODEL, gates(np.zeros((1, 1, 3))), OTHER)
    with pytest.raises(BadInput, match="a place among the 2 seeds"):
        cumulative_ablation(MODEL, MADE, OTHER, seed=2)
    with pytest.raises(BadInput, match="Known: facilitation, interference, irrelevance"):
        cumulative_ablation(MODEL, MADE, OTHER, by="anomaly")


def test_mediating_heads_against_the_others_is_welchs_t() -> None:
    draw = np.random.default_rng(3)
    remove = draw.random((2, 4, 16)) / 2
    remove[:, 0, :3] += 0.5
    effects = draw.normal(0, 0.001, (4, 16))
    effects[0, :3] = 0.5
    made = gates(remove)
    found = mediation_test(made, HeadScores.from_array(effects, name="average indirect effect", sense=1))
    assert {(head.layer, head.index) for head in found.mediating} == {(0, 0), (0, 1), (0, 2)}
    largest = remove.max(0)
    inside, outside = largest[0, :3], np.concatenate([largest[0, 3:], largest[1:].ravel()])
    shares = [part.var(ddof=1) / len(part) for part in (inside, outside)]
    t = (inside.mean() - outside.mean()) / np.sqrt(sum(shares))
    df = sum(shares) ** 2 / sum(
        share**2 / (len(part) - 1) for share, part in zip(shares, (inside, outside), strict=True)
    )
    assert found.t == pytest.approx(t) and found.df == pytest.approx(df)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), df))
    assert "3 mediating heads" in str(found)


def test_a_single_mediating_head_has_no_test() -> None:
    effects = np.zeros((4, 16))
    effects[2, 5] = 1.0
    found = mediation_test(gates(np.zeros((1, 4, 16))), HeadScores.from_array(effects, name="aie", sense=1))
    assert np.isnan(found.p) and [str(head) for head in found.mediating] == ["L2.H5"]


def test_tables_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(BadInput, match=r"are \[1, 2\], the gates \[4, 16\]"):
        mediation_test(gates(np.zeros((1, 4, 16))), HeadScores.from_array(np.zeros((1, 2)), name="aie", sense=1))
    with pytest.raises(BadInput, match="No head's average indirect effect"):
        mediation_test(gates(np.zeros((1, 4, 16))), HeadScores.from_array(np.zeros((4, 16)), name="aie", sense=1))
