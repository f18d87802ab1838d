"""Random numbers that depend on where they are used and on nothing else.

Noise is a function of (seed, edit, layer, head, absolute position, prompt): a counter goes through a 64-bit mixing
function, so that a cached step of a generation draws the numbers that the uncached run draws, in any batch order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # logical shift of a signed integer


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function (Steele, Lea and Flood, 2014), on int64 tensors with wrap-around."""
    x = x + _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def counter_normal(parts: list[Tensor]) -> Tensor:
    """Standard normal float64 numbers, one for each entry of the broadcast of ``parts``.

    Args:
        parts: int64 tensors that broadcast together; every part enters the hash in its order.

    Example:
        >>> a = counter_normal([torch.tensor(0), torch.arange(4)])
        >>> bool(torch.equal(a[2], counter_normal([torch.tensor(0), torch.tensor(2)])))
        True
    """
    state = torch.zeros((), dtype=torch.int64, device=parts[0].device)
    for part in parts:
        state = _mix(state ^ part)
    first = (_shift(_mix(state ^ 1), 11).double() + 0.5) / 2**53
    second = (_shift(_mix(state ^ 2), 11).double() + 0.5) / 2**53
    return torch.sqrt(-2.0 * torch.log(first)) * torch.cos(2.0 * math.pi * second)
