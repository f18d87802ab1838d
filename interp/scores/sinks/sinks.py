"""Sinks: how much attention single tokens receive from the queries that can see them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.results import HeadScores
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer
from interp.scores.shape.distribution import lengths

EPS = 0.3  # Gu et al., 2025, with 64 tokens and 100 sequences
_PROFILE = 8


def received(
    pattern: Float[Tensor, "*maps query key"], visible: Bool[Tensor, "*#maps query key"]
) -> Float[Tensor, "*maps key"]:
    """``[..., key]`` alpha: what each key receives on average from the queries that can see it, itself among them.

    ``alpha_k = 1/(T-k+1) sum_{i>=k} A[i, k]`` on causal maps, counted from 1 (Gu et al., 2025). NaN for a key that
    nobody sees.

    Args:
        pattern: maps, 0 at padded rows.
        visible: which query sees which key; padded rows see none.

    Example:
        >>> uniform = torch.ones(2, 2).tril() / torch.tensor([[1.0], [2.0]])
        >>> received(uniform, torch.ones(2, 2).tril().bool())
        tensor([0.7500, 0.5000])
    """
    return pattern.sum(-2) / visible.sum(-2)


def first_columns(ask: Ask, n: int) -> Int[Tensor, "batch n"]:
    """``[batch or 1, n]`` columns of each prompt's first n keys; -1 where a prompt has fewer.

    Raises:
        BadInput: a stack that packs the patches of all images into one sequence.
    """
    mask = ask.key_mask
    if ask.stack.family.packed:
        raise BadInput(
            f"{ask.name}: stack {ask.stack.name!r} packs the patches of all images into one sequence, which has no "
            "first token of each image; choose another stack."
        )
    if mask is None:
        return torch.arange(n)[None]
    ordinal = torch.where(mask, mask.cumsum(-1) - 1, n)  # n: padding, and what comes later
    columns = torch.full((len(mask), n + 1), -1, dtype=torch.long, device=mask.device)
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    return columns.scatter(1, ordinal.clamp(max=n), places)[:, :n]


class Received(Reducer):
    """Alpha of each prompt's first n keys.

    Args:
        ask: what is scored.
        n: how many keys.
        own_row: count the query at the key itself.
    """

    def __init__(self, ask: Ask, n: int, *, own_row: bool) -> None:
        super().__init__(ask)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise BadInput(f"{ask.name}: first={n!r}; expected how many of a prompt's first tokens, from 1 on.")
        if not own_row and ask.stack.cross:
            raise BadInput(f"{ask.name}: own_row=False has no meaning on cross-attention, whose queries are no keys.")
        self.own_row = own_row
        self.columns = first_columns(ask, n)
        self.least, self.most = int(self.columns.min()), int(self.columns.max())
        self.sums: dict[int, Tensor] = {}
        self.numbers: dict[int, Tensor] = {}

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "batch key n"]:
        """One column per key in question."""
        keys = torch.arange(n_keys, device=self.columns.device)
        return (keys[None, :, None] == self.columns[:, None, :]).float()

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add what the block's rows give to each key that they see."""
        assert products is not None
        count = len(block.whole)
        columns = self.columns.to(block.rows.device).expand(count, -1)
        if 0 <= self.least == self.most < block.n_keys:  # one column, the same for every prompt
            seen = block.open_keys[..., self.most : self.most + 1]
        else:
            opened = block.open_keys.expand(count, -1, -1, -1)
            index = columns.clamp(0, block.n_keys - 1)[:, None, None].expand(*opened.shape[:3], -1)
            seen = opened.gather(-1, index)
            if not 0 <= self.least <= self.most < block.n_keys:
                seen = seen & ((columns >= 0) & (columns < block.n_keys))[:, None, None]
        if not block.all_real:
            seen = seen & block.real[:, None, :, None]
        if not self.own_row:
            seen = seen & (block.rows.unsqueeze(-1) != columns.unsqueeze(1))[:, None]
            products = torch.where(seen, products, torch.zeros_like(products))
        mass = products.sum(2, dtype=torch.float64)  # 0 wherever a key is not seen
        number = seen.sum(2)
        if block.layer in self.sums:
            mass, number = self.sums[block.layer] + mass, self.numbers[block.layer] + number
        self.sums[block.layer], self.numbers[block.layer] = mass, number

    def alpha(self, layer: int) -> Float[Tensor, "batch head n"]:
        """NaN where nobody sees the key."""
        return self.sums[layer] / self.numbers[layer]

    def measured(self) -> Measured:
        """A bin per key."""
        bins = [str(place) for place in range(self.columns.shape[1])]
        return Measured({layer: self.alpha(layer) for layer in self.sums}, bins=bins, metadata=self.about())

    def about(self) -> dict[str, Any]:
        """Alpha falls with the length of the prompts even where nothing is looked at: 18 % at 20 tokens, uniformly."""
        return {"tokens": lengths(self.ask), "own_row": self.own_row}


