"""Mass by distance from query to key: the offset profile, local mass, self mass."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.positions.places import Places, QueryMean, later_mass, whole_number

Rows = Literal["all", "having"]


def offset_masses(pattern: Float[Tensor, "*batch query key"], upto: int) -> Float[Tensor, "*batch query bin"]:
    """``[..., query, bin]`` mass at distance ``|query - key|`` 0 to ``upto``, then beyond: a row's own profile.

    Args:
        pattern: whole maps without padding.
        upto: the largest distance with a bin of its own.

    Example:
        >>> offset_masses(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]), 1)[2]
        tensor([0.2500, 0.2500, 0.5000])
    """
    places = torch.arange(pattern.shape[-1], device=pattern.device)
    distance = (places[:, None] - places).abs().clamp(max=upto + 1)
    kinds = torch.nn.functional.one_hot(distance, upto + 2).to(torch.float32)
    return torch.einsum("...qk,qkd->...qd", pattern.float(), kinds)


class OffsetProfile(QueryMean):
    """Means over rows of the mass at each distance; only the diagonals that are asked for are read.

    Args:
        ask: what is scored.
        upto: the largest distance with a bin of its own.
        signed: keys after the query have bins of their own.
        rows: ``"all"``, or for each bin the rows that have a key there.
        queries: which rows.
    """

    def __init__(self, ask: Ask, upto: int, *, signed: bool, rows: Rows, queries: Group) -> None:
        back = [*map(str, range(upto + 1)), "beyond"]
        super().__init__(ask, queries, ("after", *map(str, range(-upto, 0)), *back) if signed else tuple(back))
        self.upto, self.signed, self.having = upto, signed, rows == "having"
        self.places = Places.of(ask)
        self.ahead = 0 if ask.stack.causal else upto
        self.offsets = torch.arange(-self.ahead, upto + 1)

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor:
        """A column of ones, for what a row sums to."""
        return torch.ones(1, n_keys, 1, device=self.ask.batch.mask.device)

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row bin"]:
        """The masses of each row."""
        assert products is not None
        entries, _ = self.places.entries(block, self.offsets)
        back, ahead = entries[..., self.ahead :], entries[..., : self.ahead]
        later = later_mass(block, self.places)
        if later is None:
            later, ahead = torch.zeros_like(products[..., 0]), torch.zeros_like(back[..., 1:])
        if self.signed:
            after = (later - ahead.sum(-1)).clamp(min=0)
            beyond = (products[..., 0] - later - back.sum(-1)).clamp(min=0)
            return torch.cat([after.unsqueeze(-1), ahead, back, beyond.unsqueeze(-1)], dim=-1)
        both = torch.cat([back[..., :1], back[..., 1:] + ahead.flip(-1)], dim=-1)
        beyond = (products[..., 0] - both.sum(-1)).clamp(min=0)
        return torch.cat([both, beyond.unsqueeze(-1)], dim=-1)

    def counted(self, block: Block) -> Tensor:
        """The rows that count, for each bin those that have a key there where that was asked."""
        real = super().counted(block)
        if not self.having:
            return real
        real = real[:, None] if real.ndim == 2 else real  # noqa: PLR2004 - the same for every head
        return real.unsqueeze(-1) & self._there(block)[:, None]

    def _there(self, block: Block) -> Bool[Tensor, "batch row bin"]:
        there = self.places.keys(block, self.offsets)[1]
        back, ahead = there[..., self.ahead :], there[..., : self.ahead]
        own = self.places.at(block.rows)
        first, last = self.places.ends(block)
        beyond = (own - first > self.upto).unsqueeze(-1)
        after = (last - own > self.upto).unsqueeze(-1)
        if self.ask.stack.causal:
            ahead, after = torch.zeros_like(back[..., 1:]), torch.zeros_like(after)
        if self.signed:
            return torch.cat([after, ahead, back, beyond], dim=-1)
        return torch.cat([back[..., :1], back[..., 1:] | ahead.flip(-1), beyond | after], dim=-1)

    def about(self) -> dict[str, object]:
        """The lengths that the profile was measured at."""
        return {"tokens": self.ask.batch.lengths}


class NearMass(QueryMean):
    """The mean over rows of the mass at distances below ``window``, on either side."""

    def __init__(self, ask: Ask, window: int, queries: Group) -> None:
        super().__init__(ask, queries)
        self.places = Places.of(ask)
        self.offsets = torch.arange(0 if ask.stack.causal else 1 - window, window)

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The near entries of each row."""
        if len(self.offsets) == 1:  # a row's own column, which every block has
            own = block.rows[:, None, :, None].expand(-1, block.whole.shape[1], -1, 1)
            return block.pattern.gather(-1, own).squeeze(-1)
        return self.places.entries(block, self.offsets)[0].sum(-1)


def offset_profile(
    ask: Ask, upto: int = 16, signed: bool = False, rows: str = "all", queries: Group = None
) -> OffsetProfile:
    """Mass at distance 0, 1, ..., ``upto`` from query to key, and beyond: ``S_d = mean_i sum_{|i - j| = d} A[i, j]``.

    With ``rows="all"`` the bins sum to what the rows do (1 without sink logits). With ``rows="having"`` each bin is
    the mean over the rows that have a key at that distance, so that bin n is the indicator ``LocFoc_n = mean_{i >= n}
    A[i, i - n]`` of Deconstructing Attention (2025) and bin 1 of a causal map is the previous-token score.

    Args:
        ask: what is scored.
        upto: the largest distance with a bin of its own.
        signed: keys after the query have bins -1, -2, ... of their own, and "after" beyond those.
        rows: ``"all"`` or ``"having"``.
        queries: which rows (a span, a slice ...); all for None.

    Raises:
        BadInput: another value of an option.
        Unsupported: cross-attention, or patches of an image.
    """
    whole_number(ask.name, "upto", upto, 0)
    if rows not in ("all", "having"):
        raise BadInput(f"{ask.name}: rows={rows!r}; expected 'all' or 'having'.")
    return OffsetProfile(ask, upto, signed=bool(signed), rows=rows, queries=queries)


def local_mass(ask: Ask, window: int = 10, queries: Group = None) -> NearMass:
    """Mass on the ``window`` nearest tokens, the query's own among them: ``mean_i sum_{|i - j| < window} A[i, j]``.

    Args:
        ask: what is scored.
        window: how many tokens back (and forth, where a query sees later keys), its own counted; 10 is our default.
        queries: which rows; all for None.

    Raises:
        BadInput: a window below 1.
        Unsupported: cross-attention, or patches of an image.
    """
    return NearMass(ask, whole_number(ask.name, "window", window, 1), queries)


def self_mass(ask: Ask, queries: Group = None) -> NearMass:
    """Mass of a token on itself, ``mean_i A[i, i]``; the first row of a causal map sees nothing else and counts.

    Args:
        ask: what is scored.
        queries: which rows; all for None (``slice(1, None)`` leaves the first out).

    Raises:
        Unsupported: cross-attention, or patches of an image (there it is bin 0 of ``hop_profile``).
    """
    return NearMass(ask, 1, queries)
