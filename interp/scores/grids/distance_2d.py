"""How far apart in the image the patches are that a head connects."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.scores.ask import Ask
from interp.scores.grids.grid import Given, PatchGrid
from interp.scores.grids.patches import PatchMean, PatchRows


def distances_2d(
    maps: Float[Tensor, "*batch row cell"],
    grid: PatchGrid,
    cells: Int[Tensor, " row"] | None = None,
    *,
    released_code: bool = False,
) -> Float[Tensor, "*batch row"]:
    """``[..., row]`` ``sum_j A[i, j] ||p_i - p_j||`` over patches, the image measuring 1 by 1.

    Args:
        maps: rows of maps between patches.
        grid: the patches.
        cells: which patch each row is; every one in order for None.
        released_code: the distances of the released code, see :func:`mean_distance_2d`.

    Example:
        >>> from interp.scores.grids.grid import given_grid
        >>> distances_2d(torch.full((4, 4), 0.25), given_grid((2, 2, 0)))[0].item()  # (0 + 1 + 1 + sqrt 2) / 4
        0.853553...
    """
    places = grid.coordinates.to(maps.device)
    own = places if cells is None else places[cells]
    squares = (own[:, None] - places).square()  # [row, cell, 2]
    if released_code:
        squares = squares.square()
    return torch.einsum("...rc,rc->...r", maps.float(), squares.sum(-1).sqrt())


class MeanDistance2D(PatchMean):
    """The mean over patches of :func:`distances_2d`."""

    def __init__(self, ask: Ask, grid: Given | None, *, released_code: bool) -> None:
        super().__init__(ask, grid)
        self.released_code = released_code

    def of_rows(self, rows: PatchRows) -> tuple[Tensor, Tensor]:
        """The distances; a row that looks at no patch counts with distance 0, as in the paper."""
        found = distances_2d(rows.maps, self.grid, rows.cells, released_code=self.released_code)
        return found, torch.ones(1, 1, 1, dtype=torch.bool, device=found.device)


def mean_distance_2d(ask: Ask, grid: Given | None = None, released_code: bool = False) -> MeanDistance2D:
    """Average attention distance in the image: ``mean_i sum_j A[i, j] ||p_i - p_j||``, in [0, sqrt 2].

    Patches alone, rows renormalised over them; patch (r, c) of R x C stands at ``(c / (C - 1), r / (R - 1))``
    (Teaching Matters, 2023; both sides of a rectangular image measure 1, which is our reading).

    Args:
        ask: what is scored.
        grid: ``(rows, columns, skip)`` where it cannot be found; see :func:`interp.scores.grids.grid.patch_grid`.
        released_code: reproduce the paper's released code, which squares coordinate differences twice and so takes
            ``sqrt(dx^4 + dy^4)`` for the distance.

    Raises:
        BadInput: no images, or images of different sizes.
        Unsupported: a stack that sees none, or whose grid is not known.
    """
    return MeanDistance2D(ask, grid, released_code=bool(released_code))
