"""The figures of the attribution report; tables and arrays in, plotly out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.attribution.findings import Findings
from circuits.experiments.naming import with_room_for_names
from interp.address import Head
from interp.numerals import numeral, span
from interp.show import bar_chart, grid_heatmap
from interp.stats import bootstrap_means

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_HEADS = 24  # columns of the chart of methods


def methods_by_head(findings: Findings) -> go.Figure:
    """Method by head: the importance as a share of the method's largest; the hover label has the number itself."""
    values = findings.claims.effects.values
    strength = np.where(np.isfinite(values), np.abs(values), -1.0)
    order = np.argsort(-strength.ravel(), kind="stable")[: min(MOST_HEADS, int(np.isfinite(values).sum()))]
    heads = sorted(Head(*divmod(int(place), values.shape[1])) for place in order)
    shares, labels = [], []
    for method, table in findings.tables.items():
        share = findings.share(method)
        low, high = bootstrap_means(table.samples, confidence=findings.confidence)
        shares.append([share[head.layer, head.index] for head in heads])
        labels.append(
            [
                f"{method}, {head}: {numeral(float(table.values[head.layer, head.index]))} "
                f"{span(float(low[head.layer, head.index]), float(high[head.layer, head.index]))}"
                for head in heads
            ]
        )
    rows, columns = list(findings.tables), [str(head) for head in heads]
    figure = grid_heatmap(
        np.array(shares),
        labels=labels,
        rows=rows,
        columns=columns,
        signed=True,
        name="share of the method's largest",
        title="importance, as a share of the method's largest",
        limits=(-1.0, 1.0),
    )
    return with_room_for_names(figure, rows, columns)


def tops_against_random(findings: Findings) -> go.Figure:
    """One bar for each set of top heads with its interval, and below it its random sets as dots."""
    labels, values, low, high, points, lit = [], [], [], [], {}, []
    percent = f"{100 * findings.confidence:g} %"
    for top in findings.tops:
        name = ", ".join(map(str, top.heads))
        label = name if len(name) <= 40 else f"{name[:37]}..."  # noqa: PLR2004 - letters beside a bar
        labels += [label, f"random sets for {label}"]
        values += [top.effect.mean, top.null.null_mean if top.null.n else 0.0]
        low += [top.effect.low, top.null.low]
        high += [top.effect.high, top.null.high]
        points[labels[-1]] = top.random
        lit.append(label)
    return bar_chart(
        labels,
        values,
        low=low,
        high=high,
        highlight=lit,
        points=points,
        name="change of the logit difference",
        note=f"{percent} interval",
    )
