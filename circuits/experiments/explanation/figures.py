"""The figures of the experiment on attention as an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.experiments.explanation.comparing import WORDS
from circuits.experiments.explanation.findings import Findings
from circuits.experiments.explanation.measuring import MATTER
from circuits.experiments.naming import with_room_for_names
from interp.show import Line, Panel, TokenHeatmap, bar_chart, curve_panels, grid_heatmap, head_heatmap, token_heatmap
from interp.show.theme import ACCENT, GREY

if TYPE_CHECKING:
    import plotly.graph_objects as go

AMONG = "explanations among themselves"
MOST_CURVES = 9


def figures_of(findings: Findings) -> dict[str, go.Figure]:
    """Name -> plotly figure."""
    made: dict[str, Any] = {"agreement": agreement_figure(findings)}
    made |= {f"pairs-{measure}": pairs_figure(findings, measure) for measure in ("kendall", "overlap", "signs")}
    if findings.hidden is not None:
        made["hidden"] = hidden_figure(findings)
    if findings.curves is not None:
        made["curves"] = curves_figure(findings)
    for name, table in findings.heads.items():
        if "kendall" in name:
            made[f"heads, {name}"] = head_heatmap(table.values, name=name, signed=True, limits=(-1.0, 1.0))
    if findings.other is not None:
        made["heads, permutation"] = head_heatmap(
            findings.other.single.values, name="change of the answer", signed=False
        )
    return {name: figure for name, figure in made.items() if figure is not None}


def agreement_figure(findings: Findings) -> go.Figure:
    """Each row of attention's agreement with the explanations, and theirs with each other."""
    comparison = findings.comparison
    rows = [(name, findings.mean(comparison.of(name))) for name in comparison.attention]
    rows.sort(key=lambda one: -np.nan_to_num(one[1].mean))
    themselves = comparison.themselves()
    if themselves is not None:
        rows.append((AMONG, findings.mean(themselves)))
    return bar_chart(
        [name for name, _ in rows],
        [one.mean for _, one in rows],
        low=[one.low for _, one in rows],
        high=[one.high for _, one in rows],
        highlight=list(comparison.attention),
        name="Kendall's tau of sizes, mean over explanations",
        note=f"{100 * findings.confidence:g} % interval",
    )


def pairs_figure(findings: Findings, measure: str) -> go.Figure | None:
    """One cell per row of attention and explanation."""
    values = findings.comparison.values[measure]
    if not values:
        return None
    rows = list(dict.fromkeys(first for first, _ in values))
    columns = list(dict.fromkeys(second for _, second in values))
    found = {pair: findings.mean(own) for pair, own in values.items()}
    grids = [
        np.array([[getattr(found[row, column], part) for column in columns] for row in rows])
        for part in ("mean", "low", "high")
    ]
    signed = measure == "kendall"
    figure = grid_heatmap(
        grids[0],
        rows=rows,
        columns=columns,
        low=grids[1],
        high=grids[2],
        name=measure,
        title=WORDS[measure],
        signed=signed,
        limits=(-1.0, 1.0) if signed else (0.0, 1.0),
    )
    return with_room_for_names(figure, rows, columns)


def hidden_figure(findings: Findings) -> go.Figure:
    """Attention on tokens beside what hiding them changes, one mark per prompt and set."""
    import plotly.graph_objects as go

    assert findings.hidden is not None
    figure = go.Figure()
    for name, one in findings.hidden.items():
        figure.add_trace(
            go.Scatter(
                x=one.share,
                y=one.effect,
                mode="markers",
                name=name,
                marker={
                    "size": 8,
                    "color": ACCENT if name == MATTER else GREY,
                    "symbol": "circle" if name == MATTER else "x-thin-open",
                },
                hovertemplate="attention %{x:.3f}<br>effect %{y:.3f}<extra></extra>",
            )
        )
    figure.update_layout(width=720, height=360, margin={"l": 8, "r": 16, "t": 28, "b": 8})
    figure.update_xaxes(title_text="attention of the answer's row, mean over heads", rangemode="tozero")
    figure.update_yaxes(title_text="change of the answer when hidden", rangemode="tozero")
    return figure


def curves_figure(findings: Findings) -> go.Figure:
    """The metric as tokens are hidden, beside random orders."""
    curves = findings.curves
    assert curves is not None
    names = list(curves.values["deletion"])[:MOST_CURVES]
    lines = [Line(name, curves.values["deletion"][name].mean(0)) for name in names]
    low, high = curves.band("deletion", confidence=findings.confidence)
    lines.append(Line("random orders", curves.random["deletion"].mean((0, 1)), low, high, colour=GREY))
    words = findings.metric.replace("_", " ").replace("logprob", "log-probability")
    return curve_panels([100 * share for share in curves.shares], [Panel(words, lines)], x_name="tokens hidden, %")


def token_figure(findings: Findings, tokens: tuple[str, ...], prompt: int) -> TokenHeatmap:
    """One prompt by every row of attention and every explanation."""
    comparison = findings.comparison
    rows = {**comparison.attention, **comparison.explanations}
    values = {name: own[prompt, : len(tokens)] for name, own in rows.items()}
    return token_heatmap(tokens, values, value="weight")
