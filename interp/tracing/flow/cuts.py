"""Upper bounds of flows: what lets through no more than the cheapest of many cuts, for all pairs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp.tracing.flow.closed_forms import bottleneck_sums
from interp.tracing.flow.layered_graph import LayeredGraph, Pairs

WORK = 4 * 10**8  # minima that bounds from the sources up may cost


@dataclass(frozen=True, eq=False)
class CutBounds:
    """What the flow between each target and source cannot exceed.

    Attributes:
        values: ``[target, source]`` the least of the cuts tried.
        top: ``[target, source]`` the cut right below the target, within the pair's window.
        bottom: ``[target, source]`` the cut right above the source, within the window.
    """

    values: Float[np.ndarray, "target source"]
    top: Float[np.ndarray, "target source"]
    bottom: Float[np.ndarray, "target source"]


def cut_bounds(
    graph: LayeredGraph, targets: Int[np.ndarray, " target"], sources: Int[np.ndarray, " source"]
) -> CutBounds:
    """Upper bounds of the flows from each target to each source.

    With ``D_l[i, k]`` a bound of what i can send to node k of level l, and ``U_l[k, j]`` of what that node can send to
    j, both from the step beside them,

        D_{l-1}[i, b] = sum_a min(D_l[i, a], S_l[a, b])        U_l[a, j] = sum_b min(S_l[a, b], U_{l-1}[b, j])

    the flow is at most ``sum_k min(D_l[i, k], U_l[k, j])`` at every level l. Each such sum is the value of a cut that
    parts every level where it costs least; the cut through a whole layer next to the target or the source is among
    them. Bounds from the sources up are left out where there are many sources and few targets.
    """
    steps = graph.steps
    n_layers, length, _ = steps.shape
    both = len(sources) <= 4 * len(targets) or n_layers * len(sources) * length**2 <= WORK
    ups: list[np.ndarray] = []  # from level 1 on
    if both:
        ups.append(steps[0][:, sources])
        for step in steps[1:]:
            ups.append(bottleneck_sums(step, ups[-1]))
    down = steps[-1][targets]
    values = ups[-1][targets].copy() if both else np.full((len(targets), len(sources)), np.inf)
    for layer in range(n_layers - 2, -1, -1):
        if both:
            np.minimum(values, bottleneck_sums(down, ups[layer]), out=values)
        down = bottleneck_sums(down, steps[layer])
    np.minimum(values, down[:, sources], out=values)
    top, bottom = _ends(graph, targets, sources)
    np.minimum(values, np.minimum(top, bottom), out=values)
    return CutBounds(values, top, bottom)


def crossing_edges(graph: LayeredGraph, pair: Pairs, sides: Sequence[Float[np.ndarray, " node"]]) -> float:
    """The exact value of a cut: the edges from the target's side to the source's.

    Args:
        graph: the layers.
        pair: one pair.
        sides: 1 at nodes of its window on the target's side, of levels 1 to L - 1.
    """
    target, source = int(pair.targets[0]), int(pair.sources[0])
    inside = graph.windows(pair)[0]
    steps = graph.steps
    total = float(steps[-1, target, inside] @ (1 - sides[-1]))
    total += float(sides[0] @ steps[0, inside, source])
    for level in range(1, len(sides)):
        total += float(sides[level] @ steps[level][inside][:, inside] @ (1 - sides[level - 1]))
    return total


def _ends(graph: LayeredGraph, targets: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, last = graph.steps[0], graph.steps[-1]
    if not graph.causal:
        top = np.broadcast_to(last[targets].sum(1)[:, None], (len(targets), len(sources)))
        return top, np.broadcast_to(first[:, sources].sum(0)[None], top.shape)
    from_right = np.cumsum(last[targets][:, ::-1], axis=1)[:, ::-1]
    from_top = np.cumsum(first[:, sources], axis=0)
    return from_right[:, sources], from_top[targets]
