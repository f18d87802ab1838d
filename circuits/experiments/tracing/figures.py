"""Figures that the experiments on tracing share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from circuits.experiments.naming import with_room_for_names
from circuits.experiments.tracing.predicting import Prediction
from circuits.experiments.tracing.words import MEASURES
from interp.show import bar_chart, grid_heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

CHANCE = "random ranking"
MOST_LINES = 8


def prediction_figure(prediction: Prediction) -> go.Figure:
    """How well each method predicts the reference, the best first; random rankings last, their draws as dots."""
    names = [*prediction.order, CHANCE]
    drawn = np.nanmean(prediction.random, axis=1)
    found = [prediction.interval(name) for name in prediction.order]
    inside = [(1 - prediction.how.confidence) / 2, (1 + prediction.how.confidence) / 2]
    low, high = np.quantile(drawn, inside)
    return bar_chart(
        names,
        [*(one.mean for one in found), float(drawn.mean())],
        low=[*(one.low for one in found), float(low)],
        high=[*(one.high for one in found), float(high)],
        highlight=prediction.among(interventions=False),
        name=f"{MEASURES[prediction.how.measure]} with {prediction.reference}",
        note=f"{100 * prediction.how.confidence:g} % interval",
    )


def layers_figure(rows: pd.DataFrame, prediction: Prediction) -> go.Figure | None:
    """How well the trace at the top of each layer predicts the reference; None where no method has layers."""
    from interp.show import layer_curves

    own: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_dict(orient="records"):
        if row["reference"] == prediction.reference:
            own.setdefault(str(row["trace"]), []).append(row)
    if not own:
        return None
    depth = max(map(len, own.values()))
    whole = [name for name in prediction.order if len(own.get(name, ())) == depth][:MOST_LINES]
    curves = {name: np.array([row["mean"] for row in own[name]]) for name in whole}
    low, high = ({name: np.array([row[end] for row in own[name]]) for name in whole} for end in ("low", "high"))
    bands = {name: (low[name], high[name]) for name in whole}
    value = f"{MEASURES[prediction.how.measure]} with {prediction.reference}"
    return layer_curves(curves, bands=bands, value=value, confidence=prediction.how.confidence)


def grid_figure(names: Sequence[str], values: np.ndarray, measure: str) -> go.Figure:
    """How every method agrees with every other."""
    figure = grid_heatmap(
        values,
        rows=list(names),
        columns=list(names),
        name=MEASURES[measure],
        title="mean over prompts",
        signed=True,
        limits=(-1.0, 1.0),
    )
    return with_room_for_names(figure, list(names), list(names))
