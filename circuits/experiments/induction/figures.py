"""The figures of the induction report; tables and arrays in, plotly out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.induction.findings import Emergence, Findings, Group, heads_above
from circuits.experiments.induction.offsets import OFFSETS
from circuits.experiments.induction.reading import Losses
from interp.address import Head
from interp.results import HeadScores
from interp.scores import SCORES
from interp.show import Line, Mark, Panel, bar_chart, curve_panels, grid_heatmap, head_heatmap
from interp.stats import bootstrap_means

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_BARS = 16
MOST_CURVES = 4


def score_map(scores: HeadScores, marked: Sequence[Head], confidence: float) -> go.Figure:
    """Layer by head, on the whole range that the score can have, so that a faint score looks faint."""
    low, high = bootstrap_means(scores.samples, confidence=confidence)
    return head_heatmap(
        scores.values,
        low=low,
        high=high,
        name=scores.name.replace("_", " "),
        title=scores.name.replace("_", " "),
        marked=[(head.layer, head.index) for head in marked],
        limits=SCORES[scores.name].range,
        note=f"{100 * confidence:g} % interval",
    )


def loss_curve(losses: Losses, segment: int, start: int, confidence: float) -> go.Figure:
    """The loss of each token of the prompts, averaged, with its interval and a mark where the repeat begins."""
    low, high = bootstrap_means(losses.by_token.astype(float), confidence=confidence)
    columns = np.arange(1, losses.by_token.shape[1] + 1)
    mean = losses.by_token.astype(float).mean(0)
    marks = [Mark(float(start + segment), "the same tokens again")]
    return curve_panels(
        columns, [Panel("loss, nats", [Line("mean loss", mean, low, high)])], x_name="position", marks=marks
    )


def offset_map(offsets: np.ndarray, heads: Sequence[Head]) -> go.Figure:
    """Share of attention by offset from the earlier copy of the current token, one row for each of ``heads``."""
    mean = np.nanmean(offsets, axis=0)
    return grid_heatmap(
        np.stack([mean[head.layer, head.index] for head in heads]),
        rows=[str(head) for head in heads],
        columns=[f"{offset:+d}".replace("-", "\u2212") if offset else "0" for offset in OFFSETS],
        name="attention",
        limits=(0.0, 1.0),
    )


def heads_by_offset(offsets: np.ndarray, most: int = 24) -> list[Head]:
    """The heads that give most to any one offset, in order of layer and head."""
    best = np.nanmax(np.where(np.isnan(offsets), -np.inf, offsets).mean(0), axis=-1)
    found = [head for head, _ in heads_above(np.where(np.isfinite(best), best, np.nan), -np.inf)]
    return sorted(found[:most])


def single_effects(findings: Findings) -> go.Figure:
    """Bars of the largest effects of one head, with intervals; those beyond chance in colour."""
    rows = findings.single.effect.top(MOST_BARS, by="abs", confidence=findings.confidence)
    strong = {str(head) for head in findings.single.beyond_chance()}
    return bar_chart(
        list(rows["label"]),
        rows["value"].to_numpy(),
        low=rows["low"].to_numpy(),
        high=rows["high"].to_numpy(),
        highlight=[label for label in rows["label"] if label in strong],
        name="rise of the loss, nats",
        note=f"{100 * findings.confidence:g} % interval",
    )


def sets_against_random(groups: Sequence[Group], confidence: float) -> go.Figure:
    """Two bars for each set: its effect with an interval, and the mean of the random sets with every draw as a dot."""
    labels, values, low, high = [], [], [], []
    points, own = {}, []
    for group in groups:
        label, random = group.label, f"{group.null.n} sets matched to {group.name}"
        own.append(label)
        labels.append(label)
        values.append(group.effect.mean)
        low.append(group.effect.low)
        high.append(group.effect.high)
        if group.null.n:
            labels.append(random)
            values.append(group.null.null_mean)
            low.append(group.null.low)
            high.append(group.null.high)
            points[random] = group.random
    return bar_chart(
        labels,
        values,
        low=low,
        high=high,
        highlight=own,
        points=points,
        name="rise of the loss, nats",
        note=f"{100 * confidence:g} % interval (of the random sets: where {100 * confidence:g} % of them lie)",
    )


def held_still(groups: Sequence[Group], confidence: float) -> go.Figure:
    """Two bars for each set: its effect, and what is left of it with every pattern held still."""
    labels, values, low, high, own = [], [], [], [], []
    for group in groups:
        if group.held is None:
            continue
        for label, effect in ((group.label, group.effect), (f"{group.name}, patterns held still", group.held)):
            labels.append(label)
            values.append(effect.mean)
            low.append(effect.low)
            high.append(effect.high)
        own.append(group.label)
    return bar_chart(
        labels,
        values,
        low=low,
        high=high,
        highlight=own,
        name="rise of the loss, nats",
        note=f"{100 * confidence:g} % interval",
    )


def over_training(grown: Emergence) -> go.Figure:
    """Losses above, and below each score's strongest heads at the end of training, over the steps."""
    panels = [Panel("loss, nats", [Line("first copy", grown.first), Line("second copy", grown.second)])]
    for name, values in grown.scores.items():
        strongest = heads_above(values[-1], -np.inf)[:MOST_CURVES]
        lines = [Line(str(head), values[:, head.layer, head.index]) for head, _ in strongest]
        panels.append(Panel(name.replace("_", " "), lines))
    fall = grown.steepest_fall()
    marks = [] if fall is None else [Mark((fall[0] + fall[1]) / 2, "the second copy's loss falls most")]
    return curve_panels(np.array(grown.steps), panels, x_name="training step", marks=marks)
