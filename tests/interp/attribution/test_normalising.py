"""Effects as shares of the difference between the two sides of a pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import TINY

import interp
from interp import At, BadInput, Batch, HeadScores, Model, Site
from interp.attribution.normalising import shares


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Batch, Batch]:
    """A tiny GPT-2 with six pairs of prompts that differ in the last token, and the answers that tell them apart."""
    made = TINY["gpt2"]()
    model = interp.load(made.hf, check=False)
    clean, corrupted = made.inputs(6), made.inputs(6)
    corrupted["input_ids"] = clean["input_ids"].clone()
    corrupted["input_ids"][:, -1] = clean["input_ids"][:, -1].flip(0)
    logits = [interp.run(model, interp.encode(model, inputs=each), logits="last").logits for each in (clean, corrupted)]
    assert logits[0] is not None and logits[1] is not None
    moved = (logits[0] - logits[1])[:, 0]
    answers = list(zip(moved.argmax(-1).tolist(), moved.argmin(-1).tolist(), strict=True))
    return (
        model,
        interp.encode(model, inputs=clean, answers=answers),
        interp.encode(model, inputs=corrupted, answers=answers),
    )


def metric_of(model: Model, batch: Batch) -> np.ndarray:
    """The logit difference of the unedited prompts."""
    logits = interp.run(model, batch).logits
    assert logits is not None
    return interp.logit_difference(logits, batch).double().numpy()


def test_the_value_is_the_ratio_of_means_and_the_prompts_have_their_own(pair: tuple[Model, Batch, Batch]) -> None:
    model, clean, corrupted = pair
    effects = interp.attribute(model, corrupted, "patch", source=clean)
    made = interp.attribute(model, corrupted, "patch", source=clean, normalise=True)
    difference = metric_of(model, clean) - metric_of(model, corrupted)
    kept = difference > 0.1 * np.median(difference)
    assert made.metadata["prompts without a ratio"] == int((~kept).sum())
    expected = effects.per_prompt[kept].mean(0) / difference[kept].mean()
    np.testing.assert_allclose(made.values, expected, atol=1e-5)
    np.testing.assert_allclose(
        made.per_prompt[kept], effects.per_prompt[kept] / difference[kept, None, None], atol=1e-5
    )
    assert np.isnan(made.per_prompt[~kept]).all()
    unweighted = made.per_prompt[kept].mean(0)
    assert np.abs(unweighted - expected).max() > 1e-3  # the mean of ratios is another number


def test_the_source_is_read_with_the_answers_of_the_batch(pair: tuple[Model, Batch, Batch]) -> None:
    model, clean, corrupted = pair
    assert clean.answers is not None and clean.ids is not None
    other = interp.encode(model, inputs=dict(clean.inputs), answers=clean.answers.flip(1).tolist())
    np.testing.assert_array_equal(
        interp.attribute(model, corrupted, "patch", source=other, normalise=True).per_prompt,
        interp.attribute(model, corrupted, "patch", source=clean, normalise=True).per_prompt,
    )


def test_the_interval_is_that_of_a_ratio_and_files_keep_the_weights(
    pair: tuple[Model, Batch, Batch], tmp_path: Path
) -> None:
    model, clean, corrupted = pair
    made = interp.attribute(model, corrupted, "patch", source=clean, normalise=True)
    opened = HeadScores.open(made.save(tmp_path / "scores.safetensors"))
    assert opened.weights == made.weights and made.weights is not None
    np.testing.assert_array_equal(opened.values, made.values)
    weights = np.array(made.weights)
    drawn = np.random.default_rng(1).integers(0, 6, (4000, 6))
    ratios = np.nan_to_num(made.per_prompt[:, 1, 0])
    totals = weights[drawn].sum(1)
    means = (ratios * weights)[drawn].sum(1)[totals > 0] / totals[totals > 0]
    row = made.table().query("layer == 1 and head == 0").iloc[0]
    spread = means.std()
    assert abs(row.low - np.quantile(means, 0.025)) < 0.25 * spread
    assert abs(row.high - np.quantile(means, 0.975)) < 0.25 * spread
    assert row.value == pytest.approx(made.values[1, 0])
    joined = HeadScores.concat([made, made])
    assert joined.weights == made.weights * 2
    np.testing.assert_allclose(joined.values, made.values)


def test_small_and_opposite_differences_have_no_ratio() -> None:
    made = shares(np.array([[-1.0, -4.0, -3.0, 5.0]]), np.array([-2.0, -4.0, -0.1, 3.0]))
    np.testing.assert_array_equal(made.values, [[0.5, 1.0, np.nan, np.nan]])
    assert made.weights.tolist() == [2.0, 4.0, 0.0, 0.0] and made.sign == -1
    assert made.about["which prompts have no ratio"] == [2, 3]


def test_an_edited_run_is_no_side_of_a_pair(pair: tuple[Model, Batch, Batch]) -> None:
    model, clean, corrupted = pair
    reads = [At(Site.Z, layer=layer) for layer in (0, 1)]
    edited = interp.run(model, clean, read=reads, edits=[interp.zero(At(Site.Z, layer=0))])
    assert interp.attribute(model, corrupted, "patch", source=edited).values.shape == (2, 4)
    with pytest.raises(BadInput, match="has edits in force"):
        interp.attribute(model, corrupted, "patch", source=edited, normalise=True)
