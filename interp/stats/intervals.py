"""Bootstrap intervals of means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import BadInput
from interp.numerals import numeral, span

DRAWS = 2000
_COLUMNS_AT_ONCE = 4096


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval; prints as ``0.931 [0.912, 0.948] (95 % interval, 64 samples)``."""

    mean: float
    low: float
    high: float
    n: int
    confidence: float = 0.95
    n_clusters: int | None = None

    def __str__(self) -> str:
        groups = "" if self.n_clusters is None else f" in {self.n_clusters} clusters"
        if not math.isfinite(self.low):
            return f"{numeral(self.mean)} (no interval from {self.n} sample{'s' * (self.n != 1)}{groups})"
        return (
            f"{numeral(self.mean)} {span(self.low, self.high)} "
            f"({100 * self.confidence:g} % interval, {self.n} samples{groups})"
        )


def mean_interval(
    values: Float[np.ndarray, " sample"] | Sequence[float],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    cluster: Sequence[object] | np.ndarray | None = None,
) -> Interval:
    """The mean of ``values`` without NaN, with its percentile bootstrap interval.

    Args:
        values: one number per sample.
        confidence: share of resampled means inside the interval.
        draws: number of resamples.
        seed: of the resampling.
        cluster: one label per sample; samples with the same label (the same template, the same answer pair) are
            resampled together.

    Example:
        >>> str(mean_interval([1.0, 1.0, 1.0]))
        '1.000 [1.000, 1.000] (95 % interval, 3 samples)'
    """
    column = np.asarray(values, dtype=float)
    if column.ndim != 1:
        raise BadInput(f"mean_interval: expected one number per sample, got shape {column.shape}; use bootstrap_means.")
    low, high = bootstrap_means(column[:, None], confidence=confidence, draws=draws, seed=seed, cluster=cluster)
    finite = np.isfinite(column)
    labels = None if cluster is None else len({label for label, kept in zip(cluster, finite, strict=True) if kept})
    mean = float(column[finite].mean()) if finite.any() else math.nan
    return Interval(mean, float(low[0]), float(high[0]), int(finite.sum()), confidence, labels)


def bootstrap_means(
    samples: Float[np.ndarray, "sample ..."],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    cluster: Sequence[object] | np.ndarray | None = None,
    sample_weights: Sequence[float] | None = None,
) -> tuple[Float[np.ndarray, "*cell"], Float[np.ndarray, "*cell"]]:
    """Lower and upper end of the percentile bootstrap interval of the mean over samples, for every cell at once.

    All cells share the same resamples, so that differences between cells keep their correlation. NaN samples are left
    out of each mean. Cells with fewer than two samples (or clusters) have NaN ends.

    Args:
        samples: values, the samples along the first axis.
        confidence, draws, seed, cluster: as in ``mean_interval``.
        sample_weights: one weight per sample, for the interval of a weighted mean (a ratio of means).

    Raises:
        BadInput: a confidence outside (0, 1), no draws, or not one cluster label per sample.

    Example:
        >>> low, high = bootstrap_means(np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]]))
        >>> bool(low[0] < 1.0 < high[0]), float(low[1]), float(high[1])
        (True, 5.0, 5.0)
    """
    samples = np.asarray(samples, dtype=float)
    _check_bootstrap(samples, confidence, draws, cluster)
    n_samples = samples.shape[0]
    labels = np.arange(n_samples) if cluster is None else _codes(cluster)
    n_clusters = int(labels.max()) + 1 if n_samples else 0
    cells = samples.reshape(n_samples, -1)
    low, high = np.full(cells.shape[1], np.nan), np.full(cells.shape[1], np.nan)
    if n_clusters >= 2:  # noqa: PLR2004 - one cluster has no spread
        generator = np.random.default_rng(seed)
        counts = generator.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=draws)
        weights = counts[:, labels].astype(float)
        if sample_weights is not None:
            weights = weights * np.asarray(sample_weights, dtype=float)
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        for start in range(0, cells.shape[1], _COLUMNS_AT_ONCE):
            part = slice(start, start + _COLUMNS_AT_ONCE)
            low[part], high[part] = _weighted_ends(cells[:, part], weights, labels, ends)
    return low.reshape(samples.shape[1:]), high.reshape(samples.shape[1:])


def _check_bootstrap(
    samples: np.ndarray, confidence: float, draws: int, cluster: Sequence[object] | np.ndarray | None
) -> None:
    if not 0 < confidence < 1:
        raise BadInput(f"confidence={confidence}: expected a share between 0 and 1, such as 0.95.")
    if draws < 1:
        raise BadInput(f"draws={draws}: expected at least one resample.")
    if samples.ndim == 0:
        raise BadInput("samples: expected an array with the samples along its first axis, got a single number.")
    if cluster is not None and len(cluster) != samples.shape[0]:
        raise BadInput(f"cluster: {len(cluster)} labels for {samples.shape[0]} samples; give one label per sample.")


def _codes(labels: Sequence[object] | np.ndarray) -> np.ndarray:
    order = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels], dtype=int)


def _weighted_ends(
    cells: np.ndarray, weights: np.ndarray, labels: np.ndarray, ends: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    present = np.isfinite(cells)
    totals = weights @ present.astype(float)
    # centred on the mean of the cell: resampled means of equal values are then equal to it to the last bit
    middle = np.where(present, cells, 0.0).sum(0) / np.maximum(present.sum(0), 1)
    sums = weights @ np.where(present, cells - middle, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = middle + np.where(totals > 0, sums / totals, np.nan)
    enough = np.array([len(np.unique(labels[column])) >= 2 for column in present.T])  # noqa: PLR2004
    low, high = np.full(cells.shape[1], np.nan), np.full(cells.shape[1], np.nan)
    if enough.any():
        kept = means[:, enough]
        quantile = np.nanquantile if np.isnan(kept).any() else np.quantile  # the first is far slower
        low[enough], high[enough] = quantile(kept, ends, axis=0)
    return low, high
