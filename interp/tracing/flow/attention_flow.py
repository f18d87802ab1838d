"""``attention_flow``: the exact maximum flow between tokens at the top and at the bottom of given maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.flow.flow_tensor import Flow, FlowNotes
from interp.tracing.flow.layered_graph import LayeredGraph
from interp.tracing.flow.saturation import row_spread, saturated, warn_saturated
from interp.tracing.flow.settle import Settled, settle
from interp.tracing.flow.steps import given_steps, square_layers
from interp.tracing.fusion import Heads
from interp.tracing.transitions import Missing

Tokens = Sequence[int] | Tensor | np.ndarray | None


def attention_flow(
    patterns: Any,
    targets: Tokens = None,
    sources: Tokens = None,
    *,
    normalise: bool = False,
    heads: Heads = "mean",
    residual: Any = 0.5,
    missing: Missing | None = None,
    each_layer: bool = False,
) -> Float[Flow, "*layer target source"]:
    """``[target, source]`` the maximum flow from each target at the top layer to each source at the bottom.

    Attention as a network of pipes (Abnar and Zuidema, 2020): an edge leads from node i of level l to node j of level
    l - 1 and holds at most ``S_l[i, j]``, with ``S_l = ((1 - r) A_l + r I) / rowsum`` and ``A_l`` the heads' fused map;
    nodes hold anything. ``F[i, j]`` is the maximum flow from ``(L, i)`` to ``(0, j)``, every pair a problem of its own:

        F_1 = S_1        F_2[i, j] = sum_k min(S_2[i, k], S_1[k, j])        rollout <= F <= every cut, 0 <= F <= 1

    Exact: flows through one or two layers are in closed form; where a feasible flow and a cut meet they prove each
    other; the rest is searched (in whole numbers of 2^31 - 1 - 2 T to a capacity of 1), to about 1e-7. The result says
    how many pairs each way settled. In deep maps that look both ways the flow often depends on the source alone; the
    result's ``spread`` shows that, and a warning says so.

    Args:
        patterns: self-attention maps of one prompt, the first layer first: ``[layer, query, key]``, ``[layer, head,
            query, key]``, or one map per layer; rows sum to 1.
        targets: tokens at the top, negative from the end; all for None.
        sources: tokens at the bottom; all for None.
        normalise: divide each target's row by its sum over the sources asked for, as the paper's code does over all.
        heads: how heads are fused: ``"mean"``, ``"max"``, ``"min"``, or what weighs them; see :func:`interp.rollout`.
        residual: the residual stream's share ``r``: a number, ``[layer]`` or ``[layer, query]``; 0 or None for the maps
            alone.
        missing: what becomes of the mass of rows that sum to less than 1: ``"sink"`` it leaves the graph, ``"self"`` it
            stays on the token, ``"renormalise"`` the row is divided by its sum. Without it such rows are refused; rows
            that are 0 in every head are padding, and no flow passes them.
        each_layer: the flows from every level, ``[layer, target, source]``: the first through layer 1 alone.

    Returns:
        A tensor on the device of the maps, float64 where they are, float32 otherwise, with ``settled``, ``spread`` and
        ``table()``; see :class:`Flow`.

    Raises:
        BadInput: maps that are no distributions, other shapes, tokens that are not there, options outside their range.

    Example:
        >>> first = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
        >>> second = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.6, 0.1, 0.3]]
        >>> attention_flow([first, second], targets=[-1]).float()
        tensor([[0.4500, 0.2000, 0.6500]])
    """
    layers = square_layers(patterns)
    length = layers[0].shape[-1]
    rows, columns = chosen_tokens(targets, length, "targets"), chosen_tokens(sources, length, "sources")
    graph = LayeredGraph(given_steps(layers, heads=heads, residual=residual, missing=missing))
    values, notes = flows(graph, rows, columns, normalise=normalise, each_layer=each_layer)
    if notes.saturated:
        warn_saturated(graph.n_layers, stacklevel=2)
    return Flow.made(torch.from_numpy(values).to(device=layers[0].device, dtype=flow_dtype(layers)), notes)


def flows(
    graph: LayeredGraph,
    targets: Int[np.ndarray, " target"],
    sources: Int[np.ndarray, " source"],
    *,
    normalise: bool = False,
    each_layer: bool = False,
) -> tuple[Float[np.ndarray, "*layer target source"], FlowNotes]:
    """The flows of a graph from its top, or from every level, and how they were found; see :func:`flow_levels`."""
    tops = range(1, graph.n_layers + 1) if each_layer else [graph.n_layers]
    values, notes = flow_levels(graph, targets, sources, normalise=normalise, tops=tops)
    return values if each_layer else values[0], notes


def flow_levels(
    graph: LayeredGraph,
    targets: Int[np.ndarray, " target"],
    sources: Int[np.ndarray, " source"],
    *,
    normalise: bool = False,
    tops: Sequence[int],
) -> tuple[Float[np.ndarray, "top target source"], FlowNotes]:
    """The flows of a graph from each of some levels, and how they were found; see :func:`attention_flow`.

    Where the flows from every token of a lower level are known, the step above it carries them up: flows added with
    weights that sum to at most 1 are a flow, so that ``F_(l+1) >= S_(l+1) F_l``.

    Args:
        graph: the layers.
        targets, sources: tokens, which may be repeated.
        normalise: divide rows by their sum.
        tops: levels, rising.
    """
    rows, row_places = np.unique(targets, return_inverse=True)
    columns, column_places = np.unique(sources, return_inverse=True)
    settled: Counter[str] = Counter()
    levels: list[Settled] = []
    reached = 0
    for top in tops:
        carried = None
        if levels and len(rows) == graph.length:
            carried = levels[-1].values
            for step in graph.steps[reached:top]:
                carried = step @ carried
        levels.append(settle(graph.below(top), rows, columns, carried=carried))
        settled.update(levels[-1].counts)
        reached = top
    last = levels[-1]
    spread = row_spread(last.values, graph.below(reached).reach[np.ix_(rows, columns)])
    same = saturated(spread, last.bottom, n_layers=reached, causal=graph.causal)
    values = np.stack([level.values[np.ix_(row_places, column_places)] for level in levels])
    if normalise:
        sums = values.sum(-1, keepdims=True)
        values = values / np.where(sums > 0, sums, 1)
    notes = FlowNotes(tuple(targets.tolist()), tuple(sources.tolist()), dict(settled), spread[column_places], same)
    return values, notes


def flow_dtype(layers: Sequence[Tensor]) -> torch.dtype:
    """float64 where some map is, float32 otherwise."""
    return torch.float64 if any(layer.dtype == torch.float64 for layer in layers) else torch.float32


def chosen_tokens(given: Tokens, length: int, name: str) -> Int[np.ndarray, " token"]:
    """Tokens as they are counted from the first on, all for None.

    Raises:
        BadInput: no list of whole numbers, or tokens that are not there.
    """
    if given is None:
        return np.arange(length)
    try:
        tokens = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}={given!r}: expected a list of tokens, such as [-1].") from error
    if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
        raise BadInput(f"{name}={given!r}: expected a list of tokens, such as [-1]; None for all.")
    if tokens.min() < -length or tokens.max() >= length:
        raise BadInput(f"{name}={tokens.tolist()}: there are {length} tokens (0 to {length - 1}, or -1 to -{length}).")
    return tokens.astype(np.int64) % length