class FirstReceived(Received):
    """Alpha of one key, or whether it exceeds a threshold."""

    def __init__(self, ask: Ask, *, own_row: bool, eps: float | None = None) -> None:
        super().__init__(ask, 1, own_row=own_row)
        self.eps = eps

    def measured(self) -> Measured:
        """One number per head."""
        made = {layer: self.alpha(layer).squeeze(-1) for layer in self.sums}
        if self.eps is None:
            return Measured(made, metadata=self.about())
        said = {layer: torch.where(x.isnan(), x, (x > self.eps).double()) for layer, x in made.items()}
        return Measured(said, metadata={**self.about(), "eps": self.eps})


def sink(ask: Ask, own_row: bool = True) -> FirstReceived:
    """What a prompt's first token receives on average from the queries that can see it (Gu et al., 2025).

    ``alpha_1 = 1/T sum_i A[i, 1]``: 1 where all attention lies there, ``(1 + 1/2 + ... + 1/T) / T`` for uniform causal
    rows.

    Args:
        ask: what is scored.
        own_row: count the first token's own row, which gives 1 to it whatever the head does (a bias of 1/T).
    """
    return FirstReceived(ask, own_row=own_row)


def sink_head(ask: Ask, eps: float = EPS, own_row: bool = True) -> FirstReceived:
    """1 where the sink score of a head exceeds eps on a prompt, else 0; the mean over heads is the paper's Sink_1^eps.

    Args:
        ask: what is scored.
        eps: the threshold; it must lie above what uniform rows give at the prompts' length.
        own_row: as in :func:`sink`.

    Raises:
        BadInput: eps outside [0, 1).
    """
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise BadInput(f"{ask.name}: eps={eps!r}; expected a threshold of attention from 0 on and below 1.")
    return FirstReceived(ask, own_row=own_row, eps=float(eps))


def sink_profile(ask: Ask, first: int = _PROFILE, own_row: bool = True) -> Received:
    """Alpha of each of a prompt's first tokens; NaN where a prompt has fewer.

    Args:
        ask: what is scored.
        first: how many tokens.
        own_row: as in :func:`sink`.
    """
    return Received(ask, first, own_row=own_row)


def sink_rate(scores: HeadScores, eps: float = EPS) -> float | Float[Any, " pos"]:
    """The share of heads and prompts whose alpha exceeds eps: ``Sink_k^eps``, for each key of a profile.

    ``mean_{l,h} 1[alpha_k > eps]``, averaged over prompts (Gu et al., 2025: eps 0.3, 64 tokens, 100 sequences).

    Args:
        scores: the score ``"sink"`` or ``"sink_profile"``.
        eps: the threshold.

    Example:
        >>> import numpy as np
        >>> sink_rate(HeadScores.from_array(np.array([[0.9, 0.1], [0.4, 0.2]]), name="sink"))
        0.5
    """
    alpha = torch.as_tensor(scores.samples.copy())
    known = ~alpha.isnan()
    over = (alpha > eps) & known
    if scores.positions is None:
        return float(over.sum() / known.sum())
    return (over.sum((0, 1, 2)) / known.sum((0, 1, 2))).numpy()
