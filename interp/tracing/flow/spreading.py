"""Lower bounds of flows: feasible flows found level by level, for many pairs at once by products of matrices."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from interp.tracing.flow.layered_graph import LayeredGraph, Pairs

Shape = Literal["well placed", "even"]
ENTRIES = 2**21  # pairs x nodes of one block
ROUNDS = 2  # of balancing what leaves each node against what each node takes
TINY = 1e-300


def spread_flows(
    graph: LayeredGraph,
    pairs: Pairs,
    aims: Float[np.ndarray, " pair"],
    *,
    share: float,
    shape: Shape,
) -> Float[np.ndarray, " pair"]:
    """A flow that each pair certainly has.

    What the target sends to level L - 1 is carried down through the layers. Most stays on its token, as far as the
    layer's diagonal lets it; the rest moves from nodes that hold too much to nodes that hold too little, along edges
    scaled by ``alpha[a] beta[b] <= 1``, so that no edge is overfull and two products of matrices are all that a layer
    costs. Too much and too little are meant against a spread-out profile first, and then against what the first layer
    can pass on to the source. What arrives is the value of a feasible flow: what is stuck on the way is not counted.

    Args:
        graph: three layers or more.
        pairs: the pairs.
        aims: what is hoped for: their upper bounds.
        share: of the layers, from the top, in which what flows is spread out.
        shape: of that profile: ``even`` over the window, or ``well placed``: where a node has much to do with the
            target in the upper half of the layers and with the source in the lower half.
    """
    made = np.empty(len(pairs))
    step = max(1, ENTRIES // graph.length)
    for start in range(0, len(pairs), step):
        part = slice(start, start + step)
        made[part] = _spread(graph, pairs[part], aims[part], share, shape)
    return made


def _spread(graph: LayeredGraph, pairs: Pairs, aims: np.ndarray, share: float, shape: Shape) -> np.ndarray:
    steps = graph.steps
    n_layers = len(steps)
    inside = graph.windows(pairs)
    held = np.where(inside, steps[-1][pairs.targets], 0)
    wanted = np.where(inside, steps[0].T[pairs.sources], 0)
    profile = _profile(graph, pairs, inside, shape) if share else None
    spreading = round((n_layers - 2) * share)
    for turn, layer in enumerate(range(n_layers - 2, 0, -1)):
        goal = wanted if profile is None or turn >= spreading else profile * aims[:, None]
        held = _moved(held, goal, steps[layer])
    return np.minimum(held, wanted).sum(1)


def _profile(graph: LayeredGraph, pairs: Pairs, inside: np.ndarray, shape: Shape) -> np.ndarray:
    made = inside.astype(float)
    if shape == "well placed":
        half = graph.n_layers // 2
        from_target, to_source = graph.steps[half:-1].sum(0), graph.steps[1 : half + 1].sum(0)
        made = np.where(inside, np.minimum(from_target[pairs.targets], to_source.T[pairs.sources]), 0)
    return made / np.maximum(made.sum(1, keepdims=True), TINY)


def _moved(held: np.ndarray, goal: np.ndarray, step: np.ndarray) -> np.ndarray:
    """What each node of the next level holds; outside the window nobody wants anything."""
    stay = np.diagonal(step)
    across = step - np.diag(stay)
    excess, lack = np.maximum(held - goal, 0), np.maximum(goal - held, 0)
    takes = (lack > 0).astype(float)
    gives = takes
    for _ in range(ROUNDS):
        gives = np.minimum(1, excess / np.maximum(takes @ across.T, TINY))
        takes = np.minimum(1, lack / np.maximum(gives @ across, TINY))
    leaving = gives * (takes @ across.T)
    gives *= np.minimum(1, excess / np.maximum(leaving, TINY))
    leaving = gives * (takes @ across.T)
    return np.minimum(held - leaving, stay) + takes * (gives @ across)
