"""Times of actions run in turn, and medians with their intervals."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any, NamedTuple

import torch

Action = Callable[..., object]


class Interval(NamedTuple):
    """A median and the ends of its confidence interval."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of ``values`` with its distribution-free interval, whose ends are two of the values.

    The interval from the k-th smallest to the k-th largest of n values covers the median with probability
    1 - 2 P(X < k) for X ~ Binomial(n, 1/2); k is the largest that still gives ``confidence`` (n = 15: k = 4, 96.5 %).
    With fewer than 6 values no k does, and the interval is the whole range.

    Example:
        >>> median_interval([float(i) for i in range(1, 16)])
        Interval(median=8.0, low=4.0, high=12.0)
    """
    ordered = sorted(values)
    n = len(ordered)
    k, outside = 0, 0.0
    while k < n // 2 and outside + 2 * comb(n, k) / 2**n <= 1 - confidence:
        outside += 2 * comb(n, k) / 2**n
        k += 1
    k = max(k, 1)
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k])


def pin(threads: int) -> None:
    """Hold this process to ``threads`` threads on as many fixed cores (where the system can fix them)."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def time_rounds(
    actions: Mapping[str, Action],
    *,
    rounds: int = 15,
    warmups: int = 2,
    shortest: float = 0.1,
    prepare: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each action in each round; in every round all run once, one after the other, starting with another.

    Args:
        actions: name -> what to time.
        rounds: how many.
        warmups: rounds before them, not counted.
        shortest: an action that is quicker is called several times per round, and its time is the mean.
        prepare: name -> what makes the action's argument, outside the clock; such an action is called once per round.
    """
    prepare = prepare or {}
    calls = dict.fromkeys(actions, 1)
    for index in range(warmups):
        for name, action in actions.items():
            seconds = _seconds(action, 1, prepare.get(name))
            if index == warmups - 1 and name not in prepare:
                calls[name] = max(1, round(shortest / max(seconds, 1e-6)))
    names = list(actions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(_seconds(actions[name], calls[name], prepare.get(name)))
    return times


def ratio(times: Mapping[str, Sequence[float]], above: str, below: str) -> Interval:
    """The median over rounds of one action's time by another's, with its 95 % interval."""
    return median_interval([a / b for a, b in zip(times[above], times[below], strict=True)])


def _seconds(action: Action, calls: int, prepare: Callable[[], Any] | None) -> float:
    arguments = () if prepare is None else (prepare(),)
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for _ in range(calls):
            action(*arguments)
        return (time.perf_counter() - begin) / calls
    finally:
        gc.enable()
