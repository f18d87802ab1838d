"""Attention maps of a few query rows by the plain formula, where an architecture's own arithmetic is just that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from interp.model.attention import AttentionCall, pick_rows

_BEYOND = ("position_bias", "softcap", "s_aux", "sinks", "indices", "block_indices")  # keywords of another formula
_TRIED = 96  # a trial looks at rows below this


class Maps(NamedTuple):
    """Maps of a few rows, cut to the keys that one of them sees."""

    scores: Tensor  # [batch, head, row, key] float32, blocked = -inf
    pattern: Tensor  # [batch, head, row, key] float32
    visible: Tensor  # [batch or 1, head or 1, row, key]


class PlainMaps:
    """``softmax(q k^T scale + mask)`` in float32, without repeating keys for the heads that share them.

    Args:
        call: the attention call.
    """

    def __init__(self, call: AttentionCall) -> None:
        self.call = call
        scale = call.kwargs.get("scaling")
        self.scale = call.query.shape[-1] ** -0.5 if scale is None else float(scale)
        self.keys = call.key.float()
        self.columns = torch.arange(call.key.shape[2], device=call.key.device)

    def of(self, rows: Tensor) -> Maps:
        """The maps of ``rows [batch, k]``."""
        query = self._rows_of(self.call.query, rows).float() * self.scale
        shared = rows[:1] if bool((rows == rows[:1]).all()) else rows
        first, last = 0, int(rows.max()) + 1
        visible, additive = None, None
        if self.call.mask is not None:
            mask = self._rows_of(self.call.mask, rows)[..., : len(self.columns)]
            visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            seen = visible.flatten(0, -2).any(0).nonzero()
            last = max(int(seen.max()) + 1 if len(seen) else 1, min(last, len(self.columns)))
            visible = visible[..., :last]
            additive = None if mask.dtype == torch.bool else mask[..., :last].float()
        elif self.call.causal:
            visible = (self.columns[:last] <= shared.unsqueeze(-1))[:, None]
            first = int(rows.min()) + 1  # keys up to the first row are seen by every row
        else:
            last = len(self.columns)
        scores = self._products(query, last)
        if additive is not None:
            scores += additive
        if visible is None:
            visible = torch.ones(1, 1, rows.shape[1], last, dtype=torch.bool, device=rows.device)
        else:
            scores[..., first:].masked_fill_(~visible[..., first:], -torch.inf)
        pattern = torch.softmax(scores, dim=-1)
        if self.call.mask is not None:  # a row that sees nothing (padding) is 0 and not NaN
            pattern.masked_fill_(~visible.any(-1, keepdim=True), 0.0)
        return Maps(scores, pattern, visible)

    def _products(self, query: Tensor, n_keys: int) -> Tensor:
        """``[batch, head, row, key]`` q k^T, the rows of heads that share keys in one product."""
        batch, heads, rows, width = query.shape
        shared = self.keys.shape[1]
        grouped = query.reshape(batch, shared, heads // shared * rows, width)
        return torch.matmul(grouped, self.keys[:, :, :n_keys].transpose(-2, -1)).view(batch, heads, rows, n_keys)

    @staticmethod
    def _rows_of(tensor: Tensor, rows: Tensor) -> Tensor:
        first, count = int(rows[0, 0]), rows.shape[1]
        run = torch.arange(first, first + count, device=rows.device)
        return tensor[:, :, first : first + count] if bool((rows == run).all()) else pick_rows(tensor, rows)


def plain_maps(call: AttentionCall) -> PlainMaps | None:
    """The plain formula for this call, ``None`` where the architecture's own eager function computes another.

    Tried in float32 on a few rows of this very call: soft-caps, sink logits, position biases and whatever else an
    architecture does between the product and the softmax show there.
    """
    if any(call.kwargs.get(name) is not None for name in _BEYOND) or call.query.shape[1] % call.key.shape[1]:
        return None
    length, short = call.query.shape[2], call.in_float32()
    if call.causal and length > _TRIED and call.key.shape[2] == length:
        length = _TRIED  # later keys are not seen from these rows
        query, key, value = (tensor[:, :, :length] for tensor in (short.query, short.key, short.value))
        short = replace(short, query=query, key=key, value=value)
    rows = sorted({length - 1, length - 2, length * 2 // 3, length // 3} & set(range(length)))
    wanted = torch.tensor([rows], device=call.query.device).expand(call.query.shape[0], -1)
    witness = _Witness()
    short.show(witness, wanted)
    maps = PlainMaps(short).of(wanted)
    return PlainMaps(call) if witness.agrees(maps) else None


class _Witness:
    """A tap that keeps the maps of the rows it is shown."""

    eager = False
    on_path = False

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def vectors(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As they are."""
        return q, k, v

    def rows(self) -> Iterator[Tensor | None]:
        """None of its own accord."""
        yield from ()

    def look(self, call: AttentionCall) -> None:
        """Nothing."""

    def scores(self, scores: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """Keep the scores."""
        self.seen.append(scores.float())
        return scores

    def pattern(self, pattern: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """Keep the pattern, 0 where a row sees nothing."""
        self.seen.append(torch.where(visible.any(-1, keepdim=True), pattern, torch.zeros_like(pattern)).float())
        return pattern

    def agrees(self, maps: Maps) -> bool:
        """Whether the maps are those that were seen, to the rounding of float32."""
        if len(self.seen) != 2:  # noqa: PLR2004 - scores and pattern: no softmax was met
            return False
        scores, pattern = self.seen
        width = maps.pattern.shape[-1]
        if bool((pattern[..., width:] != 0).any()):
            return False
        slack = 64 * torch.finfo(torch.float32).eps
        open_ = torch.isfinite(scores[..., :width]) & maps.visible
        apart = torch.where(open_, scores[..., :width] - maps.scores, torch.zeros_like(maps.scores)).abs()
        size = torch.where(open_, maps.scores, torch.zeros_like(maps.scores)).abs().amax().clamp(min=1)
        return bool((pattern[..., :width] - maps.pattern).abs().max() <= slack * size) and bool(
            apart.max() <= slack * size
        )
