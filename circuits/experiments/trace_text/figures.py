"""The figures of the experiment on traces of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.experiments.trace_text.findings import Findings
from circuits.experiments.tracing.figures import MOST_LINES, grid_figure, layers_figure, prediction_figure
from interp.comparison import AgreementMatrix
from interp.show import FlowDiagram, TokenHeatmap, flow_diagram, head_heatmap, token_heatmap
from interp.show.trace_layers import layer_curves
from interp.tracing import METHODS

if TYPE_CHECKING:
    import plotly.graph_objects as go


def figures_of(findings: Findings) -> dict[str, go.Figure]:
    """Name -> plotly figure."""
    made: dict[str, Any] = {f"predicts-{name}": prediction_figure(one) for name, one in findings.predictions.items()}
    rows = findings.layers()
    for name, one in findings.predictions.items():
        made[f"layers-{name}"] = layers_figure(rows, one)
    names, grid = findings.grid
    made["methods"] = grid_figure(names, grid, findings.main.how.measure)
    made["spread"] = spread_figure(findings)
    if findings.heads is not None:
        for name, table in findings.heads.tables.items():
            signed = bool(table.sense) or bool(np.nanmin(table.values) < 0)
            made[f"heads, {name}"] = head_heatmap(table.values, name=name, signed=signed)
        if isinstance(findings.heads.agreement, AgreementMatrix):
            made["heads, agreement"] = findings.heads.agreement.plot("spearman")
    return {name: figure for name, figure in made.items() if figure is not None}


def spread_figure(findings: Findings) -> go.Figure | None:
    """How much traces depend on their target, by layer."""
    depth = max((len(values) for values in findings.spreads.values.values()), default=0)
    curves = {name: values for name, values in findings.spreads.values.items() if len(values) == depth}
    if not curves:
        return None
    return layer_curves(dict(list(curves.items())[:MOST_LINES]), value="relative spread over targets")


def token_figure(findings: Findings, prompt: int) -> TokenHeatmap:
    """One prompt, coloured by every method, the references first."""
    names = [*findings.predictions, *findings.main.order]
    chosen = [name for name in dict.fromkeys(names) if name in findings.traced.rows]
    tokens = findings.tokens[prompt]
    values = {name: findings.traced.rows[name].values[prompt, : len(tokens)] for name in chosen}
    limits = {name: _limits(own, signed=METHODS[name].signed) for name, own in values.items()}
    return token_heatmap(tokens, values, limits=limits, value="trace")


def flow_figure(findings: Findings) -> FlowDiagram | None:
    """The rollout graph of the first prompt; None where its maps cannot be read."""
    if findings.maps is None:
        return None
    graph = np.nan_to_num(findings.maps) + np.eye(findings.maps.shape[1])
    graph = graph / graph.sum(-1, keepdims=True)
    return flow_diagram(graph, findings.tokens[0], target=-1)


def _limits(values: np.ndarray, *, signed: bool) -> tuple[float, float]:
    """The ends of the colours without the largest entry, where that is a resting place that hides all others."""
    finite = np.abs(values[np.isfinite(values)])
    top = float(finite.max()) if finite.size else 1.0
    top = top or 1.0
    return (-top, top) if signed else (0.0, top)
