"""What a metric says of itself: which positions it reads, and whether a larger value is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def declared(
    *, positions: Literal["answers"] | None = None, sense: Literal[1, -1] = 1
) -> Callable[[Function], Function]:
    """A decorator that puts ``.positions`` (where given) and ``.sense`` on a metric.

    Args:
        positions: ``"answers"``: only the logits at ``batch.read_at`` are read, so only they need be unembedded.
            Without it the metric gets the logits of every position, and has no such attribute.
        sense: +1 where larger is better, -1 where lower is (a loss, a divergence, a rank).

    Example:
        >>> @declared(sense=-1)
        ... def surprise(logits, batch): ...
        >>> surprise.sense, hasattr(surprise, "positions")
        (-1, False)
    """

    def mark(function: Function) -> Function:
        vars(function).update({"sense": sense} if positions is None else {"sense": sense, "positions": positions})
        return function

    return mark
