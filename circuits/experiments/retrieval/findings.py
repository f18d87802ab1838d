"""What the scores and the masked answers say; knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.experiments.retrieval.masking import CONTROLS, HeadSets
from circuits.experiments.retrieval.prompts import Prompts
from circuits.experiments.retrieval.scoring import Written
from interp.address import Head
from interp.results import HeadScores
from interp.stats import Interval, NullComparison, compare_with_null, mean_interval


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of.

    Attributes:
        model: its name.
        selection, evaluation: the prompts.
        scores: teacher-forced, on the selection prompts.
        scores_elsewhere: the same on the evaluation prompts.
        scores_without_first: the same on the selection prompts, the first token left out of every row.
        null: ``[draw, layer, head]`` the mean score on shuffled words.
        written: what the model writes on the selection prompts.
        written_elsewhere: the same on the evaluation prompts.
        sets: the heads that were masked.
        masked: mask -> set of heads -> ``[prompt]`` share of the answer's tokens that are right without them.
        threshold: from which on a head is a retrieval head.
        confidence: of every interval.
    """

    model: str
    selection: Prompts
    evaluation: Prompts
    scores: HeadScores
    scores_elsewhere: HeadScores
    scores_without_first: HeadScores
    null: np.ndarray
    written: Written
    written_elsewhere: Written
    sets: HeadSets
    masked: Mapping[str, Mapping[tuple[Head, ...], np.ndarray]]
    threshold: float
    confidence: float

    @property
    def order(self) -> list[Head]:
        """All heads, the largest score first."""
        return order_of(self.scores)

    @property
    def over(self) -> list[Head]:
        """The heads at or over the threshold, the largest score first."""
        return [head for head in self.order if self.scores.values[head.layer, head.index] >= self.threshold]

    @property
    def cluster(self) -> tuple[str, ...]:
        """The fact of each evaluation prompt."""
        return tuple(f"fact {owner}" for owner in self.evaluation.owners)

    def p(self) -> np.ndarray:
        """``[layer, head]`` share of the shuffled draws in which any head scores as much: ``(1 + #) / (1 + draws)``.

        Beside the largest score of each draw, so that it holds for all heads at once.
        """
        largest = np.nanmax(self.null.reshape(len(self.null), -1), axis=1)
        values = self.scores.values
        with np.errstate(invalid="ignore"):
            p = (1 + (largest[:, None, None] >= values).sum(0)) / (1 + len(largest))
        return np.where(np.isfinite(values), p, np.nan)

    def right(self, mask: str, heads: tuple[Head, ...]) -> Interval:
        """Share of right answer tokens without ``heads``, with its interval over facts."""
        values = self.masked[mask][tuple(sorted(heads))]
        return mean_interval(values, confidence=self.confidence, cluster=self.cluster)

    def random(self, mask: str, control: str, count: int) -> np.ndarray:
        """``[set]`` the same for every random set of a control; empty where there is none."""
        sets = self.sets.random[control, count]
        return np.array([self.masked[mask][tuple(sorted(one))].mean() for one in sets])

    def against(self, mask: str, control: str, count: int) -> NullComparison:
        """What masking the top heads costs, beside the random sets of a control."""
        whole = float(self.masked[mask][()].mean())
        cost = whole - float(self.masked[mask][tuple(sorted(self.sets.chosen[count]))].mean())
        random = whole - self.random(mask, control, count)
        return compare_with_null(cost, random, tail="greater", confidence=self.confidence)

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and quantity, with its interval."""
        quantities = {
            "retrieval, selection": self.scores,
            "retrieval, evaluation": self.scores_elsewhere,
            "retrieval without first token": self.scores_without_first,
            "retrieval while writing": self.written.scores,
        }
        parts = []
        for name, scores in quantities.items():
            rows = scores.table(confidence=self.confidence)
            rows.insert(0, "quantity", name)
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)

    def wide(self) -> pd.DataFrame:
        """One row per head, the largest score first."""
        ends, p, made = ends_of(self.scores, self.confidence), self.p(), []
        for head in self.order:
            at = (head.layer, head.index)
            low, high = ends[at]
            made.append(
                {
                    "head": str(head),
                    "score": self.scores.values[at],
                    "low": low,
                    "high": high,
                    "other facts": self.scores_elsewhere.values[at],
                    "while writing": self.written.scores.values[at],
                    "without first": self.scores_without_first.values[at],
                    "shuffled": float(self.null[(slice(None), *at)].mean()),
                    "p": p[at],
                    "retrieves": "yes" if head in self.over else "",
                }
            )
        return pd.DataFrame(made)

    def points(self) -> pd.DataFrame:
        """One row per mask and count: what is right without the top heads, and without the random sets."""
        made = []
        for mask in self.masked:
            made.append(self._point(mask, 0))
            made += [self._point(mask, count) for count in self.sets.chosen]
        return pd.DataFrame(made)

    def _point(self, mask: str, count: int) -> dict[str, object]:
        found = self.right(mask, self.sets.chosen[count] if count else ())
        row: dict[str, object] = {
            "mask": mask,
            "heads": count,
            "right": found.mean,
            "low": found.low,
            "high": found.high,
        }
        for control in CONTROLS:
            random = self.random(mask, control, count) if count else np.array([])
            row |= {control: float(random.mean()) if len(random) else np.nan}
            row |= {f"p, {control.split()[0]}": self.against(mask, control, count).p if len(random) else np.nan}
        return row


def order_of(scores: HeadScores) -> list[Head]:
    """All heads, the largest score first, ties by layer and index."""
    values, stack = scores.values, scores.stacks[0]
    heads = [Head(layer, index) for layer, index in np.argwhere(scores.exists[stack]).tolist()]
    return sorted(heads, key=lambda head: (-np.nan_to_num(values[head.layer, head.index]), head))


def ends_of(scores: HeadScores, confidence: float) -> dict[tuple[int, int], tuple[float, float]]:
    """(layer, head) -> the ends of the interval of its mean."""
    rows = scores.table(confidence=confidence)
    places = zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True)
    return dict(zip(places, zip(rows["low"].tolist(), rows["high"].tolist(), strict=True), strict=True))
