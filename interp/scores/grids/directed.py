"""Attention to the neighbouring patch in each of the eight directions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.scores.ask import Ask
from interp.scores.grids.grid import Given, PatchGrid
from interp.scores.grids.patches import PatchMean, PatchRows

DIRECTIONS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "up left": (-1, -1),
        "up": (-1, 0),
        "up right": (-1, 1),
        "left": (0, -1),
        "right": (0, 1),
        "down left": (1, -1),
        "down": (1, 0),
        "down right": (1, 1),
    }
)  # in patches: down, right


def directed_entries(
    maps: Float[Tensor, "*batch row cell"], grid: PatchGrid, cells: Int[Tensor, " row"] | None = None
) -> tuple[Float[Tensor, "*batch row direction"], Bool[Tensor, "row direction"]]:
    """``[..., row, direction]`` the entries at the eight neighbours of each row's patch; and where there is one.

    Args:
        maps: rows of maps between patches.
        grid: the patches.
        cells: which patch each row is; every one in order for None.
    """
    steps = torch.tensor(list(DIRECTIONS.values()), device=maps.device)
    places = grid.places.to(maps.device)
    wanted = (places if cells is None else places[cells])[:, None] + steps  # [row, direction, 2]
    there = ((wanted >= 0) & (wanted < torch.tensor([grid.rows, grid.columns], device=maps.device))).all(-1)
    index = (wanted[..., 0] * grid.columns + wanted[..., 1]) * there
    entries = maps.gather(-1, index.expand(*maps.shape[:-2], -1, -1))
    return entries * there, there


class Directed(PatchMean):
    """The mean over patches that have a neighbour there of the entry at it; or the largest of the eight means."""

    def __init__(self, ask: Ask, grid: Given | None, *, largest: bool) -> None:
        super().__init__(ask, grid, None if largest else tuple(DIRECTIONS))

    def of_rows(self, rows: PatchRows) -> tuple[Tensor, Tensor]:
        """The eight entries of each row."""
        return directed_entries(rows.maps, self.grid, rows.cells)

    def means(self, layer: int) -> Tensor:
        """Eight means, or the largest."""
        eight = super().means(layer)
        if self.bins:
            return eight
        found = eight.nan_to_num(-torch.inf).amax(-1)  # a grid of one row has no neighbours up and down
        return found.masked_fill(found.isinf(), torch.nan)


def directed_offsets(ask: Ask, grid: Given | None = None) -> Directed:
    """Attention from a patch to its neighbour in each of eight directions: ``O = mean A[(r, c), (r + dr, c + dc)]``.

    The mean is over the patches that have a neighbour there; patches alone, rows renormalised over them (after
    Teaching Matters, 2023).

    Args:
        ask: what is scored.
        grid: ``(rows, columns, skip)`` where it cannot be found; see :func:`interp.scores.grids.grid.patch_grid`.

    Raises:
        BadInput: no images, or images of different sizes.
        Unsupported: a stack that sees none, or whose grid is not known.
    """
    return Directed(ask, grid, largest=False)


def offset_local(ask: Ask, grid: Given | None = None) -> Directed:
    """How much of an offset-local head it is: the largest of the eight means of :func:`directed_offsets`.

    The paper finds offset-local heads by looking at plots; :func:`interp.offset_local_heads` offers a rule of ours.

    Args:
        ask: what is scored.
        grid: see :func:`directed_offsets`.

    Raises:
        BadInput, Unsupported: see :func:`directed_offsets`.
    """
    return Directed(ask, grid, largest=True)
