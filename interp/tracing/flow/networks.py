"""Networks of whole numbers for a solver: the windows of many pairs side by side, or one pair's with fewer edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from interp.tracing.flow.layered_graph import LayeredGraph, Pairs

LARGEST = 2**31 - 1  # what the solver's whole numbers hold


def whole_scale(graph: LayeredGraph) -> int:
    """What capacities are multiplied by before rounding, so that no node's sum overflows: 2^31 - 1 - n.

    A row sums to at most 1, and rounding adds at most half for each of its entries. Errors are at most half a unit for
    every edge of the smallest cut: 3e-8 for a hundred edges.
    """
    return LARGEST - 2 * graph.length


@dataclass(frozen=True, eq=False)
class Network:
    """A graph for ``scipy.sparse.csgraph.maximum_flow``; node 0 is its source, the last its sink.

    Attributes:
        edges: whole capacities.
        sink: its last node.
        scale: capacity 1.
        widths: ``[pair]`` how many of the source's edges, in order, belong to each pair.
    """

    edges: sparse.csr_array
    sink: int
    scale: int
    widths: Int[np.ndarray, " pair"]


def whole_windows(graph: LayeredGraph, pairs: Pairs) -> Network:
    """All edges of each pair's window, the windows of many pairs side by side in one network.

    Args:
        graph: three layers or more.
        pairs: in order of the width of their windows.
    """
    scale = whole_scale(graph)
    n_levels = graph.n_layers - 1
    lows, widths = window_bounds(graph, pairs)
    starts = np.concatenate([[1], 1 + np.cumsum(widths * n_levels)])
    sink = int(starts[-1])
    steps = graph.steps
    top_data, top_heads, data, heads, counts = [], [], [], [], []
    for width in np.unique(widths):
        chosen = np.nonzero(widths == width)[0]
        low, start, nodes = lows[chosen], starts[chosen][:, None], np.arange(width)
        columns = low[:, None] + nodes
        top_data.append(steps[-1][pairs.targets[chosen][:, None], columns].ravel())
        top_heads.append((start + nodes).ravel())
        a, b = np.tril_indices(width) if graph.causal else np.divmod(np.arange(width * width), width)
        middle = steps[-2:0:-1][:, low[:, None] + a, low[:, None] + b].transpose(1, 0, 2)  # pair, layer, edge
        below = (1 + np.arange(n_levels - 1)) * width
        inner = start[:, :, None] + below[None, :, None] + b
        bottom = steps[0][columns, pairs.sources[chosen][:, None]]
        data.append(np.concatenate([middle.reshape(len(chosen), -1), bottom], axis=1).ravel())
        to_sink = np.full((len(chosen), width), sink)
        heads.append(np.concatenate([inner.reshape(len(chosen), -1), to_sink], axis=1).ravel())
        per_node = 1 + nodes if graph.causal else np.full(width, width)
        counts.append(np.tile(np.concatenate([np.tile(per_node, n_levels - 1), np.ones(width, int)]), len(chosen)))
    capacities = np.rint(np.concatenate(top_data + data) * scale).astype(np.int32)
    columns = np.concatenate(top_heads + heads).astype(np.int32)
    ends = np.cumsum(np.concatenate([[0, sum(map(len, top_data))], *counts, [0]])).astype(np.int32)
    edges = sparse.csr_array((capacities, columns, ends), shape=(sink + 1, sink + 1))
    edges.has_sorted_indices = True
    return Network(edges, sink, scale, widths)


def strongest_edges(graph: LayeredGraph, per_node: int) -> Int[np.ndarray, "layer node edge"]:
    """Heads of the edges of largest capacity out of each node of each middle layer, its own column among them."""
    steps = graph.steps[1:-1].copy()
    own = np.arange(graph.length)
    steps[:, own, own] = np.inf
    kept = min(per_node, graph.length)
    return np.argpartition(-steps, kept - 1, axis=-1)[..., :kept]


def thinned_windows(graph: LayeredGraph, pairs: Pairs, strongest: Int[np.ndarray, "layer node edge"]) -> Network:
    """Windows with the strongest edges of each node, all edges from the target's token and all to the source's.

    Args:
        graph: three layers or more.
        pairs: whose windows are of one width.
        strongest: see :func:`strongest_edges`.
    """
    scale = whole_scale(graph)
    steps, n_levels = graph.steps, graph.n_layers - 1
    lows, widths = window_bounds(graph, pairs)
    count, width = len(pairs), int(widths[0])
    starts = 1 + np.arange(count) * width * n_levels
    sink = 1 + count * width * n_levels
    nodes = lows[:, None] + np.arange(width)  # pair, node
    targets, sources = pairs.targets[:, None], pairs.sources[:, None]
    firsts = starts[:, None] + np.arange(n_levels)[::-1] * width - lows[:, None]  # pair, level 1 and on: of token 0
    tails, heads, data = [np.zeros(count * width, int)], [firsts[:, -1:] + nodes], [steps[-1][targets, nodes]]

    def add(kept: np.ndarray, level: int, tail: np.ndarray, head: np.ndarray) -> None:
        pair, *_ = np.nonzero(kept)
        tail, head = (np.broadcast_to(one, kept.shape)[kept] for one in (tail, head))
        tails.append(firsts[pair, level] + tail)
        heads.append(firsts[pair, level - 1] + head)
        data.append(steps[level, tail, head])

    every = np.ones((count, width), dtype=bool)
    for level in range(1, n_levels):
        to = strongest[level - 1][nodes]  # pair, node, edge
        inside = (to >= lows[:, None, None]) & (to < (lows + width)[:, None, None]) & (to != sources[:, :, None])
        add(inside & (nodes != targets)[:, :, None], level, nodes[:, :, None], to)
        add(every, level, targets, nodes)
        add(nodes != targets, level, nodes, sources)
    tails.append((firsts[:, :1] + nodes).ravel())
    heads.append(np.full(count * width, sink))
    data.append(steps[0][nodes, sources])
    capacities = np.rint(np.concatenate([part.ravel() for part in data]) * scale).astype(np.int32)
    tail, head = (np.concatenate([part.ravel() for part in parts]).astype(np.int32) for parts in (tails, heads))
    edges = sparse.coo_array((capacities, (tail, head)), shape=(sink + 1, sink + 1)).tocsr()
    return Network(edges, sink, scale, widths)


def cut_sides(network: Network, flow: sparse.csr_array, n_levels: int) -> list[Float[np.ndarray, " node"]]:
    """1 at the nodes of one pair's network that could still take more from its source, of levels 1 to L - 1."""
    left = sparse.csr_array(network.edges - flow)
    left.eliminate_zeros()
    reached = np.zeros(network.sink + 1)
    reached[breadth_first_order(left, 0, return_predecessors=False)] = 1
    return list(reached[1:-1].reshape(n_levels, -1)[::-1])


def window_bounds(graph: LayeredGraph, pairs: Pairs) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """The first node of each pair's window, and how many it has."""
    if graph.causal:
        return pairs.sources, pairs.targets - pairs.sources + 1
    return np.zeros(len(pairs), dtype=int), np.full(len(pairs), graph.length)
