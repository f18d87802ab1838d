"""Which heads of a table are over a threshold, and in what share of resampled prompts each one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from interp.address import Head
from interp.errors import BadInput
from interp.names import unknown
from interp.results import HeadScores

DRAWS = 1000
SHARE = 0.1  # of the largest value: the threshold where the caller names none
COUNTED_BY = ("abs", "helps", "hurts")


@dataclass(frozen=True, eq=False)
class HeadSet:
    """The heads of one table that are over a threshold.

    Attributes:
        heads: every head of the table, layer by layer.
        values: ``[head]`` mean over samples.
        support: ``[head]`` share of the resamples in which the head is at or over the threshold.
        member: ``[head]`` whether the head is in the set.
        threshold: in the units of the values.
    """

    heads: tuple[Head, ...]
    values: Float[np.ndarray, " head"]
    support: Float[np.ndarray, " head"]
    member: Bool[np.ndarray, " head"]
    threshold: float

    @property
    def members(self) -> tuple[Head, ...]:
        """The heads in the set."""
        return tuple(head for head, inside in zip(self.heads, self.member, strict=True) if inside)


def head_set(
    scores: HeadScores,
    *,
    threshold: float,
    by: str = "abs",
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> HeadSet:
    """The heads whose mean is at or over ``threshold`` in a share ``confidence`` of the resamples of the samples.

    Args:
        scores: one value per query head, of any stacks; clusters are resampled together.
        threshold: in the units of the values, above 0.
        by: ``"abs"`` the size of the value; ``"helps"`` or ``"hurts"`` its size in that direction.
        confidence: share of the resamples; a table with a single sample has nothing to resample and counts as it is.
        draws: number of resamples.
        seed: of the resampling.

    Raises:
        BadInput: a threshold that is not above 0, a table by position, or a direction that the table does not tell.

    Example:
        >>> samples = [[[5.0, 0.1], [1.1, 0.0]], [[6.0, 0.2], [0.9, 0.1]]]
        >>> table = HeadScores.from_array(samples, name="zero", quantity="effect", sense=-1, sample_axis="prompt")
        >>> found = head_set(table, threshold=1.0)
        >>> [str(head) for head in found.members], found.support.round(1).tolist()
        (['L0.H0'], [1.0, 0.0, 0.8, 0.0])
    """
    if not 0 < threshold < np.inf:
        raise BadInput(f"threshold={threshold!r}; expected a number above 0, in the units of {scores.name!r}.")
    if not 0 < confidence <= 1:
        raise BadInput(f"confidence={confidence!r}; expected a share above 0, at most 1.")
    heads, samples = columns_of_heads(scores)
    direction = _direction(scores, by)
    means = resampled_means(samples, draws=draws, seed=seed, cluster=scores.cluster)
    strength = np.abs(means) if by == "abs" else direction * means
    support = (strength >= threshold).mean(0)
    with np.errstate(invalid="ignore"):
        values = np.nanmean(samples, axis=0)
    return HeadSet(heads, values, support, support >= confidence, float(threshold))


def default_threshold(tables: Sequence[HeadScores]) -> float:
    """A tenth of the largest absolute value in any of the tables, so that all are judged alike.

    Raises:
        BadInput: every value is 0.
    """
    largest = max(float(np.nanmax(np.abs(table.of(name).values))) for table in tables for name in table.stacks)
    if largest == 0:
        raise BadInput(f"Every value of {tables[0].name!r} is 0, so no threshold can be taken from them; name one.")
    return SHARE * largest


def columns_of_heads(scores: HeadScores) -> tuple[tuple[Head, ...], Float[np.ndarray, "sample head"]]:
    """The heads of a table, stack by stack and layer by layer, and their samples side by side.

    Raises:
        BadInput: a table by position.
    """
    if scores.positions is not None:
        raise BadInput(f"{scores.name!r} is a table of heads by position; give one value per head.")
    heads: list[Head] = []
    columns = []
    for stack in scores.stacks:
        part = scores.of(stack)
        cells = np.argwhere(scores.exists[stack])
        heads += [
            Head(layer, index, None if stack == scores.default_stack else stack) for layer, index in cells.tolist()
        ]
        columns.append(part.samples[:, cells[:, 0], cells[:, 1]])
    return tuple(heads), np.concatenate(columns, axis=1).astype(float)


def resampled_means(
    samples: Float[np.ndarray, "sample head"], *, draws: int, seed: int, cluster: Sequence[str] | None = None
) -> Float[np.ndarray, "draw head"]:
    """The mean of each column under resampling of the rows, clusters as one; the plain mean once for a single row.

    A column without a value in a resample is NaN there.

    Example:
        >>> resampled_means(np.array([[1.0], [3.0]]), draws=4, seed=0).ravel().tolist()
        [2.0, 2.0, 3.0, 3.0]
    """
    labels = np.arange(len(samples)) if cluster is None else np.unique(np.array(cluster), return_inverse=True)[1]
    n_groups = int(labels.max()) + 1
    if n_groups == 1:
        weights = np.ones((1, len(samples)))
    else:
        counts = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
        weights = counts[:, labels].astype(float)
    present = np.isfinite(samples)
    totals = weights @ present.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(totals > 0, weights @ np.where(present, samples, 0.0) / totals, np.nan)


def _direction(scores: HeadScores, by: str) -> int:
    if by not in COUNTED_BY:
        raise BadInput(unknown(by, COUNTED_BY, "way to count heads"))
    if by != "abs" and not scores.sense:
        raise BadInput(f"by={by!r}: {scores.name!r} does not say whether a head helps or hurts; use by='abs'.")
    return scores.sense if by == "helps" else -scores.sense
