"""Rows of attention beside explanations of the same prompts, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.scores.audits.agreement import agreement_of_rows
from interp.scores.audits.attribution_agreement import sign_disagreement_of_rows
from interp.stats import Interval, mean_interval

MEASURES = ("kendall", "spearman", "overlap", "signs")
WORDS = {
    "kendall": "Kendall's tau of the sizes",
    "spearman": "Spearman's rho of the sizes",
    "overlap": "share of the foremost tokens in common",
    "signs": "share of the most attended tokens that the explanation counts against the answer",
}
PerPrompt = Float[np.ndarray, " prompt"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Attention against explanations.

    Attributes:
        attention: name -> ``[prompt, token]``.
        explanations: name -> ``[prompt, token]``.
        signed: explanations that have signs.
        counted: ``[prompt, token]`` the tokens that are compared.
        top: how many tokens are the foremost.
        values: measure -> (attention, explanation) -> ``[prompt]``.
        among: measure -> (explanation, explanation) -> ``[prompt]``: how far the explanations agree themselves.
        chance: ``[prompt]`` share of the foremost tokens that two unrelated orders have in common.
        against: explanation with signs -> ``[prompt]`` share of all compared tokens that it counts against the answer.
        confidence: of every interval.
    """

    attention: Mapping[str, Float[np.ndarray, "prompt token"]]
    explanations: Mapping[str, Float[np.ndarray, "prompt token"]]
    signed: frozenset[str]
    counted: Bool[np.ndarray, "prompt token"]
    top: int
    values: Mapping[str, Mapping[tuple[str, str], PerPrompt]]
    among: Mapping[str, Mapping[tuple[str, str], PerPrompt]]
    chance: PerPrompt
    against: Mapping[str, PerPrompt]
    confidence: float

    def interval(self, values: PerPrompt) -> Interval:
        """A mean over prompts."""
        return mean_interval(values, confidence=self.confidence)

    def of(self, attention: str | None, measure: str = "kendall") -> PerPrompt:
        """``[prompt]`` the mean over explanations of one row of attention's agreement (of all rows, for None)."""
        chosen = [own for (first, _), own in self.values[measure].items() if attention in (None, first)]
        return mean_known(chosen)

    def themselves(self, measure: str = "kendall") -> PerPrompt | None:
        """``[prompt]`` the mean agreement of the explanations with each other; None for a single one."""
        chosen = list(self.among[measure].values())
        return mean_known(chosen) if chosen else None

    def table(self) -> pd.DataFrame:
        """One row per row of attention and explanation, every measure with its interval."""
        rows = []
        for first, second in self.values["kendall"]:
            row: dict[str, object] = {"attention": first, "explanation": second}
            for measure in MEASURES:
                own = self.values[measure].get((first, second))
                found = self.interval(own) if own is not None else None
                row |= {
                    measure: found.mean if found else np.nan,
                    f"{measure} low": found.low if found else np.nan,
                    f"{measure} high": found.high if found else np.nan,
                }
            rows.append(row)
        return pd.DataFrame(rows)


def compared_rows(
    attention: Mapping[str, np.ndarray],
    explanations: Mapping[str, np.ndarray],
    signed: Sequence[str],
    counted: Bool[np.ndarray, "prompt token"],
    *,
    top: int,
    confidence: float,
) -> Comparison:
    """Every row of attention beside every explanation; sizes are compared, signs counted apart.

    Args:
        attention, explanations: name -> ``[prompt, token]``, NaN where there is no number.
        signed: explanations whose numbers below 0 speak against the answer.
        counted: True at the tokens that are compared.
        top: how many tokens are the foremost.
        confidence: of every interval.
    """
    pairs = [(first, second) for first in attention for second in explanations]
    everything = {**attention, **explanations}
    values: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    among: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for measure, how in (("kendall", "kendall"), ("spearman", "spearman"), ("overlap", "topk")):

        def agree(first: str, second: str, how: str = how) -> np.ndarray:
            a, b = np.abs(everything[first]), np.abs(everything[second])
            return _rows(a, b, counted, lambda x, y, here: agreement_of_rows(x, y, here, how=how, top=top))

        values[measure] = {pair: agree(*pair) for pair in pairs}
        among[measure] = {pair: agree(*pair) for pair in combinations(explanations, 2)}
    values["signs"] = {
        (first, second): _rows(
            attention[first],
            explanations[second],
            counted,
            lambda x, y, here: sign_disagreement_of_rows(x, y, here, top=top),
        )
        for first, second in pairs
        if second in signed
    }
    sizes = counted.sum(1).astype(float)
    chance = np.where(sizes > 0, np.minimum(top, sizes) / np.maximum(sizes, 1), np.nan)
    against = {
        name: np.array(
            [
                np.mean(row[here & np.isfinite(row)] < 0) if (here & np.isfinite(row)).any() else np.nan
                for row, here in zip(explanations[name], counted, strict=True)
            ]
        )
        for name in signed
    }
    return Comparison(
        attention, explanations, frozenset(signed), counted, top, values, among, chance, against, confidence
    )


def _rows(
    first: np.ndarray,
    second: np.ndarray,
    counted: np.ndarray,
    measure: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> np.ndarray:
    here = counted & np.isfinite(first) & np.isfinite(second)
    a, b = (torch.from_numpy(np.ascontiguousarray(np.nan_to_num(part))) for part in (first, second))
    return measure(a, b, torch.from_numpy(np.ascontiguousarray(here))).numpy()


def mean_known(rows: Sequence[PerPrompt]) -> PerPrompt:
    """``[prompt]`` the mean of the rows that have a number, NaN where none has."""
    stacked = np.stack(rows)
    known = np.isfinite(stacked)
    total = np.where(known, stacked, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
