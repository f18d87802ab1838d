"""All flows of a graph that are wanted, each by the cheapest way that proves it, and how many each way proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp.tracing.flow.closed_forms import short_flows
from interp.tracing.flow.cuts import CutBounds, cut_bounds
from interp.tracing.flow.layered_graph import LayeredGraph, Pairs
from interp.tracing.flow.solver import TOLERANCE, solve
from interp.tracing.flow.spreading import Shape, spread_flows

MEET = 1e-9  # a flow and a cut that are this close prove each other
SPREADS: tuple[tuple[float, Shape], ...] = ((0.3, "well placed"), (0.3, "even"), (0.5, "well placed"))
DIRECT: tuple[tuple[float, Shape], ...] = ((0.0, "even"),)  # in few layers there is no time to spread
FEW_LAYERS = 6
CLOSED = 2  # layers up to which there is a closed form


@dataclass(frozen=True, eq=False)
class Settled:
    """The flows, and how they were found.

    Attributes:
        values: ``[target, source]`` maximum flows.
        counts: way -> number of pairs: ``closed form``; ``no path``; ``CUT = FLOW`` for a cut and a feasible flow that
            meet; ``solver`` and ``solver, few edges``.
        bottom: ``[target, source]`` whether the flow is all that the source's column of the first layer lets through.
    """

    values: Float[np.ndarray, "target source"]
    counts: Mapping[str, int]
    bottom: Float[np.ndarray, "target source"]


def settle(graph: LayeredGraph, targets: Int[np.ndarray, " target"], sources: Int[np.ndarray, " source"]) -> Settled:
    """The maximum flow from each target to each source.

    Args:
        graph: the layers.
        targets: nodes at the top, each once.
        sources: nodes at the bottom, each once.
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
    found, left = _certified(graph, pairs, highest, _names(bounds, rows, columns), counts)
    if len(left):
        solved, few = solve(graph, pairs[left])
        # rounding to whole numbers may pass a cut, or stop just below one that is met
        found[left] = np.where(solved > highest[left] - TOLERANCE / 4, highest[left], solved)
        counts["solver, few edges"] += few
        counts["solver"] += len(left) - few
    values[rows, columns] = found
    return Settled(values, +counts, _at_bottom(graph, values, targets, sources))


def _certified(
    graph: LayeredGraph, pairs: Pairs, highest: np.ndarray, names: np.ndarray, counts: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Values where a cut and a flow meet, and which pairs are left."""
    found, left = highest.copy(), np.arange(len(pairs))
    for share, shape in SPREADS if graph.n_layers >= FEW_LAYERS else DIRECT:
        if not len(left):
            break
        lowest = spread_flows(graph, pairs[left], highest[left], share=share, shape=shape)
        met = lowest >= highest[left] - MEET
        flow = f"{shape} spread over {share:.0%}" if share else "direct flow"
        for cut, number in Counter(names[left[met]].tolist()).items():
            counts[f"{cut} = {flow}"] += number
        left = left[~met]
    return found, left


def _names(bounds: CutBounds, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    highest = bounds.values[rows, columns]
    top = bounds.top[rows, columns] <= highest + MEET
    bottom = bounds.bottom[rows, columns] <= highest + MEET
    return np.where(bottom, "cut above the source", np.where(top, "cut below the target", "mixed cut"))


def _at_bottom(graph: LayeredGraph, values: np.ndarray, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    columns = graph.steps[0][:, sources].sum(0)
    return values >= np.minimum(columns, graph.steps[-1][targets].sum(1)[:, None]) - TOLERANCE
