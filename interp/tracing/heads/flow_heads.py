"""What each head brings to the attention flow: every flow found anew with the head's map set to the identity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.ask import TraceAsk
from interp.tracing.descent import Tower
from interp.tracing.flow.attention_flow import flows
from interp.tracing.flow.layered_graph import LayeredGraph
from interp.tracing.fusion import Heads
from interp.tracing.heads.sources import Sources
from interp.tracing.heads.traced import HeadsTraced
from interp.tracing.held_stages import held_tower, stacks_read
from interp.tracing.stages import Stage
from interp.tracing.transitions import Missing

MOST_TOKENS = 96  # of all stacks together: a maximum flow per head, target and source


def flow_heads(
    ask: TraceAsk,
    sources: Sources | None,
    heads: Heads = "mean",
    residual: Any = 0.5,
    normalise: bool = False,
    missing: Missing | None = None,
) -> HeadsTraced:
    """What each head brings to the targets' rows of the flow; see :func:`interp.trace_heads`.

    Nothing of a maximum flow is linear, so that each head costs as much as the trace: prompts of at most 96 tokens.
    A cross-attention head has no identity: there, its mass stays on the decoder's token.

    Args:
        ask: what is traced.
        sources: the tokens that count, None for all.
        heads, residual, normalise, missing: see :func:`interp.tracing.flow.trace_flow.trace_flow`.

    Raises:
        BadInput: longer prompts, cross-attention alone, or options outside their range.
    """
    widths = [0 if mask is None else int(mask.sum(-1).max()) for mask in map(ask.batch.row_mask, stacks_read(ask)[::2])]
    _refuse_long(sum(widths))
    made = held_tower(ask, heads=heads, residual=0.0 if residual is None else residual, missing=missing)
    tower, own = made.tower, made.held.stacks[0]
    _refuse_long(0 if sum(widths) else tower.n_encoder + tower.n_tokens)  # of images the number shows only now
    parts = made.source_stacks or ((own, tower.n_tokens),)
    real = _real(ask, parts)
    member = real if sources is None else sources.among(parts).numpy() & real
    order = [*((stage, "encoder") for stage in tower.encoder)]
    order += [(stage, "cross" if stage.cross else own) for stage in tower.stages]
    steps = [_step(stage, name == "encoder", tower) for stage, name in order]
    values: dict[str, dict[int, Tensor]] = {}
    whole = _rows(ask, steps, tower, real, normalise)
    for place, (stage, name) in enumerate(order):
        found = torch.zeros(len(real), stage.shape[1], dtype=torch.float64)
        for head in range(stage.shape[1]):
            changed = [*steps]
            changed[place] = _step(stage, name == "encoder", tower, without=head)
            apart = whole - _rows(ask, changed, tower, real, normalise)  # [batch, target, node]
            number = np.abs(apart).sum(-1) / 2 if sources is None else (apart * member[:, None]).sum(-1)
            found[:, head] = torch.from_numpy(number.mean(1))
        values.setdefault(name, {})[stage.layer] = found
    return HeadsTraced(values, {**made.metadata, "normalise": normalise})


def _refuse_long(tokens: int) -> None:
    if tokens > MOST_TOKENS:
        raise BadInput(
            f"trace_heads: prompts of {tokens} tokens; a flow per head is for at most {MOST_TOKENS}. Take method="
            "'rollout', whose heads come from one pass, or shorter prompts."
        )


def _step(
    stage: Stage, encoder: bool, tower: Tower, without: int | None = None
) -> Float[np.ndarray, "batch node node"]:
    """A step over the encoder's nodes and then the stack's; those that it does not concern pass it unhindered."""
    width = tower.n_encoder + tower.n_tokens
    first = 0 if encoder else tower.n_encoder
    column = 0 if stage.cross else first
    made = torch.eye(width, dtype=torch.float64).repeat(stage.shape[0], 1, 1)
    for part in stage.transitions(torch.arange(stage.shape[2]), without):
        rows = first + part.rows[0].cpu()
        block = torch.zeros(stage.shape[0], len(rows), width, dtype=torch.float64)
        attended = (part.fused * part.attention.unsqueeze(-1)).cpu().double()
        block[..., column : column + attended.shape[-1]] = attended
        block[:, torch.arange(len(rows)), rows] += part.own.cpu().double()
        made[:, rows] = block
    return made.numpy()


def _rows(
    ask: TraceAsk, steps: list[np.ndarray], tower: Tower, real: Bool[np.ndarray, "batch node"], normalise: bool
) -> Float[np.ndarray, "batch target node"]:
    """The targets' flows, 0 at padding."""
    made = np.zeros((len(real), ask.targets.shape[1], real.shape[1]))
    for prompt, there in enumerate(real):
        nodes = np.nonzero(there)[0]
        graph = LayeredGraph(np.stack([step[prompt][np.ix_(nodes, nodes)] for step in steps]))
        places = np.searchsorted(nodes, ask.targets[prompt].cpu().numpy() + tower.n_encoder)
        found, _ = flows(graph, places, np.arange(len(nodes)), normalise=normalise)
        made[prompt][:, nodes] = found[0]
    return made


def _real(ask: TraceAsk, parts: tuple[tuple[str, int], ...]) -> Bool[np.ndarray, "batch node"]:
    made = []
    for name, number in parts:
        mask = ask.batch.row_mask(name)
        made.append(np.ones((len(ask.batch), number), dtype=bool) if mask is None else mask.cpu().numpy())
    return np.concatenate(made, axis=1)
