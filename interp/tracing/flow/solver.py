"""Exact maximum flows by search, for the pairs that no certificate settles."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.sparse.csgraph import maximum_flow

from interp.tracing.flow.cuts import crossing_edges
from interp.tracing.flow.layered_graph import LayeredGraph, Pairs
from interp.tracing.flow.networks import (
    Network,
    cut_sides,
    strongest_edges,
    thinned_window,
    whole_windows,
)

NARROW = 96  # windows up to this width are searched whole
EDGES = 2**15  # of one network of several pairs: what a processor keeps near
STRONGEST = (4, 24)  # edges of each node that are tried before all
TOLERANCE = 1e-7  # between a flow in fewer edges and the cut that proves that it is the largest


def solve(graph: LayeredGraph, pairs: Pairs) -> tuple[Float[np.ndarray, " pair"], int]:
    """``[pair]`` the maximum flows, to 1e-7, and how many of them were proved with a few of the edges alone.

    Narrow windows are searched whole, many pairs in one network. In a wide one most edges are never needed: a maximum
    flow through the strongest ones is one of the whole graph where the cut that it leaves, counted with every edge,
    holds no more than the flow; else more edges are taken.

    Args:
        graph: three layers or more.
        pairs: which pairs.
    """
    widths = pairs.targets - pairs.sources + 1 if graph.causal else np.full(len(pairs), graph.length)
    values = np.empty(len(pairs))
    order = np.argsort(widths, kind="stable")
    narrow = order[widths[order] <= NARROW]
    for part in _parts(narrow, widths, graph):
        values[part] = _values(whole_windows(graph, pairs[part]))
    left = order[widths[order] > NARROW]
    n_wide = len(left)
    for per_node in STRONGEST:
        strongest = strongest_edges(graph, per_node) if len(left) else np.empty(0)
        unproved = []
        for place in left:
            found = _through(graph, pairs[place : place + 1], strongest)
            if found is None:
                unproved.append(place)
            else:
                values[place] = found
        left = np.array(unproved, dtype=int)
    for place in left:
        values[place] = _values(whole_windows(graph, pairs[place : place + 1]))[0]
    return values, n_wide - len(left)


def _parts(chosen: np.ndarray, widths: np.ndarray, graph: LayeredGraph) -> list[np.ndarray]:
    edges = np.cumsum(widths[chosen] ** 2 * graph.n_layers // (2 if graph.causal else 1))
    return [part for part in np.split(chosen, np.nonzero(np.diff(edges // EDGES))[0] + 1) if len(part)]


def _values(network: Network) -> np.ndarray:
    flow = maximum_flow(network.edges, 0, network.sink).flow
    firsts = np.concatenate([[0], np.cumsum(network.widths)])
    sent = np.asarray(flow.data)[: firsts[-1]].astype(np.int64)  # node 0 comes first, and nothing leads to it
    return np.add.reduceat(sent, firsts[:-1]) / network.scale


def _through(graph: LayeredGraph, pair: Pairs, strongest: np.ndarray) -> float | None:
    """The flow, None where the cut that it leaves does not prove it."""
    network, low, high = thinned_window(graph, pair, strongest)
    found = maximum_flow(network.edges, 0, network.sink)
    sides = cut_sides(network, found.flow, graph.n_layers - 1)
    cut = crossing_edges(graph, pair, sides, low, high)
    return cut if cut - found.flow_value / network.scale <= TOLERANCE else None
