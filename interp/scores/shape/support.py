"""How many keys a row really looks at: effective support, top-N mass, keys that hold a share of the mass."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.shape.distribution import DistributionMean, Queries, distributions
from interp.scores.shape.entropy import row_entropy
from interp.scores.shape.selection import keys_holding, top_mass_of

_TOP = 5  # keys; attention inside a piece of context has been ranked by its five largest entries


def effective_support_of(pattern: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows"]:
    """``[..., row]`` ``exp(H)``: how many keys a uniform row of the same entropy would have; NaN without mass.

    Example:
        >>> effective_support_of(torch.tensor([[0.25, 0.25, 0.25, 0.25]])).round()
        tensor([4.])
    """
    return row_entropy(pattern).exp()


def participation_of(pattern: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows"]:
    """``[..., row]`` ``1 / sum p^2`` of each row rescaled to sum 1, in [1, n], at most ``exp(H)``; NaN without mass.

    Example:
        >>> participation_of(torch.tensor([[0.5, 0.5, 0.0]])).round()
        tensor([2.])
    """
    return (pattern.sum(-1) / torch.linalg.vector_norm(pattern, dim=-1)).square()


class Support(DistributionMean):
    """The mean effective support of rows, in keys or as a share of those seen.

    Args:
        ask: what is scored.
        entropic: ``exp(H)``, else ``1 / sum p^2``.
        share: divide by the number of visible keys; rows with one key are left out.
        queries: rows that count, or classes of rows.
    """

    def __init__(self, ask: Ask, *, entropic: bool, share: bool, queries: Queries) -> None:
        super().__init__(ask, queries, fewest=2 if share else 1)
        self.of, self.share = effective_support_of if entropic else participation_of, share

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """Keys, or their share."""
        found = self.of(block.pattern).clamp(min=1)
        return found / block.n_open.clamp(min=1) if self.share else found


def effective_support(ask: Ask, share: bool = False, queries: Queries = None) -> Support:
    """The mean over rows of ``exp(H)``, the number of keys that a row spreads over.

    Args:
        ask: what is scored.
        share: divide by the number of visible keys (rows with one key are left out): heads above 0.06 are said to be
            beyond what attention can keep apart, a rule of thumb from a third party's summary.
        queries: the rows that count, or classes of rows.
    """
    return Support(ask, entropic=True, share=share, queries=queries)


def participation_ratio(ask: Ask, share: bool = False, queries: Queries = None) -> Support:
    """The mean over rows of ``1 / sum p^2``, the number of keys that a row spreads over; arguments as above."""
    return Support(ask, entropic=False, share=share, queries=queries)


def wanted_keys(n: int | float, n_open: Int[Tensor, ...]) -> Int[Tensor, ...]:
    """How many keys ``n`` means for rows that see ``n_open``: n itself, or the share n of them, rounded up."""
    return torch.full_like(n_open, n) if isinstance(n, int) else torch.ceil(n * n_open - 1e-6).long().clamp(min=1)


def check_n(ask: Ask, n: Any) -> None:
    """Refuse what is neither a number of keys nor a share of them.

    Raises:
        BadInput: with what is expected.
    """
    whole = isinstance(n, int) and not isinstance(n, bool) and n >= 1
    if not whole and not (isinstance(n, float) and 0 < n < 1):
        raise BadInput(f"{ask.name}: n={n!r}; expected a number of keys from 1 on, or a share of the visible keys.")


class TopMass(DistributionMean):
    """The mean mass on the n largest entries, over rows that see more than n keys."""

    def __init__(self, ask: Ask, n: int | float, queries: Queries) -> None:
        check_n(ask, n)
        super().__init__(ask, queries, fewest=n + 1 if isinstance(n, int) else 2)
        self.n = n

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """Mass by a threshold, without sorting."""
        n_open = block.n_open
        return top_mass_of(block.pattern, torch.minimum(wanted_keys(self.n, n_open), n_open)).clamp(max=1)


def top_mass(ask: Ask, n: int | float = _TOP, queries: Queries = None) -> TopMass:
    """The mean over rows of the mass on the n keys with most of it.

    Args:
        ask: what is scored.
        n: a number of keys, or a share of the keys that a row sees (0.06: the rule of thumb for what stays apart).
            Rows that see no more than n keys are left out, whose mass is 1 whatever the head does.
        queries: the rows that count, or classes of rows.

    Raises:
        BadInput: n is neither.
    """
    return TopMass(ask, n, queries)


class KeysForMass(DistributionMean):
    """The mean number of keys that hold a share of the row's mass."""

    def __init__(self, ask: Ask, mass: float, queries: Queries) -> None:
        if isinstance(mass, bool) or not isinstance(mass, int | float) or not (0 < mass < 1 and math.isfinite(mass)):
            raise BadInput(f"{ask.name}: mass={mass!r}; expected a share of a row's mass above 0 and below 1.")
        super().__init__(ask, queries)
        self.mass = float(mass)

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """Keys by a threshold, without sorting."""
        pattern = distributions(block)
        return keys_holding(pattern, torch.tensor(self.mass)).to(pattern.dtype)


def keys_for_mass(ask: Ask, mass: float = 0.9, queries: Queries = None) -> KeysForMass:
    """The mean over rows of the smallest number of keys that together hold the share ``mass`` of the row.

    Args:
        ask: what is scored.
        mass: the share, above 0 and below 1.
        queries: the rows that count, or classes of rows.

    Raises:
        BadInput: another share.
    """
    return KeysForMass(ask, mass, queries)
