"""The figure of composition scores: earlier heads down, later heads across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp.numerals import numeral
from interp.show.heatmap import grid_heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MOST_NAMED = 32  # heads whose names fit along an axis


def composition_figure(
    values: Float[np.ndarray, "head head"],
    heads: Sequence[str],
    layers: Sequence[int],
    *,
    chance: float,
    title: str = "",
) -> go.Figure:
    """A heatmap of pairs of heads, coloured from the chance score up; pairs that cannot compose stay blank.

    Args:
        values: ``[earlier head, later head]``, NaN where the first is not earlier.
        heads: names of the heads.
        layers: the layer of each.
        chance: the score of unrelated heads, where the colours begin.
        title: heading inside the figure.

    Example:
        >>> values = np.array([[np.nan, 0.5], [np.nan, np.nan]])
        >>> composition_figure(values, ["L0.H0", "L1.H0"], [0, 1], chance=0.1).data[0].z.shape
        (2, 2)
    """
    finite = values[np.isfinite(values)]
    largest = float(finite.max()) if finite.size else 1.0
    labels = [[f"{first} \u2192 {second}" for second in heads] for first in heads]
    named = list(heads) if len(heads) <= _MOST_NAMED else None
    figure = grid_heatmap(
        values,
        labels=labels,
        rows=named,
        columns=named,
        name="composition",
        title=title or "composition",
        limits=(chance, max(largest, chance * 1.01)),
    )
    figure.update_xaxes(title_text="reads (later head)")
    figure.update_yaxes(title_text="writes (earlier head)")
    if named is None:
        starts = [place for place, layer in enumerate(layers) if place == 0 or layers[place - 1] != layer]
        ticks = {"tickvals": starts, "ticktext": [f"L{layers[place]}" for place in starts]}
        figure.update_xaxes(**ticks)
        figure.update_yaxes(**ticks)
        for place in starts[1:]:
            figure.add_hline(place - 0.5, line_width=0.5, opacity=0.4)
            figure.add_vline(place - 0.5, line_width=0.5, opacity=0.4)
    figure.update_layout(coloraxis_colorbar_title_text=f"from chance ({numeral(chance)})")
    return figure
