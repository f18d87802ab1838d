"""Charts of a metric along orders of heads: removed one after the other, or weakened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.show.curves import Line, Panel, curve_panels
from interp.show.theme import GREY

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEIGHT = 340  # pixels: one panel that is looked at alone


def pruning_figure(
    rows: pd.DataFrame, *, name: str, metric: str, title: str = "", confidence: float = 0.95
) -> go.Figure:
    """A plotly chart of a metric against the share of heads kept, from all heads at the left to none at the right.

    Args:
        rows: one row per step with ``share``, ``value``, ``low``, ``high``, and ``random``, ``random_low``,
            ``random_high`` (NaN without random orders).
        name: what the heads were ranked by.
        metric: the metric's name.
        title: heading inside the figure; says what the bands are by default.
        confidence: of the bands.

    Example:
        >>> rows = pd.DataFrame({"share": [1.0, 0.0], "value": [2.0, 0.0], "low": [1.9, 0.0], "high": [2.1, 0.0]})
        >>> rows = rows.assign(random=[2.0, 0.0], random_low=[2.0, 0.0], random_high=[2.0, 0.0])
        >>> [trace.name for trace in pruning_figure(rows, name="zero", metric="loss").data if trace.showlegend is None]
        ['random orders', 'by zero']
    """
    lines = [_line(rows, f"by {name}", "value", "low", "high")]
    percent = f"{100 * confidence:g} %"
    words = f"interval over prompts ({percent})"
    if _known(rows, "random"):
        lines.insert(0, _line(rows, "random orders", "random", "random_low", "random_high", colour=GREY))
        words = f"bands: {percent} interval over prompts, central {percent} of the random orders"
    figure = curve_panels(
        rows["share"].to_numpy(), [Panel(_words(metric), lines)], x_name="share of heads kept", title=title or words
    )
    figure.update_xaxes(autorange="reversed", tickformat=".0%")
    return figure.update_layout(height=_HEIGHT)


def weakening_figure(
    rows: pd.DataFrame, *, name: str, metric: str, title: str = "", confidence: float = 0.95
) -> go.Figure:
    """A plotly chart of a metric against the share of heads weakened, most relevant first and least relevant first.

    Args:
        rows: one row per step with ``share``; ``most`` and ``least`` with ``_low`` and ``_high`` of each; and
            ``random``, ``random_low``, ``random_high`` (NaN without random orders).
        name: what the heads were ranked by.
        metric: the metric's name.
        title: heading inside the figure; says what the bands are by default.
        confidence: of the bands.

    Example:
        >>> names = [f"{which}{end}" for which in ("most", "least", "random") for end in ("", "_low", "_high")]
        >>> rows = pd.DataFrame({"share": [0.0, 1.0], **{name: [0.0, 1.0] for name in names}})
        >>> figure = weakening_figure(rows, name="zero", metric="loss")
        >>> [trace.name for trace in figure.data if trace.showlegend is None]
        ['random orders', 'by zero, most relevant first', 'by zero, least relevant first']
    """
    lines = [
        _line(rows, f"by {name}, {way} relevant first", way, f"{way}_low", f"{way}_high") for way in ("most", "least")
    ]
    percent = f"{100 * confidence:g} %"
    words = f"intervals over prompts ({percent})"
    if _known(rows, "random"):
        lines.insert(0, _line(rows, "random orders", "random", "random_low", "random_high", colour=GREY))
        words = f"bands: {percent} intervals over prompts, central {percent} of the random orders"
    figure = curve_panels(
        rows["share"].to_numpy(), [Panel(_words(metric), lines)], x_name="share of heads weakened", title=title or words
    )
    figure.update_xaxes(tickformat=".0%")
    return figure.update_layout(height=_HEIGHT)


def greedy_figure(rows: pd.DataFrame, *, metric: str, title: str = "", confidence: float = 0.95) -> go.Figure:
    """A plotly chart of a search's objective against the number of heads chosen, held-out prompts beside it.

    Args:
        rows: one row per round with ``size``, ``value``, ``low``, ``high``, and ``held_out`` with its ends where there
            are held-out prompts.
        metric: the metric's name.
        title: heading inside the figure; says what the bands are by default.
        confidence: of the bands.

    Example:
        >>> rows = pd.DataFrame({"size": [1, 2], "value": [2.0, 3.0], "low": [1.9, 2.5], "high": [2.1, 3.5]})
        >>> [trace.name for trace in greedy_figure(rows, metric="loss").data if trace.showlegend is None]
        ['prompts of the search']
    """
    lines = [_line(rows, "prompts of the search", "value", "low", "high")]
    if "held_out" in rows.columns:
        lines.append(_line(rows, "held-out prompts", "held_out", "held_out_low", "held_out_high"))
    words = f"intervals over prompts ({100 * confidence:g} %)"
    figure = curve_panels(
        rows["size"].to_numpy(),
        [Panel(f"change of {_words(metric)}", lines)],
        x_name="heads chosen",
        title=title or words,
    )
    figure.update_xaxes(tickformat="d")
    return figure.update_layout(height=_HEIGHT)


def _line(rows: pd.DataFrame, name: str, value: str, low: str, high: str, *, colour: str | None = None) -> Line:
    y = rows[value].to_numpy()
    if not _known(rows, low, high):
        return Line(name, y, colour=colour)
    return Line(name, y, rows[low].to_numpy(), rows[high].to_numpy(), colour)


def _known(rows: pd.DataFrame, *columns: str) -> bool:
    return not np.isnan(rows[list(columns)].to_numpy(dtype=float)).any()


def _words(name: str) -> str:
    return name.replace("_", " ")
