"""What the curves say: areas, leads over random orders, and how many heads hold the metric; knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.address import Head
from interp.attribution.pruning import PruningCurve
from interp.results import HeadScores
from interp.stats import benjamini_hochberg


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of.

    Attributes:
        model: its name.
        rankings: the tables that heads were ranked by, on the selection prompts.
        orders: name -> heads, the least important first.
        curves: name -> curve on the evaluation prompts, all with the same random orders.
        keep: share of the model's metric that counts as kept.
        confidence: of every interval.
        ablation: what takes the place of a head's output.
    """

    model: str
    rankings: Mapping[str, HeadScores]
    orders: Mapping[str, Sequence[Head]]
    curves: Mapping[str, PruningCurve]
    keep: float
    confidence: float
    ablation: str

    @property
    def any_curve(self) -> PruningCurve:
        """One of the curves: all share the first and the last point and the random orders."""
        return next(iter(self.curves.values()))

    @property
    def whole(self) -> float:
        """The metric with no head removed."""
        return float(self.any_curve.values[0].mean())

    @property
    def empty(self) -> float:
        """The metric with every head removed."""
        return float(self.any_curve.values[-1].mean())

    def kept(self, name: str) -> float:
        """Heads that are enough: the fewest left such that here, and at every earlier cut, ``keep`` of the metric is.

        A metric counts as kept where ``m - empty >= keep * (whole - empty)``, means over prompts.
        """
        return self._enough(self.curves[name].values.mean(1))

    def kept_by_random(self) -> np.ndarray:
        """The same for every random order."""
        return np.array([self._enough(one.mean(1)) for one in self.any_curve.random])

    def _enough(self, means: np.ndarray) -> float:
        held = means - self.empty >= self.keep * (self.whole - self.empty)
        broken = np.flatnonzero(~held)
        last = len(held) - 1 if not len(broken) else int(broken[0]) - 1
        return float(self.any_curve.kept[last])

    def adjusted(self) -> dict[str, float | None]:
        """Name -> p-value against the random orders, after Benjamini-Hochberg over the curves; None with too few."""
        raw = {name: curve.p for name, curve in self.curves.items()}
        p = np.array([np.nan if one is None else one for one in raw.values()])
        found = benjamini_hochberg(p).adjusted
        return {name: None if np.isnan(one) else float(one) for name, one in zip(raw, found, strict=True)}

    def best(self) -> str:
        """The ranking with the largest area."""
        return max(self.curves, key=lambda name: self.curves[name].area.mean)

    def wide(self) -> pd.DataFrame:
        """One row per ranking: area with its interval, lead over random orders, p, and how many heads are enough."""
        adjusted = self.adjusted()
        rows = []
        for name, curve in self.curves.items():
            lead = curve.lead
            row = {"ranking": name, "area": curve.area.mean, "lead": lead.mean, "low": lead.low, "high": lead.high}
            if adjusted[name] is not None:
                row["p"] = adjusted[name]
            rows.append({**row, "heads enough": int(self.kept(name)), "last heads": ", ".join(self.last(name))})
        return pd.DataFrame(rows).sort_values("area", ascending=False, kind="stable", ignore_index=True)

    def last(self, name: str, most: int = 3) -> list[str]:
        """The heads that this ranking keeps longest, the last one first."""
        return [str(head) for head in list(self.orders[name])[::-1][:most]]

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and ranking, with its interval and its place in the order (1 goes first)."""
        parts = []
        for name, scores in self.rankings.items():
            rows = scores.table(confidence=self.confidence)
            rows.insert(0, "quantity", name)
            places = {(head.layer, head.index): place for place, head in enumerate(self.orders[name], start=1)}
            rows["removed_as"] = [places[pair] for pair in zip(rows["layer"], rows["head"], strict=True)]
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)

    def points(self) -> pd.DataFrame:
        """One row per ranking and cut: heads kept, the metric with its interval, and the band of the random orders."""
        parts = [curve.table(confidence=self.confidence).assign(ranking=name) for name, curve in self.curves.items()]
        found = pd.concat(parts, ignore_index=True)
        return found.set_index("ranking").reset_index()
