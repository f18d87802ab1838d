"""The randomness of one item: a function of task, seed and index, so that item k never depends on how many follow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from interp.errors import BadInput

T = TypeVar("T")


class Draw:
    """Choices for one item.

    Args:
        task: the task's name.
        seed: of the task.
        index: of the item.
        attempt: which try this is; tries after the first are made where an item came out equal to an earlier one.

    Example:
        >>> Draw("ioi", 0, 3).sample("abcdef", 3) == Draw("ioi", 0, 3).sample("abcdef", 3)
        True
    """

    def __init__(self, task: str, seed: int, index: int, attempt: int = 0) -> None:
        self.task, self.seed, self.index = task, seed, index
        self.random = random.Random(f"{task}|{seed}|{index}|{attempt}")

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.random.randrange(len(options))]

    def sample(self, options: Sequence[T], count: int, *, without: Sequence[T] = ()) -> list[T]:
        """Different ones of the options, in random order, none of those in ``without``."""
        left = [option for option in options if option not in without]
        if len(left) < count:
            raise BadInput(f"{self.task}: {len(left)} words are left where {count} different ones are needed.")
        return self.random.sample(left, count)

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return self.random.randint(low, high)

    def balanced(self, options: Sequence[T], what: str) -> T:
        """One of the options, each exactly once in every ``len(options)`` items that follow each other.

        Args:
            options: what is chosen from.
            what: a name for this choice; choices of different names are independent of each other.
        """
        block, place = divmod(self.index, len(options))
        order = list(range(len(options)))
        random.Random(f"{self.task}|{self.seed}|{what}|{block}").shuffle(order)
        return options[order[place]]
