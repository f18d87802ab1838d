"""What a score does with blocks of attention maps: ``Reducer`` and the mean over rows that most scores are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.address import Site
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured


class Reducer:
    """A score that is gathered while a forward runs; see :class:`interp.model.row_blocks.Watcher` for the calls.

    Args:
        ask: what is scored.

    Attributes:
        sites: activations wanted of each layer (``start`` sees those up to Q, K, V, ``finish`` all of them).
        maps: whether blocks of rows are wanted.
        logits: whether blocks must carry the scores before the softmax.
        layered: whether ``features`` differ from layer to layer.
        rows: ``[batch, k]`` the only query rows wanted, None for all.
    """

    sites: frozenset[Site] = frozenset()
    maps: bool = True
    logits: bool = False
    layered: bool = False

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.rows: Tensor | None = None

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor | None:
        """``[batch or 1, key, feature]`` columns that every row of the block of ``rows`` is multiplied by, or None."""
        return None

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer begins: ``seen`` holds RESID_PRE, Q, K, V as far as asked."""

    def block(self, block: Block, products: Tensor | None) -> None:
        """A block of query rows, with ``block.pattern @ features``."""

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer is done: ``seen`` holds every site asked for."""

    def measured(self) -> Measured:
        """What was found, after the forward."""
        raise NotImplementedError


class RowMean(Reducer):
    """The mean over query rows of one number per row: ``per_row``, over the rows that ``counted`` names.

    Args:
        ask: what is scored.
        bins: labels, where there are several numbers per row.
    """

    def __init__(self, ask: Ask, bins: Sequence[object] | None = None) -> None:
        super().__init__(ask)
        self.bins = None if bins is None else tuple(str(label) for label in bins)
        self.sums: dict[int, Tensor] = {}
        self.numbers: dict[int, Tensor] = {}

    def per_row(self, block: Block, products: Tensor | None) -> Tensor:
        """``[batch, head, row]``, with a last axis ``bin`` where there are bins."""
        raise NotImplementedError

    def counted(self, block: Block) -> Tensor:
        """``[batch, row]`` or ``[batch, head, row]`` (or with ``bin``) True at the rows that count: the real ones."""
        return block.real

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's rows to the sums, in float64."""
        values = self.per_row(block, products)
        counted = self.counted(block)
        if counted is block.real and block.all_real:
            number = torch.tensor(values.shape[2], device=values.device)
            self._add(block.layer, values.sum(2, dtype=torch.float64), number)
            return
        if counted.ndim == 2:  # noqa: PLR2004 - the same for every head
            counted = counted[:, None]
        if self.bins is not None and counted.ndim == 3:  # noqa: PLR2004 - the same for every bin
            counted = counted.unsqueeze(-1)
        counted = counted.expand_as(values)
        added = torch.where(counted, values, torch.zeros_like(values)).sum(2, dtype=torch.float64)
        self._add(block.layer, added, counted.sum(2))

    def _add(self, layer: int, added: Tensor, number: Tensor) -> None:
        if layer in self.sums:
            added, number = self.sums[layer] + added, self.numbers[layer] + number
        self.sums[layer], self.numbers[layer] = added, number

    def measured(self) -> Measured:
        """Sum over number, NaN where no row counted."""
        made = {layer: self.sums[layer] / self.numbers[layer] for layer in self.sums}  # 0 / 0 is NaN
        return Measured(made, bins=self.bins, metadata=self.about())

    def about(self) -> dict[str, Any]:
        """What the table's metadata should say."""
        return {}
