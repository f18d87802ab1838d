"""The largest entries of rows without sorting them: thresholds found by bisection, exact also where entries are equal.

The bits of non-negative floats are in the order of the floats, so that halving an interval of bit patterns ends at a
float after 31 steps at most, and mostly much sooner. Rows whose threshold is found are left out of the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FEW = 0.6  # when no more than this share of the rows is left, the others are taken out of the way
_GROUP = 16  # entries whose maximum is looked at first
_MANY = 4  # groups there must be for each entry that is wanted, for that to be worth it
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def top_mass_of(values: Float[Tensor, "*rows key"], n: Int[Tensor, "*#rows"]) -> Float[Tensor, "*rows"]:
    """``[..., row]`` sum of each row's n largest entries.

    With t from the next entry on and not above the n-th largest: the sum of what exceeds t, and t for each of the n
    that are missing to it, which are equal to t.

    Args:
        values: non-negative.
        n: how many of each row, 0 to the number of its entries.

    Example:
        >>> top_mass_of(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), torch.tensor([2]))
        tensor([0.7000])
    """
    threshold = threshold_of(values, n)
    over = torch.gt(values, threshold.unsqueeze(-1), out=torch.empty_like(values))
    missing = n - over.sum(-1)
    return over.mul_(values).sum(-1) + missing * threshold


def threshold_of(values: Float[Tensor, "*rows key"], n: Int[Tensor, "*#rows"]) -> Float[Tensor, "*rows"]:
    """``[..., row]`` a number that at most n entries exceed and at least n reach.

    It is the n-th largest entry where that equals the next one; else it lies from the next one on and below the n-th.

    Args:
        values: non-negative.
        n: how many of each row, 0 to the number of its entries.
    """
    flat, wanted = _flat(values, n)
    found = flat.amax(-1)
    mean = flat.sum(-1) / wanted.clamp(min=1) * (1 + 1e-5)  # fewer than n entries exceed a n-th of the sum
    start = torch.minimum(found, mean).where(wanted > 0, found)
    left = _by_groups(flat, wanted, start, found)
    if len(left):
        every = len(left) == len(flat)
        rows, most = (flat, wanted) if every else (flat[left], wanted[left])
        found[left] = _smallest(rows, start[left], _count, most)
    return found.view(values.shape[:-1])


def keys_holding(values: Float[Tensor, "*rows key"], share: Float[Tensor, "*#rows"]) -> Int[Tensor, "*rows"]:
    """``[..., row]`` the smallest number of entries whose sum reaches ``share``.

    Where all of them do not reach it, the number of entries above 0.

    Args:
        values: non-negative.
        share: what the largest entries must sum to, above 0.

    Example:
        >>> keys_holding(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), torch.tensor([0.6]))
        tensor([2])
    """
    flat, wanted = _flat(values, share)
    total = flat.sum(-1)
    wanted = torch.minimum(wanted, total)
    below = torch.nextafter(wanted, torch.zeros_like(wanted))  # "less than" as "at most"
    unneeded = ((total - wanted) / flat.shape[1] * (1 - 1e-5)).contiguous()  # what is smaller can be done without
    low = torch.where(unneeded > 0, unneeded.view(_BITS[flat.dtype]), -1)
    # the smallest threshold whose excess is short of the share is the entry that completes it
    threshold = _smallest(flat, flat.amax(-1), _sum, below, low).unsqueeze(-1)
    over, equal = flat > threshold, (flat == threshold).sum(-1)
    short = (wanted - (flat * over).sum(-1)) / threshold.squeeze(-1).clamp(min=torch.finfo(flat.dtype).tiny)
    more = torch.ceil(short - 1e-6).clamp(min=1)  # of the entries equal to the threshold
    return (over.sum(-1) + torch.minimum(more, equal.clamp(min=1).to(more.dtype)).long()).view(values.shape[:-1])


def largest(values: Float[Tensor, "*rows key"], n: Int[Tensor, "*#rows"]) -> Bool[Tensor, "*rows key"]:
    """``[..., row, key]`` True at each row's n largest entries; among equal ones at the first.

    Args:
        values: non-negative.
        n: how many of each row, 0 to the number of its entries.

    Example:
        >>> largest(torch.tensor([[0.3, 0.1, 0.3, 0.3]]), torch.tensor([2]))
        tensor([[ True, False,  True, False]])
    """
    threshold = threshold_of(values, n).unsqueeze(-1)
    over = values > threshold
    missing = n - over.sum(-1)
    if not bool((missing > 0).any()):
        return over
    equal = values == threshold
    return over | (equal & (equal.cumsum(-1) <= missing.unsqueeze(-1)))


def _flat(values: Tensor, per_row: Tensor) -> tuple[Tensor, Tensor]:
    """Rows one below the other, and one number for each."""
    spread = per_row.to(device=values.device, dtype=values.dtype).expand(values.shape[:-1])
    return values.reshape(-1, values.shape[-1]), spread.reshape(-1)


def _count(rows: Tensor, over: Tensor) -> Tensor:
    """How many entries exceed the threshold: as floats, which are exact up to 2**24 and summed faster."""
    return over.sum(-1)


def _sum(rows: Tensor, over: Tensor) -> Tensor:
    """What the entries that exceed the threshold sum to."""
    return over.mul_(rows).sum(-1)


def _by_groups(rows: Tensor, wanted: Tensor, start: Tensor, found: Tensor) -> Tensor:
    """Write into ``found`` the thresholds of most rows, by looking at few of their entries; ``[k]`` the rows left.

    The n largest entries lie in the n groups with the largest maxima.
    """
    n_groups, every = rows.shape[1] // _GROUP, torch.arange(len(rows), device=rows.device)
    n = int(wanted.max()) if len(rows) else 0
    if n < 1 or n_groups < _MANY * n:
        return every
    grouped = rows[:, : n_groups * _GROUP].view(len(rows), _GROUP, n_groups)
    maxima = grouped.amax(1)
    least = _smallest(maxima, start, _count, wanted)
    chosen = maxima > least.unsqueeze(-1)
    plain = (chosen.sum(-1) == n) & (wanted == n)  # else two groups have equal maxima
    place = every[plain]
    columns = chosen[place].nonzero()[:, 1].view(len(place), 1, n)
    grouped = grouped if len(place) == len(rows) else grouped[place]
    inside = grouped.gather(2, columns.expand(-1, _GROUP, -1)).flatten(1)
    candidates = torch.cat([inside, rows[place, n_groups * _GROUP :]], dim=1)
    low = least[place].view(_BITS[rows.dtype]) - 1  # entries elsewhere do not exceed ``least``
    found[place] = _smallest(candidates, start[place], _count, wanted[place], low)
    return every[~plain]


def _smallest(
    rows: Tensor,
    start: Tensor,
    excess: Callable[[Tensor, Tensor], Tensor],
    most: Tensor,
    low: Tensor | None = None,
) -> Tensor:
    """``[row]`` the smallest float at which ``excess`` is at most ``most``, or one with no entry in between.

    Args:
        rows: ``[row, key]`` non-negative.
        start: ``[row]`` floats at which it is at most ``most``.
        excess: ``(rows, which exceed the threshold) -> [row]``; it may write into the second.
        most: ``[row]``.
        low: ``[row]`` bit patterns at which it is more than ``most``; that before 0 by default.
    """
    integers = _BITS[rows.dtype]
    found, place = start.clone(), torch.arange(len(rows), device=rows.device)
    high = start.contiguous().view(integers).clone()
    low = torch.full_like(high, -1) if low is None else low
    above, below = torch.full_like(start, torch.inf), torch.zeros_like(start)  # excess at low and high
    buffer = torch.empty_like(rows)
    while len(place):
        middle = low + torch.div(high - low + 1, 2, rounding_mode="floor")  # of a row that is done: high
        over = torch.gt(rows, middle.view(rows.dtype).unsqueeze(-1), out=buffer[: len(rows)])
        now = excess(rows, over)
        enough = now <= most
        high, below = torch.where(enough, middle, high), torch.where(enough, now, below)
        low, above = torch.where(enough, low, middle), torch.where(enough, above, now)
        done = (high - low <= 1) | (below == most)
        if excess is _sum:  # what lies between weighs less than two entries: it is one
            done |= above - below < 1.99 * low.clamp(min=0).view(rows.dtype)
        found[place] = high.view(rows.dtype)
        if len(place) - int(done.sum()) <= _FEW * len(place):
            left = (~done).nonzero().squeeze(-1)
            rows, place, most = rows[left], place[left], most[left]
            low, high, above, below = low[left], high[left], above[left], below[left]
    return found
