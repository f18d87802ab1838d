"""The report page of the pruning experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.copying.job import Job
from circuits.experiments.copying.words import pairs_in_words, replaced
from circuits.experiments.naming import taller, with_room_for_names
from circuits.experiments.pruning.conclusion import QUESTION, answer, doubt
from circuits.experiments.pruning.config import PruningConfig
from circuits.experiments.pruning.curves import RANDOM
from circuits.experiments.pruning.findings import Findings
from interp.address import Head
from interp.show import Figure, KeyFigure, Line, Page, Panel, Section, curve_panels, grid_heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVES_PER_PANEL = 5  # as many colours are told apart beside the grey of the random orders
MOST_HEADS = 32  # columns of the chart of orders


def report(job: Job, config: PruningConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = {"curves": curves_figure(findings), "orders": orders_figure(findings)}
    page = Page(
        title=f"Pruning heads of the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[
            _curves(findings, drawn),
            _orders(findings, drawn),
            _points(findings),
            _method(job, config),
        ],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    best, n = findings.best(), findings.any_curve.n_heads
    return [
        KeyFigure("logit difference, all heads", findings.whole, f"{len(findings.any_curve.values[0])} prompts"),
        KeyFigure("logit difference, no head", findings.empty, "MLPs and embeddings alone"),
        KeyFigure("heads that are enough", f"{findings.kept(best):g} of {n}", f"by {best}"),
        KeyFigure("at random", f"{np.median(findings.kept_by_random()):g} of {n}", "median of the random orders"),
    ]


def curves_figure(findings: Findings) -> go.Figure:
    """Every curve beside the band of the random orders, five to a panel."""
    share = findings.any_curve.share
    names = list(findings.curves)
    panels = []
    for begin in range(0, len(names), CURVES_PER_PANEL):
        lines = []
        for name in names[begin : begin + CURVES_PER_PANEL]:
            rows = findings.curves[name].table(confidence=findings.confidence)
            lines.append(Line(name, rows["value"].to_numpy(), rows["low"].to_numpy(), rows["high"].to_numpy()))
        rows = findings.any_curve.table(confidence=findings.confidence)
        band = (rows["random"].to_numpy(), rows["random_low"].to_numpy(), rows["random_high"].to_numpy())
        panels.append(Panel("logit difference", [*lines, Line(RANDOM, *band)]))
    figure = curve_panels(share, panels, x_name="share of heads kept")
    figure.update_xaxes(autorange="reversed", tickformat=".0%")
    return taller(figure, 150) if len(panels) == 1 else figure


def orders_figure(findings: Findings) -> go.Figure:
    """Ranking by head: the place at which each head goes; heads that stay longest stand left."""
    means: dict[Head, float] = {}
    for order in findings.orders.values():
        for place, head in enumerate(order, start=1):
            means[head] = means.get(head, 0.0) + place
    heads = sorted(means, key=lambda head: -means[head])[:MOST_HEADS]
    places = np.array([[list(order).index(head) + 1.0 for head in heads] for order in findings.orders.values()])
    rows, columns = list(findings.orders), [str(head) for head in heads]
    figure = grid_heatmap(places, rows=rows, columns=columns, name="removed as number", signed=False)
    return with_room_for_names(figure.update_traces(texttemplate="%{z:.0f}"), rows, columns)


def _curves(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    percent = f"{100 * findings.confidence:g} %"
    caption = (
        "Area: mean height of the curve. Lead: how far it lies above the mean of the random orders, with its interval. "
        f"Heads enough: as few leave {100 * findings.keep:g} % of the gap between all heads and none."
    )
    if any(p is not None for p in findings.adjusted().values()):
        caption += " p: share of random orders with as large an area, after Benjamini-Hochberg."
    return Section(
        "The metric as heads go",
        f"Removed heads are {replaced(findings.ablation)}. From left to right ever fewer heads are left; a good "
        "ranking stays up until the end.",
        figures=[
            Figure(
                drawn["curves"],
                f"Logit difference of the right and the wrong answer. Bands: {percent} interval over prompts; grey: "
                f"the central {percent} of {len(findings.any_curve.random)} random orders and their mean.",
            )
        ],
        table=findings.wide(),
        table_caption=caption,
    )


def _orders(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    n = findings.any_curve.n_heads
    left_out = f" Shown are the {MOST_HEADS} that stay longest." if n > MOST_HEADS else ""
    return Section(
        "Which heads stay",
        "Each ranking takes the heads in an order of its own. Ranked anew after every cut, a head whose stand-in has "
        "gone moves up."
        if len(findings.orders) > len(findings.rankings)
        else "Each ranking has an order of its own.",
        figures=[Figure(drawn["orders"], f"The cut at which a head goes, 1 to {n}: large numbers stay.{left_out}")],
    )


def _points(findings: Findings) -> Section:
    return Section(
        "Every point of the curves",
        "",
        table=findings.points(),
        table_caption="low, high: interval over prompts; random_low, random_high: central share of the random orders.",
        max_rows=24,
    )


def _method(job: Job, config: PruningConfig) -> Section:
    return Section(
        "How it was measured",
        "\n\n".join(
            [
                pairs_in_words(job),
                "The rankings see the selection prompts alone; the curves are measured on the evaluation prompts. "
                f"Every random order goes through the same cuts, {config.cuts} of them. The last ranking is made anew "
                "after every head that goes, by taking each of the others away in turn."
                if config.recompute
                else "The rankings see the selection prompts alone; the curves are measured on the evaluation prompts.",
            ]
        ),
    )
