"""``Block``: a few query rows of one layer's attention maps, and ``Watcher``: what wants to see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import Site
from interp.model.stacks import Stack


@dataclass(frozen=True, eq=False)
class Block:
    """A few query rows of one layer's maps. Keys are columns ``0 .. key - 1``.

    Keys that no row of the block sees may be missing at the end; a row's own column is always there (in
    self-attention).

    Attributes:
        stack: whose maps.
        layer: block index.
        rows: ``[batch, row]`` columns of the query rows.
        real: ``[batch, row]`` True at rows that are real tokens.
        whole: ``[batch, head, row, key]`` float32 the pattern as the model has it; 0 at blocked keys and at padding.
        visible: ``[batch or 1, head or 1, row, key]`` True where a query sees a key.
        kept: ``[batch, column]`` over all key columns, False at those that ``exclude_sinks`` leaves out; None for all.
        logits: ``[batch, head, row, key]`` float32 scores, blocked = -inf; None unless a watcher asked.
        seen: Q, K, V, RESID_PRE of this layer, in the axes of the site, where a watcher asked for them.
    """

    stack: Stack
    layer: int
    rows: Int[Tensor, "batch row"]
    real: Bool[Tensor, "batch row"]
    whole: Float[Tensor, "batch head row key"]
    visible: Bool[Tensor, "#batch #head row key"]
    kept: Bool[Tensor, "batch column"] | None
    logits: Float[Tensor, "batch head row key"] | None
    seen: Mapping[Site, Tensor]

    @property
    def n_keys(self) -> int:
        """Key columns that this block holds."""
        return self.whole.shape[-1]

    @cached_property
    def all_real(self) -> bool:
        """Whether no row is padding."""
        return bool(self.real.all())

    @cached_property
    def pattern(self) -> Float[Tensor, "batch head row key"]:
        """The maps as they are; with left-out columns, those are 0 and each row is rescaled to sum to 1.

        A row whose whole mass lay on left-out columns is 0.
        """
        if self.kept is None:
            return self.whole
        left = self.whole * self.kept[:, None, None, : self.n_keys]
        return left / self.kept_mass.clamp(min=torch.finfo(left.dtype).tiny).unsqueeze(-1)

    @cached_property
    def mass(self) -> Float[Tensor, "batch head row"]:
        """What each row sums to: 1, less where the model has sink logits, 0 at padding."""
        return self.whole.sum(-1)

    @cached_property
    def kept_mass(self) -> Float[Tensor, "batch head row"]:
        """The mass on the columns that are not left out, before rows are rescaled."""
        if self.kept is None:
            return self.mass
        return torch.einsum("bhrk,bk->bhr", self.whole, self.kept[:, : self.n_keys].to(self.whole.dtype))

    @cached_property
    def open_keys(self) -> Bool[Tensor, "batch _ row key"]:
        """Keys that a row sees and that are not left out; the head axis is 1 where all heads see the same."""
        seen = self.visible.expand(self.whole.shape[0], -1, -1, -1)
        return seen if self.kept is None else seen & self.kept[:, None, None, : self.n_keys]

    @cached_property
    def n_open(self) -> Int[Tensor, "batch _ row"]:
        """How many keys a row sees, left-out columns not counted; the head axis as in ``open_keys``."""
        return self.open_keys.sum(-1)


def block_of(
    stack: Stack,
    layer: int,
    rows: Int[Tensor, "batch row"],
    maps: tuple[Tensor, Tensor, Tensor],
    *,
    mask: Bool[Tensor, "batch column"] | None,
    kept: Bool[Tensor, "batch column"] | None,
    logits: bool,
    seen: Mapping[Site, Tensor],
) -> Block:
    """The block of some rows, in float32, with padded rows blank.

    Args:
        stack: whose maps.
        layer: block index.
        rows: columns of the query rows.
        maps: scores, pattern ``[batch, head, row, key]`` and what is visible, of those rows.
        mask: real tokens among the rows' columns, None for all.
        kept: key columns that are not left out, None for all.
        logits: whether the block carries the scores.
        seen: activations that it carries.
    """
    scores, pattern, visible = maps
    rows = rows.to(pattern.device)
    if mask is None:
        real = torch.ones_like(rows, dtype=torch.bool)
    else:
        real = mask.to(pattern.device).gather(1, rows)
        if not bool(real.all()):
            pattern = torch.where(real[:, None, :, None], pattern, torch.zeros_like(pattern))
            visible = visible & real[:, None, :, None]
    return Block(
        stack=stack,
        layer=layer,
        rows=rows,
        real=real,
        whole=pattern.float(),
        visible=visible,
        kept=None if kept is None else kept.to(pattern.device),
        logits=scores.float() if logits else None,
        seen=seen,
    )


class Watcher(Protocol):
    """What wants to see blocks of maps, and activations, while a forward runs.

    ``start`` is called once per layer when q, k, v (and what comes before) are there, then ``block`` for each block of
    rows, then ``finish`` when everything asked for of that layer has been seen. Nothing that is passed may be changed.
    """

    @property
    def sites(self) -> frozenset[Site]:
        """Activations that it wants of each layer."""
        ...

    @property
    def maps(self) -> bool:
        """Whether it wants blocks at all."""
        ...

    @property
    def logits(self) -> bool:
        """Whether blocks must carry the scores."""
        ...

    @property
    def rows(self) -> Int[Tensor, "batch k"] | None:
        """The only query rows that it wants, as columns; all for None."""
        ...

    @property
    def layered(self) -> bool:
        """Whether its features differ from layer to layer; False lets a stream keep them."""
        ...

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "#batch key feature"] | None:
        """Columns that every row of the block of ``rows [batch, row]`` is multiplied by, or None."""
        ...

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer begins."""
        ...

    def block(self, block: Block, products: Float[Tensor, "batch head row feature"] | None) -> None:
        """A block of rows; ``products`` is ``block.pattern @ features``."""
        ...

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Everything asked for of the layer has been seen."""
        ...
