"""Numbers as text, the same way in tables, figures, sentences and pages."""

from __future__ import annotations

import math
from numbers import Integral, Real

MINUS = "\u2212"
NOTHING = "\u2013"
LARGEST = 1e6


def numeral(value: object, digits: int = 3) -> str:
    """``value`` as text: fixed decimals in the everyday range, powers of ten outside it, a true minus sign.

    Args:
        value: a number; text and other objects come back as ``str(value)``, ``None`` and NaN as a dash.
        digits: decimals of a value below 1000; larger ones get one, up to a million.

    Example:
        >>> numeral(0.93128), numeral(12), numeral(float("nan")), numeral(0.0000123)
        ('0.931', '12', '–', '1.23e−5')
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return _grouped(f"{int(value):,}")
    number = float(value)
    if math.isnan(number):
        return NOTHING
    if math.isinf(number):
        return "\u221e" if number > 0 else f"{MINUS}\u221e"
    if number == 0 or 10.0**-digits <= abs(number) < LARGEST:
        decimals = digits if abs(number) < 1e3 else 1  # noqa: PLR2004 - four figures before the point are enough
        return _grouped(f"{number:,.{decimals}f}")
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def _grouped(text: str) -> str:
    plain = text.replace(",", "\u202f")
    return plain.lstrip("-") if not plain.strip("-0.") else plain.replace("-", MINUS)


def span(low: object, high: object, digits: int = 3) -> str:
    """An interval as text: ``[0.912, 0.948]``.

    Example:
        >>> span(0.5, 1)
        '[0.500, 1]'
    """
    return f"[{numeral(low, digits)}, {numeral(high, digits)}]"
