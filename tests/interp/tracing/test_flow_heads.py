"""Flow through heads that are nodes: equal to the fused one, except where a head holds something back."""

from __future__ import annotations

from typing import Any

import networkx
import numpy as np
import pytest
from flow_graphs import random_maps

from interp import BadInput, attention_flow, head_flow


def with_heads(n_layers: int, n_heads: int, length: int, *, causal: bool, seed: int = 0) -> np.ndarray:
    parts = [random_maps("dense", n_layers, length, causal=causal, seed=seed + head) for head in range(n_heads)]
    return np.stack(parts, axis=1)


def by_hand(maps: np.ndarray, capacity: np.ndarray, residual: float, whole: bool) -> np.ndarray:
    """Every node and edge written out, searched by networkx."""
    graph = networkx.DiGraph()
    n_layers, n_heads, length, _ = maps.shape
    for layer in range(n_layers):
        for query in range(length):
            graph.add_edge((layer + 1, query), (layer, query), capacity=residual)
            for head in range(n_heads):
                node = (layer + 1, query, head)
                graph.add_edge((layer + 1, query), node, capacity=(1 - residual) * capacity[layer, head] / n_heads)
                for key in range(length):
                    holds = (1 - residual) * maps[layer, head, query, key] / (1 if whole else n_heads)
                    graph.add_edge(node, (layer, key), capacity=holds)
    pairs = [(target, source) for target in range(length) for source in range(length)]
    found = [networkx.maximum_flow_value(graph, (n_layers, target), (0, source)) for target, source in pairs]
    return np.array(found).reshape(length, length)


def near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("edges", ["share", "whole"])
@pytest.mark.parametrize("residual", [0.5, 0.2])
def test_against_the_graph_written_out(causal: bool, edges: str, residual: float) -> None:
    for seed, n_layers in enumerate((1, 2, 4)):
        maps = with_heads(n_layers, 3, 4, causal=causal, seed=10 * seed)
        capacity = np.random.default_rng(seed).uniform(0, 1.2, size=(n_layers, 3))
        found = head_flow(maps, capacity=capacity, edges=edges, residual=residual)
        near(found, by_hand(maps, capacity, residual, edges == "whole"))


@pytest.mark.parametrize("capacity", [1.0, 2.0, float("inf")])
def test_heads_that_hold_nothing_back_are_parallel_edges(capacity: float) -> None:
    maps = with_heads(5, 4, 6, causal=True)
    near(head_flow(maps, capacity=capacity), attention_flow(maps))
    near(head_flow(maps, capacity=capacity, missing="self"), attention_flow(maps))
    near(head_flow(maps * 0.7, capacity=capacity, missing="self"), attention_flow(maps * 0.7, missing="self"))
    near(head_flow(maps * 0.7, capacity=capacity, missing="sink"), attention_flow(maps * 0.7, missing="sink"))
    near(head_flow(maps * 0.7, capacity=capacity, missing="renormalise"), attention_flow(maps))


def test_capacities_bind_and_order() -> None:
    maps = with_heads(4, 3, 6, causal=True, seed=3)
    fused = np.asarray(attention_flow(maps))
    gates = np.array([[0.1, 1, 0.5]] * 4)
    gated = np.asarray(head_flow(maps, capacity=gates))
    assert (gated <= fused + 1e-7).all() and (gated < fused - 1e-3).any()
    # a gate on the node lets through at least what gates on its edges do
    weighed = np.asarray(
        attention_flow(0.5 * np.einsum("lh,lhqk->lqk", gates, maps) / 3 + 0.5 * np.eye(6), residual=0, missing="sink")
    )
    assert (weighed <= gated + 1e-7).all() and (weighed < gated - 1e-3).any()
    whole = np.asarray(head_flow(maps, edges="whole"))
    assert (whole >= fused - 1e-7).all() and (whole > fused + 1e-3).any() and whole.max() <= 1 + 1e-6
    near(head_flow(maps, capacity=0), 0.5 * np.eye(6))


def test_a_head_that_is_shut_is_a_head_that_is_not_there() -> None:
    maps = with_heads(3, 2, 5, causal=True)
    near(head_flow(maps, capacity=[[1, 0]] * 3, missing=None), by_hand(maps[:, :1] / 2, np.ones((3, 1)), 0.5, True))


def test_rows_columns_and_sums() -> None:
    maps = with_heads(3, 2, 5, causal=True)
    whole = np.asarray(head_flow(maps, capacity=0.5))
    near(head_flow(maps, [-1, 2], [0, 3], capacity=0.5), whole[[4, 2]][:, [0, 3]])
    near(head_flow(maps, capacity=0.5, normalise=True).sum(-1), np.ones(5))
    assert head_flow(maps).settled == {"no path": 10, "solver": 15}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": -1}, "below 0"),
        ({"capacity": float("nan")}, "below 0"),
        ({"capacity": [[1, 1]]}, "capacity"),
        ({"capacity": "all"}, "capacity"),
        ({"edges": "half"}, "Unknown kind"),
        ({"targets": [9]}, "targets"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        head_flow(with_heads(2, 2, 4, causal=True), **options)
