"""Rows of a map as distributions over their keys, and the mean over rows, or over classes of rows, of a number each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.long_context.chosen_rows import columns_with_filler
from interp.scores.reducer import RowMean

Queries = Group | Mapping[str, Group]  # every row, the rows of one group, or name -> group for one number each


def mass_of(block: Block) -> Float[Tensor, "batch head row"]:
    """What each row of ``block.pattern`` has on keys: 1, less with sink logits, 0 where nothing is left."""
    return block.mass if block.kept is None else (block.kept_mass > 0).to(block.whole.dtype)


def distributions(block: Block) -> Float[Tensor, "batch head row key"]:
    """The rows rescaled to sum to 1 over the keys they see; rows without mass stay 0.

    They are so already but for rounding, save where a model's sink logits take a share that no key has.
    """
    if block.kept is not None:
        return block.pattern
    mass = block.mass
    if bool(((mass - 1).abs() < 1e-6).logical_or(mass == 0).all()):  # noqa: PLR2004 - rounding of float32
        return block.whole
    return block.whole / mass.clamp(min=torch.finfo(mass.dtype).tiny).unsqueeze(-1)


class DistributionMean(RowMean):
    """The mean over real rows that have mass of one number per row.

    Args:
        ask: what is scored.
        queries: the rows that count: None all, a group (a span's name, a slice ...), or name -> group for one number
            per class of rows.
        fewest: visible keys (left-out columns not counted) that a row must have to count.

    Raises:
        BadInput: a group that means no row of some prompt.
    """

    def __init__(self, ask: Ask, queries: Queries = None, *, fewest: int = 1) -> None:
        named = isinstance(queries, Mapping)
        if named and not queries:
            raise BadInput(f"{ask.name}: queries={{}} names no class of rows; give name -> group, or None for all.")
        super().__init__(ask, bins=tuple(queries) if named else None)
        self.fewest = fewest
        self.members: Bool[Tensor, "batch pos bin"] | None = None
        if named:
            found = [ask.columns(group, f"queries[{name!r}]") for name, group in queries.items()]
            self.members = torch.stack(found, dim=-1)
        elif queries is not None:
            self.members = ask.columns(queries, "queries").unsqueeze(-1)
        if self.members is not None:
            self.rows = columns_with_filler(self.members.any(-1))  # no other row is computed

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """One number per row."""
        raise NotImplementedError

    def per_row(self, block: Block, products: Tensor | None) -> Tensor:
        """The number of each row, repeated along the bins where there are classes."""
        found = self.of_rows(block)
        return found if self.bins is None else found.unsqueeze(-1).expand(*found.shape, len(self.bins))

    def counted(self, block: Block) -> Bool[Tensor, "batch head row ..."]:
        """Rows with mass, with keys enough, of the classes asked for."""
        counted = block.real[:, None] & (mass_of(block) > 0)
        if self.fewest > 1:
            counted = counted & (block.n_open >= self.fewest)
        if self.members is None:
            return counted
        index = block.rows.unsqueeze(-1).expand(-1, -1, self.members.shape[-1])
        member = self.members.to(block.rows.device).gather(1, index)[:, None]  # [batch, 1, row, class]
        return counted.unsqueeze(-1) & member if self.bins is not None else counted & member.squeeze(-1)

    def about(self) -> dict[str, Any]:
        """The length of the prompts: numbers are compared at equal lengths only."""
        return {"tokens": lengths(self.ask)}


def summed(first: Tensor | None, second: Tensor) -> Tensor:
    """The sum of two sums over rows, whose last axes are keys that may be cut at different columns."""
    if first is None:
        return second
    width = max(first.shape[-1], second.shape[-1])
    one, other = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (first, second))
    return one + other


def column_sums(rows: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch head key"]:
    """The sum over the rows of a block, as a product (sums along that axis are slow), in float64 from there on."""
    ones = rows.new_ones(1, rows.shape[2])
    return torch.matmul(ones, rows).squeeze(2).double()


def lengths(ask: Ask) -> list[int] | None:
    """Rows of each prompt, None where they are not known (images)."""
    return None if ask.mask is None else ask.mask.sum(-1).tolist()
