"""Exact attention flow: against networkx pair by pair, and how long rows and matrices of longer prompts take."""

from __future__ import annotations

import networkx
import numpy as np
import torch
from command import Settings, main
from lines import Line
from networkx.algorithms.flow import edmonds_karp
from pairs import median_interval, ratio, time_rounds
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

import interp

LAYERS, QUICK_LAYERS = 12, 4
MOST_ROUNDS = 7  # of those that take seconds each
KINDS = {  # standard deviation of the logits, what is added to the first token's
    "normal logits": (1.0, 0.0),
    "normal logits, a sink of 5 at the first token": (1.0, 5.0),
    "logits of deviation 3, a sink of 5": (3.0, 5.0),
}


def causal_maps(length: int, n_layers: int, kind: str) -> Tensor:
    """``[layer, query, key]`` softmax of normal logits over earlier tokens, float32."""
    deviation, sink = KINDS[kind]
    logits = deviation * torch.randn(n_layers, length, length, generator=torch.Generator().manual_seed(0))
    logits[:, :, 0] += sink
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)


def steps_of(maps: Tensor) -> np.ndarray:
    """``(A + I) / 2``."""
    return (0.5 * maps.double() + 0.5 * torch.eye(maps.shape[-1])).numpy()


def network_of(steps: np.ndarray) -> networkx.DiGraph:
    """The layered graph; building it is not timed."""
    graph = networkx.DiGraph()
    for layer, query, key in np.argwhere(steps > 0).tolist():
        graph.add_edge((layer + 1, query), (layer, key), capacity=float(steps[layer, query, key]))
    return graph


def by_networkx(graph: networkx.DiGraph, n_layers: int, length: int) -> np.ndarray:
    """Every pair by ``networkx.maximum_flow_value`` with Edmonds-Karp, as the authors' code calls it."""
    found = np.zeros((length, length))
    for target in range(length):
        for source in range(target + 1):
            found[target, source] = networkx.maximum_flow_value(
                graph, (n_layers, target), (0, source), flow_func=edmonds_karp
            )
    return found


def by_scipy(steps: np.ndarray) -> np.ndarray:
    """Every pair by one call of scipy's solver on the whole graph."""
    n_layers, length, _ = steps.shape
    scale = 2**31 - 1 - 2 * length
    layer, query, key = np.nonzero(steps)
    whole = np.rint(steps[layer, query, key] * scale).astype(np.int32)
    size = (n_layers + 1) * length
    graph = sparse.csr_array((whole, ((layer + 1) * length + query, layer * length + key)), shape=(size, size))
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)
    found = np.zeros((length, length))
    for target in range(length):
        for source in range(target + 1):
            found[target, source] = maximum_flow(graph, n_layers * length + target, source).flow_value / scale
    return found


def against_others(settings: Settings, kind: str) -> list[Line]:
    """The full matrix of a short prompt, the same pairs on every side."""
    length, n_layers = (6, QUICK_LAYERS) if settings.quick else (20, LAYERS)
    maps = causal_maps(length, n_layers, kind)
    steps = steps_of(maps)
    graph = network_of(steps)
    found = interp.attention_flow(maps)
    for truth in (by_networkx(graph, n_layers, length), by_scipy(steps)):
        np.testing.assert_allclose(np.asarray(found), truth, rtol=0, atol=1e-6)
    times = time_rounds(
        {
            "networkx": lambda: by_networkx(graph, n_layers, length),
            "scipy": lambda: by_scipy(steps),
            "ours": lambda: interp.attention_flow(maps),
        },
        rounds=min(settings.rounds, MOST_ROUNDS),
        warmups=1,
    )
    seconds = {name: median_interval(values).median for name, values in times.items()}
    pairs = length * (length + 1) // 2
    beside = f"{1000 * seconds['ours']:.1f} ms; networkx {seconds['networkx']:.2f} s; {_settled(found)}"
    claim = f"networkx / attention_flow, {pairs} pairs, L = {n_layers}, T = {length}, causal, {kind}"
    alone = f"scipy alone / attention_flow, the same pairs, {kind}"
    return [
        Line(claim, ratio(times, "networkx", "ours"), "x", "at least", 500.0, beside),
        Line(alone, ratio(times, "scipy", "ours"), beside=f"scipy {1000 * seconds['scipy']:.1f} ms"),
    ]


def longer(settings: Settings, kind: str) -> list[Line]:
    """Seconds for the full matrix of 64 tokens, and for the last token's row of 512."""
    n_layers = QUICK_LAYERS if settings.quick else LAYERS
    lines = []
    for length, targets, bound, what in ((64, None, 5.0, "full matrix"), (512, [-1], 30.0, "last token's row")):
        maps = causal_maps(length // 8 if settings.quick else length, n_layers, kind)
        found = interp.attention_flow(maps, targets=targets)
        times = time_rounds(
            {"ours": lambda maps=maps, targets=targets: interp.attention_flow(maps, targets=targets)},
            rounds=min(settings.rounds, MOST_ROUNDS),
            warmups=1,
        )
        claim = f"{what}, L = {n_layers}, T = {maps.shape[-1]}, causal, {kind}"
        lines.append(Line(claim, median_interval(times["ours"]), "s", "at most", bound, _settled(found)))
    return lines


def _settled(found: interp.Flow) -> str:
    """Shares of the pairs with a path that each kind of proof settled."""
    counts = {"certificates": 0, "few edges": 0, "search": 0}
    for way, number in found.settled.items():
        if way != "no path":
            kind = "certificates" if "=" in way else "few edges" if "few" in way else "search"
            counts[kind] += number
    total = max(1, sum(counts.values()))
    return ", ".join(f"{kind} {number / total:.0%}" for kind, number in counts.items() if number)


def measure(settings: Settings) -> list[Line]:
    """All lines; with two threads at most, whatever the machine has."""
    lines = []
    for kind in KINDS:
        lines += against_others(settings, kind)
    for kind in KINDS:
        lines += longer(settings, kind)
    return lines


if __name__ == "__main__":
    main(__file__, measure)
