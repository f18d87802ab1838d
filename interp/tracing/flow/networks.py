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
    lows, widths = _windows(graph, pairs)
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


def thinned_window(
    graph: LayeredGraph, pair: Pairs, strongest: Int[np.ndarray, "layer node edge"]
) -> tuple[Network, int, int]:
    """One pair's window with the strongest edges of each node, all edges from the target's token and to the source's.

    Args:
        graph: three layers or more.
        pair: one pair.
        strongest: see :func:`strongest_edges`.

    Returns:
        The network, and the first and last-but-one node of the window.
    """
    scale = whole_scale(graph)
    steps, n_levels = graph.steps, graph.n_layers - 1
    target, source = int(pair.targets[0]), int(pair.sources[0])
    lows, widths = _windows(graph, pair)
    low, width = int(lows[0]), int(widths[0])
    high, sink = low + width, 1 + width * n_levels
    nodes = np.arange(low, high)
    tails, heads, data = [np.zeros(width, int)], [1 + np.arange(width)], [steps[-1, target, low:high]]
    for place in range(n_levels - 1):  # from the top down
        layer = graph.n_layers - 2 - place
        to = strongest[layer - 1, low:high]
        kept = (to >= low) & (to < high) & (to != source)
        kept[target - low] = False
        tail = np.concatenate([nodes.repeat(kept.sum(1)), np.full(width, target), nodes[nodes != target]])
        head = np.concatenate([to[kept], nodes, np.full(width - 1, source)])
        tails.append(1 + place * width + tail - low)
        heads.append(1 + (place + 1) * width + head - low)
        data.append(steps[layer, tail, head])
    tails.append(1 + (n_levels - 1) * width + np.arange(width))
    heads.append(np.full(width, sink))
    data.append(steps[0, low:high, source])
    capacities = np.rint(np.concatenate(data) * scale).astype(np.int32)
    tail, head = np.concatenate(tails).astype(np.int32), np.concatenate(heads).astype(np.int32)
    filled = capacities > 0
    edges = sparse.coo_array((capacities[filled], (tail[filled], head[filled])), shape=(sink + 1, sink + 1)).tocsr()
    return Network(edges, sink, scale, widths), low, high


def cut_sides(network: Network, flow: sparse.csr_array, n_levels: int) -> list[Float[np.ndarray, " node"]]:
    """1 at the nodes of one pair's network that could still take more from its source, of levels 1 to L - 1."""
    left = sparse.csr_array(network.edges - flow)
    left.eliminate_zeros()
    reached = np.zeros(network.sink + 1)
    reached[breadth_first_order(left, 0, return_predecessors=False)] = 1
    return list(reached[1:-1].reshape(n_levels, -1)[::-1])


def _windows(graph: LayeredGraph, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    if graph.causal:
        return pairs.sources, pairs.targets - pairs.sources + 1
    return np.zeros(len(pairs), dtype=int), np.full(len(pairs), graph.length)
