"""Products of steps with a few vectors, from the top layer down: a rollout's rows without any product of maps.

A target's row of ``R_L = S_L ... S_1`` is ``e_t S_L ... S_1``, read from the left: one vector per target goes down
through the layers, and each layer's map is looked at once, a few rows at a time. A decoder with cross-attention has
two kinds of sources: what a cross-attention's row says goes to the encoder's tokens, and down through its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.tracing.stages import Stage


@dataclass(frozen=True, eq=False)
class Tower:
    """The steps of a stack, from the first on, and of the encoder that it reads.

    Attributes:
        stages: self-attention and, after it, cross-attention of each block.
        encoder: the encoder's steps, where the stack has cross-attention.
    """

    stages: Sequence[Stage]
    encoder: Sequence[Stage] = field(default_factory=tuple)

    @property
    def n_tokens(self) -> int:
        """Tokens of the stack."""
        return self.stages[0].shape[2]

    @property
    def n_encoder(self) -> int:
        """Tokens of the encoder, 0 where the stack reads none."""
        return next((stage.shape[3] for stage in self.stages if stage.cross), 0)

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices of the stack's steps."""
        return tuple(dict.fromkeys(stage.layer for stage in self.stages))


def through(
    stage: Stage, vectors: Float[Tensor, "batch vector query"], without: int | None = None
) -> tuple[Float[Tensor, "batch vector key"], Float[Tensor, "batch vector query"]]:
    """What vectors at the top of a layer put on its keys through the heads, and what stays on the tokens themselves.

    Args:
        stage: the layer.
        vectors: weights of the tokens at its top.
        without: a head whose map is set to the identity.
    """
    batch, count, _ = vectors.shape
    columns = (vectors != 0).flatten(0, 1).any(0).nonzero()[:, 0]
    if stage.fast is not None and without is None and 2 * len(columns) > vectors.shape[-1]:
        return stage.fast(vectors)
    attended = vectors.new_zeros(batch, count, stage.shape[3])
    stays = torch.zeros_like(vectors)
    for block in stage.transitions(columns, without) if len(columns) else ():
        part = vectors.gather(-1, block.rows.unsqueeze(1).expand(-1, count, -1))
        attended[..., : block.fused.shape[-1]] += block.attended(part)
        stays.scatter_add_(-1, block.rows.unsqueeze(1).expand(-1, count, -1), part * block.own.unsqueeze(1))
    return attended, stays


def descend(
    tower: Tower,
    targets: Int[Tensor, "batch target"],
    *,
    layers: Sequence[int] | None = None,
    like: Tensor,
) -> Float[Tensor, "layer batch target source"]:
    """Rows of the rollout, the encoder's columns first.

    Args:
        tower: the steps.
        targets: columns of the targets.
        layers: tops of which blocks, in their order; the last one's alone for None.
        like: a tensor of the dtype and device to calculate in.

    The cost is one pass over the maps, and memory a vector per target and top.
    """
    batch, count = targets.shape
    wanted = [tower.layers[-1]] if layers is None else list(layers)
    start = torch.zeros(batch, count, tower.n_tokens, dtype=like.dtype, device=like.device)
    start.scatter_(-1, targets.to(like.device).unsqueeze(-1), 1.0)
    going = start[:, :0]
    above = like.new_zeros(batch, 0, tower.n_encoder)
    seen: set[int] = set()
    for stage in reversed(tower.stages):
        if stage.layer in wanted and stage.layer not in seen:
            going = torch.cat([going, start], dim=1)
            above = torch.cat([above, above.new_zeros(batch, count, tower.n_encoder)], dim=1)
        seen.add(stage.layer)
        attended, stays = through(stage, going)
        if stage.cross:
            above, going = above + attended, stays
        else:
            going = attended + stays
    for stage in reversed(tower.encoder):
        attended, stays = through(stage, above)
        above = attended + stays
    found = torch.cat([above, going], dim=-1)
    tops = found.view(batch, len(wanted), count, -1).permute(1, 0, 2, 3)
    order = sorted(wanted, reverse=True)
    return tops[[order.index(layer) for layer in wanted]]


def ascend(tower: Tower, *, layers: Sequence[int] | None = None, like: Tensor) -> dict[int, Tensor]:
    """Block index -> the whole rollout ``[batch, query, source]`` at its top, from the first layer up.

    Cheaper than :func:`descend` for many targets at every layer: one product of maps per layer.

    Args:
        tower: the steps.
        layers: tops of which blocks are kept; the last one's alone for None.
        like: a tensor of the dtype and device to calculate in.
    """
    batch, n_encoder, n_tokens = tower.stages[0].shape[0], tower.n_encoder, tower.n_tokens
    width = n_encoder + n_tokens
    kept = {tower.layers[-1]} if layers is None else set(layers)
    state = torch.eye(width, dtype=like.dtype, device=like.device).expand(batch, -1, -1)
    below, own = state[:, :n_encoder], state[:, n_encoder:]
    for stage in tower.encoder:
        below = _above(stage, below, below)
    found: dict[int, Tensor] = {}
    for stage in tower.stages:
        own = _above(stage, own, below if stage.cross else own)
        if stage.layer in kept:
            found[stage.layer] = own
    return found


def _above(stage: Stage, own: Tensor, keys: Tensor) -> Tensor:
    made = torch.zeros_like(own)
    for block in stage.transitions(torch.arange(stage.shape[2], device=own.device)):
        rows = block.rows.unsqueeze(-1).expand(-1, -1, own.shape[-1])
        fused = block.fused.to(own.dtype) @ keys[:, : block.fused.shape[-1]]
        mixed = block.attention.unsqueeze(-1) * fused + block.own.unsqueeze(-1) * own.gather(1, rows)
        made.scatter_(1, rows, mixed)
    return made
