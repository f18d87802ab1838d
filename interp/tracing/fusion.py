"""How the maps of a layer's heads become one map, and the weights of heads that it can be done with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attribution.gating.gates import Gates
from interp.errors import BadInput
from interp.names import lookup
from interp.results import HeadScores

FUSIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "mean": lambda maps: maps.mean(1),
        "max": lambda maps: maps.amax(1),
        "min": lambda maps: maps.amin(1),
    }
)
"""Name -> maps ``[batch, head, row, key]`` to ``[batch, row, key]``."""

Heads = Any  # "mean" | "max" | "min" | weights [layer, head] or [head] | one [head] per layer | HeadScores | Gates


class Fusion:
    """How the heads of each layer are fused: by name, or as the mean with weights that sum to 1 in each layer.

    Attributes:
        name: ``mean``, ``max``, ``min``, or ``weights``.
        weights: per map, weights ``[head]`` that sum to 1; None where they are not needed.
    """

    def __init__(self, name: str, weights: Sequence[Float[Tensor, " head"]] | None = None) -> None:
        self.name, self.weights = name, weights

    @property
    def linear(self) -> bool:
        """Whether the fused map is a weighted mean of the heads' maps."""
        return self.name in ("mean", "weights")

    def shares(self, index: int, n_heads: int, like: Tensor) -> Float[Tensor, " head"]:
        """Weights of the heads of the ``index``-th map, in the dtype and on the device of ``like``."""
        if self.weights is None:
            return torch.full((n_heads,), 1.0 / n_heads, dtype=like.dtype, device=like.device)
        return self.weights[index].to(like)

    def __call__(self, maps: Float[Tensor, "batch head row key"], index: int) -> Float[Tensor, "batch row key"]:
        """The fused rows of the ``index``-th map."""
        if self.weights is None:
            return FUSIONS[self.name](maps)
        return torch.einsum("h,bhrk->brk", self.weights[index].to(maps), maps)


def fusion_of(
    heads: Heads, counts: Sequence[int], *, layers: Sequence[int] | None = None, stack: str | None = None
) -> Fusion:
    """The fusion that ``heads=`` means.

    Weights are divided by their sum in each layer, so that the fused rows sum to what the heads' rows do.

    Args:
        heads: ``"mean"``, ``"max"`` or ``"min"`` over heads; or what weighs them: an array ``[layer, head]`` (or a list
            of ``[head]``, one per map), a :class:`interp.HeadScores` (its values), a :class:`interp.Gates` (its
            facilitation, the mean over seeds).
        counts: heads of each map.
        layers: block index of each map: rows of a table are blocks; 0, 1, ... for None.
        stack: whose heads, for tables of several stacks.

    Raises:
        UnknownName: another name.
        BadInput: weights of another shape, negative or NaN ones, or a layer whose weights are all 0.

    Example:
        >>> fusion_of([[1.0, 3.0]], [2]).weights[0].tolist()
        [0.25, 0.75]
    """
    if isinstance(heads, str):
        lookup(heads, FUSIONS, "fusion of heads")
        return Fusion(heads)
    blocks = list(range(len(counts))) if layers is None else list(layers)
    rows = _rows(heads, blocks, counts, stack)
    made = []
    for block, wide, count in zip(blocks, rows, counts, strict=True):
        # a table is as wide as its widest layer: what stands beyond a layer's heads is no head
        if len(wide) < count or torch.isfinite(wide[count:]).any():
            raise BadInput(f"heads: layer {block} has {count} heads and {len(wide)} weights; give one per head.")
        row = wide[:count]
        if not bool(torch.isfinite(row).all()) or bool((row < 0).any()) or not bool(row.sum() > 0):
            raise BadInput(
                f"heads: the weights of layer {block} are {[round(w, 4) for w in row.tolist()]}; expected numbers of "
                "at least 0 that are not all 0. Of signed scores take the absolute or the positive part."
            )
        made.append(row / row.sum())
    return Fusion("weights", made)


def _rows(heads: Heads, blocks: Sequence[int], counts: Sequence[int], stack: str | None) -> list[Tensor]:
    if isinstance(heads, Gates):
        heads = heads.facilitation
    if isinstance(heads, HeadScores):
        table = _table(heads, stack)
        if max(blocks) >= len(table):
            raise BadInput(f"heads: {heads.name!r} has {len(table)} layers and the maps go up to layer {max(blocks)}.")
        return [torch.from_numpy(np.array(table[block], dtype=float)) for block in blocks]
    try:
        rows = [torch.as_tensor(row, dtype=torch.float64) for row in heads]
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"heads: a {type(heads).__name__}; expected 'mean', 'max', 'min', weights [layer, head], HeadScores or "
            "Gates."
        ) from error
    if any(row.ndim != 1 for row in rows) or len(rows) != len(blocks):
        shapes = [list(row.shape) for row in rows]
        raise BadInput(
            f"heads: weights of shapes {shapes} for {len(blocks)} maps of {list(counts)} heads; expected [layer, head]."
        )
    return rows


def _table(scores: HeadScores, stack: str | None) -> np.ndarray:
    if scores.unit != "query" or scores.positions is not None:
        raise BadInput(f"heads: {scores.name!r} is not one number per query head; give a table that is.")
    if stack is not None:
        scores = scores.of(stack)
    elif len(scores.stacks) > 1:
        raise BadInput(
            f"heads: {scores.name!r} has the stacks {', '.join(scores.stacks)}; give the part of one: scores.of(name)."
        )
    return scores.values
