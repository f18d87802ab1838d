"""Rank agreement of tables: two by two, all at once, and resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats

from interp.errors import BadInput
from interp.numerals import numeral, span

Ends = tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """Rank agreement of two tables over the cells that both have; prints a sentence.

    Attributes:
        spearman, kendall: rank correlations, Spearman's rho and Kendall's tau-b.
        n: cells compared.
        top_overlap: share of the ``top`` largest cells in common.
        top: how many those are.
        expected_overlap: the share that two unrelated rankings have in common on average, ``top / n``.
        spearman_interval, kendall_interval, overlap_interval: ends of the bootstrap intervals, None without samples.
        resampled: what was resampled, in words.
        confidence: of the intervals.
    """

    spearman: float
    kendall: float
    n: int
    top_overlap: float
    top: int
    expected_overlap: float = math.nan
    spearman_interval: Ends | None = None
    kendall_interval: Ends | None = None
    overlap_interval: Ends | None = None
    resampled: str = ""
    confidence: float = 0.95

    def __str__(self) -> str:
        def around(interval: Ends | None) -> str:
            return "" if interval is None else f" {span(*interval)}"

        said = (
            f"Spearman {numeral(self.spearman)}{around(self.spearman_interval)}, Kendall {numeral(self.kendall)}"
            f"{around(self.kendall_interval)} over {self.n} heads; {_percent(self.top_overlap)} of the top {self.top} "
            "are shared"
        )
        if math.isfinite(self.expected_overlap):
            said += f" ({_percent(self.expected_overlap)} expected by chance)"
        if self.resampled:
            said += f"; {100 * self.confidence:g} % intervals over {self.resampled}"
        return said + "."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else numeral(share)


@dataclass(frozen=True, eq=False)
class RankStatistics:
    """Rank agreement of every table with every other; each ``[table, table]``, NaN where a table does not vary."""

    spearman: Float[np.ndarray, "table table"]
    kendall: Float[np.ndarray, "table table"]
    overlap: Float[np.ndarray, "table table"]
    top: int


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
    found = rank_statistics(np.stack([a[both], b[both]]), top=top)
    if math.isnan(found.spearman[0, 1]):
        return Agreement(math.nan, math.nan, int(both.sum()), math.nan, 0)
    n = int(both.sum())
    return Agreement(
        float(found.spearman[0, 1]),
        float(found.kendall[0, 1]),
        n,
        float(found.overlap[0, 1]),
        found.top,
        found.top / n,
    )


def rank_statistics(values: Float[np.ndarray, "table cell"], *, top: int = 10) -> RankStatistics:
    """Spearman's rho, Kendall's tau-b and the shared part of the ``top`` largest, for every pair of tables.

    ``tau-b = sum over pairs of cells sign(a_i - a_j) sign(b_i - b_j)``, divided by the geometric mean of the numbers of
    pairs that are not tied (Kendall, 1945); ``rho`` is the correlation of the ranks, ties at their mean (Spearman,
    1904). Among tied cells those that come first count as larger.

    Args:
        values: without NaN.
        top: how many of the largest values to compare; fewer where there are fewer cells.

    Raises:
        BadInput: ``top`` below 1, or values that are not finite.

    Example:
        >>> rank_statistics(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]), top=1).kendall.round(3).tolist()
        [[1.0, 0.333], [0.333, 1.0]]
    """
    values = np.asarray(values, dtype=float)
    if top < 1:
        raise BadInput(f"top={top}: expected how many of the largest values to compare, at least 1.")
    if not np.isfinite(values).all():
        raise BadInput("rank_statistics: NaN or infinity; leave out the cells that some table does not have.")
    count = min(top, values.shape[1])
    members = np.zeros(values.shape, dtype=np.float32)
    np.put_along_axis(members, np.argsort(-values, axis=1, kind="stable")[:, :count], 1.0, axis=1)
    ranks = scipy_stats.rankdata(values, axis=1) if values.shape[1] else values
    upper = np.triu_indices(values.shape[1], 1)
    signs = np.sign(values[:, upper[0]] - values[:, upper[1]])
    spearman = (
        _normalised(ranks - ranks.mean(1, keepdims=True)) if values.shape[1] else np.full((len(values),) * 2, np.nan)
    )
    kendall = _normalised(signs)
    overlap = members.astype(float) @ members.T.astype(float) / max(count, 1)
    overlap[np.isnan(spearman)] = np.nan
    return RankStatistics(spearman, kendall, overlap, count)


def _normalised(rows: Float[np.ndarray, "table column"]) -> Float[np.ndarray, "table table"]:
    """Products of rows over the product of their lengths; NaN where a row is 0."""
    products = rows @ rows.T
    lengths = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (products / np.outer(lengths, lengths)).round(12)  # equal rankings give exactly 1


@dataclass(frozen=True, eq=False)
class Resampling:
    """How one table's samples are drawn anew: ``[draw, sample]`` weights, and what the samples are."""

    weights: Float[np.ndarray, "draw sample"]
    words: str


def shared_resampling(
    axes: Sequence[tuple[str | None, int, tuple[str, ...] | None]], *, draws: int, seed: int
) -> list[Resampling | None]:
    """For each table how its samples are resampled: tables over the same prompts draw the same ones.

    Args:
        axes: per table the kind of its samples (None without), their number, and one cluster label each or None.
            Tables of one kind and number share their draws, and the cluster labels that one of them has.
        draws: how many.
        seed: of the draws.

    Raises:
        BadInput: tables over the same prompts with different cluster labels.

    Example:
        >>> first, second, third = shared_resampling([("prompt", 4, None)] * 2 + [(None, 1, None)], draws=5, seed=0)
        >>> first is second, third, first.weights.sum(1).tolist()
        (True, None, [4.0, 4.0, 4.0, 4.0, 4.0])
    """
    groups: dict[tuple[str, int], set[tuple[str, ...]]] = {}
    for kind, count, labels in axes:
        if kind is not None:
            groups.setdefault((kind, count), set()).update([labels] if labels is not None else [])
    made: dict[tuple[str, int], Resampling | None] = {}
    for place, ((kind, count), labels) in enumerate(groups.items()):
        if len(labels) > 1:
            raise BadInput(f"agreement: tables over {count} {kind}s have different cluster labels; give all the same.")
        given = next(iter(labels)) if labels else None
        codes = np.arange(count) if given is None else np.unique(given, return_inverse=True)[1]
        n = int(codes.max()) + 1
        generator = np.random.default_rng([seed, place])
        weights = generator.multinomial(n, np.full(n, 1 / n), size=draws)[:, codes].astype(float)
        words = f"{count} {kind}s" if given is None else f"{n} clusters of {count} {kind}s"
        made[kind, count] = Resampling(weights, words) if n >= 2 else None  # noqa: PLR2004 - one has no spread
    return [None if kind is None else made[kind, count] for kind, count, _ in axes]
