"""Line charts with bands and marks, in panels that share the horizontal axis."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import BadInput
from interp.show.theme import GREY, PALETTE, template

if TYPE_CHECKING:
    import plotly.graph_objects as go

Numbers = Sequence[float] | np.ndarray
PANEL_HEIGHT, GAP = 170, 44  # pixels; the gap holds the legend of the panel below it
_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "bottom"}


@dataclass(frozen=True, eq=False)
class Line:
    """One curve: ``y`` at each ``x`` of the chart, with an optional band from ``low`` to ``high``.

    ``colour`` is ``#rrggbb``; the next one of the palette by default.
    """

    name: str
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    colour: str | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """One panel: what its vertical axis measures, and its lines."""

    name: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Mark:
    """A vertical mark at ``x`` with a few words."""

    x: float
    label: str = ""


def curve_panels(
    x: Numbers,
    panels: Sequence[Panel],
    *,
    x_name: str = "step",
    marks: Sequence[Mark] = (),
    title: str = "",
    log_x: bool = False,
) -> go.Figure:
    """A plotly figure of panels one above the other, with the same horizontal axis and the same vertical marks.

    Args:
        x: where the curves were measured.
        panels: from top to bottom.
        x_name: what ``x`` counts.
        marks: vertical lines through every panel; their words stand at the top.
        title: heading inside the figure.
        log_x: logarithmic horizontal axis.

    Raises:
        BadInput: a line without one value per ``x``.

    Example:
        >>> curve_panels([0, 1], [Panel("loss", [Line("loss", [3.0, 1.0])])]).data[0].y.tolist()
        [3.0, 1.0]
    """
    from plotly.subplots import make_subplots

    places = np.asarray(x, dtype=float)
    drawn_height = PANEL_HEIGHT * len(panels) + GAP * (len(panels) - 1)
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=GAP / drawn_height)
    colours = _colours(panels)
    words_room = 16 if any(mark.label for mark in marks) else 0
    for row, panel in enumerate(panels, start=1):
        legend = "legend" if row == 1 else f"legend{row}"
        for line in panel.lines:
            for trace in _traces(places, line, colours[line.name]):
                figure.add_trace(trace.update(legend=legend), row=row, col=1)
        figure.update_yaxes(title_text=html.escape(panel.name), row=row, col=1)
        top = 1 - (row - 1) * (PANEL_HEIGHT + GAP) / drawn_height
        lift = (2 + (words_room if row == 1 else 0)) / drawn_height
        figure.update_layout({legend: {**_LEGEND, "y": top + lift}})
    for mark in marks:
        _add_mark(figure, mark, log_x=log_x)
    title_room = 26 if title else 0
    figure.update_layout(
        template=template(),
        title={"text": html.escape(title)} if title else None,
        width=720,
        height=drawn_height + 76 + words_room + title_room,
        margin={"l": 8, "r": 16, "t": 28 + words_room + title_room, "b": 8},
        showlegend=any(line.name != panel.name or len(panel.lines) > 1 for panel in panels for line in panel.lines),
    )
    figure.update_xaxes(type="log" if log_x else "linear", showgrid=False, showline=True)
    figure.update_xaxes(title_text=html.escape(x_name), row=len(panels), col=1)
    return figure


def _add_mark(figure: go.Figure, mark: Mark, *, log_x: bool) -> None:
    figure.add_vline(x=mark.x, line={"width": 1, "dash": "dot", "color": GREY})
    if mark.label:
        place = {"x": np.log10(mark.x) if log_x else mark.x, "xref": "x", "xanchor": "center"}
        figure.add_annotation(text=html.escape(mark.label), y=1, yref="paper", yanchor="bottom", **place)


def emergence(
    steps: Numbers,
    loss: Mapping[str, Numbers],
    scores: Mapping[str, Numbers],
    *,
    marks: Sequence[Mark] = (),
    title: str = "",
) -> go.Figure:
    """Two panels over training steps: the loss curves above, the head scores below.

    Args:
        steps: training step of each checkpoint.
        loss: name -> loss at each checkpoint.
        scores: name (of a head or a score) -> score at each checkpoint.
        marks: steps worth pointing at, such as the bump in the loss curve.
        title: heading inside the figure.
    """
    panels = [
        Panel("loss", [Line(name, y) for name, y in loss.items()]),
        Panel("score", [Line(name, y) for name, y in scores.items()]),
    ]
    return curve_panels(steps, panels, x_name="training step", marks=marks, title=title)


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    own = {line.name: line.colour for panel in panels for line in panel.lines if line.colour}
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines if line.name not in own))
    return {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names)} | own


def _traces(x: np.ndarray, line: Line, colour: str) -> list[Any]:
    import plotly.graph_objects as go

    name = html.escape(line.name)
    y = np.asarray(line.y, dtype=float)
    if y.shape != x.shape:
        raise BadInput(f"curve_panels: line {line.name!r} has {y.shape} values, but x has {x.shape}; give one per x.")
    curve = go.Scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 5},
        hovertemplate=f"<b>{name}</b> %{{y:.3f}}<br>at %{{x}}<extra></extra>",
    )
    if line.low is None or line.high is None:
        return [curve]
    channels = ", ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    band = go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([np.asarray(line.high, dtype=float), np.asarray(line.low, dtype=float)[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({channels}, 0.18)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        name=f"{name}, interval",
    )
    return [band, curve]
