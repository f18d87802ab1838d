"""Attention masses in many variants at once: the keys that a type means, and the keys that its null means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.reducer import RowMean

Combine = Callable[[Tensor], Tensor]  # [batch, head, row, column] -> [batch, head, row, bin]


class ColumnMasses(RowMean):
    """The mean over some rows of numbers made of the mass on groups of columns; memory O(T) per group.

    Args:
        ask: what is read.
        columns: ``[batch, key, column]`` the groups (one for every prompt, with a batch of 1).
        counted: ``[batch, pos]`` or ``[batch, pos, bin]`` rows that count, likewise.
        bins: how many numbers ``combine`` makes.
        combine: ``[batch, head, row, column] -> [batch, head, row, bin]``; by default the masses themselves.
    """

    def __init__(
        self,
        ask: Ask,
        columns: Float[Tensor, "batch key column"],
        counted: Bool[Tensor, "batch pos *bin"],
        *,
        bins: int | None = None,
        combine: Combine | None = None,
    ) -> None:
        super().__init__(ask, bins=range(columns.shape[-1] if bins is None else bins))
        device = ask.batch.mask.device
        self.columns, self.combine = columns.to(device), combine
        rows = counted.unsqueeze(-1) if counted.ndim == 2 else counted  # noqa: PLR2004 - no bins
        self.rows_counted = rows.to(device).expand(len(ask.batch), -1, -1)
        if len(rows := _same_number(self.rows_counted.any(-1))):
            self.rows = rows

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor:
        """The groups, as columns that every row is multiplied by."""
        return self.columns[:, :n_keys]

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row bin"]:
        """The masses, combined."""
        assert products is not None
        return products if self.combine is None else self.combine(products)

    def counted(self, block: Block) -> Bool[Tensor, "batch 1 row bin"]:
        """Rows that count, for each bin."""
        bins = self.rows_counted.shape[-1]
        chosen = self.rows_counted.gather(1, block.rows.unsqueeze(-1).expand(-1, -1, bins))
        return (chosen & block.real.unsqueeze(-1))[:, None]


class PairMasses(RowMean):
    """The mean over rows of the mass on keys that depend on the row; for short prompts, since it holds every pair.

    Args:
        ask: what is read.
        wanted: ``[pos, key, bin]`` True at the keys in question, in every prompt; rows without any do not count.
    """

    def __init__(self, ask: Ask, wanted: Bool[Tensor, "pos key bin"]) -> None:
        super().__init__(ask, bins=range(wanted.shape[-1]))
        self.wanted = wanted.to(ask.batch.mask.device)

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row bin"]:
        """The mass on the wanted keys."""
        return torch.einsum("bhrk,brkn->bhrn", block.pattern, self._of(block).to(block.pattern.dtype))

    def counted(self, block: Block) -> Bool[Tensor, "batch 1 row bin"]:
        """Rows that have a wanted key."""
        return (self._of(block).any(2) & block.real.unsqueeze(-1))[:, None]

    def _of(self, block: Block) -> Bool[Tensor, "batch row key bin"]:
        return self.wanted[block.rows][:, :, : block.n_keys]


def _same_number(rows: Bool[Tensor, "batch pos"]) -> Tensor:
    """``[batch, k]`` the columns of the rows, where every prompt has the same number of them; else empty."""
    numbers = rows.sum(-1)
    if not len(numbers) or int(numbers.min()) != int(numbers.max()) or not int(numbers.max()):
        return rows.new_zeros(0, dtype=torch.long)
    return rows.nonzero()[:, 1].view(len(rows), -1)
