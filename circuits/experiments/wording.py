"""Heads and numbers as the answers of experiments say them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.address import Head
from interp.numerals import numeral
from interp.stats import Interval


def named(heads: Sequence[Head], most: int = 8) -> str:
    """Heads as text, the first ``most`` of them.

    Example:
        >>> named([Head(0, 1), Head(2, 3), Head(4, 5)], most=2)
        'L0.H1, L2.H3 + 1'
    """
    text = ", ".join(str(head) for head in heads[:most])
    return text if len(heads) <= most else f"{text} + {len(heads) - most}"


def short(value: float) -> str:
    """Two decimals, whatever the size: the table holds the rest.

    Example:
        >>> short(0.0001), short(3.14159)
        ('0.00', '3.14')
    """
    return numeral(round(value, 2) + 0.0, 2)


def between(interval: Interval) -> str:
    """The ends of an interval with two decimals; nothing where there is none."""
    return "" if not np.isfinite(interval.low) else f"[{short(interval.low)}, {short(interval.high)}]"


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words as a list in a sentence.

    Example:
        >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))
