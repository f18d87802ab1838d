"""Attention patterns over real tokens, one chosen head at a time or side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.errors import BadInput
from interp.show.heatmap import colour_bar
from interp.show.theme import LIGHT, template
from interp.show.tokens import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_HEADS = 64
LONGEST_LABEL = 28  # characters of a token
LABELLED_IN_GRID = 26  # longer prompts leave the tick labels of small multiples out; hovering names the tokens


def attention_pattern(
    patterns: np.ndarray,
    tokens: Sequence[str],
    heads: Sequence[object],
    *,
    layout: Literal["auto", "grid", "menu"] = "auto",
    key_tokens: Sequence[str] | None = None,
    title: str = "",
    largest: float | None = None,
    most_tokens: int = 64,
) -> go.Figure:
    """A plotly figure of attention patterns: queries down, keys across, the tokens themselves along the axes.

    Args:
        patterns: attention probabilities ``[head, query, key]``; kept as they come, as typed arrays.
        tokens: text of the query tokens (and of the keys, unless ``key_tokens`` is given). Shown as text: markup
            in a token stays visible and does nothing.
        heads: labels of the heads, such as ``Head`` values; at most 64.
        layout: ``"grid"`` small multiples, ``"menu"`` one head at a time with a menu, ``"auto"`` a grid up to
            six heads.
        key_tokens: text of the key tokens where they differ (cross-attention).
        title: heading inside the figure.
        largest: top of the colour scale; by default the largest value shown.
        most_tokens: longer prompts are cut to their first tokens, and the figure says so.

    Raises:
        BadInput: more than 64 heads, or shapes that do not fit the tokens and heads.

    Example:
        >>> figure = attention_pattern(np.eye(3)[None], ["a", "b", "c"], ["L0.H1"])
        >>> figure.data[0].z.shape
        (3, 3)
    """
    patterns = np.asarray(patterns)
    keys = list(tokens) if key_tokens is None else list(key_tokens)
    _check(patterns, tokens, keys, heads)
    shown = patterns[:, :most_tokens, :most_tokens]
    labels = [html.escape(str(head)) for head in heads]
    as_grid = layout == "grid" or (layout == "auto" and len(labels) <= 6)  # noqa: PLR2004
    columns = min(3, len(labels)) if as_grid else 1
    n_rows = -(-len(labels) // columns) if as_grid else 1
    figure = _drawn(shown, labels, n_rows, columns, as_grid=as_grid)
    finite = shown[np.isfinite(shown)]
    top = largest if largest is not None else (float(finite.max()) if finite.size else 1.0) or 1.0
    note = "" if max(len(tokens), len(keys)) <= most_tokens else f" (first {most_tokens} of {len(tokens)} tokens)"
    heading = html.escape(title or "attention") + note
    figure.update_layout(
        template=template(),
        title={"text": heading if as_grid else f"{heading}, {labels[0]}"},
        **_size(shown.shape[1], n_rows, columns, menu=not as_grid and len(labels) > 1),
    )
    figure.update_layout(coloraxis={"cmin": 0.0, "cmax": top, "colorbar": colour_bar(figure.layout["height"] - 130)})
    _label_axes(figure, list(tokens)[:most_tokens], keys[:most_tokens], columns)
    if not as_grid and len(labels) > 1:
        figure.update_layout(updatemenus=[_menu(labels, heading)])
    return figure


def _check(patterns: np.ndarray, tokens: Sequence[str], keys: Sequence[str], heads: Sequence[object]) -> None:
    if len(heads) > MOST_HEADS:
        raise BadInput(f"attention_pattern: {len(heads)} heads were given, at most {MOST_HEADS} are shown; choose.")
    expected = (len(heads), len(tokens), len(keys))
    if not heads or patterns.shape != expected:
        raise BadInput(
            f"attention_pattern: patterns came as {list(patterns.shape)}; {len(heads)} heads, {len(tokens)} query "
            f"and {len(keys)} key tokens need [head, query, key] = {list(expected)}."
        )


def _drawn(patterns: np.ndarray, labels: Sequence[str], n_rows: int, columns: int, *, as_grid: bool) -> go.Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    if not as_grid:
        return go.Figure([_trace(one, labels[n], visible=n == 0) for n, one in enumerate(patterns)])
    gap = 0.3 if patterns.shape[1] <= LABELLED_IN_GRID else 0.14  # the wider one holds tick labels
    figure = make_subplots(
        n_rows,
        columns,
        subplot_titles=labels,
        horizontal_spacing=0.03 if columns > 1 else 0.0,
        vertical_spacing=gap / n_rows if n_rows > 1 else 0.0,
    )
    for place, one in enumerate(patterns):
        trace = _trace(one, labels[place], visible=True)
        figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    return figure


def _trace(pattern: np.ndarray, label: str, *, visible: bool) -> go.Heatmap:
    import plotly.graph_objects as go

    return go.Heatmap(
        z=pattern,
        x=np.arange(pattern.shape[1]),
        y=np.arange(pattern.shape[0]),
        name=label,
        coloraxis="coloraxis",
        hovertemplate=f"<b>{label}</b><br>query %{{y}}<br>key %{{x}}<br>attention %{{z:.3f}}<extra></extra>",
        hoverongaps=False,
        visible=visible,
    )


def _size(n_queries: int, n_rows: int, columns: int, *, menu: bool) -> dict[str, Any]:
    cell = float(np.clip((560 if columns == 1 else 250) / max(n_queries, 1), 10 if columns == 1 else 3, 30))
    side = max(n_queries * cell, 120)
    labelled = columns == 1 or n_queries <= LABELLED_IN_GRID
    top, menu_room = (30, 36) if menu else (52, 0)
    edge_width = (90 if labelled else 20) + 70 + 16 * (columns - 1)
    edge_height = top + (76 if labelled else 16) + (90 if labelled else 34) * (n_rows - 1)
    return {
        "width": int(columns * side + edge_width),
        "height": int(n_rows * side + edge_height + menu_room),
        "margin": {"l": 8, "r": 8, "t": top + menu_room, "b": 8},
        "meta": {"edges": [edge_width, edge_height], "menu_room": menu_room},
    }


def _label_axes(figure: go.Figure, queries: Sequence[str], keys: Sequence[str], columns: int) -> None:
    labelled = columns == 1 or len(queries) <= LABELLED_IN_GRID

    def named(tokens: Sequence[str]) -> dict[str, Any]:
        return {
            "tickmode": "array",
            "tickvals": list(range(len(tokens))),
            "ticktext": [html.escape(_shortened(visible(token))) for token in tokens],
            "tickfont": {"size": 10 if len(tokens) <= 40 else 9},  # noqa: PLR2004
            "showgrid": False,
            "showticklabels": labelled,
        }

    figure.update_xaxes(range=[-0.5, len(keys) - 0.5], tickangle=-90, **named(keys))
    figure.update_yaxes(range=[len(queries) - 0.5, -0.5], **named(queries))
    for column in range(2, columns + 1):
        figure.update_yaxes(showticklabels=False, col=column)  # the queries are named at the left
    if columns == 1:
        figure.update_xaxes(title_text="key")
        figure.update_yaxes(title_text="query")
    for annotation in figure.layout.annotations:
        annotation.font = {"size": 12}


def _shortened(token: str) -> str:
    return token if len(token) <= LONGEST_LABEL else token[: LONGEST_LABEL - 1] + "\u2026"


def _menu(labels: Sequence[str], heading: str) -> dict[str, Any]:
    def shown(place: int) -> list[Any]:
        return [
            {"visible": [other == place for other in range(len(labels))]},
            {"title.text": f"{heading}, {labels[place]}"},
        ]

    return {
        "buttons": [{"label": label, "method": "update", "args": shown(place)} for place, label in enumerate(labels)],
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 4},
        "bgcolor": LIGHT.page,
        "font": {"color": LIGHT.ink},
    }
