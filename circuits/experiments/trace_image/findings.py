"""Everything that the experiment on traces of images found, and the tables made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from circuits.experiments.trace_image.images import Images
from circuits.experiments.trace_image.measuring import Randomised
from circuits.experiments.tracing.predicting import Prediction, Verdict, agreement_grid, layer_rows, verdict_of
from circuits.experiments.tracing.rows import Traced
from interp.tracing import METHODS
from interp.tracing.protocols.localisation import Localisation
from interp.tracing.protocols.removal_curves import RemovalCurves


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found.

    Attributes:
        model: name of the model.
        images: what was traced.
        shape: rows and columns of patches.
        regions: ``[image, patch]`` where the answer truly is; None where that is not known.
        traced: the traces of patches, and the methods that the model cannot do.
        predictions: reference -> how well each method predicts it.
        signed: reference -> the same with signs, of the methods that have them.
        located: where the traces point; None without regions.
        curves: the metric as patches are covered and uncovered; None where that was not asked for.
        randomised: traces as layers are drawn anew; None where that was not asked for.
        metric: what is explained.
        confidence: of every interval.
    """

    model: str
    images: Images
    shape: tuple[int, int]
    regions: Bool[np.ndarray, "image patch"] | None
    traced: Traced
    predictions: Mapping[str, Prediction]
    signed: Mapping[str, Prediction]
    located: Localisation | None
    curves: RemovalCurves | None
    randomised: Randomised | None
    metric: str
    confidence: float

    @property
    def main(self) -> Prediction:
        """How well the first reference is predicted."""
        return next(iter(self.predictions.values()))

    @cached_property
    def verdicts(self) -> dict[str, Verdict | None]:
        """Reference -> which method predicts it best."""
        return {name: verdict_of(one) for name, one in self.predictions.items()}

    def table(self) -> pd.DataFrame:
        """One row per method: how it predicts the references, where it points, and the areas under its curves."""
        first, *others = self.predictions
        rows = self.main.table().rename(columns={"correlation": f"with {first}"})
        for name in others:
            prediction = self.predictions[name]
            rows[f"with {name}"] = [
                prediction.interval(method).mean if method in prediction.values else np.nan for method in rows["method"]
            ]
        signed = self.signed.get(first)
        rows["with signs"] = [
            signed.interval(method).mean if signed is not None and method in signed.values else np.nan
            for method in rows["method"]
        ]
        if self.located is not None:
            for measure in self.located.chance:
                rows[measure] = [self.located.interval(method, measure).mean for method in rows["method"]]
        if self.curves is not None:
            for way in ("deletion", "insertion"):
                areas = self.curves.area(way)
                rows[way] = [float(areas[method].mean()) if method in areas else np.nan for method in rows["method"]]
        return rows

    def short_rows(self) -> pd.DataFrame:
        """The few columns that are printed at the end."""
        rows, first = self.table(), next(iter(self.predictions))
        shown = ["method", "needs", f"with {first}", "low", "high", "pointing", "iou", "deletion"]
        return rows.filter(shown).head(8)

    def layers(self) -> pd.DataFrame:
        """The paper's table: one row per method, reference and layer."""
        return layer_rows(self.predictions)

    def places(self) -> pd.DataFrame:
        """One row per method and measure of place, beside chance; empty where the truth is not known."""
        return pd.DataFrame() if self.located is None else self.located.table(confidence=self.confidence)

    def areas(self) -> pd.DataFrame:
        """One row per direction and method: area under the curve, beside random orders."""
        return pd.DataFrame() if self.curves is None else self.curves.table(confidence=self.confidence)

    def traces(self) -> pd.DataFrame:
        """One row per method, image and patch."""
        parts = []
        for name, rows in self.traced.rows.items():
            image, patch = np.nonzero(np.isfinite(rows.values))
            part = {
                "method": name,
                "image": image,
                "patch_row": patch // self.shape[1],
                "patch_column": patch % self.shape[1],
                "value": rows.values[image, patch],
            }
            if self.regions is not None:
                part["inside"] = self.regions[image, patch]
            parts.append(pd.DataFrame(part))
        return pd.concat(parts, ignore_index=True)

    def refused(self) -> pd.DataFrame:
        """One row per method that the model cannot do, with its reason."""
        return pd.DataFrame([{"method": name, "reason": why} for name, why in self.traced.refused.items()])

    @cached_property
    def grid(self) -> tuple[list[str], Float[np.ndarray, "method method"]]:
        """How every method agrees with every other: names and mean correlations over images."""
        rows = {name: self.traced.rows[name] for name in METHODS if name in self.traced.rows}
        counted = np.ones(next(iter(rows.values())).values.shape, dtype=bool)
        return list(rows), agreement_grid(rows, counted, self.main.how)
