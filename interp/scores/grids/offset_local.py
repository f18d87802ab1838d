"""``offset_local_heads``: which heads of a vision transformer look at the patch beside their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.address import Head
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.results import HeadScores
from interp.scores.dropping import Sinks
from interp.scores.grids.directed import DIRECTIONS
from interp.scores.grids.grid import Given, PatchGrid, patch_grid
from interp.scores.score import score

_PARTS = ("directed_offsets", "aligned_shift", "mean_distance_2d")


@dataclass(frozen=True, eq=False, repr=False)
class OffsetLocalHeads:
    """The heads that a rule calls offset-local, and every head's numbers.

    Attributes:
        heads: those that the rule holds for, layer by layer.
        rows: of every head ``stack layer head label``, the largest ``directed`` score and its ``direction``, the
            ``peak`` of the aligned map at a neighbour, the ``offset`` of its centre in patches, the mean ``distance``,
            and whether the rule holds (``offset_local``).
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
    """The offset-local heads of a vision stack by a rule of ours, over the mean of the images: one forward.

    A head is one if (1) its aligned map, summing to 1, has at least ``peak`` at one of the eight neighbours of the
    middle, (2) its centre lies ``shift`` patches from the middle, and (3) its mean distance is among the lowest
    ``nearest`` of the stack's heads (heads that tie with the last one are in). The paper (Teaching Matters, 2023) finds
    such heads by eye and states no thresholds; these are a proposal.

    Args:
        model: the handle.
        batch: prompts with images.
        stack: the vision stack.
        grid: ``(rows, columns, skip)`` where it cannot be found; see :func:`interp.scores.grids.grid.patch_grid`.
        peak: least mass at a neighbour, in [0, 1].
        shift: smallest and largest shift of the centre, in patches.
        nearest: share of heads that count as local, in (0, 1].
        exclude_sinks: columns to leave out, as in :func:`interp.score`.

    Raises:
        BadInput: a threshold out of its range, no images, or images of different sizes.
        Unsupported: a stack that sees none, or whose grid is not known.
    """
    _check(peak, shift, nearest)
    names = {name: {"grid": grid} for name in _PARTS}
    found = score(model, batch, names, stack=stack, exclude_sinks=exclude_sinks)
    cells = patch_grid(model, batch, found[_PARTS[0]].stacks[0], grid=grid, name="offset_local_heads")
    return offset_local_rule(found, cells, peak=peak, shift=shift, nearest=nearest)


def offset_local_rule(
    scores: Mapping[str, HeadScores],
    grid: PatchGrid,
    *,
    peak: float = 0.2,
    shift: tuple[float, float] = (0.5, 1.6),
    nearest: float = 1 / 3,
) -> OffsetLocalHeads:
    """The rule of :func:`offset_local_heads` on scores that are there.

    Args:
        scores: ``directed_offsets``, ``aligned_shift`` and ``mean_distance_2d`` of one stack.
        grid: its patches.
        peak, shift, nearest: as there.

    Raises:
        BadInput: a threshold out of its range, or no head with a value.
    """
    _check(peak, shift, nearest)
    directed, centre, distance = (scores[name] for name in _PARTS)
    steps = np.array(list(DIRECTIONS.values()))
    # a directed score is a mean over the patches that have the neighbour, the aligned map one over all of them
    holding = (grid.rows - np.abs(steps[:, 0])) * (grid.columns - np.abs(steps[:, 1])) / grid.size
    sides = np.array([max(grid.rows - 1, 1), max(grid.columns - 1, 1)])
    offset = np.linalg.norm(centre.values * sides, axis=-1)
    eight = np.nan_to_num(directed.values)
    peaks = (eight * holding).max(-1)
    there = np.isfinite(distance.values)
    ranked = np.sort(distance.values[there])
    if not len(ranked):
        raise BadInput("offset_local_heads: no head looks at patches at all, so none can be called local.")
    limit = float(ranked[max(1, int(nearest * len(ranked) + 1e-9)) - 1])
    low, high = shift
    with np.errstate(invalid="ignore"):
        held = there & (peaks >= peak) & (offset >= low) & (offset <= high) & (distance.values <= limit)
    stack = distance.stacks[0]
    name = None if stack == distance.default_stack else stack
    heads = [Head(int(layer), int(index), name) for layer, index in np.argwhere(there)]
    rows = pd.DataFrame(
        {
            "stack": stack,
            "layer": [head.layer for head in heads],
            "head": [head.index for head in heads],
            "label": [str(head) for head in heads],
            "directed": eight.max(-1)[there],
            "direction": np.array(list(DIRECTIONS))[eight.argmax(-1)[there]],
            "peak": peaks[there],
            "offset": offset[there],
            "distance": distance.values[there],
            "offset_local": held[there],
        }
    )
    return OffsetLocalHeads(
        heads=tuple(head for head, is_one in zip(heads, held[there], strict=True) if is_one),
        rows=rows,
        rule={"peak": peak, "shift": list(shift), "nearest": nearest, "distance at most": limit},
    )


def _check(peak: float, shift: tuple[float, float], nearest: float) -> None:
    low, high = shift
    if not 0 <= peak <= 1 or not 0 <= low <= high or not 0 < nearest <= 1:
        raise BadInput(
            f"offset_local_heads: peak={peak}, shift={shift}, nearest={nearest}; expected a peak in [0, 1], "
            "0 <= smallest <= largest shift, and a share in (0, 1]."
        )
