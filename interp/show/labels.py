"""A map of all heads with the labels that they earned."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import BadInput
from interp.show.theme import GREY, PALETTE, template

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CELL_WIDTH, _CELL_HEIGHT = 92, 34
_EDGE_WIDTH, _EDGE_HEIGHT = 70, 116
_NO_LABEL = "no label"
_EVERY_TICK = 16  # columns up to which each is numbered


def label_map(
    cells: Mapping[str, tuple[int, int]],
    labels: Mapping[str, Sequence[str]],
    stages: Mapping[str, str],
    *,
    title: str = "",
) -> go.Figure:
    """A plotly map of heads, layer by head, layer 0 at the top; labelled heads carry their labels on a stage's colour.

    Args:
        cells: every head -> its layer and index.
        labels: the heads that earned labels -> the labels.
        stages: label -> its stage, which gives the colour (of a head's first label).
        title: heading inside the figure.

    Raises:
        BadInput: no heads.

    Example:
        >>> label_map({"L0.H0": (0, 0)}, {"L0.H0": ["induction"]}, {"induction": "latent reasoning"}).data[0].text[0][0]
        'induction'
    """
    import plotly.graph_objects as go

    if not cells:
        raise BadInput("label_map: there are no heads to show.")
    n_layers, n_heads = (max(place) + 1 for place in zip(*cells.values(), strict=True))
    order = list(dict.fromkeys(stages[first[0]] for first in labels.values()))
    numbers = np.full((n_layers, n_heads), np.nan)
    words = [[""] * n_heads for _ in range(n_layers)]
    hover = [[""] * n_heads for _ in range(n_layers)]
    for name, (layer, head) in cells.items():
        own = labels.get(name, ())
        numbers[layer, head] = 1 + order.index(stages[own[0]]) if own else 0
        words[layer][head] = html.escape("<br>".join(own)).replace("&lt;br&gt;", "<br>")
        hover[layer][head] = html.escape(f"{name}: {', '.join(own) or _NO_LABEL}")
    colours = ["rgba(139, 147, 158, 0.16)", *(_colour(number) for number in range(len(order)))]
    figure = go.Figure(
        go.Heatmap(
            z=numbers,
            text=words,
            customdata=hover,
            texttemplate="%{text}",
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorscale=_steps(colours),
            zmin=-0.5,
            zmax=len(colours) - 0.5,
            showscale=False,
            xgap=2,
            ygap=2,
        )
    )
    for stage, colour in zip(order, colours[1:], strict=True):
        figure.add_trace(
            go.Scatter(
                x=[None], y=[None], mode="markers", marker={"size": 11, "symbol": "square", "color": colour}, name=stage
            )
        )
    axis = {"tickmode": "linear", "dtick": 1 if n_heads <= _EVERY_TICK else 4, "showgrid": False}
    figure.update_xaxes(title_text="head", range=[-0.5, n_heads - 0.5], **axis)
    figure.update_yaxes(title_text="layer", range=[n_layers - 0.5, -0.5], **axis)
    return figure.update_layout(
        template=template(),
        title={"text": html.escape(title)},
        width=int(np.clip(_EDGE_WIDTH + n_heads * _CELL_WIDTH, 360, 1000)),
        height=_EDGE_HEIGHT + n_layers * _CELL_HEIGHT,
        margin={"l": 8, "r": 8, "t": 30, "b": 34},
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container", "x": 0},
        showlegend=bool(order),
    )


def _colour(number: int) -> str:
    return PALETTE[number] if number < len(PALETTE) - 1 else GREY


def _steps(colours: Sequence[str]) -> list[tuple[float, str]]:
    """A colour scale of flat steps."""
    edges = np.linspace(0, 1, len(colours) + 1)
    return [(float(edge), colour) for number, colour in enumerate(colours) for edge in edges[number : number + 2]]
