"""Layer x head heatmaps, and the grid heatmap they are made of."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Real

from interp.errors import BadInput
from interp.numerals import numeral, span
from interp.show.theme import template

if TYPE_CHECKING:
    import plotly.graph_objects as go

PRINTED_CELLS = 64  # grids up to this many cells carry their values as text
WIDEST, CELL_LARGEST, CELL_SMALLEST = 640, 44, 13
MOST_TICKS = 16
LONGEST_BAR = 240
EDGE_WIDTH, EDGE_HEIGHT = 110, 78  # pixels around the cells: labels, colour bar, heading


def head_heatmap(
    values: np.ndarray,
    *,
    low: Float[np.ndarray, "layer head"] | None = None,
    high: Float[np.ndarray, "layer head"] | None = None,
    signed: bool | None = None,
    name: str = "value",
    title: str = "",
    prefix: str = "",
    marked: Iterable[tuple[int, int]] = (),
    limits: tuple[float, float] | None = None,
    note: str = "95 % interval",
) -> go.Figure:
    """A plotly heatmap with one cell per head; NaN cells stay blank, layer 0 is at the top.

    Args:
        values: one number per head ``[layer, head]``, NaN where no head is.
        low, high: interval of each value, shown on hovering.
        signed: True centres a diverging colour scale at zero, False uses a sequential one; None looks for a
            negative value.
        name: what the number is; stands in the hover label.
        title: heading inside the figure; ``name`` when empty.
        prefix: put before the head's label, such as ``"vision."``.
        marked: (layer, head) cells to outline.
        limits: ends of the colour scale; by default the data's own, from zero up where nothing is negative.
        note: what ``low`` and ``high`` are.

    Example:
        >>> head_heatmap(np.array([[0.1, 0.9], [0.2, np.nan]]), name="induction").data[0].z.shape
        (2, 2)
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.size == 0:  # noqa: PLR2004 - [layer, head]
        raise BadInput(f"head_heatmap: expected an array [layer, head] with at least one cell, got {values.shape}.")
    n_layers, n_heads = values.shape
    labels = [[f"{prefix}L{layer}.H{head}" for head in range(n_heads)] for layer in range(n_layers)]
    figure = grid_heatmap(
        values, labels=labels, low=low, high=high, signed=signed, name=name, title=title, limits=limits, note=note
    )
    figure.update_xaxes(title_text="head", **_integer_ticks(n_heads))
    figure.update_yaxes(title_text="layer", **_integer_ticks(n_layers))
    for layer, head in marked:
        figure.add_shape(
            type="rect",
            x0=head - 0.5,
            x1=head + 0.5,
            y0=layer - 0.5,
            y1=layer + 0.5,
        )
    return figure


def grid_heatmap(
    values: Real[np.ndarray, "row column"],
    *,
    labels: Sequence[Sequence[str]] | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    low: Float[np.ndarray, "row column"] | None = None,
    high: Float[np.ndarray, "row column"] | None = None,
    signed: bool | None = None,
    name: str = "value",
    title: str = "",
    limits: tuple[float, float] | None = None,
    note: str = "95 % interval",
) -> go.Figure:
    """A plotly heatmap of any table of numbers, row 0 at the top.

    Args:
        values: the numbers; NaN cells stay blank.
        labels: what each cell is, for the hover label; made of ``rows`` and ``columns`` when not given.
        rows, columns: names along the axes; plain text, escaped here.
        low, high, signed, name, title, limits, note: as in ``head_heatmap``.
    """
    import plotly.graph_objects as go

    values = np.asarray(values)
    n_rows, n_columns = values.shape
    labels = labels or [
        [f"{rows[i] if rows else i}, {columns[j] if columns else j}" for j in range(n_columns)] for i in range(n_rows)
    ]
    cell = int(np.clip(WIDEST / max(n_columns, n_rows), CELL_SMALLEST, CELL_LARGEST))
    bottom, top = limits or colour_limits(values, signed)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=np.arange(n_columns),
            y=np.arange(n_rows),
            coloraxis="coloraxis",
            text=_hover_text(values, labels, low, high, name, note),
            hovertemplate="%{text}<extra></extra>",
            texttemplate="%{z:.2f}" if values.size <= PRINTED_CELLS and _all_moderate(values) else None,
            textfont={"size": 11},
            hoverongaps=False,
            xgap=1,
            ygap=1,
        )
    )
    figure.update_layout(
        template=template(),
        title={"text": html.escape(title or name)},
        width=n_columns * cell + EDGE_WIDTH,
        height=n_rows * cell + EDGE_HEIGHT,
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        coloraxis={"cmin": bottom, "cmax": top, "colorbar": colour_bar(n_rows * cell)},
        meta={"edges": [EDGE_WIDTH, EDGE_HEIGHT]},
    )
    figure.update_xaxes(
        showgrid=False, range=[-0.5, n_columns - 0.5], constrain="domain", side="bottom", **_named(columns)
    )
    figure.update_yaxes(showgrid=False, range=[n_rows - 0.5, -0.5], **_named(rows))
    return figure


def colour_limits(values: np.ndarray, signed: bool | None = None) -> tuple[float, float]:
    """The ends of the colour scale for ``values``: symmetric about zero when signed, else from zero (or the least)."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return (0.0, 1.0)
    least, most = float(finite.min()), float(finite.max())
    if signed if signed is not None else least < 0:
        reach = max(abs(least), abs(most)) or 1.0
        return (-reach, reach)
    bottom = min(0.0, least)
    return (bottom, most if most > bottom else bottom + 1.0)


def colour_bar(height: float) -> dict[str, Any]:
    """A colour bar for a plot of ``height`` pixels: no taller than useful, with room between its ticks."""
    share = min(1.0, LONGEST_BAR / height)
    return {"len": share, "y": 1, "yanchor": "top", "ypad": 0, "nticks": int(np.clip(share * height / 24, 2, 6))}


def _hover_text(
    values: np.ndarray,
    labels: Sequence[Sequence[str]],
    low: np.ndarray | None,
    high: np.ndarray | None,
    name: str,
    note: str,
) -> list[list[str]]:
    def line(row: int, column: int) -> str:
        value = values[row, column]
        if not np.isfinite(value):
            return ""
        text = f"<b>{html.escape(labels[row][column])}</b><br>{html.escape(name)} {numeral(float(value))}"
        if low is None or high is None or not (np.isfinite(low[row, column]) and np.isfinite(high[row, column])):
            return text
        return f"{text}<br>{html.escape(note)} {span(float(low[row, column]), float(high[row, column]))}"

    return [[line(row, column) for column in range(values.shape[1])] for row in range(values.shape[0])]


def _all_moderate(values: np.ndarray) -> bool:
    finite = np.abs(values[np.isfinite(values)])
    return bool(finite.size) and float(finite.max()) < 100 and float(finite.max()) >= 0.01  # noqa: PLR2004


def _integer_ticks(count: int) -> dict[str, Any]:
    step = max(1, -(-count // MOST_TICKS))
    step = step if step in (1, 2) else 4 * -(-step // 4)
    places = list(range(0, count, step))
    return {"tickmode": "array", "tickvals": places, "ticktext": [str(place) for place in places]}


def _named(names: Sequence[str] | None) -> dict[str, Any]:
    if names is None:
        return {}
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [html.escape(str(name)) for name in names],
    }
