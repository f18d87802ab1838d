"""Attention flow of a run of a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.descent import Tower
from interp.tracing.flow.attention_flow import flow_levels
from interp.tracing.flow.flow_tensor import FlowNotes
from interp.tracing.flow.layered_graph import LayeredGraph
from interp.tracing.flow.saturation import warn_saturated
from interp.tracing.fusion import Heads
from interp.tracing.held_stages import held_tower
from interp.tracing.stages import Stage
from interp.tracing.transitions import Missing


def trace_flow(
    ask: TraceAsk,
    heads: Heads = "mean",
    residual: Any = 0.5,
    normalise: bool = False,
    missing: Missing | None = None,
) -> Traced:
    """Rows of the maximum flow through the fused maps of this run; Abnar and Zuidema, 2020.

    ``F[i, j]`` is the maximum flow from target i at the top layer to source j at the bottom, edges ``S_l = ((1 - r) A_l
    + r I) / rowsum``; see :func:`interp.attention_flow`. One forward; then each layer's fused map is made once and
    kept, so that memory grows with layers x length². Prompts are taken one by one, without their padding. The decoder
    of an encoder-decoder is traced to the encoder's tokens and its own: cross-attention leads from a decoder's token to
    the encoder's output (edges ``(1 - r) C``), the residual share to itself.

    Args:
        ask: what is traced.
        heads: how heads are fused: ``mean``, ``max``, ``min``, or what weighs them (see :func:`interp.rollout`).
        residual: the residual stream's share: one half as in the paper, a number, ``[layer]``, ``[layer, query]``, or
            ``"measured"`` from the norms of this run.
        normalise: divide each target's row by its sum.
        missing: where the mass goes that rows lack; see :func:`interp.attention_flow`. By default ``sink``, and
            ``renormalise`` where maps came in 16 bits.

    Raises:
        BadInput: cross-attention alone, or options outside their range.
        Unsupported: maps that the model does not offer.
    """
    made = held_tower(ask, heads=heads, residual=0.0 if residual is None else residual, missing=missing)
    tower = made.tower
    steps, tops = _steps(tower)
    masks = _real_nodes(ask, tower, len(ask.batch))
    width = tower.n_encoder + tower.n_tokens
    n_tops = len(tops) if ask.each_layer else 1
    values = torch.zeros(n_tops, len(ask.batch), ask.targets.shape[1], width, dtype=torch.float64)
    notes: list[FlowNotes] = []
    for prompt, real in enumerate(masks):
        nodes = np.nonzero(real)[0]
        graph = LayeredGraph(np.stack([step[prompt][np.ix_(nodes, nodes)] for step in steps]))
        targets = ask.targets[prompt].cpu().numpy() + tower.n_encoder
        found, about = flow_levels(
            graph,
            np.searchsorted(nodes, targets),
            np.arange(len(nodes)),
            normalise=normalise,
            tops=tops if ask.each_layer else tops[-1:],
        )
        values[:, prompt, :, nodes] = torch.from_numpy(found)
        notes.append(about)
    if any(note.saturated for note in notes):
        warn_saturated(len(tower.layers), stacklevel=3)
    metadata = {**made.metadata, "normalise": normalise, **_said(notes)}
    return Traced(values[-1], values if ask.each_layer else None, made.source_stacks, metadata)


def _steps(tower: Tower) -> tuple[list[Float[np.ndarray, "batch node node"]], list[int]]:
    """The steps from the bottom up, over the encoder's tokens and then the stack's; and how many lie below each top.

    A token that a step does not concern passes it on an edge of capacity 1, which is more than flows at all.
    """
    n_encoder, width = tower.n_encoder, tower.n_encoder + tower.n_tokens
    steps: list[np.ndarray] = []
    for stage in tower.encoder:
        steps.append(_placed(_dense(stage), 0, 0, width))
    tops: dict[int, int] = {}
    for stage in tower.stages:
        if not stage.cross:
            steps.append(_placed(_dense(stage), n_encoder, n_encoder, width))
        else:
            steps.append(_crossed(stage, n_encoder, width))
        tops[stage.layer] = len(steps)
    return steps, list(tops.values())


def _dense(stage: Stage) -> Float[np.ndarray, "batch query key"]:
    parts = stage.transitions(torch.arange(stage.shape[2]))
    return torch.cat([part.dense(stage.shape[3]).cpu().double() for part in parts], dim=1).numpy()


def _placed(step: np.ndarray, row: int, column: int, width: int) -> np.ndarray:
    if step.shape[-1] == width:
        return step
    made = np.broadcast_to(np.eye(width), (len(step), width, width)).copy()
    made[:, row : row + step.shape[1], column : column + step.shape[2]] = step
    return made


def _crossed(stage: Stage, n_encoder: int, width: int) -> np.ndarray:
    """Cross-attention as a step: a decoder's token leads to the encoder's and to itself."""
    made = np.broadcast_to(np.eye(width), (stage.shape[0], width, width)).copy()
    for part in stage.transitions(torch.arange(stage.shape[2])):
        lines = n_encoder + part.rows[0].cpu().numpy()
        made[:, lines, : part.fused.shape[-1]] = (part.fused * part.attention.unsqueeze(-1)).cpu().double().numpy()
        made[:, lines, lines] = part.own.cpu().double().numpy()
    return made


def _real_nodes(ask: TraceAsk, tower: Tower, count: int) -> np.ndarray:
    """``[prompt, node]`` which nodes are no padding."""
    parts = []
    for name, number in (("encoder", tower.n_encoder), (ask.stack.name, tower.n_tokens)):
        mask = ask.batch.row_mask(name) if number else None
        parts.append(np.ones((count, number), dtype=bool) if mask is None else mask.cpu().numpy())
    return np.concatenate(parts, axis=1)


def _said(notes: list[FlowNotes]) -> dict[str, Any]:
    settled: Counter[str] = Counter()
    for note in notes:
        settled.update(note.settled)
    largest = [note.spread[np.isfinite(note.spread)] for note in notes]
    return {
        "settled": dict(settled),
        "largest_row_spread": [float(spread.max()) if spread.size else None for spread in largest],
        "saturated": [note.saturated for note in notes],
    }
