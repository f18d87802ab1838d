"""The figure of composition scores: earlier heads down, later heads across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp.errors import BadInput
from interp.numerals import numeral
from interp.show.heatmap import grid_heatmap
from interp.show.theme import GREY

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
    """A heatmap of pairs of heads, coloured from the chance score up; heads without a pair are left out.

    Args:
        values: ``[earlier head, later head]``, NaN where the first is not earlier.
        heads: names of the heads.
        layers: the layer of each.
        chance: the score of unrelated heads, where the colours begin.
        title: heading inside the figure.

    Raises:
        BadInput: no pair has a score.

    Example:
        >>> values = np.array([[np.nan, 0.5], [np.nan, np.nan]])
        >>> composition_figure(values, ["L0.H0", "L1.H0"], [0, 1], chance=0.1).data[0].z.shape
        (1, 1)
    """
    there = np.isfinite(values)
    first, second = np.asarray(there.any(1)), np.asarray(there.any(0))  # the earlier heads of pairs, and the later ones
    if not first.any():
        raise BadInput("composition_figure: no pair of heads has a score, so that there is nothing to draw.")
    shown = values[first][:, second]
    rows, columns = ([head for head, there in zip(heads, keep, strict=True) if there] for keep in (first, second))
    largest = float(np.nanmax(shown))
    many = max(len(rows), len(columns)) > _MOST_NAMED
    figure = grid_heatmap(
        shown,
        labels=[[f"{writer} \u2192 {reader}" for reader in columns] for writer in rows],
        rows=None if many else rows,
        columns=None if many else columns,
        name="composition",
        title=title or "composition",
        limits=(chance, max(largest, chance * 1.01)),
    )
    figure.update_xaxes(title_text="reads (later head)")
    figure.update_yaxes(title_text="writes (earlier head)")
    if many:
        for keep, axis, line in (
            (first, figure.update_yaxes, figure.add_hline),
            (second, figure.update_xaxes, figure.add_vline),
        ):
            spans = _layer_spans([layer for layer, there in zip(layers, keep, strict=True) if there])
            axis(
                tickvals=[(start + end - 1) / 2 for _, start, end in spans],
                ticktext=[f"L{layer}" for layer, _, _ in spans],
            )
            for _, start, _ in spans[1:]:
                line(start - 0.5, line={"width": 1, "color": GREY}, opacity=0.5)
    figure.update_layout(coloraxis_colorbar_title_text=f"from chance ({numeral(chance)})")
    return figure


def _layer_spans(layers: Sequence[int]) -> list[tuple[int, int, int]]:
    """(layer, first place, place after the last) of each run of equal layers."""
    spans: list[tuple[int, int, int]] = []
    for place, layer in enumerate(layers):
        if spans and spans[-1][0] == layer:
            spans[-1] = (layer, spans[-1][1], place + 1)
        else:
            spans.append((layer, place, place + 1))
    return spans
