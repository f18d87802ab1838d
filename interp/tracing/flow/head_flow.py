"""Attention flow through heads that are nodes of their own, with a capacity each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from interp.errors import BadInput
from interp.names import unknown
from interp.tracing.flow.attention_flow import Tokens, chosen_tokens, flow_dtype
from interp.tracing.flow.flow_tensor import Flow, FlowNotes
from interp.tracing.flow.layered_graph import LayeredGraph
from interp.tracing.flow.networks import LARGEST
from interp.tracing.flow.saturation import row_spread
from interp.tracing.flow.steps import given_steps, square_layers
from interp.tracing.fusion import Fusion
from interp.tracing.rollout import shares_of
from interp.tracing.transitions import Missing, check_options, check_rows, fused_rows

Edges = Literal["share", "whole"]


def head_flow(
    patterns: Any,
    targets: Tokens = None,
    sources: Tokens = None,
    *,
    capacity: Any = 1.0,
    edges: Edges = "share",
    residual: Any = 0.5,
    missing: Missing | None = None,
    normalise: bool = False,
) -> Float[Flow, "target source"]:
    """``[target, source]`` the maximum flow where the heads of each layer are nodes that hold only so much.

    From token i at the top of layer l the residual edge leads down to the token itself and holds ``r / s_i``; an edge
    leads to each head's node ``(l, h, i)`` and holds ``(1 - r) c_lh / (H s_i)``; from there an edge to each token j
    below holds ``(1 - r) A^h_l[i, j] / (H s_i)`` (``edges="share"``), or ``(1 - r) A^h_l[i, j] / s_i`` (``"whole"``: a
    head may put its whole share wherever it looks strongly enough). ``s_i`` is the row sum of ``(1 - r) mean_h A^h + r
    I``, 1 where rows sum to 1. The paper (Abnar and Zuidema, 2020) mentions heads as nodes without saying what they
    hold; both choices here are ours.

    With ``edges="share"`` and capacities of 1 or more heads never hold anything back, and the flow is that of
    ``attention_flow(heads="mean")``, whose parallel edges are summed; it differs where a capacity lies below 1 (a gate,
    a head that is mostly not used) and is never larger. With ``edges="whole"`` and capacities of 1 it is never smaller.

    Without a certificate every pair is searched, in a graph of ``layer x head x T²`` edges: for short prompts.

    Args:
        patterns: self-attention maps of one prompt with heads, ``[layer, head, query, key]`` or one map per layer.
        targets, sources: as in :func:`interp.attention_flow`.
        capacity: ``c``: a number, or ``[layer, head]`` (a list per layer where heads differ in number), at least 0.
        edges: ``"share"`` or ``"whole"``.
        residual, missing, normalise: as in :func:`interp.attention_flow`.

    Raises:
        BadInput: maps that are no distributions, other shapes, capacities below 0, options outside their range.

    Example:
        >>> look_at_first, look_at_own = torch.tensor([[1.0, 0], [1, 0]]), torch.eye(2)
        >>> maps = torch.stack([look_at_first, look_at_own])[None]
        >>> head_flow(maps, targets=[-1]) + 0
        tensor([[0.2500, 0.7500]])
        >>> head_flow(maps, targets=[-1], capacity=[[0.2, 1.0]]) + 0  # the first head passes a fifth of its share
        tensor([[0.0500, 0.7500]])
    """
    if edges not in get_args(Edges):
        raise BadInput(unknown(edges, get_args(Edges), "kind of edges"))
    check_options(missing=missing)
    layers = square_layers(patterns)
    length = layers[0].shape[-1]
    rows, columns = chosen_tokens(targets, length, "targets"), chosen_tokens(sources, length, "sources")
    capacities = _capacities(capacity, [len(layer) for layer in layers])
    steps = LayeredGraph(given_steps(layers, residual=residual, missing=missing))
    shares = shares_of(0.0 if residual is None else residual, len(layers), length)
    network, top, scale = _network(
        [_layer(*each, edges=edges, missing=missing) for each in zip(layers, shares, capacities, strict=True)]
    )
    path = steps.reach[np.ix_(rows, columns)]
    values = np.zeros(path.shape)
    for i, j in np.argwhere(path):
        values[i, j] = maximum_flow(network, top + int(rows[i]), int(columns[j])).flow_value / scale
    settled = +Counter({"no path": int((~path).sum()), "solver": int(path.sum())})
    spread = row_spread(values, path)
    if normalise:
        sums = values.sum(-1, keepdims=True)
        values = values / np.where(sums > 0, sums, 1)
    notes = FlowNotes(tuple(rows.tolist()), tuple(columns.tolist()), settled, spread, saturated=False)
    return Flow.made(torch.from_numpy(values).to(device=layers[0].device, dtype=flow_dtype(layers)), notes)


def _capacities(capacity: Any, counts: Sequence[int]) -> list[Float[np.ndarray, " head"]]:
    try:
        if np.ndim(capacity) == 0:
            rows = [np.full(count, float(capacity)) for count in counts]
        else:
            rows = [np.asarray(row, dtype=float) for row in capacity]
    except (TypeError, ValueError) as error:
        raise BadInput(f"capacity={capacity!r}: expected a number, or numbers [layer, head].") from error
    if [row.shape for row in rows] != [(count,) for count in counts]:
        raise BadInput(
            f"capacity: of shapes {[list(row.shape) for row in rows]}; expected a number, or [layer, head] for the "
            f"{list(counts)} heads of the layers."
        )
    if not all((row >= 0).all() for row in rows):  # refuses NaN as well
        raise BadInput("capacity: numbers below 0 or NaN; expected 0 (nothing passes) or more.")
    return rows


def _layer(
    maps: Float[Tensor, "head query key"],
    residual: float | Tensor,
    capacity: Float[np.ndarray, " head"],
    *,
    edges: Edges,
    missing: Missing | None,
) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"], Float[np.ndarray, " edge"], int]:
    """Tails, heads and capacities of a layer's edges, and its number of heads.

    Tokens below are nodes 0 to T - 1, then come the heads' nodes, head by head, then the tokens on top.
    """
    maps = maps.cpu().double()
    check_rows(maps, "patterns", missing=missing)
    count, length, _ = maps.shape
    own = torch.arange(length)
    # each head for itself, its missing mass put where the rule says
    alone = fused_rows(maps[:, None], own.expand(count, -1), fusion=Fusion("mean"), missing=missing)
    rows = alone.fused
    share = torch.as_tensor(residual, dtype=rows.dtype).reshape(-1).expand(length)
    empty = (maps.sum(-1) == 0).all(0)
    sums = (1 - share) * (alone.totals + alone.gone).mean(0) + share
    part = torch.where(empty, 0.0, (1 - share) / torch.where(sums > 0, sums, 1.0))
    stay = torch.where(empty, 0.0, share / torch.where(sums > 0, sums, 1.0))
    into = part[None] * torch.from_numpy(capacity)[:, None] / count  # [head, query]
    onto = rows * part[None, :, None] / (count if edges == "share" else 1)
    top, nodes = length * (count + 1), length + torch.arange(count * length).view(count, length)
    head, query, key = onto.nonzero(as_tuple=True)
    tails = torch.cat([top + own, (top + own).repeat(count), nodes[head, query]])
    heads = torch.cat([own, nodes.flatten(), key])
    holds = torch.cat([stay, into.clamp(max=1).flatten(), onto[head, query, key]])  # no flow is larger than 1
    return tails.numpy(), heads.numpy(), holds.numpy(), count


def _network(layers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, int]]) -> tuple[sparse.csr_array, int, int]:
    """The whole graph in whole numbers, tokens at the bottom first; its first token on top; what a capacity of 1 is."""
    tails, heads, holds = [], [], []
    offset = length = 0
    for tail, head, hold, count in layers:
        length = int(tail.max() + 1) // (count + 2)
        tails.append(offset + tail)
        heads.append(offset + head)
        holds.append(hold)
        offset += length * (count + 1)
    scale = LARGEST - 2 * length * max(count for *_, count in layers)
    whole = np.rint(np.concatenate(holds) * scale).astype(np.int32)
    size = offset + length
    places = (np.concatenate(tails).astype(np.int32), np.concatenate(heads).astype(np.int32))
    return sparse.coo_array((whole, places), shape=(size, size)).tocsr(), offset, scale
