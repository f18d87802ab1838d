"""Attention rollout of a run of a model."""

from __future__ import annotations

from typing import Any

import torch

from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.descent import ascend, descend
from interp.tracing.fusion import Heads
from interp.tracing.held_stages import held_tower
from interp.tracing.transitions import Missing


def rollout_trace(
    ask: TraceAsk,
    heads: Heads = "mean",
    residual: Any = 0.5,
    discard: float = 0.0,
    keep_first: bool = True,
    start: int = 0,
    missing: Missing | None = None,
    normalise: bool = True,
) -> Traced:
    """Rows of the rollout of this run (Abnar and Zuidema, 2020): see :func:`interp.rollout` for what it is.

    One forward keeps q and k of each layer; then one vector per target goes down from the top layer, and each layer's
    maps are made a few rows at a time: memory grows with the length of the prompts, not with its square. ``discard``
    needs the whole fused map of one layer at a time. The decoder of an encoder-decoder is traced to the encoder's
    tokens and its own.

    Args:
        ask: what is traced.
        heads: how heads are fused: ``mean``, ``max``, ``min``, or what weighs them (see :func:`interp.rollout`).
        residual: the residual stream's share: one half as in the paper, a number, ``[layer]``, ``[layer, query]``, or
            ``"measured"`` from the norms of this run (see :func:`interp.tracing.held_stages.measured_shares`).
        discard: share of the entries of each fused map that is set to 0, the lowest first.
        keep_first: whether discarding spares the first token's entry with itself.
        start: block index of the first layer that counts.
        missing: where the mass goes that rows lack: ``sink``, ``self`` or ``renormalise``; by default ``sink``, and
            ``renormalise`` where maps came in 16 bits.
        normalise: divide rows of ``S`` by their sum.

    Raises:
        BadInput: cross-attention alone, or options outside their range.
        Unsupported: maps, or norms, that the model does not offer.
    """
    made = held_tower(
        ask,
        heads=heads,
        residual=residual,
        discard=discard,
        keep_first=keep_first,
        start=start,
        missing=missing,
        normalise=normalise,
    )
    tower, like = made.tower, made.like
    wanted = list(tower.layers) if ask.each_layer else [tower.layers[-1]]
    targets = ask.targets.to(like.device)
    # from below one product of maps per layer, from above a vector per target and top through all layers below it
    if len(wanted) > 1 and 2 * tower.n_tokens < targets.shape[1] * len(wanted):
        whole = ascend(tower, layers=wanted, like=like)
        index = targets.unsqueeze(-1).expand(-1, -1, tower.n_encoder + tower.n_tokens)
        found = torch.stack([whole[layer].gather(1, index) for layer in wanted])
    else:
        found = descend(tower, targets, layers=wanted, like=like)
    layers = None
    if ask.each_layer:  # below start nothing counts: each token is itself alone
        itself = torch.zeros_like(found[:1]).scatter(-1, (targets + tower.n_encoder)[None, :, :, None], 1.0)
        layers = torch.cat([*[itself] * sum(layer < start for layer in ask.layers), found])
    return Traced(found[-1], layers, made.source_stacks, made.metadata)
