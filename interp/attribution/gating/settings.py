"""How gates are fitted: the numbers of the paper and of its code, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from interp.errors import BadInput
from interp.names import lookup, unknown

Regulariser = Literal["mean", "sum"]
Checkpointing = Literal["auto"] | bool
Precision = Literal["model", "bfloat16"]


@dataclass(frozen=True)
class Rates:
    """Learning rates ``(first, last)`` of the fit without and of those with a regulariser, linear in the update."""

    warm: tuple[float, float]
    signed: tuple[float, float]


SCHEDULES: Mapping[str, Rates] = MappingProxyType(
    {
        "paper": Rates(warm=(0.1, 0.01), signed=(0.5, 0.1)),
        "code": Rates(warm=(1.0, 1.0), signed=(1.0, 1.0)),
    }
)


def rate_at(ends: tuple[float, float], update: int, updates: int) -> float:
    """The learning rate of an update: ``first + (last - first) update / updates``, counted from 0.

    Example:
        >>> rate_at((0.5, 0.1), 250, 500)
        0.3
    """
    return ends[0] + (ends[1] - ends[0]) * update / updates


@dataclass(frozen=True)
class Settings:
    """What a fit is made with.

    Attributes:
        updates: of each fit.
        batch_size: prompts in one update.
        lam: weight of the regulariser, positive.
        schedule: a name of ``SCHEDULES``.
        regulariser: over the heads of a mask, their ``mean`` (as the code has it) or ``sum`` (as the paper writes it).
        clip: logits beyond it are not pulled any further.
        grad_clip: the largest norm of one mask's gradient, ``None`` for no bound.
        seed: of the minibatches and of the starting gates.
    """

    updates: int = 500
    batch_size: int = 64
    lam: float = 0.1
    schedule: str = "paper"
    regulariser: Regulariser = "mean"
    clip: float = 4.0
    grad_clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        lookup(self.schedule, SCHEDULES, "schedule")
        if self.regulariser not in ("mean", "sum"):
            raise BadInput(unknown(self.regulariser, ("mean", "sum"), "regulariser"))
        for name in ("updates", "batch_size"):
            _check_whole(name, getattr(self, name), least=1)
        _check_whole("seed", self.seed, least=0)
        for name in ("lam", "clip"):
            _check_positive(name, getattr(self, name))
        if self.grad_clip is not None:
            _check_positive("grad_clip", self.grad_clip)

    @property
    def rates(self) -> Rates:
        """The learning rates of the schedule."""
        return SCHEDULES[self.schedule]


def seeds_of(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds that ``seeds`` means: that many from 0, or those listed.

    Raises:
        BadInput: none, one twice, or something that is no whole number.

    Example:
        >>> seeds_of(3), seeds_of([7, 2])
        ((0, 1, 2), (7, 2))
    """
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        listed = tuple(range(seeds))
    elif isinstance(seeds, Sequence) and not isinstance(seeds, str):
        listed = tuple(seeds)
    else:
        raise BadInput(f"seeds={seeds!r}: expected a number of seeds, or a list of distinct whole numbers.")
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in listed)
    if not listed or not whole or len(set(listed)) != len(listed):
        raise BadInput(f"seeds={seeds!r}: expected a number of at least 1, or a list of distinct whole numbers.")
    return listed


def _check_whole(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{name}={value!r}: expected a whole number of at least {least}.")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadInput(f"{name}={value!r}: expected a positive number.")
