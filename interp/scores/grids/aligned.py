"""Maps laid over one another with their query in the middle, and how far the result is off centre."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.grids.grid import Given, PatchGrid
from interp.scores.grids.patches import PatchMean, PatchReducer, PatchRows, patch_rows


def aligned_sum(
    maps: Float[Tensor, "*batch row cell"], grid: PatchGrid, cells: Int[Tensor, " row"] | None = None
) -> Float[Tensor, "*batch down right"]:
    """``[..., 2 R - 1, 2 C - 1]`` the sum of the rows, each pasted so that its own patch is in the middle.

    Args:
        maps: rows of maps between patches.
        grid: the R x C patches.
        cells: which patch each row is; every one in order for None.

    Example:
        >>> from interp.scores.grids.grid import given_grid
        >>> aligned_sum(torch.eye(4), given_grid((2, 2, 0))).tolist()
        [[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
    """
    rows, columns = grid.rows, grid.columns
    canvas = maps.new_zeros((*maps.shape[:-2], 2 * rows - 1, 2 * columns - 1), dtype=torch.float64)
    images = maps.unflatten(-1, (rows, columns))
    for n, cell in enumerate(range(grid.size) if cells is None else cells.tolist()):
        top, left = rows - 1 - cell // columns, columns - 1 - cell % columns
        canvas[..., top : top + rows, left : left + columns] += images[..., n, :, :]
    return canvas


def canvas_offset(canvas: Float[Tensor, "*batch down right"]) -> Float[Tensor, "*batch 2"]:
    """``[..., 2]`` centre of mass (down, right) of an aligned map, whose canvas goes from -1 to 1 both ways.

    Example:
        >>> canvas_offset(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
        tensor([0., 1.])
    """
    mass = canvas.sum((-2, -1))
    down = (canvas.sum(-1) * torch.linspace(-1, 1, canvas.shape[-2]).to(canvas)).sum(-1) / mass
    right = (canvas.sum(-2) * torch.linspace(-1, 1, canvas.shape[-1]).to(canvas)).sum(-1) / mass
    return torch.stack([down, right], dim=-1)


def displacements(
    maps: Float[Tensor, "*batch row cell"], grid: PatchGrid, cells: Int[Tensor, " row"] | None = None
) -> Float[Tensor, "*batch row 2"]:
    """``[..., row, 2]`` where a row's centre of mass lies from its own patch, (down, right), the image measuring 1.

    Their mean is :func:`canvas_offset` of the aligned map, one patch to the side being ``1 / (C - 1)``.
    """
    places = grid.coordinates.to(maps.device)
    own = places if cells is None else places[cells]
    mass = maps.float().sum(-1, keepdim=True)
    return maps.float() @ places - mass * own


class AlignedShift(PatchMean):
    """The mean over rows of :func:`displacements`, or its length."""

    def __init__(self, ask: Ask, grid: Given | None, *, length: bool) -> None:
        super().__init__(ask, grid, None if length else ("down", "right"))

    def of_rows(self, rows: PatchRows) -> tuple[Tensor, Tensor]:
        """The displacements of the rows that look at patches."""
        return displacements(rows.maps, self.grid, rows.cells), (rows.mass > 0).unsqueeze(-1)

    def means(self, layer: int) -> Tensor:
        """The two means, or the length of the vector that they are."""
        both = super().means(layer)
        return both if self.bins else both.square().sum(-1).sqrt()


class AlignedMap(PatchReducer):
    """Aligned maps normalised to sum 1, one number per displacement: four times as many as a row has."""

    def __init__(self, ask: Ask, grid: Given | None) -> None:
        super().__init__(ask, grid)
        self.canvases: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Paste the block's rows."""
        rows = patch_rows(block, self.grid)
        added = aligned_sum(rows.maps, self.grid, rows.cells)
        self.canvases[block.layer] = self.canvases[block.layer] + added if block.layer in self.canvases else added

    def measured(self) -> Measured:
        """By displacement, ``"down,right"`` in patches."""
        made = {layer: canvas / canvas.sum((-2, -1), keepdim=True) for layer, canvas in self.canvases.items()}
        down, right = self.grid.rows - 1, self.grid.columns - 1
        bins = [f"{r},{c}" for r in range(-down, down + 1) for c in range(-right, right + 1)]
        return Measured({layer: canvas.flatten(-2) for layer, canvas in made.items()}, bins, metadata=self.about())


def aligned_map(ask: Ask, grid: Given | None = None) -> AlignedMap:
    """Where a head looks from a patch: its rows laid over one another, query in the middle, summing to 1.

    Bins are displacements ``"down,right"`` in patches, from ``-(R - 1),-(C - 1)`` to ``R - 1,C - 1``; patches alone,
    rows renormalised over them (Teaching Matters, 2023).

    Args:
        ask: what is scored.
        grid: ``(rows, columns, skip)`` where it cannot be found; see :func:`interp.scores.grids.grid.patch_grid`.

    Raises:
        BadInput: no images, or images of different sizes.
        Unsupported: a stack that sees none, or whose grid is not known.
    """
    return AlignedMap(ask, grid)


def aligned_offset(ask: Ask, grid: Given | None = None) -> AlignedShift:
    """How far off centre the aligned map of each image is: ``sqrt(cx^2 + cy^2)``, in [0, sqrt 2].

    The canvas goes from -1 to 1 both ways, so that a shift by one patch is ``1 / (C - 1)`` of C patches (less what
    patches at the border cannot shift). The released figures average the map over images first: for that take the mean
    of ``aligned_shift`` over images, and its length. Source: Teaching Matters, 2023.

    Args:
        ask: what is scored.
        grid: see :func:`aligned_map`.

    Raises:
        BadInput, Unsupported: see :func:`aligned_map`.
    """
    return AlignedShift(ask, grid, length=True)


def aligned_shift(ask: Ask, grid: Given | None = None) -> AlignedShift:
    """The centre of mass of the aligned map, ``down`` and ``right``, in the units of :func:`aligned_offset`.

    Args:
        ask: what is scored.
        grid: see :func:`aligned_map`.

    Raises:
        BadInput, Unsupported: see :func:`aligned_map`.
    """
    return AlignedShift(ask, grid, length=False)
