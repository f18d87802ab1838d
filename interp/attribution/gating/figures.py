"""Figures of a fit: its losses, how decided the gates are, and where single heads went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.address import Head
from interp.attribution.gating.history import History
from interp.show.curves import Line, Panel, curve_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.attribution.gating.gates import Gates

_POINTS = 100  # of one curve


def history_curves(history: History, *, title: str = "") -> go.Figure:
    """Panels of loss, mean gate and entropy along each fit: the mean over seeds with the range of the seeds."""
    updates = history.loss.shape[1]
    shown = np.unique(np.linspace(0, updates - 1, min(updates, _POINTS)).round().astype(int))
    panels = []
    for name, words in (("nll", "loss of the targets"), ("mean", "mean gate"), ("entropy", "entropy of a gate")):
        lines = []
        for fit, values in zip(history.fits, getattr(history, name), strict=True):
            part = values[shown].astype(float)
            lines.append(Line(fit, part.mean(1), part.min(1), part.max(1)))
        panels.append(Panel(words, lines))
    return curve_panels(shown, panels, x_name="update", title=title)


def gate_curves(gates: Gates, *, heads: int = 8, title: str = "") -> go.Figure:
    """A panel per fit with the mean over seeds of the gates of the ``heads`` heads that ended furthest from each other.

    Those are the heads with the largest spread over the ends of the fits.
    """
    history = gates.history
    means = history.gates.astype(float).mean(axis=2)  # [fit, kept, layer, head]
    ends = np.stack([gates.warm, gates.retain, gates.remove]).mean(axis=1)
    told = np.where(np.isfinite(ends).all(0), (1 - ends[1]) + ends[2], -np.inf)  # interferes, or is needed
    order = np.argsort(-told, axis=None, kind="stable")[: min(heads, int(np.isfinite(told).sum()))]
    cells = [tuple(int(place) for place in np.unravel_index(index, told.shape)) for index in order]
    prefix = None if gates.stack == gates.default_stack else gates.stack
    panels = [
        Panel(fit, [Line(str(Head(layer, head, prefix)), means[number, :, layer, head]) for layer, head in cells])
        for number, fit in enumerate(history.fits)
    ]
    return curve_panels(history.kept_at, panels, x_name="update", title=title)
