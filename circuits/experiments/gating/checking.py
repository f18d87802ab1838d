"""Gates against exact ablation: heads outside the random-head band, signs, and the agreement of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

import interp
from circuits.experiments.wording import short
from interp.address import Head
from interp.results import HeadScores
from interp.stats import Agreement, bootstrap_means, matched_random_sets


@dataclass(frozen=True)
class Checked:
    """One head, by its gates and by exact ablation.

    Attributes:
        head: which.
        effect, low, high: rise of the loss when it is set to zero, with its interval over prompts; nats.
        band: the central share of the effects of the other heads of its layer.
        outside: whether the interval does not meet the band.
        facilitation, interference: the largest score over seeds.
    """

    head: Head
    effect: float
    low: float
    high: float
    band: tuple[float, float]
    outside: bool
    facilitation: float
    interference: float

    @property
    def score(self) -> float:
        """Largest facilitation minus largest interference: positive where the gates say that the head helps."""
        return self.facilitation - self.interference

    @property
    def same_sign(self) -> bool:
        """Whether gates and ablation both say that the head helps, or both that it hurts."""
        return (self.score > 0) == (self.effect > 0)


def checked(gates: interp.Gates, effects: HeadScores, *, confidence: float) -> list[Checked]:
    """Every head, those with the largest exact effects first.

    Args:
        gates: of a fit.
        effects: rise of the loss per prompt, on prompts that the fit never saw.
        confidence: of the intervals, and the central share of the band.
    """
    values = effects.values
    low, high = bootstrap_means(effects.samples, confidence=confidence)
    facilitation, interference = (gates.strongest(name).values for name in ("facilitation", "interference"))
    widths = np.isfinite(values).sum(1).tolist()
    found = []
    for layer, index in np.argwhere(np.isfinite(values)).tolist():
        cell, head = (layer, index), Head(layer, index)
        others = matched_random_sets([head], widths, n_draws=200)
        reached = [values[one.layer, one.index] for (one,) in others.sets]
        band = np.zeros(2)
        if reached:  # the outer value on either side, so that few others make no narrow band
            band[0] = np.quantile(reached, (1 - confidence) / 2, method="lower")
            band[1] = np.quantile(reached, (1 + confidence) / 2, method="higher")
        outside = bool(low[cell] > band[1] or high[cell] < band[0])
        effect = (float(values[cell]), float(low[cell]), float(high[cell]))
        scores = float(facilitation[cell]), float(interference[cell])
        found.append(Checked(head, *effect, (float(band[0]), float(band[1])), outside, *scores))
    return sorted(found, key=lambda one: -abs(one.effect))


def rank_agreement_with(gates: interp.Gates, effects: HeadScores, *, confidence: float, seed: int) -> Agreement:
    """How far the largest facilitation over seeds and the exact effects order the heads alike."""
    made = interp.agreement(
        gates.strongest("facilitation"), effects, top=max(2, effects.values.size // 4), confidence=confidence, seed=seed
    )
    assert isinstance(made, Agreement)
    return made


def table_of_checks(checks: list[Checked]) -> pd.DataFrame:
    """One row per head: exact effect with interval and band, and what the gates say."""
    return pd.DataFrame(
        {
            "head": [str(one.head) for one in checks],
            "zeroed": [one.effect for one in checks],
            "low": [one.low for one in checks],
            "high": [one.high for one in checks],
            "band": [f"{short(one.band[0])} to {short(one.band[1])}" for one in checks],
            "outside": ["yes" if one.outside else "" for one in checks],
            "facilitation": [one.facilitation for one in checks],
            "interference": [one.interference for one in checks],
            "same sign": ["yes" if one.same_sign else "no" for one in checks],
        }
    )
