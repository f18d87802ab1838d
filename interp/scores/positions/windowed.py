"""Windowed attention distance and future influence: how far a token looks back, how much later tokens look at it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.long_context.chosen_rows import columns_with_filler, standing
from interp.scores.positions.places import Places, QueryMean, require_causal, whole_number
from interp.scores.reducer import Reducer


def windowed_distances(pattern: Float[Tensor, "*batch query key"], window: int) -> Float[Tensor, "*batch query"]:
    """``[..., query]`` ``sum_{s <= t} A[t, s] min(t - s, window)`` of whole maps without padding.

    Example:
        >>> windowed_distances(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), 1)
        tensor([0., 1., 1.])
    """
    places = torch.arange(pattern.shape[-1], device=pattern.device)
    return (pattern.float() * (places[:, None] - places).clamp(0, window)).sum(-1)


def future_influences(pattern: Float[Tensor, "*batch query key"], low: int, high: int) -> Float[Tensor, "*batch key"]:
    """``[..., key]`` the mean of ``A[t, s]`` over ``s + low <= t <= min(T - 1, s + high)``; NaN where there is no t.

    Example:
        >>> future_influences(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]]), 1, 2)
        tensor([0.3750, 0.5000,    nan])
    """
    places = torch.arange(pattern.shape[-1], device=pattern.device)
    distance = places[:, None] - places
    counted = (distance >= low) & (distance <= high)
    return (pattern.float() * counted).sum(-2) / counted.sum(-2)


class WindowedDistance(QueryMean):
    """:func:`windowed_distances`, as means over rows and as curves over tokens.

    Attributes:
        curves: layer -> ``[batch, head, pos]`` of each row, NaN at rows that do not count; None unless asked for.
    """

    def __init__(self, ask: Ask, window: int, queries: Group = None, *, curves: bool = False) -> None:
        super().__init__(ask, queries)
        require_causal(ask)
        self.places, self.window = Places.of(ask), window
        self.offsets = torch.arange(window)
        self.curves: dict[int, Tensor] | None = {} if curves else None

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor:
        """A column of ones, for what a row sums to."""
        return torch.ones(1, n_keys, 1, device=self.ask.batch.mask.device)

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The windowed distance of each row: near keys by their distance, all further ones by the window."""
        assert products is not None
        near = self.places.entries(block, self.offsets)[0]
        far = products[..., 0] - near.sum(-1)
        found = near @ self.offsets.to(near) + self.window * far.clamp(min=0)
        if self.curves is not None:
            n, heads = found.shape[:2]
            curve = self.curves.setdefault(
                block.layer, torch.full((n, heads, self.ask.batch.width), torch.nan, device=found.device)
            )
            counted = standing(block, self.chosen)
            counted = counted[:, None] if counted.ndim == 2 else counted  # noqa: PLR2004 - the same for every head
            index = block.rows[:, None].expand(-1, heads, -1)
            curve.scatter_(-1, index, torch.where(counted, found, curve.gather(-1, index)))
        return found

    def about(self) -> dict[str, Any]:
        """The lengths that it was measured at."""
        return {"tokens": self.ask.batch.lengths, "window": self.window}


class FutureInfluence(Reducer):
    """:func:`future_influences`, gathered along the diagonals ``low`` to ``high`` alone.

    Args:
        ask: what is scored.
        low: smallest distance.
        high: largest distance.
        queries: which rows may look back; all for None.
    """

    def __init__(self, ask: Ask, low: int, high: int, queries: Group = None) -> None:
        super().__init__(ask)
        require_causal(ask)
        self.places = Places.of(ask)
        self.chosen = None if queries is None else ask.columns(queries, "queries")
        self.rows = None if self.chosen is None else columns_with_filler(self.chosen)
        self.band = (low, high)
        self.offsets = torch.arange(low, high + 1)
        self.sums: dict[int, Tensor] = {}
        self.numbers: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add what the block's rows give to each earlier token, in float64."""
        entries, there = self.places.entries(block, self.offsets)
        column, _ = self.places.keys(block, self.offsets)
        counted = standing(block, self.chosen)
        counted = counted[:, None] if counted.ndim == 2 else counted  # noqa: PLR2004 - the same for every head
        n, heads = entries.shape[:2]
        index = column[:, None].expand(-1, heads, -1, -1).flatten(2)
        if block.layer not in self.sums:
            zeros = torch.zeros(n, heads, self.ask.batch.width, dtype=torch.float64, device=entries.device)
            self.sums[block.layer], self.numbers[block.layer] = zeros, zeros.clone()
        held = counted.unsqueeze(-1) & there[:, None]
        held = held.expand_as(entries)
        self.sums[block.layer].scatter_add_(-1, index, torch.where(held, entries, 0).double().flatten(2))
        self.numbers[block.layer].scatter_add_(-1, index, held.double().flatten(2))

    def curve(self, layer: int) -> Float[Tensor, "batch head pos"]:
        """The influence of each token; NaN where nobody stands that far behind it."""
        return self.sums[layer] / self.numbers[layer]

    def measured(self) -> Measured:
        """The mean over the tokens that have an influence; NaN for prompts too short to have any."""
        made = {layer: self.curve(layer).nanmean(-1) for layer in self.sums}
        return Measured(made, metadata={"tokens": self.ask.batch.lengths, "distances": list(self.band)})


def windowed_distance(ask: Ask, window: int = 10, queries: Group = None) -> WindowedDistance:
    """How far a token looks back, far keys counting as ``window``: ``mean_t sum_{s <= t} A[t, s] min(t - s, window)``.

    The mean over tokens, for each head, of the WAAD of Attention Illuminates LLM Reasoning (2025, arXiv 2510.13554);
    the curve over tokens, of the locally focused heads together, is in :func:`interp.focus_curves`.

    Args:
        ask: what is scored.
        window: distance that counts for all further keys; 10 is a third party's constant.
        queries: which rows (the response); all for None.

    Raises:
        BadInput: a window below 1.
        Unsupported: a stack that sees both ways.
    """
    return WindowedDistance(ask, whole_number(ask.name, "window", window, 1), queries)


def future_influence(ask: Ask, low: int = 10, high: int = 50, queries: Group = None) -> FutureInfluence:
    """How much a token is looked at ``low`` to ``high`` tokens later: the mean over s of ``mean_{t in T(s)} A[t, s]``.

    ``T(s)`` are the rows of ``queries`` with ``s + low <= t <= s + high``; tokens without any are left out. The mean
    over tokens, for each head, of the FAI of Attention Illuminates LLM Reasoning (2025, arXiv 2510.13554); the curve
    over tokens, of the globally focused heads together, is in :func:`interp.scores.positions.focus.focus_curves`.

    Args:
        ask: what is scored.
        low, high: nearest and furthest distance; 10 and 50 are a third party's constants.
        queries: which rows may look back (the response); all for None.

    Raises:
        BadInput: distances that are no range.
        Unsupported: a stack that sees both ways.
    """
    whole_number(ask.name, "low", low, 0)
    if whole_number(ask.name, "high", high, 0) < low:
        raise BadInput(f"{ask.name}: low={low}, high={high}; expected low <= high.")
    return FutureInfluence(ask, low, high, queries)
