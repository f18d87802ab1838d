"""Bar charts with intervals and, beside them, the single draws of a null."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import BadInput
from interp.numerals import numeral, span
from interp.show.theme import ACCENT, GREY, template

if TYPE_CHECKING:
    import plotly.graph_objects as go


def bar_chart(
    labels: Sequence[str],
    values: Sequence[float] | np.ndarray,
    *,
    low: Sequence[float] | np.ndarray | None = None,
    high: Sequence[float] | np.ndarray | None = None,
    highlight: Iterable[str] | None = None,
    points: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    name: str = "value",
    title: str = "",
    note: str = "95 % interval",
    point: str = "one draw",
) -> go.Figure:
    """A plotly chart with one horizontal bar per label, the first at the top, and its interval as whiskers.

    Args:
        labels: what each bar is; plain text, all different.
        values: length of each bar.
        low, high: ends of the interval of each value (absolute, not distances); NaN leaves the whiskers out.
        highlight: labels drawn in the accent colour, the others in grey; None highlights all.
        points: label -> single values drawn as dots over that bar, such as the draws of a null.
        name: what the number is; stands at the axis and in the hover label.
        title: heading inside the figure.
        note: what ``low`` and ``high`` are.
        point: what one of ``points`` is.

    Raises:
        BadInput: lengths that differ, a label twice, or a label in ``points`` that is no bar.

    Example:
        >>> bar_chart(["top heads", "random heads"], [-2.1, -0.1]).data[0].x.tolist()
        [-2.1, -0.1]
    """
    import plotly.graph_objects as go

    numbers = np.asarray(values, dtype=float)
    lows = np.full(len(labels), np.nan) if low is None else np.asarray(low, dtype=float)
    highs = np.full(len(labels), np.nan) if high is None else np.asarray(high, dtype=float)
    _check(labels, numbers, lows, highs, points or {})
    lit = set(labels) if highlight is None else set(highlight)
    text = [_hover(*row, name, note) for row in zip(labels, numbers, lows, highs, strict=True)]
    figure = go.Figure(_bars(numbers, lows, highs, text, [ACCENT if label in lit else GREY for label in labels]))
    for label, draws in (points or {}).items():
        figure.add_trace(_dots(list(labels).index(label), np.asarray(draws, dtype=float), label, point))
    title_room = 30 if title else 0
    figure.update_layout(
        template=template(),
        title={"text": html.escape(title)} if title else None,
        showlegend=False,
        width=720,
        height=34 * len(labels) + 60 + title_room,
        margin={"l": 8, "r": 16, "t": 8 + title_room, "b": 8},
    )
    figure.update_xaxes(title_text=html.escape(name), zeroline=True, zerolinewidth=1.5, nticks=7)
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=[html.escape(label) + "  " for label in labels],
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
    )
    return figure


def _check(
    labels: Sequence[str],
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    points: Mapping[str, object],
) -> None:
    if not (values.shape == low.shape == high.shape == (len(labels),)):
        raise BadInput(
            f"bar_chart: {len(labels)} labels, but values {values.shape}, low {low.shape} and high {high.shape}; "
            "give one of each per label."
        )
    if len(set(labels)) != len(labels):
        raise BadInput(f"bar_chart: a label stands twice in {list(labels)}; labels must differ.")
    strange = [label for label in points if label not in set(labels)]
    if strange:
        raise BadInput(f"bar_chart: points for {strange}, but the bars are {list(labels)}.")


def _hover(label: str, value: float, low: float, high: float, name: str, note: str) -> str:
    text = f"<b>{html.escape(label)}</b><br>{html.escape(name)} {numeral(float(value))}"
    return text if np.isnan(low) else f"{text}<br>{html.escape(note)} {span(float(low), float(high))}"


def _bars(values: np.ndarray, low: np.ndarray, high: np.ndarray, text: list[str], colours: list[str]) -> go.Bar:
    import plotly.graph_objects as go

    return go.Bar(
        x=values,
        y=np.arange(len(values)),
        orientation="h",
        width=0.62,
        marker={"color": colours, "line": {"width": 0}},
        text=text,
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.nan_to_num(high - values),
            "arrayminus": np.nan_to_num(values - low),
            "visible": bool(np.isfinite(low).any()),
            "thickness": 1.4,
            "width": 5,
        },
    )


def _dots(place: int, draws: np.ndarray, label: str, point: str) -> go.Scatter:
    import plotly.graph_objects as go

    # spread over the bar's thickness in a fixed zigzag, so that equal values stay apart and nothing is random
    spread = 0.18 * (np.arange(draws.size) % 5 - 2) / 2
    return go.Scatter(
        x=draws,
        y=place + spread,
        mode="markers",
        marker={"size": 5, "color": "rgba(128, 136, 148, 0.0)", "line": {"width": 1.2, "color": "#d8703f"}},
        text=[f"<b>{html.escape(label)}</b><br>{html.escape(point)} {numeral(float(draw))}" for draw in draws],
        hovertemplate="%{text}<extra></extra>",
    )
