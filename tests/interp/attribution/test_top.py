"""Ablating the top heads: chosen and tested on disjoint prompts, against plain runs and random sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from random_models import random_batch, random_model
from scipy import stats as scipy_stats

import interp
from interp import At, BadInput, Batch, Head, HeadScores, Model
from interp.attribution.halves import share_prompts
from interp.stats import mean_interval


def prompts(model: Model, count: int = 12, *, seed: int = 0) -> Batch:
    """Random prompts and answers of the tiny model's 13 tokens."""
    generator = np.random.default_rng(seed)
    pairs = [tuple(generator.choice(np.arange(1, 13), 2, replace=False).tolist()) for _ in range(count)]
    return interp.encode(model, torch.tensor(generator.integers(1, 13, (count, 5))), answers=pairs)


def test_the_halves_of_a_split_share_no_prompt_and_no_cluster() -> None:
    model = tiny_gpt2(layers=1)
    batch = prompts(model, 20)
    selection, evaluation = interp.split(batch, seed=3)
    assert (len(selection), len(evaluation)) == (10, 10) and not share_prompts(selection, evaluation)
    again = interp.split(batch, seed=3)[0]
    assert again.ids is not None and selection.ids is not None and torch.equal(again.ids, selection.ids)
    labels = [place // 5 for place in range(20)]
    parts = interp.split(batch, cluster=labels)
    assert batch.ids is not None
    whole = [tuple(row) for row in batch.ids.tolist()]
    sides = [{labels[whole.index(tuple(row))] for row in part.ids.tolist()} for part in parts if part.ids is not None]
    assert len(sides[0]) == len(sides[1]) == 2 and not sides[0] & sides[1]


def test_effects_are_those_of_plain_runs_on_the_other_half() -> None:
    model = tiny_gpt2(layers=3)
    batch = prompts(model)
    found = interp.ablate_top(model, batch, "zero", 2, replacement="zero", seed=1)
    selection, evaluation = interp.split(batch, seed=1)
    ranked = interp.attribute(model, selection, "zero")
    assert list(found.heads) == ranked.top_heads(2)
    before = interp.logit_difference(interp.run(model, evaluation).logits, evaluation)
    for heads, values in [(found.heads, found.per_prompt), *zip(found.sets.sets, found.random, strict=True)]:
        edits = [interp.zero(At("z", head.layer, heads=(head.index,))) for head in heads]
        after = interp.logit_difference(interp.run(model, evaluation, edits=edits).logits, evaluation)
        np.testing.assert_allclose(values, (after - before).numpy(), atol=1e-5)
    assert found.n_selection == 6 and found.effect == mean_interval(found.per_prompt)
    assert f"chosen by zero on 6 other prompts; zero): {found.effect}" in str(found)


def test_the_table_has_the_chosen_set_first_then_every_random_one() -> None:
    model = tiny_gpt2(layers=3)
    found = interp.ablate_top(model, prompts(model), ["L2.H1", "L0.H0"], 2, replacement="zero")
    rows = found.table()
    assert rows["chosen"].tolist() == [True] + [False] * (len(rows) - 1)
    assert rows["heads"][0] == "L2.H1 L0.H0" and len(rows) == 1 + len(found.sets.sets) == 4
    assert rows["value"][0] == pytest.approx(found.per_prompt.mean())
    assert (found.n_selection, found.p) == (0, None) and "(as given; zero)" in str(found)
    assert found._repr_html_().count("<tr>") == 5


def test_the_circuit_of_the_trained_model_does_more_than_random_heads() -> None:
    model = interp.load("induction")
    generator = np.random.default_rng(0)
    words = np.stack([generator.choice(np.arange(3, 403), 6, replace=False) for _ in range(20)])
    bos = np.full((20, 1), model.tokenizer.bos_token_id)
    ids = torch.tensor(np.concatenate([bos, words, words[:, :3]], axis=1))
    batch = interp.encode(model, ids, answers=[(int(row[3]), int(row[5])) for row in words])
    found = interp.ablate_top(model, batch, "mean", 2)
    assert set(found.heads) == {Head(0, 0), Head(1, 0)} and found.effect.high < -3
    by_function = interp.ablate_top(model, batch, lambda part: interp.attribute(model, part, "mean"), 2)
    np.testing.assert_array_equal(by_function.per_prompt, found.per_prompt)


@pytest.mark.slow
def test_p_is_uniform_on_random_models_where_sets_may_share_heads() -> None:
    p = []
    for seed in range(60):
        model = random_model(seed, "gpt2")
        batch, _ = random_batch(model, seed, "redrawn")
        given = [Head(layer, 0) for layer in range(3)]
        found = interp.ablate_top(model, batch, given, 3, replacement="zero", overlap=True)
        assert found.p is not None and len(found.sets.sets) == 63
        p.append(found.p)
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.01
    assert sum(one <= 0.05 for one in p) <= 8  # more than 8 of 60 at a rate of 5 %: 0.3 %


@pytest.mark.parametrize(
    ("ranking", "k", "message"),
    [
        ("mean", 0, "k=0; expected how many heads"),
        ("mean", 9, "k=9, but the ranking names 6 heads"),
        ("meen", 1, "Unknown attribution method 'meen'"),
        (["L9.H0"], 1, r"L9\.H0 is not in the pool"),
        (3, 1, "a ranking came as int"),
        (HeadScores.from_array([[1.0, 2.0]], name="k", unit="kv"), 1, "is a table of KV heads"),
        (HeadScores.from_array([[[1.0, 2.0]]], name="x", positions=["a", "b"]), 1, "has a value per position"),
    ],
)
def test_what_cannot_be_ablated_is_refused(ranking: object, k: int, message: str) -> None:
    model = tiny_gpt2(layers=3)
    with pytest.raises(BadInput, match=message):
        interp.ablate_top(model, prompts(model, 4), ranking, k)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="The batch holds one different prompt"):
        interp.ablate_top(model, prompts(model, 1), "zero", 1)


def test_a_table_is_not_judged_by_the_prompts_that_it_was_measured_on() -> None:
    model = interp.load("handmade")
    batch = prompts(model, 8)
    selection, evaluation = interp.split(batch)
    table = interp.attribute(model, selection, "zero")
    for judge in (interp.ablate_top, interp.pruning_curve):
        with pytest.raises(interp.BadInput, match=r"measured on 4 of these 8 prompts.*interp\.split"):
            judge(model, batch, table)
    judged = interp.ablate_top(model, evaluation, table, 2, replacement="zero")
    assert judged.heads == interp.ablate_top(model, batch, table.top_heads(2), 2, replacement="zero").heads
