"""Exact maximum flows by search, for the pairs that no certificate settles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow

from interp.tracing.flow.cuts import crossing_edges
from interp.tracing.flow.layered_graph import LayeredGraph, Pairs
from interp.tracing.flow.networks import (
    Network,
    cut_sides,
    strongest_edges,
    thinned_windows,
    whole_windows,
    window_bounds,
)

NARROW = 24  # windows up to this width are searched whole at once
WIDE = 96  # from this width on a cut is worth its price, and one window is a network
EDGES = 2**15  # of one network of several pairs: what a processor keeps near
STRONGEST = (4, 24)  # edges of each node that are tried before all
TOLERANCE = 1e-7  # between a flow in fewer edges and the cut that proves that it is the largest


def solve(
    graph: LayeredGraph, pairs: Pairs, highest: Float[np.ndarray, " pair"]
) -> tuple[Float[np.ndarray, " pair"], int]:
    """``[pair]`` the maximum flows, to 1e-7, and how many of them were proved with a few of the edges alone.

    Narrow windows are searched whole, many pairs in one network. In wider ones most edges are never needed: a maximum
    flow through the strongest ones is one of the whole graph where it meets a bound known before, or where the cut that
    it leaves, counted with every edge, holds no more; else more edges are taken.

    Args:
        graph: three layers or more.
        pairs: which pairs.
        highest: what their flows cannot exceed.
    """
    _, widths = window_bounds(graph, pairs)
    values = np.empty(len(pairs))
    left = np.argsort(widths, kind="stable")
    proved = 0
    for per_node in STRONGEST:
        strongest: np.ndarray | None = None
        unproved = [left[widths[left] <= NARROW]]
        for part in _parts(left[widths[left] > NARROW], widths, graph, per_node):
            if strongest is None:
                strongest = strongest_edges(graph, per_node)
            found, met = _thinned(graph, pairs[part], highest[part], strongest)
            values[part] = found
            unproved.append(part[~met])
            proved += int(met.sum())
        left = np.concatenate(unproved)
    for part in _parts(left, widths, graph, None):
        values[part], _ = _values(whole_windows(graph, pairs[part]))
    return values, proved


def _thinned(
    graph: LayeredGraph, pairs: Pairs, highest: np.ndarray, strongest: np.ndarray
) -> tuple[Float[np.ndarray, " pair"], np.ndarray]:
    """The flows through a few edges, and which of them are those of the whole graph."""
    network = thinned_windows(graph, pairs, strongest)
    values, flow = _values(network)
    met = values >= highest - TOLERANCE
    values = np.where(met, highest, values)
    if len(pairs) == 1 and not met[0] and network.widths[0] > WIDE:
        cut = crossing_edges(graph, pairs, cut_sides(network, flow, graph.n_layers - 1))
        if cut - values[0] <= TOLERANCE:
            return np.array([cut]), np.array([True])
    return values, met


def _parts(chosen: np.ndarray, widths: np.ndarray, graph: LayeredGraph, per_node: int | None) -> Iterator[np.ndarray]:
    """Pairs, in order of width, whose windows make one network; of one width each where windows are thinned."""
    own = widths[chosen].astype(np.int64)
    edges = own**2 // (2 if graph.causal else 1) if per_node is None else own * (per_node + 2)
    batch = np.cumsum(edges * graph.n_layers) // EDGES
    new = np.diff(batch) > 0
    if per_node is not None:
        new |= np.diff(own) > 0
        new |= own[1:] > WIDE
    yield from (part for part in np.split(chosen, np.nonzero(new)[0] + 1) if len(part))


def _values(network: Network) -> tuple[Float[np.ndarray, " pair"], sparse.csr_array]:
    flow = maximum_flow(network.edges, 0, network.sink).flow
    firsts = np.concatenate([[0], np.cumsum(network.widths)])
    sent = np.asarray(flow.data)[: firsts[-1]].astype(np.int64)  # node 0 comes first, and nothing leads to it
    return np.add.reduceat(sent, firsts[:-1]) / network.scale, flow
