"""Rank agreement of two tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats

from interp.errors import BadInput
from interp.numerals import numeral


@dataclass(frozen=True)
class Agreement:
    """Rank agreement of two tables over the cells that both have; prints a sentence."""

    spearman: float
    kendall: float
    n: int
    top_overlap: float
    top: int

    def __str__(self) -> str:
        return (
            f"Spearman {numeral(self.spearman)}, Kendall {numeral(self.kendall)} over {self.n} heads; "
            f"{100 * self.top_overlap:.0f} % of the top {self.top} are shared."
        )


def rank_agreement(
    first: Float[np.ndarray, "*cell"], second: Float[np.ndarray, "*cell"], *, top: int = 10
) -> Agreement:
    """Spearman's and Kendall's rank correlation of two tables, and the share of the ``top`` largest in common.

    Args:
        first, second: of the same shape; a cell that is NaN in either is left out.
        top: how many of the largest values to compare; fewer where there are fewer cells.

    Example:
        >>> rank_agreement(np.arange(5.0), np.arange(5.0) ** 3).spearman
        1.0
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise BadInput(f"rank_agreement: shapes {a.shape} and {b.shape} differ; compare the same heads.")
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:  # noqa: PLR2004 - two points make a rank
        return Agreement(math.nan, math.nan, a.size, math.nan, 0)
    count = min(top, a.size)
    largest = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (a, b)]
    return Agreement(
        _correlation(scipy_stats.spearmanr(a, b)),
        _correlation(scipy_stats.kendalltau(a, b)),
        a.size,
        len(largest[0] & largest[1]) / count,
        count,
    )


def _correlation(result: Any) -> float:
    return round(float(result.statistic), 12)  # equal rankings give exactly 1
