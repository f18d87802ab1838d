"""How much of a value-aware trace passes through each head.

A layer's contribution ``c_ij`` is split over the heads by the lengths of what each brings, ``||T_i^h(x_j)||``, what
stays of the token's own state counted as one part more. A head's number is what of the trace goes through its part,

    share_h = sum_i sum_j u_i c_ij w_ijh b_j

with ``u`` the weights that the targets' trace puts on the tokens at the top of the layer, and ``b`` the share of the
sources in the states at its bottom (1 without sources). Over the heads of a layer and what stays, the shares sum to
what the targets owe to the sources. The split is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.model.attention_sums import LayerSum
from interp.tracing.ask import TraceAsk
from interp.tracing.heads.sources import Sources
from interp.tracing.heads.traced import HeadsTraced
from interp.tracing.values.contribution_trace import one_hot
from interp.tracing.values.contributions import check_kind
from interp.tracing.values.held_steps import HeldSteps, held_steps
from interp.tracing.values.steps import StepRows, ValueStep


def alti_heads(ask: TraceAsk, sources: Sources | None, norm: int = 1, value_bias: bool = True) -> HeadsTraced:
    """The share of the targets' ALTI trace that passes through each head; see this module.

    Args:
        ask: what is traced.
        sources: the tokens that count, None for all.
        norm: of contributions and of the split.
        value_bias: see :func:`interp.tracing.values.contribution_trace.alti_trace`.

    Raises:
        BadInput: cross-attention alone, or options outside their range.
        Unsupported: a model whose attention does not add up to a sum over tokens.
    """
    made = held_steps(ask, kind="alti", norm=norm, value_bias=value_bias)
    return _heads(ask, sources, made, norm=check_kind("alti", norm), value_bias=value_bias, within="output")


def norm_heads(
    ask: TraceAsk, sources: Sources | None, within: str = "output", norm: int = 2, value_bias: bool = True
) -> HeadsTraced:
    """The share of the targets' trace by norms that passes through each head; see this module.

    Args:
        ask, sources, norm, value_bias: as for :func:`alti_heads`.
        within: see :func:`interp.tracing.values.contribution_trace.norm_trace`.

    Raises:
        BadInput: cross-attention alone, or options outside their range.
        Unsupported: a model whose attention does not add up to a sum over tokens.
    """
    made = held_steps(ask, kind="norm", norm=norm, within=within, value_bias=value_bias)
    return _heads(ask, sources, made, norm=check_kind("norm", norm), value_bias=value_bias, within=within)


def _heads(
    ask: TraceAsk, sources: Sources | None, made: HeldSteps, *, norm: int, value_bias: bool, within: str
) -> HeadsTraced:
    tower, like = made.tower, made.like
    parts = made.source_stacks or ((made.sums.held.stacks[0], tower.n_tokens),)
    batch = len(ask.batch)
    if sources is None:
        member = torch.ones(batch, tower.n_encoder + tower.n_tokens)
    else:
        member = sources.among(parts).float()
    below = _below(tower.steps, tower.encoder, member.to(like), tower.n_encoder, everything=sources is None)
    own = one_hot(ask, tower, like).mean(1)
    above = like.new_zeros(batch, tower.n_encoder)
    values: dict[str, dict[int, Tensor]] = {}
    for step in (*reversed(tower.steps), *reversed(tower.encoder)):
        encoder = step in tower.encoder
        layer = made.sums.layer(step.layer, step.stack, value_bias=value_bias)
        split = _Split(layer, norm, within)
        keys = like.new_zeros(batch, step.n_keys)
        stays = torch.zeros_like(above if encoder else own)
        found = like.new_zeros(batch, layer.layer.n_heads)
        mine = above if encoder else own
        columns = (mine != 0).any(0).nonzero()[:, 0]
        for part in step.read(columns.expand(batch, -1)) if len(columns) else ():
            weights = mine.gather(1, part.rows)
            keys[:, : part.keys.shape[-1]] += (weights.unsqueeze(1) @ part.keys.to(like))[:, 0]
            stays.scatter_add_(1, part.rows, weights * part.own.to(like))
            found += split.of(part, weights, below[step.stack, step.layer])
        values.setdefault(step.stack, {})[step.layer] = found
        if step.cross:
            above, own = above + keys, stays
        elif encoder:
            above = keys + stays
        else:
            own = keys + stays
    return HeadsTraced({name: dict(sorted(of.items())) for name, of in values.items()}, made.said())


def _below(
    steps: Sequence[ValueStep], encoder: Sequence[ValueStep], member: Tensor, n_encoder: int, *, everything: bool
) -> dict[tuple[str, int], Float[Tensor, "batch key"]]:
    """(stack, block index) -> the sources' share in the states that the sub-layer reads."""
    above, own = member[:, :n_encoder], member[:, n_encoder:]
    if everything:
        return {
            (step.stack, step.layer): above if step.cross or step in encoder else own for step in (*steps, *encoder)
        }
    found = {}
    for step in encoder:
        found[step.stack, step.layer] = above
        above = _led_up(step, above, above)
    for step in steps:
        found[step.stack, step.layer] = above if step.cross else own
        own = _led_up(step, own, above if step.cross else own)
    return found


