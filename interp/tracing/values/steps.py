"""``ValueStep``: one sub-layer's contributions as a step of a trace, and the way of vectors down through the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.model.attention_sums import LayerSum
from interp.tracing.values.contributions import measured, shares


@dataclass(frozen=True, eq=False)
class StepRows:
    """Some rows of a step.

    Attributes:
        rows: ``[batch, row]`` columns of the rows.
        keys: ``[batch, row, key]`` shares of the keys; of the tokens themselves too, in self-attention.
        own: ``[batch, row]`` share that stays on the token itself, where it is no key.
    """

    rows: Int[Tensor, "batch row"]
    keys: Float[Tensor, "batch row key"]
    own: Float[Tensor, "batch row"]


@dataclass(frozen=True, eq=False)
class ValueStep:
    """One sub-layer.

    Attributes:
        layer: block index.
        stack: whose.
        cross: the keys are other tokens than the queries.
        read: ``read(columns [batch, row])`` gives the step's rows, block by block.
        n_keys: keys.
    """

    layer: int
    stack: str
    cross: bool
    read: Callable[[Int[Tensor, "batch row"]], Iterator[StepRows]]
    n_keys: int

    def down(
        self, vectors: Float[Tensor, "batch vector query"]
    ) -> tuple[Float[Tensor, "batch vector key"], Float[Tensor, "batch vector query"]]:
        """What weights of the tokens at the top put on the keys, and what stays on the tokens themselves."""
        batch, count, _ = vectors.shape
        keys, own = vectors.new_zeros(batch, count, self.n_keys), torch.zeros_like(vectors)
        columns = (vectors != 0).flatten(0, 1).any(0).nonzero()[:, 0]
        for part in self.read(columns.expand(batch, -1)) if len(columns) and count else ():
            index = part.rows.unsqueeze(1).expand(-1, count, -1)
            mine = vectors.gather(-1, index)
            keys[..., : part.keys.shape[-1]] += mine @ part.keys.to(mine.dtype)
            own.scatter_add_(-1, index, mine * part.own.unsqueeze(1).to(mine.dtype))
        return keys, own


@dataclass(frozen=True, eq=False)
class ValueTower:
    """The steps of a stack from the first on, and of the encoder that it reads.

    Attributes:
        steps: self-attention and, after it, cross-attention of each block.
        encoder: the encoder's steps, where the stack has cross-attention.
        n_tokens: of the stack.
    """

    steps: Sequence[ValueStep]
    n_tokens: int
    encoder: Sequence[ValueStep] = field(default_factory=tuple)

    @property
    def n_encoder(self) -> int:
        """Tokens of the encoder, 0 where the stack reads none."""
        return next((step.n_keys for step in self.steps if step.cross), 0)

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices."""
        return tuple(dict.fromkeys(step.layer for step in self.steps))


Injected = Mapping[tuple[str, int], Float[Tensor, "batch vector key"]]


