"""Quadrature on [0, 1]: where a function is asked, and how much each answer counts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from interp.errors import BadInput
from interp.names import unknown

RULES = ("gauss-legendre", "midpoint", "trapezoid", "left", "right")


def quadrature(rule: str, steps: int) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """``(points, weights)`` of a rule with ``steps`` points on [0, 1]; the weights sum to 1.

    ``left``, ``right`` and ``midpoint`` cut [0, 1] into ``steps`` equal parts and ask at that place of each (error
    O(1/steps), O(1/steps), O(1/steps^2)); ``trapezoid`` asks at both ends as well (O(1/steps^2)); ``gauss-legendre``
    is exact for polynomials of degree 2 steps - 1.

    Args:
        rule: one of ``RULES``.
        steps: how many points, at least 2 for the trapezoid.

    Raises:
        UnknownName: another rule.
        BadInput: too few points.

    Example:
        >>> points, weights = quadrature("midpoint", 2)
        >>> points.tolist(), weights.tolist()
        ([0.25, 0.75], [0.5, 0.5])
    """
    if rule not in RULES:
        raise BadInput(unknown(rule, RULES, "quadrature rule"))
    fewest = 2 if rule == "trapezoid" else 1
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < fewest:
        raise BadInput(f"steps={steps!r}: the rule {rule!r} takes an int of at least {fewest}.")
    if rule == "gauss-legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return (points + 1) / 2, weights / 2
    if rule == "trapezoid":
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return (np.arange(steps) + offset) / steps, np.full(steps, 1 / steps)
