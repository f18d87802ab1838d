"""How far back a head looks along a text, and how much it gives the first token."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.groups import Group
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.positions.places import Places, QueryMean, later_mass, whole_number


def distances(pattern: Float[Tensor, "*batch query key"]) -> Float[Tensor, "*batch query"]:
    """``[..., query]`` ``sum_j A[i, j] |i - j|`` of whole maps without padding.

    Example:
        >>> distances(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
        tensor([0.0000, 0.2500])
    """
    places = torch.arange(pattern.shape[-1], dtype=torch.float32, device=pattern.device)
    return (pattern.float() * (places[:, None] - places).abs()).sum(-1)


class MeanDistance(QueryMean):
    """``sum_j A[i, j] |i - j|`` as one product, ``sum_j A[i, j] (i - j)``, and twice what lies ahead.

    Places are counted from the block's first row: counted from the prompt's, a head that looks at its neighbours in a
    long text would be the small difference of two large sums.
    """

    def __init__(self, ask: Ask, queries: Group) -> None:
        super().__init__(ask, queries)
        self.places = Places.of(ask)

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "#batch key 2"]:
        """A column of ones, and each key's place from the first row's."""
        first = self.places.at(rows[:, :1])
        if self.places.place is None:
            shared = bool((rows == rows[:1]).all())
            place = torch.arange(n_keys, device=rows.device)[None] - (first[:1] if shared else first)
        else:
            place = self.places.place[:, :n_keys] - first
        return torch.stack([torch.ones_like(place), place], dim=-1).float()

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The mean distance of each row."""
        assert products is not None
        own = self.places.at(block.rows) - self.places.at(block.rows[:, :1])
        back = own.to(products.dtype)[:, None] * products[..., 0] - products[..., 1]
        ahead = later_mass(block, self.places, by_distance=True)
        return back if ahead is None else back + 2 * ahead

    def about(self) -> dict[str, Any]:
        """The lengths that it was measured at: distances are compared at equal lengths only."""
        return {"tokens": self.ask.batch.lengths}


class FirstMass(QueryMean):
    """The mean over rows of the mass on each prompt's first tokens."""

    def __init__(self, ask: Ask, tokens: int, queries: Group) -> None:
        super().__init__(ask, queries)
        self.tokens = tokens

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor:
        """1 at the first tokens."""
        mask = self.ask.key_mask
        device = self.ask.batch.mask.device
        real = torch.ones(1, n_keys, dtype=torch.bool, device=device) if mask is None else mask[:, :n_keys]
        return (real & (real.cumsum(-1) <= self.tokens)).float().unsqueeze(-1)

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The mass of each row."""
        assert products is not None
        return products[..., 0]


def mean_distance(ask: Ask, queries: Group = None) -> MeanDistance:
    """How far a head looks, in tokens: ``d = mean_i sum_j A[i, j] |i - j|``.

    On a causal map this is the span ``1 / |R| sum_{t in R} sum_{s <= t} A[t, s] (t - s)`` of Attention Illuminates LLM
    Reasoning (2025, arXiv 2510.13554), with the response R as ``queries``. It grows with the length of the text:
    compare heads on the same prompts. A head that rests on the first token looks far: see ``exclude_sinks``.

    Args:
        ask: what is scored.
        queries: which rows (a span, a slice ...); all for None.

    Raises:
        Unsupported: cross-attention, or patches of an image (see ``mean_distance_2d``).
    """
    return MeanDistance(ask, queries)


def first_mass(ask: Ask, tokens: int = 1, queries: Group = None) -> FirstMass:
    """Mass on each prompt's first token, ``mean_i A[i, 0]``; in an image the first position (CLS where there is one).

    The first row of a causal map sees nothing else and counts: a uniform causal head over T tokens has ``H_T / T``,
    H_T being the harmonic number (the indicator "Sink" of Deconstructing Attention, 2025).

    Args:
        ask: what is scored.
        tokens: how many first tokens.
        queries: which rows; all for None (``slice(1, None)`` leaves the first out).

    Raises:
        BadInput: tokens below 1.
    """
    return FirstMass(ask, whole_number(ask.name, "tokens", tokens, 1), queries)
