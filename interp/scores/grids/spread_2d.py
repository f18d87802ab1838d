"""How maps between patches vary: over the positions of the query, over the heads of a layer; and the use of CLS."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import Unsupported
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.grids.grid import Given
from interp.scores.grids.patches import PatchReducer, patch_rows
from interp.scores.reducer import RowMean


def position_spread(maps: Float[Tensor, "*batch cell cell"], *, unbiased: bool = False) -> Float[Tensor, "*batch"]:
    """``mean_j std_i A[i, j]``: 0 where every query has the same row.

    Example:
        >>> position_spread(torch.eye(4)).item()  # sqrt(1/4 * 3/4) at every key
        0.433012...
    """
    return maps.double().std(-2, correction=int(unbiased)).mean(-1)


def head_spread(maps: Float[Tensor, "*batch head cell cell"], *, unbiased: bool = False) -> Float[Tensor, "*batch"]:
    """``mean_{i, j} std_h A[h, i, j]``: 0 where every head has the same map."""
    return maps.double().std(-3, correction=int(unbiased)).mean((-2, -1))


class PositionStd(PatchReducer):
    """:func:`position_spread` from sums and sums of squares per key."""

    def __init__(self, ask: Ask, grid: Given | None, *, unbiased: bool) -> None:
        super().__init__(ask, grid)
        self.unbiased = unbiased
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's rows, in float64."""
        maps = patch_rows(block, self.grid).maps.double()
        first, second = maps.sum(2), maps.square().sum(2)
        if block.layer in self.sums:
            first, second = first + self.sums[block.layer][0], second + self.sums[block.layer][1]
        self.sums[block.layer] = (first, second)

    def measured(self) -> Measured:
        """The mean over keys of the standard deviation; NaN where a head looks at no patch."""
        n = self.grid.size
        made = {}
        for layer, (first, second) in self.sums.items():
            squares = (second - first.square() / n).clamp(min=0)
            spread = (squares / (n - self.unbiased)).sqrt().mean(-1)
            made[layer] = spread.masked_fill(first.sum(-1) == 0, torch.nan)
        return Measured(made, metadata=self.about())


class HeadStd(PatchReducer):
    """:func:`head_spread`, row by row."""

    def __init__(self, ask: Ask, grid: Given | None, *, unbiased: bool) -> None:
        super().__init__(ask, grid)
        self.unbiased = unbiased
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}  # spread [batch], mass on patches [batch, head]

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's rows, in float64."""
        rows = patch_rows(block, self.grid)
        maps, n_heads = rows.maps, rows.maps.shape[1]
        squares = (maps - maps.mean(1, keepdim=True)).square().sum(1)
        spread = (squares / max(n_heads - self.unbiased, 1)).sqrt()
        added = (spread.sum((-2, -1), dtype=torch.float64), rows.mass.sum(-1, dtype=torch.float64))
        before = self.sums.get(block.layer, (torch.zeros_like(added[0]), torch.zeros_like(added[1])))
        self.sums[block.layer] = (before[0] + added[0], before[1] + added[1])

    def measured(self) -> Measured:
        """One number per layer, shown by each of its heads; NaN with one head, or one that looks at no patch at all."""
        made = {}
        for layer, (spread, mass) in self.sums.items():
            n_heads = mass.shape[1]
            found = (spread / self.grid.size**2).unsqueeze(-1).repeat(1, n_heads)
            undefined = (mass == 0).any(-1, keepdim=True) | (n_heads == 1)
            made[layer] = found.masked_fill(undefined, torch.nan)
        return Measured(made, metadata=self.about())


class ClassUse(RowMean):
    """The mean over patches (as queries) of the mass on one position."""

    def __init__(self, ask: Ask, grid: Given | None, *, released_code: bool) -> None:
        super().__init__(ask)
        reducer = PatchReducer(ask, grid)
        self.grid, self.about = reducer.grid, reducer.about
        if not self.grid.skipped:
            raise Unsupported(
                f"{ask.name}: stack {ask.stack.name!r} has no CLS token, all of its {self.grid.positions} positions "
                "are patches; say which position it is with grid=(rows, columns, [position])."
            )
        self.column = self.grid.skipped[0] + released_code

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor:
        """1 at the position."""
        return (
            torch.nn.functional.one_hot(torch.tensor(self.column), n_keys)
            .float()
            .view(1, n_keys, 1)
            .to(self.ask.batch.mask.device)
        )

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The mass of each row."""
        assert products is not None
        return products[..., 0]

    def counted(self, block: Block) -> Tensor:
        """The patches."""
        patches = self.grid.cells.to(block.rows.device)[block.rows] >= 0
        return patches if block.kept is None else patches[:, None] & (block.kept_mass > 0)


def position_std(ask: Ask, grid: Given | None = None, unbiased: bool = False) -> PositionStd:
    """How much a head's row depends on the patch that asks: ``mean_j std_i A[i, j]``, 0 for a head that does not care.

    Patches alone, rows renormalised over them (Teaching Matters, 2023).

    Args:
        ask: what is scored.
        grid: ``(rows, columns, skip)`` where it cannot be found; see :func:`interp.scores.grids.grid.patch_grid`.
        unbiased: divide by the number of patches less 1 instead of the number; the paper does not say which.

    Raises:
        BadInput: no images, or images of different sizes.
        Unsupported: a stack that sees none, or whose grid is not known.
    """
    return PositionStd(ask, grid, unbiased=bool(unbiased))


def head_std(ask: Ask, grid: Given | None = None, unbiased: bool = False) -> HeadStd:
    """How much the heads of a layer differ: ``mean_{i, j} std_h A[h, i, j]``, one number per layer.

    Args:
        ask: what is scored.
        grid: see :func:`position_std`.
        unbiased: divide by the number of heads less 1 instead of the number; the paper does not say which.

    Raises:
        BadInput, Unsupported: see :func:`position_std`.
    """
    return HeadStd(ask, grid, unbiased=bool(unbiased))


def class_use(ask: Ask, grid: Given | None = None, released_code: bool = False) -> ClassUse:
    """How much the patches look at CLS: ``mean_i A[i, CLS]`` over patches as queries (Teaching Matters, 2023).

    Args:
        ask: what is scored.
        grid: see :func:`position_std`.
        released_code: reproduce the paper's released code, which takes the position after CLS (the first patch).

    Raises:
        BadInput: see :func:`position_std`.
        Unsupported: as there, or a tower without a CLS token.
    """
    return ClassUse(ask, grid, released_code=bool(released_code))
