"""``Stage``: one layer's maps as a step of a rollout, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.tracing.fusion import Fusion
from interp.tracing.transitions import FusedRows, Missing, Transition, discarded, fused_rows


class Rows(NamedTuple):
    """Some rows of a layer's maps."""

    pattern: Tensor  # [batch, head, row, key]
    rows: Tensor  # [batch, row]
    sums: Tensor | None = None  # [batch, head, row], where they are known


@dataclass(frozen=True)
class Mixing:
    """How a layer's maps become a step; see :mod:`interp.tracing.transitions`.

    Attributes:
        fusion: of heads.
        discard: share of the fused map's entries that is set to 0.
        keep_first: whether discarding spares the first token's entry with itself.
        missing: what becomes of mass that rows lack.
        normalise: whether rows of the step are divided by their sum.
    """

    fusion: Fusion
    discard: float = 0.0
    keep_first: bool = True
    missing: Missing | None = None
    normalise: bool = True


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer's maps, and how they become a step.

    Attributes:
        layer: block index.
        index: which map of the fusion this is.
        shape: ``(batch, head, query, key)`` of the whole map.
        read: ``read(columns [row])`` gives the maps of those rows, block by block, with the rows' columns.
        mixing: how they become a step.
        residual: the residual stream's share, one number or ``[#batch, query]``.
        cross: the keys are other tokens than the queries.
        keys: ``[batch, key]`` real keys, None for those whose rows are not empty (all, where there are others).
        fast: ``fast(vectors)`` gives what :func:`interp.tracing.descent.through` does, by a shorter way; None for none.
    """

    layer: int
    index: int
    shape: tuple[int, int, int, int]
    read: Callable[[Int[Tensor, " row"]], Iterator[Rows]]
    mixing: Mixing
    residual: float | Float[Tensor, "#batch query"] = 0.5
    cross: bool = False
    keys: Bool[Tensor, "batch key"] | None = None
    fast: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def transitions(self, columns: Int[Tensor, " row"], without: int | None = None) -> Iterator[Transition]:
        """The step's rows at ``columns``, block by block (with ``discard`` all rows at once).

        Args:
            columns: of the rows that are needed.
            without: a head whose map is set to the identity: each row's mass is on its own token.
        """
        if self.mixing.discard:
            yield self._whole(without)
            return
        for some in self.read(columns):
            yield self.step(some, without)

    def step(self, some: Rows, without: int | None = None) -> Transition:
        """The step of some rows, where nothing is discarded."""
        return self._fused(some, without).mixed(self.residual_at(some.rows), normalise=self.mixing.normalise)

    def _fused(self, some: Rows, without: int | None) -> FusedRows:
        (pattern, rows, sums), kept = some, None
        if without is not None:
            sums = None
            there = (pattern != 0).any(-1).any(1).to(pattern.dtype)  # an empty row stays empty
            pattern = pattern.clone()
            pattern[:, without] = 0
            if self.cross:
                kept = torch.zeros_like(pattern[..., 0])
                kept[:, without] = there
            else:
                pattern[:, without].scatter_(-1, rows.unsqueeze(-1), there.unsqueeze(-1))
        mixing = self.mixing
        return fused_rows(
            pattern,
            rows,
            fusion=mixing.fusion,
            index=self.index,
            missing=mixing.missing,
            cross=self.cross,
            kept=kept,
            sums=sums,
        )

    def residual_at(self, rows: Int[Tensor, "batch row"]) -> float | Float[Tensor, "batch row"]:
        """The residual's share of some rows."""
        if not isinstance(self.residual, Tensor):
            return self.residual
        return self.residual.to(rows.device).expand(len(rows), -1).gather(1, rows)

    def _whole(self, without: int | None) -> Transition:
        mixing, width = self.mixing, self.shape[3]
        parts = []
        for some in self.read(torch.arange(self.shape[2])):
            part = self._fused(some, without)
            parts.append(replace(part, fused=torch.nn.functional.pad(part.fused, (0, width - part.fused.shape[-1]))))
        names = ("rows", "fused", "gone", "stays", "empty")
        joined = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names}
        there = ~joined["empty"]
        keys = self.keys if self.cross or self.keys is not None else there
        left = discarded(
            joined["fused"], mixing.discard, keep_first=mixing.keep_first and not self.cross, rows=there, keys=keys
        )
        found = replace(parts[0], **{**joined, "fused": left, "totals": left.sum(-1)})
        return found.mixed(self.residual_at(joined["rows"]), normalise=mixing.normalise)
