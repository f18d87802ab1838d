"""All flows of a graph that are wanted, each by the cheapest way that proves it, and how many each way proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.tracing.flow.closed_forms import short_flows
from interp.tracing.flow.cuts import CutBounds, cut_bounds
from interp.tracing.flow.layered_graph import LayeredGraph, Pairs
from interp.tracing.flow.solver import TOLERANCE, solve
from interp.tracing.flow.spreading import Shape, spread_flows

MEET = 1e-9  # a flow and a cut that are this close prove each other
SPREADS: tuple[tuple[float, Shape], ...] = ((0.3, "well placed"), (0.3, "even"), (0.5, "well placed"))
TOP, BOTTOM, MIXED = "cut below the target", "cut above the source", "mixed cut"
DIRECT: tuple[tuple[float, Shape], ...] = ((0.0, "even"),)  # in few layers there is no time to spread
FEW_LAYERS = 6
WORTH = 0.1  # of what is left, that the last attempt must have proved for another to be made
CLOSED = 2  # layers up to which there is a closed form


@dataclass(frozen=True, eq=False)
class Settled:
    """The flows, and how they were found.

    Attributes:
        values: ``[target, source]`` maximum flows.
        counts: way -> number of pairs: ``closed form``; ``no path``; ``CUT = FLOW`` for a cut and a feasible flow that
            meet; ``solver`` and ``solver, few edges`` for searches.
        bottom: ``[target, source]`` whether the flow is all that the source's column of the first layer lets through.
    """

    values: Float[np.ndarray, "target source"]
    counts: Mapping[str, int]
    bottom: Bool[np.ndarray, "target source"]


def settle(
    graph: LayeredGraph,
    targets: Int[np.ndarray, " target"],
    sources: Int[np.ndarray, " source"],
    *,
    carried: Float[np.ndarray, "target source"] | None = None,
) -> Settled:
    """The maximum flow from each target to each source.

    Args:
        graph: the layers.
        targets: nodes at the top, each once.
        sources: nodes at the bottom, each once.
        carried: flows that there certainly are, carried up from a lower level.
    """
    counts: Counter[str] = Counter()
    if graph.n_layers <= CLOSED:
        values = short_flows(graph.steps, targets, sources)
        counts["closed form"] = values.size
        return Settled(values, counts, _at_bottom(graph, values, targets, sources))
    bounds = cut_bounds(graph, targets, sources)
    values = np.zeros_like(bounds.values)
    path = graph.reach[np.ix_(targets, sources)]
    counts["no path"] = int((~path).sum())
    rows, columns = np.nonzero(path)
    pairs, highest = Pairs(targets[rows], sources[columns]), bounds.values[rows, columns]
    names = _names(bounds, rows, columns)
    left = np.arange(len(pairs))
    if carried is not None:
        left = _met(left, carried[rows, columns], highest, names, "flow carried up", counts)
    found, left = _certified(graph, pairs, left, highest, names, counts)
    # a search is shortest from the end where the cut is
    upward = names[left] == BOTTOM
    for some, way, those in (
        (left[~upward], graph, pairs[left[~upward]]),
        (left[upward], graph.upside_down if upward.any() else graph, pairs[left[upward]].upside_down(graph.length)),
    ):
        solved, few = solve(way, those, highest[some])
        # rounding to whole numbers may pass a cut, or stop just below one that is met
        found[some] = np.where(solved > highest[some] - TOLERANCE / 4, highest[some], solved)
        counts["solver, few edges"] += few
        counts["solver"] += len(some) - few
    values[rows, columns] = found
    return Settled(values, +counts, _at_bottom(graph, values, targets, sources))


def _certified(
    graph: LayeredGraph,
    pairs: Pairs,
    left: np.ndarray,
    highest: np.ndarray,
    names: np.ndarray,
    counts: Counter[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Values where a cut and a flow meet, and which of the pairs that are left meet nowhere."""
    for share, shape in SPREADS if graph.n_layers >= FEW_LAYERS else DIRECT:
        if not len(left):
            break
        tried = len(left)
        lowest = spread_flows(graph, pairs[left], highest[left], share=share, shape=shape)
        flow = f"{shape} spread flow ({share:.0%})" if share else "direct flow"
        left = _met(left, lowest, highest[left], names, flow, counts)
        if tried - len(left) < WORTH * tried:
            break
    return highest.copy(), left


def _met(
    left: np.ndarray, lowest: np.ndarray, highest: np.ndarray, names: np.ndarray, flow: str, counts: Counter[str]
) -> np.ndarray:
    """The pairs whose flow and cut do not meet; the others are counted."""
    met = lowest >= highest - MEET
    for cut, number in Counter(names[left[met]].tolist()).items():
        counts[f"{cut} = {flow}"] += number
    return left[~met]


def _names(bounds: CutBounds, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    highest = bounds.values[rows, columns]
    top = bounds.top[rows, columns] <= highest + MEET
    bottom = bounds.bottom[rows, columns] <= highest + MEET
    return np.where(bottom & ~top, BOTTOM, np.where(top, TOP, MIXED))


def _at_bottom(graph: LayeredGraph, values: np.ndarray, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    columns = graph.steps[0][:, sources].sum(0)
    return values >= np.minimum(columns, graph.steps[-1][targets].sum(1)[:, None]) - TOLERANCE
