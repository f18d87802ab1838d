"""Heatmaps over the checkpoints of a training: active heads, retention of sets, cohorts of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.show.heatmap import EDGE_HEIGHT, EDGE_WIDTH, grid_heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

_NAMES, _TITLE = 90, 22  # pixels


def active_figure(
    values: Float[np.ndarray, "head step"],
    heads: Sequence[str],
    steps: Sequence[str],
    *,
    name: str,
    title: str = "",
) -> go.Figure:
    """A plotly heatmap, head by training step: the value where the head is active, blank elsewhere.

    Args:
        values: NaN where a head is not active.
        heads, steps: names along the axes.
        name: what the values are.
        title: heading inside the figure.

    Example:
        >>> active_figure(np.array([[np.nan, 1.0]]), ["L0.H1"], ["0", "100"], name="zero").data[0].z.shape
        (1, 2)
    """
    figure = grid_heatmap(
        values, rows=heads, columns=steps, name=name, title=title or f"{name}, of the heads that are active"
    )
    figure.update_xaxes(title_text="training step")
    return _wide_enough(figure)


def retention_figure(retention: Float[np.ndarray, "from to"], steps: Sequence[str], *, title: str = "") -> go.Figure:
    """A plotly heatmap of the share of heads active at one step (row) that are active at another (column).

    Example:
        >>> retention_figure(np.eye(2), ["0", "100"]).data[0].z.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    labels = [[f"of those active at {start}, at {end}" for end in steps] for start in steps]
    figure = grid_heatmap(
        retention,
        labels=labels,
        rows=steps,
        columns=steps,
        name="share active",
        title=title or "share of the heads active at a step that are active at another",
        limits=(0.0, 1.0),
    )
    figure.update_xaxes(title_text="training step")
    figure.update_yaxes(title_text="active at step")
    return _wide_enough(figure)


def cohort_figure(cohorts: pd.DataFrame, *, title: str = "") -> go.Figure:
    """A plotly heatmap of the share of each cohort (heads first active at one step) that is active at later steps.

    Args:
        cohorts: one row per cohort, indexed by its step; ``size``, then one column per step with how many are active.
        title: heading inside the figure.

    Example:
        >>> rows = pd.DataFrame([[2, 2.0, 1.0]], index=[0], columns=["size", 0, 100])
        >>> cohort_figure(rows).data[0].z.tolist()
        [[1.0, 0.5]]
    """
    steps = [str(column) for column in cohorts.columns[1:]]
    sizes = cohorts["size"].to_numpy(dtype=float)
    counts = cohorts[list(cohorts.columns[1:])].to_numpy(dtype=float)
    rows = [
        f"{step} ({int(size)} head{'' if size == 1 else 's'})" for step, size in zip(cohorts.index, sizes, strict=True)
    ]
    shares = counts / sizes[:, None] if len(cohorts) else np.full((1, max(len(steps), 1)), np.nan)
    figure = grid_heatmap(
        shares,
        rows=rows or ["none"],
        columns=steps,
        name="share active",
        title=title or "share of each cohort of heads still active",
        limits=(0.0, 1.0),
    )
    figure.update_xaxes(title_text="training step")
    figure.update_yaxes(title_text="first active at step")
    return _wide_enough(figure)


def _wide_enough(figure: go.Figure) -> go.Figure:
    """Room for names that are longer than a layer's number, and for the axis title."""
    layout: Any = figure.layout
    width, height = layout.width + _NAMES, layout.height + _TITLE
    return figure.update_layout(width=width, height=height, meta={"edges": [EDGE_WIDTH + _NAMES, EDGE_HEIGHT + _TITLE]})