def _led_up(step: ValueStep, own: Tensor, keys: Tensor) -> Tensor:
    made = torch.zeros_like(own)
    columns = torch.arange(own.shape[1], device=own.device).expand(len(own), -1)
    for part in step.read(columns):
        shares = part.keys.to(keys)
        through = (shares @ keys[:, : shares.shape[-1]].unsqueeze(-1))[..., 0]
        made.scatter_(1, part.rows, through + part.own.to(own) * own.gather(1, part.rows))
    return made


class _Split:
    """One layer's split of contributions over its heads.

    Args:
        layer: the sub-layer.
        norm: 1 or 2.
        within: ``attention`` splits over the heads alone.
    """

    def __init__(self, layer: LayerSum, norm: int, within: str) -> None:
        self.layer = layer
        step = max(1, (1 << 24) // max(1, layer.shape[0] * layer.layer.n_heads * layer.output.shape[-1]))
        parts = [
            torch.linalg.vector_norm(layer.values_through(start, min(start + step, layer.shape[3])), norm, dim=-1)
            for start in range(0, layer.shape[3], step)
        ]
        self.lengths = torch.cat(parts, dim=1).transpose(1, 2).float()  # [batch, head, key]
        self.own = None
        if within == "output" and not layer.stack.cross:
            self.own = torch.linalg.vector_norm(layer.own, norm, dim=-1).float()  # [batch, query]

    def of(
        self, part: StepRows, weights: Float[Tensor, "batch row"], below: Float[Tensor, "batch key"]
    ) -> Float[Tensor, "batch head"]:
        """What of the weighted rows passes through each head, to keys weighted by ``below``."""
        held, stack = self.layer.sums.held, self.layer.stack.name
        made = torch.zeros(len(weights), self.layer.layer.n_heads, dtype=weights.dtype, device=weights.device)
        done = 0
        for block in held.blocks(self.layer.index, rows=part.rows, stack=stack):
            rows, width = block.rows, block.n_keys
            scale = self.layer.scale[..., 0].abs().gather(1, rows).to(weights)
            sizes = block.whole * self.lengths[:, :, None, :width] * scale[:, None, :, None]
            total = sizes.sum(1)
            if self.own is not None:
                total = total.scatter_add(-1, rows.unsqueeze(-1), self.own.gather(1, rows).unsqueeze(-1))
            count = rows.shape[1]
            shares = part.keys[:, done : done + count, :width].to(weights)
            per_key = weights[:, done : done + count, None] * shares * below[:, None, :width]
            per_key = per_key / torch.where(total > 0, total, torch.ones_like(total))
            made += torch.einsum("brk,bhrk->bh", per_key, sizes.to(per_key))
            done += count
        return made
