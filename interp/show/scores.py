"""The views of a table of head scores: figure, terminal text, notebook HTML; from arrays and rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from markupsafe import Markup

from interp.numerals import numeral
from interp.show.heatmap import grid_heatmap, head_heatmap
from interp.show.inline import inline_heatmap, inline_table

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Group

_MOST_ROWS = 24  # heads shown head by position


def scores_figure(
    values: Float[np.ndarray, "layer head ..."],
    low: Float[np.ndarray, "layer head ..."],
    high: Float[np.ndarray, "layer head ..."],
    exists: Bool[np.ndarray, "layer head"],
    *,
    name: str,
    signed: bool | None,
    prefix: str = "",
    title: str = "",
    note: str = "95 % interval",
    marked: Iterable[tuple[int, int]] = (),
    positions: Sequence[str] | None = None,
) -> go.Figure:
    """A heatmap, layer by head; with ``positions`` head by position, of the 24 strongest heads in their order.

    Args:
        values, low, high: one number per head, or per head and position, and its interval.
        exists: which cells are heads.
        positions: labels of the last axis where there is one.
        name, signed, prefix, title, note, marked: as in ``head_heatmap``.
    """
    if positions is None:
        return head_heatmap(
            values,
            low=low,
            high=high,
            signed=signed,
            name=name,
            title=title,
            prefix=prefix,
            marked=marked,
            note=note,
        )
    strength = np.where(np.isfinite(values), np.abs(values), 0.0).max(-1)
    strength = np.where(exists, strength, -1.0)
    count = min(_MOST_ROWS, int(exists.sum()))
    strongest = np.sort(np.argsort(-strength.ravel(), kind="stable")[:count])
    rows = np.unravel_index(strongest, strength.shape)
    labels = [f"{prefix}L{layer}.H{head}" for layer, head in zip(*rows, strict=True)]
    return grid_heatmap(
        values[rows],
        rows=labels,
        columns=positions,
        low=low[rows],
        high=high[rows],
        signed=signed,
        name=name,
        title=title,
        note=note,
    )


def scores_text(title: str, rows: pd.DataFrame) -> Group:
    """Rich text: the title, and a table of the rows of ``HeadScores.top``."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    text = Table(box=None, pad_edge=False)
    columns = _shown(rows)
    for column in columns:
        text.add_column("head" if column == "label" else column, justify="left" if column == "label" else "right")
    for row in rows[columns].itertuples(index=False):
        text.add_row(*[numeral(cell) for cell in row])
    return Group(Text(title, style="bold"), text)


def scores_html(
    title: str,
    rows: pd.DataFrame,
    maps: Mapping[str, Float[np.ndarray, "layer head"]],
    *,
    name: str,
    signed: bool | None,
) -> str:
    """HTML for a notebook: a heading, one static heatmap per entry of ``maps`` (prefix -> values), the rows."""
    heading = Markup("<p><b>{}</b></p>").format(title)
    drawn = [inline_heatmap(values, name=name, signed=signed, prefix=prefix) for prefix, values in maps.items()]
    table = pd.DataFrame(rows[_shown(rows)]).rename(columns={"label": "head"})
    return str(heading + Markup("").join(drawn) + inline_table(table))


def rows_html(title: str, rows: pd.DataFrame, text: str = "") -> str:
    """HTML for a notebook: a heading, a table of rows (``label`` is headed "head"), and a sentence below."""
    heading = Markup("<p><b>{}</b></p>").format(title)
    below = Markup('<p style="max-width:60em">{}</p>').format(text) if text else Markup("")
    return str(heading + inline_table(rows.rename(columns={"label": "head"})) + below)


def _shown(rows: pd.DataFrame) -> list[str]:
    shown = [column for column in ("label", "pos", "value", "low", "high") if column in rows.columns]
    return [column for column in shown if column not in ("low", "high") or bool(pd.Series(rows[column]).notna().any())]
