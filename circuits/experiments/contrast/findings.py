"""What closing heads does to both formats, with its doubt; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.experiments.contrast.config import Format
from circuits.experiments.contrast.fitting import HALF, Contrast
from interp.address import Head
from interp.stats import Interval, NullComparison, compare_with_null, mean_interval

FORGOTTEN = 0.5  # nats: a format counts as lost from this rise on, and as kept where its rise is below a tenth of it


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of.

    Attributes:
        model: its name.
        contrasts: one fit for each pair of formats.
        confidence: of every interval.
    """

    model: str
    contrasts: Sequence[Contrast]
    confidence: float

    def loss(self, one: Contrast, name: Format) -> Interval:
        """The loss in a format with every head in place."""
        return mean_interval(one.losses[name][0].astype(float), confidence=self.confidence)

    def rise(self, one: Contrast, name: Format) -> Interval:
        """The rise of the loss in a format when the closed heads are set to zero."""
        rows = one.losses[name].astype(float)
        return mean_interval(rows[1] - rows[0], confidence=self.confidence)

    def null(self, one: Contrast, name: Format) -> NullComparison | None:
        """That rise beside those of the random sets; None where no head was closed."""
        if one.matched is None:
            return None
        rows = one.losses[name].astype(float)
        draws = (rows[2:] - rows[0]).mean(1)
        rise = self.rise(one, name).mean
        return compare_with_null(rise, draws, tail="greater", confidence=self.confidence, sets=one.matched)

    def open_heads(self, one: Contrast) -> list[Head]:
        """Heads that are not closed, layer by layer."""
        there = np.argwhere(np.isfinite(one.gates.values).all(0)).tolist()
        return [head for layer, index in there if (head := Head(layer, index)) not in one.closed]

    def separates(self, one: Contrast) -> bool:
        """Whether closing the heads costs the forgotten format clearly more than the retained one."""
        lost, kept = self.rise(one, one.forget), self.rise(one, one.retain)
        return bool(one.closed) and lost.low > max(FORGOTTEN, 2 * kept.high)

    def effects(self) -> pd.DataFrame:
        """One row per fit and format: the loss with every head, its rise without the closed ones, and random sets."""
        rows = []
        for one in self.contrasts:
            for name in (one.retain, one.forget):
                rise, null = self.rise(one, name), self.null(one, name)
                row: dict[str, Any] = {
                    "fit": f"keep {one.retain}, lose {one.forget}",
                    "format": name,
                    "loss": self.loss(one, name).mean,
                    "rise": rise.mean,
                    "low": rise.low,
                    "high": rise.high,
                }
                if null is not None and null.n:
                    row |= {
                        "random sets": null.n,
                        "their mean": null.null_mean,
                        "p": np.nan if null.p is None else null.p,
                    }
                rows.append(row)
        frame = pd.DataFrame(rows)
        return frame.dropna(axis="columns", how="all")

    def heads(self) -> pd.DataFrame:
        """One row per head: the mean gate of each fit, and the share of seeds that close it."""
        first = self.contrasts[0]
        cells = np.argwhere(np.isfinite(first.gates.values).all(0)).tolist()
        frame = pd.DataFrame({"head": [str(Head(layer, index)) for layer, index in cells]})
        for one in self.contrasts:
            name = f"keep {one.retain}, lose {one.forget}"
            frame[f"gate: {name}"] = [float(one.gates.values[:, layer, index].mean()) for layer, index in cells]
            frame[f"closed: {name}"] = [
                float((one.gates.values[:, layer, index] < HALF).mean()) for layer, index in cells
            ]
        return frame

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and fit, the gate with its interval over seeds."""
        parts = []
        for one in self.contrasts:
            rows = one.gates.gates.table(confidence=self.confidence)
            rows.insert(0, "quantity", f"gate: keep {one.retain}, lose {one.forget}")
            rows["closed"] = [Head(*cell) in one.closed for cell in zip(rows["layer"], rows["head"], strict=True)]
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)
