"""Reference frames: how alike the rows of a map are, and which tokens most rows look at."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer
from interp.scores.shape.distribution import column_sums, distributions, lengths, mass_of, summed
from interp.scores.shape.selection import threshold_of

_PERCENTILE, _SHARE = 0.9, 0.4


def row_distance_of(pattern: Float[Tensor, "*maps query key"]) -> Float[Tensor, "*maps"]:
    """``[...]`` root mean square Hellinger distance between two different rows of each map, in [0, 1].

    ``H^2(p, q) = 1 - sum_j sqrt(p_j q_j)``; its mean over pairs follows from ``sum_i sqrt(p_i)`` alone. 0 where all
    rows are the same, 1 where no two share a key; NaN below two rows.

    Example:
        >>> row_distance_of(torch.stack([torch.eye(3), torch.eye(3)[[0, 0, 0]]]))
        tensor([1., 0.])
    """
    mass = pattern.sum(-1, keepdim=True)
    roots = (pattern / mass.clamp(min=torch.finfo(pattern.dtype).tiny)).sqrt()
    return _distance(roots.sum(-2, dtype=torch.float64), (mass.squeeze(-1) > 0).sum(-1)).to(pattern.dtype)


def _distance(roots: Tensor, rows: Tensor) -> Tensor:
    """From the sum over rows of the roots of their entries; each row by itself has the length 1."""
    alike = (roots.square().sum(-1) - rows) / (rows * (rows - 1))
    return torch.where(rows > 1, (1 - alike).clamp(0, 1).sqrt(), torch.nan)


class RowDistance(Reducer):
    """Sums over rows of the roots of their entries."""

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        self.roots: Tensor | None = None
        self.rows_seen: Tensor | None = None
        self.found: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's rows."""
        roots = column_sums(distributions(block).sqrt())
        number = (block.real[:, None] & (mass_of(block) > 0)).sum(-1)
        self.roots = summed(self.roots, roots)
        self.rows_seen = number if self.rows_seen is None else self.rows_seen + number

    def finish(self, layer: int, seen: object) -> None:
        """The layer's number."""
        assert self.roots is not None and self.rows_seen is not None
        self.found[layer] = _distance(self.roots, self.rows_seen)
        self.roots = self.rows_seen = None

    def measured(self) -> Measured:
        """By layer."""
        return Measured(self.found, metadata={"tokens": lengths(self.ask)})


def row_distance(ask: Ask) -> RowDistance:
    """How far apart a head's rows are: see :func:`row_distance_of`. Low: all queries share one frame of reference."""
    return RowDistance(ask)


def above_percentile(
    pattern: Float[Tensor, "*rows key"], n_open: Tensor, percentile: float
) -> Bool[Tensor, "*rows key"]:
    """``[..., row, key]`` True at entries above the given percentile of the entries that the row sees.

    The percentile is the entry at place ``floor(percentile (n - 1))`` in rising order: none of a uniform row is above.
    """
    from_top = n_open - torch.floor(percentile * (n_open - 1) + 1e-6).long()
    least = threshold_of(pattern, from_top.clamp(min=0)).unsqueeze(-1)
    # a threshold between the entry and the next lies below the entry, which is not above itself
    at = torch.where(pattern > least, pattern, torch.full_like(pattern, torch.inf)).amin(-1, keepdim=True)
    exact = ((pattern > least).sum(-1, keepdim=True) < from_top.unsqueeze(-1)) | torch.isinf(at)
    return pattern > torch.where(exact, least, at)


class HubCount(Reducer):
    """How many tokens are among the largest entries of enough rows."""

    def __init__(self, ask: Ask, percentile: float, share: float) -> None:
        super().__init__(ask)
        for name, given in (("percentile", percentile), ("share", share)):
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1:
                raise BadInput(f"{ask.name}: {name}={given!r}; expected a number above 0 and below 1.")
        self.percentile, self.share = percentile, share
        self.high: Tensor | None = None
        self.seen_by: Tensor | None = None
        self.found: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Count, for each key, the other queries that see it and those that look at it most."""
        own = torch.arange(block.n_keys, device=block.rows.device) == block.rows[:, None, :, None]
        others = block.open_keys & block.real[:, None, :, None]
        others = others if self.ask.stack.cross else others & ~own
        high = above_percentile(distributions(block), block.n_open, self.percentile) & others
        self.high = summed(self.high, high.sum(2))
        self.seen_by = summed(self.seen_by, others.expand_as(high).sum(2))

    def finish(self, layer: int, seen: object) -> None:
        """The layer's number."""
        assert self.high is not None and self.seen_by is not None
        hubs = (self.seen_by > 0) & (self.high >= self.share * self.seen_by)
        counted = (self.seen_by > 0).any(-1)
        number = hubs.sum(-1).double()
        self.found[layer] = torch.where(counted, number, torch.nan)
        self.high = self.seen_by = None

    def measured(self) -> Measured:
        """By layer."""
        return Measured(self.found, metadata={"tokens": lengths(self.ask)})


def hub_count(ask: Ask, percentile: float = _PERCENTILE, share: float = _SHARE) -> HubCount:
    """How many tokens are hubs: above a row's 90th percentile for at least 40 % of the other queries that see them.

    One: a centralised frame of reference; several: a distributed one. Both constants are a third party's.

    Args:
        ask: what is scored.
        percentile: of the entries that a row sees, as a share.
        share: of the queries after (or around) the token that see it.

    Raises:
        BadInput: numbers outside (0, 1).
    """
    return HubCount(ask, percentile, share)
