"""The figures of the experiment on traces of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.experiments.trace_image.findings import Findings
from circuits.experiments.tracing.figures import grid_figure, layers_figure, prediction_figure
from interp.show import ImageOverlay, Line, Panel, bar_chart, curve_panels, image_overlay
from interp.show.theme import GREY
from interp.tracing import METHODS
from interp.tracing.protocols.localisation import MEASURES

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_CURVES = 7


def figures_of(findings: Findings) -> dict[str, go.Figure]:
    """Name -> plotly figure."""
    made: dict[str, Any] = {f"predicts-{name}": prediction_figure(one) for name, one in findings.predictions.items()}
    rows = findings.layers()
    for name, one in findings.predictions.items():
        made[f"layers-{name}"] = layers_figure(rows, one)
    names, grid = findings.grid
    made["methods"] = grid_figure(names, grid, findings.main.how.measure)
    if findings.located is not None:
        made |= {f"place-{measure}": place_figure(findings, measure) for measure in ("pointing", "iou", "mass")}
    if findings.curves is not None:
        made["curves"] = curves_figure(findings)
    if findings.randomised is not None:
        made["randomised"] = randomised_figure(findings)
    return {name: figure for name, figure in made.items() if figure is not None}


def overlay_figure(findings: Findings, image: int) -> ImageOverlay:
    """One image with the patches coloured by every method, the references first, the true region outlined."""
    names = [*findings.predictions, *findings.main.order]
    chosen = [name for name in dict.fromkeys(names) if name in findings.traced.rows]
    maps = {name: findings.traced.rows[name].values[image].reshape(findings.shape) for name in chosen}
    limits = {name: _limits(grid, signed=METHODS[name].signed) for name, grid in maps.items()}
    pixels = findings.images.pixels[image]
    shown = 255 - pixels if findings.images.grey else pixels  # ink on paper
    region = None if findings.regions is None else findings.regions[image].reshape(findings.shape)
    return image_overlay(shown, maps, region=region, limits=limits, value="trace")


def place_figure(findings: Findings, measure: str) -> go.Figure:
    """How well each method points at the true region, the best first, and chance last."""
    located = findings.located
    assert located is not None
    found = {name: located.interval(name, measure, confidence=findings.confidence) for name in located.values}
    names = sorted(found, key=lambda name: -np.nan_to_num(found[name].mean))
    chance = float(np.nanmean(located.chance[measure]))
    return bar_chart(
        [*names, "chance"],
        [*(found[name].mean for name in names), chance],
        low=[*(found[name].low for name in names), np.nan],
        high=[*(found[name].high for name in names), np.nan],
        highlight=names,
        name=f"{measure}: {MEASURES[measure].split(';')[0]}"[:80],
        note=f"{100 * findings.confidence:g} % interval",
    )


def curves_figure(findings: Findings) -> go.Figure:
    """The metric as patches are covered and uncovered, in the order of the foremost methods, beside random orders."""
    curves = findings.curves
    assert curves is not None
    foremost = [name for name in findings.main.order if name in curves.values["deletion"]]
    names = list(dict.fromkeys([findings.main.reference, *foremost]))[:MOST_CURVES]
    panels = []
    for way in ("deletion", "insertion"):
        lines = [Line(name, curves.values[way][name].mean(0)) for name in names if name in curves.values[way]]
        low, high = curves.band(way, confidence=findings.confidence)
        lines.append(Line("random orders", curves.random[way].mean((0, 1)), low, high, colour=GREY))
        panels.append(Panel(way, lines))
    shares = [100 * share for share in curves.shares]
    figure = curve_panels(shares, panels, x_name="patches covered (deletion) or uncovered (insertion), %")
    return figure


def randomised_figure(findings: Findings) -> go.Figure | None:
    """How alike traces stay as layers are drawn anew, from the top down."""
    own = findings.randomised
    if own is None:
        return None
    names = list(own.similarity)[: MOST_CURVES + 3]
    steps = np.arange(len(own.parts) + 1)
    lines = [Line(name, np.concatenate([[1.0], own.similarity[name].mean(1)])) for name in names]
    figure = curve_panels(steps, [Panel("rank correlation", lines)], x_name="drawn anew, from the top down")
    labels = ["nothing", *[part if part == "logits" else f"layer {part}" for part in own.parts]]
    return figure.update_xaxes(tickmode="array", tickvals=steps, ticktext=labels)


def _limits(values: np.ndarray, *, signed: bool) -> tuple[float, float]:
    finite = np.abs(values[np.isfinite(values)])
    top = (float(finite.max()) if finite.size else 1.0) or 1.0
    return (-top, top) if signed else (0.0, top)
