"""The figures of the contextual experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.contextual.findings import Findings
from circuits.experiments.contextual.measuring import COMPANIONS, CONTROLS, GOLD_ONLY, SCORE
from circuits.experiments.naming import with_room_for_names
from interp.results import HeadScores
from interp.show import Line, Panel, bar_chart, curve_panels, grid_heatmap, head_heatmap
from interp.stats import bootstrap_means

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_BARS = 16
MOST_CURVES = 4
PARTS = ("gold", "largest other", "all others", "first tokens", "gold alone")


def scores_figure(findings: Findings) -> go.Figure:
    """Layer by head, the contextual score on the evaluation prompts; reading heads are outlined."""
    table = findings.scores[SCORE]
    low, high = bootstrap_means(table.samples, confidence=findings.confidence, cluster=findings.evaluation.cluster)
    marked = [(head.layer, head.index) for head in findings.contextual()]
    limits = (0.0, 1.0)
    return head_heatmap(
        table.values, low=low, high=high, name="contextual score", signed=False, marked=marked, limits=limits
    )


def companions_figure(findings: Findings) -> go.Figure:
    """Where the attention of the most contextual heads goes."""
    heads = findings.order[:MOST_BARS]
    values = []
    for head in heads:
        gold, others, largest, sink = findings.scores[COMPANIONS].values[head.layer, head.index]
        values.append([gold, largest, others, sink, findings.at(head, GOLD_ONLY)])
    rows, columns = [str(head) for head in heads], list(PARTS)
    figure = grid_heatmap(
        np.array(values), rows=rows, columns=columns, name="attention", signed=False, limits=(0.0, 1.0)
    )
    return with_room_for_names(figure, rows, columns)


def places_figure(findings: Findings) -> go.Figure:
    """The score of the most contextual heads, and the answers, by place of the gold document."""
    heads = (findings.contextual() or findings.order)[:MOST_CURVES]
    lines = []
    for head in heads:
        rows = findings.by_place(head)
        lines.append(Line(str(head), rows["value"].to_numpy(), rows["low"].to_numpy(), rows["high"].to_numpy()))
    answers = findings.answers_by_place()
    panels = [
        Panel("attention to gold", lines),
        Panel("answer said", [Line("share of its tokens", answers["said"].to_numpy())]),
    ]
    figure = curve_panels(answers["place"].to_numpy(), panels, x_name="place of the gold document")
    return figure.update_yaxes(range=[-0.03, 1.05])


def effects_figure(findings: Findings, effects: HeadScores, title: str) -> go.Figure:
    """What replacing each head alone does, heads in the order of their contextual score."""
    heads = findings.order[:MOST_BARS]
    low, high = bootstrap_means(effects.samples, confidence=findings.confidence, cluster=findings.evaluation.cluster)
    cells = tuple(np.array([[head.layer, head.index] for head in heads]).T)
    labels = [str(head) for head in heads]
    reading = {str(head) for head in findings.contextual()}
    return bar_chart(
        labels,
        effects.values[cells],
        low=low[cells],
        high=high[cells],
        highlight=[label for label in labels if label in reading],
        name="change of log-probability",
        title=title,
    )


def sets_figure(findings: Findings) -> go.Figure:
    """The answer without the most contextual heads, and without random ones."""
    counts = findings.counts
    found = [findings.without(count) for count in counts]
    inside = (1 - findings.confidence) / 2
    lines = [Line("most contextual heads", *np.array([[0.0, 0.0, 0.0], *([f.mean, f.low, f.high] for f in found)]).T)]
    for control in CONTROLS:
        draws = [findings.random(count, control) for count in counts]
        if any(len(one) for one in draws):
            means = [0.0] + [float(one.mean()) if len(one) else np.nan for one in draws]
            low, high = (
                [0.0] + [float(np.quantile(one, q)) if len(one) else np.nan for one in draws]
                for q in (inside, 1 - inside)
            )
            lines.append(Line(f"random, {control}", means, low, high))
    return curve_panels([0, *counts], [Panel("change of log-probability", lines)], x_name="heads taken away together")
