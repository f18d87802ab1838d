"""Room for names along the axes of a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

LETTER = 6.4  # pixels of one letter at an axis
SLANTED = 0.55  # height of a slanted name per letter's width
ORDINARY = 4  # letters that a heatmap has room for by itself


def with_room_for_names(figure: go.Figure, rows: Sequence[str], columns: Sequence[str]) -> go.Figure:
    """``figure``, wider by its longest row name, and taller where names of columns have to stand slanted.

    Args:
        figure: a heatmap of ``interp.show``.
        rows, columns: the names along its axes.
    """
    layout = figure.to_plotly_json()["layout"]
    edges = layout["meta"]["edges"]
    cell = (layout["width"] - edges[0]) / len(columns)
    longest = max(map(len, columns))
    wider = LETTER * max(0, max(map(len, rows)) - ORDINARY)
    more = SLANTED * LETTER * longest if longest * LETTER > cell else 0
    return figure.update_layout(
        width=round(layout["width"] + wider),
        height=round(layout["height"] + more),
        meta={"edges": [round(edges[0] + wider), round(edges[1] + more)]},
    )


def taller(figure: go.Figure, by: int) -> go.Figure:
    """``figure``, ``by`` pixels taller."""
    return figure.update_layout(height=figure.to_plotly_json()["layout"]["height"] + by)
