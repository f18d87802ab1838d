"""Mass by how many steps of a king on a chessboard lie between two patches."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.scores.ask import Ask
from interp.scores.grids.grid import Given, PatchGrid
from interp.scores.grids.patches import PatchMean, PatchRows


def ring_masses(
    maps: Float[Tensor, "*batch row cell"], grid: PatchGrid, cells: Int[Tensor, " row"] | None = None
) -> Float[Tensor, "*batch row hop"]:
    """``[..., row, hop]`` mass on the patches at hop ``k = max(|dr|, |dc|)`` from each row's own, float64.

    From sums over squares around the patch, which need four numbers each of the map's running sums.

    Args:
        maps: rows of maps between patches.
        grid: the patches.
        cells: which patch each row is; every one in order for None.

    Example:
        >>> from interp.scores.grids.grid import given_grid
        >>> ring_masses(torch.ones(9, 9), given_grid((3, 3, 0)))[[0, 4]].tolist()
        [[1.0, 3.0, 5.0], [1.0, 8.0, 0.0]]
    """
    sums = maps.double().unflatten(-1, (grid.rows, grid.columns)).cumsum(-1).cumsum(-2)
    sums = torch.nn.functional.pad(sums, (1, 0, 1, 0)).flatten(-2)
    places = grid.places.to(maps.device)
    row, column = (places if cells is None else places[cells]).unbind(-1)
    hops = torch.arange(max(grid.rows, grid.columns), device=maps.device)
    top, bottom = (row[:, None] - hops).clamp(min=0), (row[:, None] + hops + 1).clamp(max=grid.rows)
    left, right = (column[:, None] - hops).clamp(min=0), (column[:, None] + hops + 1).clamp(max=grid.columns)

    def until(down: Tensor, across: Tensor) -> Tensor:
        return sums.gather(-1, (down * (grid.columns + 1) + across).expand(*sums.shape[:-2], -1, -1))

    squares = until(bottom, right) - until(top, right) - until(bottom, left) + until(top, left)
    return torch.diff(squares, dim=-1, prepend=torch.zeros_like(squares[..., :1])).clamp(min=0)


def ring_sizes(grid: PatchGrid) -> Float[Tensor, "cell hop"]:
    """``[cell, hop]`` how many patches lie at each hop from each patch."""
    return ring_masses(torch.ones(grid.size, grid.size), grid)


def hop_centroid_of(profile: Float[Tensor, "*batch hop"]) -> Float[Tensor, "*batch"]:
    """``sum_k k S_k / sum_k S_k`` of a profile of rings alone."""
    hops = torch.arange(profile.shape[-1], device=profile.device)
    return (profile * hops).sum(-1) / profile.sum(-1)


class Hops(PatchMean):
    """Means over patches of ring masses, of ring densities, or the centroid of the first."""

    def __init__(self, ask: Ask, grid: Given | None, kind: Literal["mass", "density", "centroid"]) -> None:
        super().__init__(ask, grid, renormalise=False)
        self.kind = kind
        hops = tuple(map(str, range(max(self.grid.rows, self.grid.columns))))
        self.bins = {"mass": (*hops, "skipped"), "density": hops, "centroid": None}[kind]
        self.sizes = ring_sizes(self.grid)

    def of_rows(self, rows: PatchRows) -> tuple[Tensor, Tensor]:
        """Rings of each row."""
        rings = ring_masses(rows.maps, self.grid, rows.cells)
        left = (rows.mass + rows.outside > 0).unsqueeze(-1)  # else everything lay on columns that are left out
        if self.kind == "density":
            sizes = self.sizes.to(rings.device)[rows.cells]
            return rings / sizes.clamp(min=1), left & (sizes > 0)
        if self.kind == "mass":
            rings = torch.cat([rings, rows.outside.double().unsqueeze(-1)], dim=-1)
        return rings, left

    def means(self, layer: int) -> Tensor:
        """The profile, or its centroid."""
        profile = super().means(layer)
        return hop_centroid_of(profile) if self.kind == "centroid" else profile


def hop_profile(ask: Ask, grid: Given | None = None) -> Hops:
    """Mass on the patches k hops away, ``S_k = mean_i sum_{hop(i, j) = k} A[i, j]``, and on what is no patch.

    ``hop = max(|dr|, |dc|)``; bin 0 is the patch itself, bin "skipped" CLS and registers, and all bins sum to 1. Rings
    leave the image where a patch is near its border, so that a uniform head has less at far hops: see ``hop_density``.
    After Li et al., 2023 (how attention works in vision transformers), of which only the aim was at hand: the formula
    is ours.

    Args:
        ask: what is scored.
        grid: ``(rows, columns, skip)`` where it cannot be found; see :func:`interp.scores.grids.grid.patch_grid`.

    Raises:
        BadInput: no images, or images of different sizes.
        Unsupported: a stack that sees none, or whose grid is not known.
    """
    return Hops(ask, grid, "mass")


def hop_density(ask: Ask, grid: Given | None = None) -> Hops:
    """Mean mass of one patch k hops away: each ring's mass over its patches, over the queries that have that ring.

    A uniform head has the same density at every hop. After Li et al., 2023; the formula is ours.

    Args:
        ask: what is scored.
        grid: see :func:`hop_profile`.

    Raises:
        BadInput, Unsupported: see :func:`hop_profile`.
    """
    return Hops(ask, grid, "density")


def hop_centroid(ask: Ask, grid: Given | None = None) -> Hops:
    """The mean hop, ``sum_k k S_k / sum_k S_k`` over the rings of :func:`hop_profile`: small for local heads.

    After Li et al., 2023; the formula is ours.

    Args:
        ask: what is scored.
        grid: see :func:`hop_profile`.

    Raises:
        BadInput, Unsupported: see :func:`hop_profile`.
    """
    return Hops(ask, grid, "centroid")