def descend(
    tower: ValueTower,
    tops: Sequence[int],
    start: Float[Tensor, "batch target query"] | None,
    *,
    injected: Injected | None = None,
    like: Tensor,
) -> Float[Tensor, "top batch target source"]:
    """Vectors taken from the top of each of some blocks down to the inputs, the encoder's columns first.

    Args:
        tower: the steps.
        tops: block indices, ascending.
        start: weights of the tokens at each top; None for none.
        injected: (stack, block index) -> weights that join below that sub-layer, on its keys, in the vectors whose top
            is at or above it.
        like: a tensor of the dtype and device to calculate in.
    """
    first = start if start is not None else next(iter((injected or {}).values()))
    batch, count = first.shape[:2]
    going = like.new_zeros(batch, 0, tower.n_tokens)
    above = like.new_zeros(batch, 0, tower.n_encoder)
    fresh = going.new_zeros(batch, count, tower.n_tokens) if start is None else start.to(like)
    open_tops = sorted(tops, reverse=True)
    waiting = list(open_tops)

    def joined(vectors: Tensor, step: ValueStep) -> Tensor:
        more = (injected or {}).get((step.stack, step.layer))
        return vectors if more is None else vectors + more.to(like).repeat(1, vectors.shape[1] // count, 1)

    for step in reversed(tower.steps):
        while waiting and waiting[0] >= step.layer:
            going = torch.cat([going, fresh], dim=1)
            above = torch.cat([above, above.new_zeros(batch, count, tower.n_encoder)], dim=1)
            waiting.pop(0)
        keys, own = step.down(going)
        if step.cross:
            above, going = joined(above + keys, step), own
        else:
            going = joined(keys + own, step)
    for step in reversed(tower.encoder):
        keys, own = step.down(above)
        above = keys + own
    found = torch.cat([above, going], dim=-1).view(batch, len(open_tops), count, -1).permute(1, 0, 2, 3)
    return found.flip(0)


def contribution_rows(
    layer: LayerSum, *, kind: str, norm: int, within: str, kept: Bool[Tensor, "batch key"] | None
) -> Callable[[Int[Tensor, "batch row"]], Iterator[StepRows]]:
    """What reads a sub-layer's contributions, block by block of rows.

    Args:
        layer: the sub-layer's sum.
        kind: ``alti`` or ``norm``.
        norm: 1 or 2.
        within: ``attention`` leaves the token's own state out of what is measured; ``output`` counts it.
        kept: False at key columns that are left out (a token's own column is kept).
    """

    def read(columns: Int[Tensor, "batch row"]) -> Iterator[StepRows]:
        parts: list[Tensor] = []
        current: Tensor | None = None
        own: Tensor | None = None
        for block in layer.blocks(columns):
            if block.keys[0] == 0:
                if current is not None and own is not None:
                    yield _finished(current, parts, own, layer, kept)
                parts = []
                current = block.rows
                own = _own(layer, block.own, block.output, block.real, kind=kind, norm=norm, within=within)
            output, vectors = block.output, block.vectors
            if within == "attention":
                output = output - block.own
                if not layer.stack.cross:
                    keys = torch.arange(*block.keys, device=block.rows.device)
                    itself = block.rows.unsqueeze(1) == keys.view(1, -1, 1)
                    vectors = vectors - itself.unsqueeze(-1) * block.own.unsqueeze(1) * block.real[:, None, :, None]
            found = measured(vectors, output.unsqueeze(1), kind=kind, norm=norm).transpose(1, 2)
            seen = block.pattern[..., block.keys[0] : block.keys[1]].amax(1) > 0
            if not layer.stack.cross and within == "output":
                keys = torch.arange(*block.keys, device=block.rows.device)
                seen = seen | (block.rows.unsqueeze(-1) == keys)
            parts.append(found * (seen & block.real.unsqueeze(-1)))
        if current is not None and own is not None:
            yield _finished(current, parts, own, layer, kept)

    return read


def _own(
    layer: LayerSum, own: Tensor, output: Tensor, real: Tensor, *, kind: str, norm: int, within: str
) -> Float[Tensor, "batch row"]:
    """What the token's own state brings where it is no key."""
    if not layer.stack.cross or within == "attention":
        return torch.zeros_like(own[..., 0])
    return measured(own, output, kind=kind, norm=norm) * real


def _finished(
    rows: Tensor, parts: Sequence[Tensor], own: Tensor, layer: LayerSum, kept: Bool[Tensor, "batch key"] | None
) -> StepRows:
    keys = torch.cat(list(parts), dim=-1)
    if kept is not None and not layer.stack.cross:
        columns = torch.arange(keys.shape[-1], device=keys.device)
        keys = keys * (kept[:, None, : keys.shape[-1]].to(keys.device) | (rows.unsqueeze(-1) == columns))
    elif kept is not None:
        keys = keys * kept[:, None, : keys.shape[-1]].to(keys.device)
    both = shares(torch.cat([keys, own.unsqueeze(-1)], dim=-1))
    return StepRows(rows, both[..., :-1], both[..., -1])
