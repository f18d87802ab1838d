"""Whether a pattern score stands out: from its null, and from the other heads of the layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from interp.scores.labels.reading import PatternReading, mean_over_prompts
from interp.stats import bootstrap_means


@dataclass(frozen=True, eq=False)
class PatternVerdict:
    """What a pattern test says of every head, each ``[layer, head]``.

    Attributes:
        score: mean over prompts; ``low`` and ``high`` the ends of its bootstrap interval.
        null: mean under the null.
        threshold: the ``1 - level`` quantile of the null's draws.
        rival: the score that the other heads of the layer reach; NaN where there is none to compare with.
        above_null: the score exceeds the threshold by more than the bootstrap leaves open, and the null's mean by the
            margin.
        passes: it exceeds the other heads as well.
    """

    score: Float[np.ndarray, "layer head"]
    low: Float[np.ndarray, "layer head"]
    high: Float[np.ndarray, "layer head"]
    null: Float[np.ndarray, "layer head"]
    threshold: Float[np.ndarray, "layer head"]
    rival: Float[np.ndarray, "layer head"]
    above_null: Bool[np.ndarray, "layer head"]
    passes: Bool[np.ndarray, "layer head"]


def judged(reading: PatternReading, *, level: float, margin: float, seed: int) -> PatternVerdict:
    """What the reading says of every head.

    Args:
        reading: the score per prompt, and the null's draws.
        level: of the threshold and of the one-sided bootstrap.
        margin: least difference between the score and the null's mean.
        seed: of the bootstrap.
    """
    own = reading.own
    score = mean_over_prompts(own)
    low, high = bootstrap_means(own, confidence=0.95, seed=seed, cluster=reading.clusters)
    bottom, _ = bootstrap_means(own, confidence=1 - 2 * level, seed=seed, cluster=reading.clusters)
    null = mean_over_prompts(reading.null)
    threshold = upper_quantile(reading.null, level)
    with np.errstate(invalid="ignore"):
        above: Bool[np.ndarray, "layer head"] = (bottom > threshold) & (score - null >= margin)
    if reading.eligible is not None:
        above &= reading.eligible
    rival, exceeds = beyond_rivals(own, score, above, level, seed, reading.clusters)
    return PatternVerdict(score, low, high, null, threshold, rival, above, above & exceeds)


def upper_quantile(draws: Float[np.ndarray, "draw ..."], level: float) -> Float[np.ndarray, "*cell"]:
    """The ``1 - level`` quantile of the draws, the larger of the two draws beside it; NaN where a head has none."""
    ordered = np.sort(np.where(np.isfinite(draws), draws, np.inf), axis=0)
    counts = np.isfinite(draws).sum(0)
    place = np.ceil((1 - level) * (counts - 1)).clip(min=0).astype(int)
    found = np.take_along_axis(ordered, place[None], 0)[0]
    return np.where(counts > 0, found, np.nan)


def beyond_rivals(
    own: Float[np.ndarray, "prompt layer head"],
    score: Float[np.ndarray, "layer head"],
    above: Bool[np.ndarray, "layer head"],
    level: float,
    seed: int,
    clusters: tuple[str, ...] | None,
) -> tuple[Float[np.ndarray, "layer head"], Bool[np.ndarray, "layer head"]]:
    """``(score of the strongest of the other heads, whether a head is beyond it)``, for the heads ``above`` something.

    The others are those of the same layer that are not above their null, of any layer where none is left. Where no
    other head is left at all there is nothing to compare with, and what ``above`` says decides.
    """
    reach = np.full(score.shape, np.nan)
    margins = np.full(own.shape, np.nan)
    exceeds = np.zeros(score.shape, dtype=bool)
    for layer, head in np.argwhere(above):
        others = np.isfinite(score) & ~above
        beside = np.zeros_like(others)
        beside[layer] = others[layer]
        rivals = np.argwhere(beside if beside.any() else others)
        if not len(rivals):
            exceeds[layer, head] = True
            continue
        order = rivals[np.argsort(score[tuple(rivals.T)], kind="stable")]
        rival = tuple(order[math.ceil((1 - level) * (len(order) - 1))])
        reach[layer, head] = score[rival]
        margins[:, layer, head] = own[:, layer, head] - own[(slice(None), *rival)]
    bottom, _ = bootstrap_means(margins, confidence=1 - 2 * level, seed=seed, cluster=clusters)
    return reach, exceeds | (np.nan_to_num(bottom, nan=-1.0) > 0)
