"""The grid of heads that get a number: which cells there are, which heads a cell means, the table of values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from interp.address import Head, Site
from interp.model.stacks import Stack

KV_SITES = (Site.K, Site.V)


class Cell(NamedTuple):
    """One entry of the table: a head (query or key/value) of a layer, at one column where there are positions."""

    layer: int
    head: int
    column: int | None = None


def unit_of(site: Site, by: str) -> str:
    """``"kv"`` where key/value heads get the numbers, else ``"query"``."""
    return "kv" if by == "kv" or site in KV_SITES else "query"


def width_of(stack: Stack, layer: int, unit: str) -> int:
    """How many cells a layer has."""
    return stack.n_kv_heads(layer) if unit == "kv" else stack.n_heads(layer)


def cells_of(stack: Stack, unit: str, heads: Iterable[Head] | None, columns: Sequence[int] | None) -> list[Cell]:
    """Every cell that gets a number, layer by layer.

    Args:
        stack: whose heads.
        unit: ``"query"`` or ``"kv"``.
        heads: the heads asked for, all for ``None``.
        columns: one cell for each of these positions, ``None`` for one cell for all of them.
    """
    wanted = None if heads is None else {(head.layer, head.index) for head in heads}
    return [
        Cell(layer, index, column)
        for layer in range(stack.n_layers)
        for index in range(width_of(stack, layer, unit))
        if wanted is None or (layer, index) in wanted
        for column in ([None] if columns is None else columns)
    ]


def query_heads(stack: Stack, layer: int, head: int, unit: str) -> tuple[int, ...]:
    """The query heads that a cell means: the head itself, or all that read one key/value head.

    With G query heads to a key/value head these are ``head G`` to ``head G + G - 1``.
    """
    if unit == "query":
        return (head,)
    group = stack.n_heads(layer) // stack.n_kv_heads(layer)
    return tuple(range(head * group, (head + 1) * group))


def heads_at(stack: Stack, layer: int, head: int, *, site: Site, unit: str) -> tuple[int, ...]:
    """The heads of ``site`` that a cell means: key/value heads at K and V, query heads elsewhere."""
    return (head,) if site in KV_SITES else query_heads(stack, layer, head, unit)


def grid_of(
    values: Float[np.ndarray, "cell prompt"], cells: Sequence[Cell], stack: Stack, unit: str, columns: int | None
) -> Float[np.ndarray, "prompt layer head ..."]:
    """The values of the cells as ``[prompt, layer, head]`` (and ``pos``), NaN where no cell is.

    Args:
        values: one row for each cell.
        cells: where the rows belong.
        stack: whose layers and heads span the grid; rows are padded to the widest layer.
        unit: ``"query"`` or ``"kv"``.
        columns: how many positions there are, ``None`` for no position axis.
    """
    widest = max((width_of(stack, layer, unit) for layer in range(stack.n_layers)), default=0)
    shape = (values.shape[1], stack.n_layers, widest, *([] if columns is None else [columns]))
    grid = np.full(shape, np.nan)
    for row, (layer, head, column) in zip(values, cells, strict=True):
        place = (slice(None), layer, head) if column is None else (slice(None), layer, head, column)
        grid[place] = row
    return grid
