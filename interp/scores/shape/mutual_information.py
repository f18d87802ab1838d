"""Mutual information of queries and keys: how much what a head looks at depends on who looks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer
from interp.scores.shape.distribution import distributions, lengths, mass_of, summed
from interp.scores.shape.entropy import row_entropy


def normalised_information(pattern: Float[Tensor, "*maps query key"]) -> Float[Tensor, "*maps"]:
    """``[...]`` normalised mutual information of query and key of each map, in [0, 1].

    With ``p(q) = 1/N`` over the N rows that have mass and ``p(q, k) = p(q) A[q, k]``:
    ``(H(k) - mean_q H(A_q)) / sqrt(H(q) H(k))`` with ``H(q) = log N`` (Park et al., 2023). 1 for the identity and any
    permutation, 0 for uniform rows, and 0 by convention where all mass lies in one column; NaN for fewer than two rows.

    Example:
        >>> normalised_information(torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])).round(decimals=4)
        tensor([1., 0.])
    """
    entropy = row_entropy(pattern)
    counted = pattern.sum(-1) > 0
    rescaled = pattern / pattern.sum(-1, keepdim=True).clamp(min=torch.finfo(pattern.dtype).tiny)
    entropies = torch.where(counted, entropy, torch.zeros_like(entropy)).sum(-1)
    return _information(rescaled.sum(-2), entropies, counted.sum(-1))


def _information(columns: Tensor, entropies: Tensor, rows: Tensor) -> Tensor:
    """From the sums over rows of the rows and of their entropies, and the number of rows."""
    of_key, of_query = row_entropy(columns), rows.to(columns.dtype).log()
    information = (of_key - entropies / rows).clamp(min=0)
    bound = (of_key * of_query).sqrt()
    some = of_key > 1e-6  # noqa: PLR2004 - one column, but for rounding
    found = torch.where(some, information / bound.where(some, torch.ones_like(bound)), torch.zeros_like(bound)).clamp(
        max=1
    )
    return torch.where(rows > 1, found, torch.full_like(found, torch.nan))


class Information(Reducer):
    """Sums over rows of their keys and entropies: of the maps and, if asked for, of uniform rows on the same keys."""

    def __init__(self, ask: Ask, *, above_uniform: bool) -> None:
        super().__init__(ask)
        self.above_uniform = above_uniform
        self.sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.found: dict[int, Tensor] = {}

    def start(self, layer: int, seen: object) -> None:
        """A layer begins."""
        self.sums = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's rows."""
        counted = block.real[:, None] & (mass_of(block) > 0)
        pattern = distributions(block)
        self._add("map", pattern, row_entropy(pattern), counted)
        if self.above_uniform:
            n_open = block.n_open.clamp(min=1).to(pattern.dtype)
            uniform = block.open_keys / n_open.unsqueeze(-1)
            self._add("uniform", uniform, n_open.log(), counted & (block.n_open > 0))

    def _add(self, name: str, rows: Tensor, entropy: Tensor, counted: Bool[Tensor, "batch head row"]) -> None:
        heads = max(rows.shape[1], counted.shape[1])
        weight = counted.to(rows.dtype).expand(-1, heads, -1)
        columns = torch.matmul(weight.unsqueeze(2), rows.expand(-1, heads, -1, -1)).squeeze(2).double()
        entropies = torch.where(counted, entropy, torch.zeros_like(entropy)).sum(-1, dtype=torch.float64)
        number = counted.sum(-1)
        if name in self.sums:
            before = self.sums[name]
            columns, entropies, number = summed(before[0], columns), before[1] + entropies, before[2] + number
        self.sums[name] = columns, entropies, number

    def finish(self, layer: int, seen: object) -> None:
        """The layer's number."""
        found = _information(*self.sums["map"])
        if self.above_uniform:
            found = found - _information(*self.sums["uniform"])
        self.found[layer] = found
        self.sums = {}

    def measured(self) -> Measured:
        """By layer."""
        return Measured(self.found, metadata={"tokens": lengths(self.ask)})


def nmi(ask: Ask) -> Information:
    """Normalised mutual information of query and key of each head; see :func:`normalised_information`.

    Low: every query looks at the same keys (global, or all on a sink); high: each looks at its own (local). The
    triangle of a causal map makes some by itself, which :func:`nmi_above_uniform` takes off.
    """
    return Information(ask, above_uniform=False)


def nmi_above_uniform(ask: Ask) -> Information:
    """:func:`nmi` minus that of uniform rows over the same visible keys: 0 means no dependence beyond the mask."""
    return Information(ask, above_uniform=True)
