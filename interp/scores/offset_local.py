"""``offset_local_heads``: which heads of a vision transformer look at the patch beside their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.address import Head
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.scores.directed import DIRECTIONS
from interp.scores.dropping import Sinks
from interp.scores.grid import Given, patch_grid
from interp.scores.score import score


@dataclass(frozen=True, eq=False, repr=False)
class OffsetLocalHeads:
    """The heads that a rule calls offset-local, and every head's numbers.

    Attributes:
        heads: those that the rule holds for, layer by layer.
        rows: ``stack layer head label directed direction peak offset distance offset_local`` of every head.
        rule: the thresholds.
    """

    heads: tuple[Head, ...]
    rows: pd.DataFrame
    rule: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """Every head, those that the rule holds for first, then by the largest directed score."""
        order = ["offset_local", "directed"]
        return self.rows.sort_values(order, ascending=False, kind="stable").reset_index(drop=True)

    def __repr__(self) -> str:
        return f"OffsetLocalHeads({len(self.heads)} of {len(self.rows)} heads: {', '.join(map(str, self.heads[:8]))})"


def offset_local_heads(
    model: Model,
    batch: Batch,
    *,
    stack: str | None = None,
    grid: Given | None = None,
    peak: float = 0.2,
    shift: tuple[float, float] = (0.5, 1.6),
    nearest: float = 1 / 3,
    exclude_sinks: Sinks = None,
) -> OffsetLocalHeads:
    """The offset-local heads of a vision stack by a rule of ours, over the mean of the images.

    A head is one if (1) its aligned map, summing to 1, has at least ``peak`` at one of the eight neighbours of the
    middle, (2) its centre lies ``shift`` patches from the middle, and (3) its mean distance is among the lowest
    ``nearest`` of the stack's heads (heads that tie with the last one are in). The paper (Teaching Matters, 2023) finds
    such heads by eye and states no thresholds; these are a proposal.

    Args:
        model: the handle.
        batch: prompts with images.
        stack: the vision stack.
        grid: ``(rows, columns, skip)`` where it cannot be found; see :func:`interp.scores.grid.patch_grid`.
        peak: least mass at a neighbour, in [0, 1].
        shift: smallest and largest shift of the centre, in patches.
        nearest: share of heads that count as local, in (0, 1].
        exclude_sinks: columns to leave out, as in :func:`interp.score`.

    Raises:
        BadInput: a threshold out of its range, no images, or images of different sizes.
        Unsupported: a stack that sees none, or whose grid is not known.
    """
    low, high = shift
    if not 0 <= peak <= 1 or not 0 <= low <= high or not 0 < nearest <= 1:
        raise BadInput(
            f"offset_local_heads: peak={peak}, shift={shift}, nearest={nearest}; expected a peak in [0, 1], "
            "0 <= smallest <= largest shift, and a share in (0, 1]."
        )
    names = ("directed_offsets", "aligned_shift", "mean_distance_2d")
    found = score(model, batch, {name: {"grid": grid} for name in names}, stack=stack, exclude_sinks=exclude_sinks)
    directed, centre, distance = (found[name] for name in names)
    place = directed.stacks[0]
    cells = patch_grid(model, batch, place, grid=grid, name="offset_local_heads")
    steps = torch.tensor(list(DIRECTIONS.values())).numpy()
    holding = (cells.rows - np.abs(steps[:, 0])) * (cells.columns - np.abs(steps[:, 1])) / cells.size
    sides = np.array([max(cells.rows - 1, 1), max(cells.columns - 1, 1)])
    offset = np.linalg.norm(centre.values * sides, axis=-1)
    there = np.isfinite(distance.values)
    ranked = np.sort(distance.values[there])
    limit = ranked[max(1, int(np.floor(nearest * len(ranked)))) - 1] if len(ranked) else np.nan
    rows = []
    for layer, index in zip(*np.nonzero(there), strict=True):
        eight = np.nan_to_num(directed.values[layer, index])
        aligned = float((eight * holding).max())
        held = aligned >= peak and low <= offset[layer, index] <= high and distance.values[layer, index] <= limit
        head = Head(int(layer), int(index), None if place == model.default_stack else place)
        rows.append(
            (place, head.layer, head.index, str(head), eight.max(), list(DIRECTIONS)[int(eight.argmax())], aligned,
             offset[layer, index], distance.values[layer, index], held)
        )  # fmt: skip
    columns = "stack layer head label directed direction peak offset distance offset_local".split()
    table = pd.DataFrame(rows, columns=columns)
    chosen = table[table.offset_local]
    return OffsetLocalHeads(
        heads=tuple(
            Head(int(layer), int(index), None if place == model.default_stack else place)
            for layer, index in zip(chosen.layer, chosen["head"], strict=True)
        ),
        rows=table,
        rule={"peak": peak, "shift": list(shift), "nearest": nearest, "distance at most": float(limit)},
    )
