"""Maps between the patches of an image: CLS and registers dropped from both axes, rows renormalised."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.grids.grid import Given, PatchGrid, patch_grid
from interp.scores.reducer import Reducer


class PatchRows(NamedTuple):
    """A few rows of the maps between patches.

    Attributes:
        maps: ``[batch, head, row, cell]`` float32, cells row by row; a row without mass on patches is 0.
        cells: ``[row]`` the patch that each row belongs to.
        mass: ``[batch, head, row]`` what lay on patches before rows were renormalised.
        outside: ``[batch, head, row]`` what lay on the positions that are no patch.
    """

    maps: Float[Tensor, "batch head row cell"]
    cells: Int[Tensor, " row"]
    mass: Float[Tensor, "batch head row"]
    outside: Float[Tensor, "batch head row"]


def patch_maps(pattern: Float[Tensor, "*batch query key"], grid: PatchGrid) -> Float[Tensor, "*batch cell cell"]:
    """``[..., cell, cell]`` whole maps without the positions that are no patch, rows summing to 1.

    A row whose whole mass lies on those positions is 0 (Teaching Matters, 2023).

    Example:
        >>> from interp.scores.grids.grid import given_grid
        >>> patch_maps(torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), given_grid((1, 2, 1)))
        tensor([[1., 0.],
                [0., 0.]])
    """
    among = _columns(pattern.float(), grid, -2)
    among = _columns(among, grid, -1)
    return _renormalised(among, among.sum(-1))


def patch_rows(block: Block, grid: PatchGrid, *, renormalise: bool = True) -> PatchRows:
    """The rows of ``block`` that are patches.

    Args:
        block: rows of a vision stack.
        grid: its patches.
        renormalise: let rows sum to 1 over the patches; else they keep what they have.

    Raises:
        BadInput: the maps have another number of positions than the grid.
    """
    if block.n_keys != grid.positions:
        raise BadInput(
            f"The maps of stack {block.stack.name!r} have {block.n_keys} positions, and {grid!r} has {grid.positions}; "
            "give grid=(rows, columns, skip)."
        )
    rows = block.rows[0]
    assert bool((block.rows == rows).all()), "images have no padding, so every image has the same rows"
    cells = grid.cells.to(rows.device)[rows]
    chosen = (cells >= 0).nonzero().flatten()
    maps = block.pattern if len(chosen) == len(rows) else block.pattern.index_select(2, chosen)
    outside = maps[..., list(grid.skipped)].sum(-1)
    maps = _columns(maps, grid, -1)
    mass = maps.sum(-1)
    return PatchRows(_renormalised(maps, mass) if renormalise else maps, cells[chosen], mass, outside)


def _columns(maps: Tensor, grid: PatchGrid, axis: int) -> Tensor:
    """The patches of one axis in the order of the cells; a view where they lie in that order."""
    first, n = int(grid.order[0]), grid.size
    if grid.order.equal(torch.arange(first, first + n)):
        return maps.narrow(axis, first, n)
    return maps.index_select(axis, grid.order.to(maps.device))


def _renormalised(maps: Tensor, mass: Tensor) -> Tensor:
    return maps / torch.where(mass > 0, mass, torch.ones_like(mass)).unsqueeze(-1)


class PatchReducer(Reducer):
    """A score of maps between patches.

    Args:
        ask: what is scored.
        grid: the user's, None to find it.
    """

    def __init__(self, ask: Ask, grid: Given | None) -> None:
        super().__init__(ask)
        self.grid = patch_grid(ask.model, ask.batch, ask.stack.name, grid=grid, name=ask.name)

    def about(self) -> dict[str, Any]:
        """The grid, for the table's metadata."""
        return {"grid": [self.grid.rows, self.grid.columns], "skipped": list(self.grid.skipped)}


class PatchMean(PatchReducer):
    """The mean over patches (as queries) of what ``of_rows`` says of each.

    Of renormalised rows it is NaN where a head looks at no patch at all.

    Args:
        ask: what is scored.
        grid: the user's, None to find it.
        bins: labels, where there are several numbers per row.
        renormalise: as in :func:`patch_rows`.
    """

    def __init__(
        self, ask: Ask, grid: Given | None, bins: tuple[str, ...] | None = None, *, renormalise: bool = True
    ) -> None:
        super().__init__(ask, grid)
        self.bins, self.renormalise = bins, renormalise
        self.sums: dict[int, Tensor] = {}
        self.numbers: dict[int, Tensor] = {}
        self.masses: dict[int, Tensor] = {}

    def of_rows(self, rows: PatchRows) -> tuple[Tensor, Tensor]:
        """``[batch, head, row]`` (or with ``bin``) numbers, and where they count, of a shape that expands to theirs."""
        raise NotImplementedError

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's rows, in float64."""
        rows = patch_rows(block, self.grid, renormalise=self.renormalise)
        values, counted = self.of_rows(rows)
        counted = counted.expand_as(values)
        found = (
            torch.where(counted, values, torch.zeros_like(values)).sum(2, dtype=torch.float64),
            counted.sum(2),
            rows.mass.sum(-1, dtype=torch.float64),
        )
        for kept, added in zip((self.sums, self.numbers, self.masses), found, strict=True):
            kept[block.layer] = kept[block.layer] + added if block.layer in kept else added

    def means(self, layer: int) -> Tensor:
        """``[batch, head]`` (or with ``bin``) the means of a layer."""
        mean = self.sums[layer] / self.numbers[layer]
        dead = (self.masses[layer] == 0) & self.renormalise
        return mean.masked_fill(dead if mean.ndim == dead.ndim else dead.unsqueeze(-1), torch.nan)

    def measured(self) -> Measured:
        """The means of every layer."""
        return Measured({layer: self.means(layer) for layer in self.sums}, bins=self.bins, metadata=self.about())
