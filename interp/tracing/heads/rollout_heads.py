"""What each head brings to a rollout: exactly, from one pass over the maps.

A head's map set to the identity changes one step, ``S_l`` to ``S'_l``, so that the targets' rows change by
``u_l (S_l - S'_l) B`` with ``u_l`` the rows' weights at the top of layer ``l`` and ``B`` the steps below. The vectors
``u_l (S_l - S'_l)``, one per target and head, go down through the layers below as the targets' own do.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.tracing.ask import TraceAsk
from interp.tracing.descent import Tower, through
from interp.tracing.fusion import Heads
from interp.tracing.heads.sources import Sources
from interp.tracing.heads.traced import HeadsTraced
from interp.tracing.held_stages import held_tower
from interp.tracing.stages import Stage
from interp.tracing.transitions import Missing

_Pair = tuple[Tensor, Tensor]  # what is put on keys, what stays on the tokens themselves


def rollout_heads(
    ask: TraceAsk,
    sources: Sources | None,
    heads: Heads = "mean",
    residual: Any = 0.5,
    discard: float = 0.0,
    keep_first: bool = True,
    start: int = 0,
    missing: Missing | None = None,
    normalise: bool = True,
) -> HeadsTraced:
    """What each head brings to the targets' rows of the rollout; see :func:`interp.trace_heads`.

    A cross-attention head has no identity: there, its mass stays on the decoder's token. With ``max``, ``min`` and
    ``discard`` the fused map is made anew for each head.

    Args:
        ask: what is traced.
        sources: the tokens that count, None for the total variation of the whole row.
        heads, residual, discard, keep_first, start, missing, normalise: see
            :func:`interp.tracing.rollout_trace.rollout_trace`.

    Raises:
        BadInput: cross-attention alone, or options outside their range.
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
    differences = head_differences(made.tower, ask.targets, like=made.like)
    own = made.held.stacks[0]
    parts = made.source_stacks or ((own, made.tower.n_tokens),)
    member = None if sources is None else sources.among(parts).to(made.like.device)
    values: dict[str, dict[int, Tensor]] = {}
    for (stage, part), found in differences.items():
        name = {"own": own}.get(part, part)
        if member is None:
            number = found.abs().sum(-1) / 2
        else:
            number = (found * member[:, None, None, :]).sum(-1)
        values.setdefault(name, {})[stage] = number.mean(1)
    return HeadsTraced({name: dict(sorted(of.items())) for name, of in values.items()}, made.metadata)


def head_differences(
    tower: Tower, targets: Int[Tensor, "batch target"], *, like: Tensor
) -> dict[tuple[int, str], Float[Tensor, "batch target head source"]]:
    """(block index, ``own``, ``cross`` or ``encoder``) -> the targets' rows as they are, minus without each head.

    Args:
        tower: the steps.
        targets: columns of the targets.
        like: a tensor of the dtype and device to calculate in.

    Memory: a vector per head of the model and target.
    """
    batch, count = targets.shape
    own = torch.zeros(batch, count, tower.n_tokens, dtype=like.dtype, device=like.device)
    own.scatter_(-1, targets.to(like.device).unsqueeze(-1), 1.0)
    above = own.new_zeros(batch, count, tower.n_encoder)
    sizes: list[tuple[tuple[int, str], int]] = []
    for stage in reversed(tower.stages):
        mine = own[:, :count]
        (attended, stays), (new_keys, new_own) = _both(stage, own, mine)
        if stage.cross:
            above, own = torch.cat([above + attended, new_keys], dim=1), torch.cat([stays, new_own], dim=1)
        else:
            fresh = new_keys + new_own
            own = torch.cat([attended + stays, fresh], dim=1)
            above = torch.cat([above, above.new_zeros(batch, fresh.shape[1], above.shape[2])], dim=1)
        sizes.append(((stage.layer, "cross" if stage.cross else "own"), stage.shape[1]))
    for stage in reversed(tower.encoder):
        (attended, stays), (new_keys, new_own) = _both(stage, above, above[:, :count])
        fresh = new_keys + new_own
        above = torch.cat([attended + stays, fresh], dim=1)
        own = torch.cat([own, own.new_zeros(batch, fresh.shape[1], own.shape[2])], dim=1)
        sizes.append(((stage.layer, "encoder"), stage.shape[1]))
    found = torch.cat([above, own], dim=-1)[:, count:]
    parts = found.split([count * n_heads for _, n_heads in sizes], dim=1)
    return {key: part.view(batch, count, n_heads, -1) for (key, n_heads), part in zip(sizes, parts, strict=True)}


def _both(stage: Stage, bundle: Tensor, rows: Tensor) -> tuple[_Pair, _Pair]:
    """A bundle of vectors taken through a layer, and what each head brings to ``rows``, its first vectors."""
    if stage.mixing.discard or not stage.mixing.fusion.linear or stage.mixing.missing is None:
        return through(stage, bundle), _by_recomputing(stage, rows)
    return _by_sharing(stage, bundle, rows.shape[1])


def _by_recomputing(stage: Stage, rows: Tensor) -> _Pair:
    batch, count, _ = rows.shape
    with_it = through(stage, rows)
    heads = [through(stage, rows, without=head) for head in range(stage.shape[1])]
    apart = [
        torch.stack([mine - pair[side] for pair in heads], dim=2).reshape(batch, count * len(heads), -1)
        for side, mine in enumerate(with_it)
    ]
    return apart[0], apart[1]


def _by_sharing(stage: Stage, bundle: Tensor, count: int) -> tuple[_Pair, _Pair]:
    """From one pass: a head with share ``w`` of the fused map brings ``u diag(a) w (A_h - I)``."""
    batch, n_vectors, _ = bundle.shape
    heads, width = stage.shape[1], stage.shape[3]
    attended, stays = bundle.new_zeros(batch, n_vectors, width), torch.zeros_like(bundle)
    new_keys = bundle.new_zeros(batch, count, heads, width)
    new_own = bundle.new_zeros(batch, count, heads, bundle.shape[2])
    columns = (bundle != 0).flatten(0, 1).any(0).nonzero()[:, 0]
    for some in stage.read(columns) if len(columns) else ():
        pattern, rows, _ = some
        block = stage.step(some)
        n_keys = pattern.shape[-1]
        part = bundle.gather(-1, rows.unsqueeze(1).expand(-1, n_vectors, -1))
        attended[..., :n_keys] += block.attended(part)
        stays.scatter_add_(-1, rows.unsqueeze(1).expand(-1, n_vectors, -1), part * block.own.unsqueeze(1))
        shares = stage.mixing.fusion.shares(stage.index, heads, pattern)
        mine = (part[:, :count] * block.attention.unsqueeze(1)).unsqueeze(2) * shares[:, None]  # [b, target, head, row]
        sums = pattern.sum(-1).unsqueeze(1)
        if stage.mixing.missing == "renormalise":
            on_keys = mine / torch.where(sums == 0, torch.ones_like(sums), sums)
        else:
            on_keys = mine
        new_keys[..., :n_keys] += torch.einsum("bthr,bhrk->bthk", on_keys, pattern)
        itself = (1 - sums).clamp(min=0) if stage.mixing.missing == "self" else torch.zeros_like(sums)
        where = rows[:, None, None, :].expand(-1, count, heads, -1)
        new_own.scatter_add_(-1, where, mine * (itself - 1))
    return (attended, stays), (new_keys.flatten(1, 2), new_own.flatten(1, 2))
