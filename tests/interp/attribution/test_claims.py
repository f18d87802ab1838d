"""Claims: against a plain loop, on models whose heads are known, and on random models, where nothing may be claimed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from random_models import Answers, Family, random_batch, random_model
from scipy import stats as scipy_stats

import interp
from interp import BadInput, Batch, Head, Model
from interp.attribution.claims import _stands
from interp.attribution.reassign import over_prompts
from interp.stats import NullComparison, benjamini_hochberg, compare_with_null, matched_random_sets

SLOW_MODELS, QUICK_MODELS = 100, 10


def repeats(model: Model, *, prompts: int = 24, first: int = 3, size: int = 400, seed: int = 0) -> Batch:
    """``<bos>`` a b c d e f a b c: d is right; f, which is as frequent, is wrong."""
    generator = np.random.default_rng(seed)
    rows, answers = [], []
    for _ in range(prompts):
        words = generator.choice(np.arange(first, first + size), 6, replace=False).tolist()
        rows.append([model.tokenizer.bos_token_id, *words, *words[:3]])
        answers.append((words[3], words[5]))
    return interp.encode(model, torch.tensor(rows), answers=answers)


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_effects_and_p_values_are_those_of_a_plain_loop() -> None:
    model = tiny_gpt2(layers=2)
    generator = np.random.default_rng(0)
    ids = torch.tensor(generator.integers(1, 13, (6, 5)))
    answers = [tuple(generator.choice(np.arange(1, 13), 2, replace=False).tolist()) for _ in range(6)]
    batch = interp.encode(model, ids, answers=answers)
    found = interp.claims(model, batch, "zero", draws=40, seed=5)
    anew = over_prompts(batch.answers, draws=40, seed=5)
    heads = model.heads()
    effects = np.zeros((41, 6, len(heads)))
    for draw, picks in enumerate([anew.own, *anew.drawn]):
        given = dataclasses.replace(batch, answers=anew.rows[torch.tensor(picks)])
        before = interp.logit_difference(interp.run(model, batch).logits, given)
        for place, head in enumerate(heads):
            edits = [interp.zero(interp.At("z", head.layer, heads=(head.index,)))]
            after = interp.logit_difference(interp.run(model, batch, edits=edits).logits, given)
            effects[draw, :, place] = (after - before).numpy()
    np.testing.assert_allclose(found.effects.per_prompt.reshape(6, -1), effects[0], atol=1e-5)
    own, drawn = effects[0].mean(0), effects[1:].mean(1)
    p = np.array([(1 + (abs(drawn[:, h]) >= abs(own[h]) - 1e-6).sum()) / 41 for h in range(len(heads))])
    largest = np.array([(1 + (abs(drawn).max(1) >= abs(own[h]) - 1e-6).sum()) / 41 for h in range(len(heads))])
    np.testing.assert_allclose(found.p.ravel(), p)
    np.testing.assert_allclose(found.adjusted.ravel(), scipy_stats.false_discovery_control(p))
    np.testing.assert_allclose(found.largest.ravel(), largest)


def test_the_table_holds_what_the_tests_found_strongest_first() -> None:
    model = interp.load("handmade")
    found = interp.claims(model, repeats(model, size=13), "zero")
    rows = found.table()
    assert rows["label"].tolist() == ["L0.H0", "L1.H0", "L0.H1", "L1.H1"]
    assert rows["value"].round(4).tolist() == [-10, -10, 0, 0]
    assert rows["claimed"].tolist() == [True, True, False, False]
    assert rows["p_largest"].tolist() == [0.001, 0.001, 1.0, 1.0]
    assert rows["p_adjusted"].tolist() == [0.002, 0.002, 1.0, 1.0]
    assert str(found).startswith("2 of 4 heads are claimed to matter for logit_difference (zero): L0.H0, L1.H0. Null: ")
    assert "3 sets are too few for a p-value" in str(found) and "off-distribution" in str(found)
    html = found._repr_html_()
    assert html.count("<tr>") == 5 and "L1.H0" in html and ">yes<" in html
    assert len(found.plot().layout.shapes) == 2


# ---- power ----------------------------------------------------------------------------------------------------------


def test_the_two_heads_of_the_handmade_circuit_are_claimed() -> None:
    model = interp.load("handmade")
    batch = repeats(model, size=13)
    for method in ("mean", "zero", "resample"):
        assert interp.claims(model, batch, method).claimed == [Head(0, 0), Head(1, 0)], method


def test_the_induction_head_of_the_trained_model_and_its_feeder_are_claimed() -> None:
    model = interp.load("induction")
    found = interp.claims(model, repeats(model))
    assert found.claimed == [Head(0, 0), Head(1, 0)]
    assert found.together is not None and found.together.observed < -3
    only = interp.claims(model, repeats(model), heads=["L1.H0", "L1.H1"])
    assert only.claimed == [Head(1, 0)] and np.isfinite(only.effects.values).sum() == 2


def test_patching_claims_the_induction_head_where_the_last_word_was_changed() -> None:
    # in the corrupted prompts the last word has no earlier copy: L1.H0 rests on <bos>, and only its clean z votes
    model = interp.load("handmade")
    clean = repeats(model, size=13)
    assert clean.ids is not None and clean.answers is not None
    ids = clean.ids.clone()
    ids[:, -1] = torch.tensor([min(set(range(3, 16)) - set(row)) for row in ids.tolist()])
    corrupted = interp.encode(model, ids, answers=clean.answers.tolist())
    found = interp.claims(model, corrupted, "patch", source=clean)
    assert found.claimed == [Head(1, 0)] and found.effects.sense == 1
    np.testing.assert_allclose(found.effects.values, [[0, 0], [10, 0]], atol=1e-4)


def test_with_zero_every_head_of_the_trained_model_passes_and_none_stands_out() -> None:
    model = interp.load("induction")
    found = interp.claims(model, repeats(model), "zero")
    assert found.passed.all() and found.claimed == []
    assert "Every head passed the first null" in str(found) and "none of 8 heads" in str(found)


# ---- one answer pair ------------------------------------------------------------------------------------------------


def test_one_answer_pair_leaves_nothing_to_reassign_and_nothing_is_claimed() -> None:
    model = random_model(0, "gpt2")
    batch, _ = random_batch(model, 0, "fixed")
    found = interp.claims(model, batch, "zero")
    assert np.isnan(found.p).all() and np.isnan(found.largest).all() and found.claimed == []
    assert "have the same answers, so that reassigning them changes nothing" in str(found)
    assert "null='vocabulary'" in str(found)
    assert sign_flips(found.effects.per_prompt) >= 5  # of 16 heads that do nothing in particular


def test_one_answer_pair_beside_random_tokens_finds_what_is_special_to_the_pair() -> None:
    model = interp.load("induction")
    batch = repeats(model, first=20, size=380)
    assert batch.ids is not None
    ids = batch.ids.clone()
    ids[:, 4], ids[:, 6] = 10, 11
    fixed = interp.encode(model, ids, answers=[(10, 11)] * len(ids))
    assert interp.claims(model, fixed).claimed == []
    found = interp.claims(model, fixed, null="vocabulary")
    assert found.claimed == [Head(0, 0)]  # the mean over prompts keeps what L1.H0 says, which is the same in all
    assert "replaced by random other tokens" in str(found)


def test_few_arrangements_give_no_p_value() -> None:
    model = tiny_gpt2(layers=1)
    batch = interp.encode(model, torch.arange(1, 13).view(4, 3), answers=[(1, 2), (1, 2), (3, 4), (3, 4)])
    found = interp.claims(model, batch, "zero")
    assert np.isnan(found.largest).all() and "in 5 other ways only" in str(found)


def test_a_metric_that_answers_do_not_change_claims_nothing() -> None:
    model = tiny_gpt2(layers=1)
    generator = np.random.default_rng(0)
    batch = interp.encode(
        model, torch.tensor(generator.integers(1, 13, (8, 4))), answers=[(i, i + 1) for i in range(1, 9)]
    )
    found = interp.claims(model, batch, "zero", metric="kl")
    assert (found.largest == 1).all() and found.claimed == []
    assert "The metric does not change with the answers" in str(found)


# ---- matched sets ---------------------------------------------------------------------------------------------------


def test_sets_that_do_as_much_speak_against_a_claim_unless_they_share_its_heads() -> None:
    many = matched_random_sets([Head(0, 0), Head(1, 0)], [8, 8])
    as_much = compare_with_null(-1.0, np.full(len(many.sets), -1.0), sets=many)
    assert as_much.p == 1.0 and not _stands(as_much, 0.05)
    assert _stands(compare_with_null(-1.0, np.zeros(len(many.sets)), sets=many), 0.05)
    assert _stands(dataclasses.replace(as_much, overlap=True), 0.05)
    assert not _stands(None, 0.05)
    assert not _stands(NullComparison(1.0, np.nan, np.nan, np.nan, 0, None), 0.05)


# ---- calibration ----------------------------------------------------------------------------------------------------


def sign_flips(effects: np.ndarray, *, draws: int = 999, level: float = 0.05) -> int:
    """How many heads a sign-flip test with Benjamini-Hochberg calls significant; ``effects`` [prompt, layer, head]."""
    columns = effects.reshape(len(effects), -1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (draws, len(columns)))
    p = (1 + (abs(signs @ columns) >= abs(columns.sum(0))).sum(0)) / (1 + draws)
    return int(benjamini_hochberg(p, level=level).found.sum())


def share_claimed(models: int, family: Family, answers: Answers, **options: str) -> float:
    """The share of random models in which any head is claimed."""
    hits = 0
    for seed in range(models):
        model = random_model(seed, family)
        batch, cluster = random_batch(model, seed, answers)
        hits += bool(interp.claims(model, batch, seed=seed, cluster=cluster, **options).claimed)
    return hits / models


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_few_random_models_have_a_claimed_head(family: Family) -> None:
    # at a true rate of 5 % more than 2 of 10 have a chance of 1 %
    assert share_claimed(QUICK_MODELS, family, "redrawn", method="zero") <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["zero", "mean"])
@pytest.mark.parametrize(
    ("answers", "null"),
    [
        ("fixed", "answers"),
        ("redrawn", "answers"),
        ("fixed", "vocabulary"),
        ("swapped", "answers"),
        ("clustered", "answers"),
    ],
)
def test_at_most_one_random_model_in_twenty_has_a_claimed_head(
    family: Family, method: str, answers: Answers, null: str
) -> None:
    assert share_claimed(SLOW_MODELS, family, answers, method=method, null=null) <= 0.05


@pytest.mark.slow
def test_a_sign_flip_test_calls_heads_of_random_models_significant() -> None:
    called = []
    for seed in range(12):
        model = random_model(seed, "gpt2")
        batch, _ = random_batch(model, seed, "fixed")
        called.append(sign_flips(interp.claims(model, batch, "zero").effects.per_prompt))
    assert min(called) > 0 and np.median(called) >= 6


@pytest.mark.slow
def test_clusters_taken_for_prompts_would_be_claimed_too_often() -> None:
    found = {True: 0, False: 0}
    for seed in range(60):
        model = random_model(seed, "gpt2")
        batch, cluster = random_batch(model, seed, "clustered")
        for known in found:
            found[known] += bool(interp.claims(model, batch, "zero", cluster=cluster if known else None).passed.any())
    assert found[True] <= 6 and found[False] > 2 * found[True] + 5


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gradient"}, "Unknown method of claims 'gradient'"),
        ({"method": "patch"}, "source= goes with method='patch'"),
        ({"null": "answer"}, "Unknown null 'answer'. Did you mean 'answers'"),
        ({"level": 1.5}, "level=1.5: expected a number between 0 and 1"),
        ({"draws": 0}, "draws=0: expected at least one"),
        ({"heads": ["L7.H0"]}, "Unknown head 'L7.H0'"),
        ({"heads": []}, "heads= is empty"),
        ({"pool": [1, 2]}, "pool= goes with null='vocabulary'"),
        ({"cluster": [1, 1, 1]}, "1 cluster; intervals and nulls need two at least"),
        ({"cluster": [1, 1]}, "2 labels for 3 prompts"),
        ({"metric": "logit_diference"}, "Did you mean 'logit_difference'"),
        ({"metric": lambda logits, batch: logits.mean()}, "metric <lambda>: it gave .*one number per prompt"),
        ({"metric": lambda logits, batch: logits[:, -1, :1]}, "metric <lambda>: it gave .*one number per prompt"),
        ({"metric": lambda logits, batch: logits[:, -1, 0] * float("nan")}, "metric <lambda>: NaN or infinity"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes: dict[str, object], message: str) -> None:
    model = tiny_gpt2(layers=1)
    batch = interp.encode(model, torch.arange(1, 10).view(3, 3), answers=[(1, 2), (3, 4), (5, 6)])
    with pytest.raises(BadInput, match=message):
        interp.claims(model, batch, **changes)


def test_batches_without_answers_or_with_one_prompt_are_refused() -> None:
    model = tiny_gpt2(layers=1)
    ids = torch.arange(1, 4)[None]
    with pytest.raises(BadInput, match=r"the nulls reassign right and wrong answers; give encode"):
        interp.claims(model, interp.encode(model, ids))
    with pytest.raises(BadInput, match="1 prompt; intervals and nulls need two at least"):
        interp.claims(model, interp.encode(model, ids, answers=[(1, 2)]))
    with pytest.raises(BadInput, match=r"the batch is a list; expected what interp\.encode"):
        interp.claims(model, [ids])  # type: ignore[arg-type]


def test_edits_of_ones_own_take_the_place_of_a_method() -> None:
    model = interp.load("handmade")
    pairs = [(a, b) for a in range(3, 7) for b in range(9, 13)]
    batch = interp.encode(model, [[0, a, b, a] for a, b in pairs], answers=[(b, a) for a, b in pairs])
    mine = interp.claims(
        model,
        batch,
        "silenced",
        edits=lambda heads: [interp.zero(interp.At("z", layer=head.layer, heads=(head.index,))) for head in heads],
    )
    zero = interp.claims(model, batch, "zero")
    assert mine.claimed == zero.claimed and mine.method == "silenced"
    assert (mine.effects.samples == zero.effects.samples).all()
