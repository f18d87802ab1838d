"""Random attention maps, and their flows by another library."""

from __future__ import annotations

import networkx
import numpy as np

KINDS = ("dense", "sharp", "zeros", "ties", "sink", "window", "half identity", "uneven")


def random_maps(kind: str, n_layers: int, length: int, *, causal: bool, seed: int) -> np.ndarray:
    """``[layer, query, key]`` maps whose rows sum to 1."""
    draw = np.random.default_rng([seed, KINDS.index(kind), n_layers, length, causal])
    scores = draw.normal(size=(n_layers, length, length)) * (5.0 if kind == "sharp" else 1.0)
    if kind == "ties":
        scores = np.log(1.0 + draw.integers(0, 3, size=scores.shape))
    if kind == "sink":
        scores[:, :, 0] += 5
    if kind == "uneven":
        scores[draw.integers(0, n_layers)] *= 30
    seen = np.ones(scores.shape, dtype=bool)
    if kind == "zeros":
        seen &= draw.random(scores.shape) < 0.5
    places = np.arange(length)
    if kind == "window":
        seen &= abs(places[:, None] - places) < 3
    if causal:
        seen &= places[:, None] >= places
    seen |= np.eye(length, dtype=bool)
    maps = np.where(seen, np.exp(scores), 0)
    maps /= maps.sum(-1, keepdims=True)
    if kind == "half identity":
        maps[::2] = np.eye(length)
    return maps


def half_residual(maps: np.ndarray) -> np.ndarray:
    """``(A + I) / rowsum``."""
    added = maps + np.eye(maps.shape[-1])
    return added / added.sum(-1, keepdims=True)


def network_of(steps: np.ndarray) -> networkx.DiGraph:
    """The layered graph, edge by edge."""
    graph = networkx.DiGraph()
    for layer, step in enumerate(steps):
        for query in range(len(step)):
            graph.add_node((layer + 1, query))
            for key in range(len(step)):
                graph.add_node((layer, key))
                if step[query, key] > 0:
                    graph.add_edge((layer + 1, query), (layer, key), capacity=float(step[query, key]))
    return graph


def network_flow(graph: networkx.DiGraph, n_layers: int, target: int, source: int) -> float:
    """The maximum flow of one pair."""
    return networkx.maximum_flow_value(graph, (n_layers, target), (0, source))
