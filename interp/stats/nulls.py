"""Nulls: matched random heads, permuted answers, and the correction for many tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats as scipy_stats

from interp.address import Head
from interp.errors import BadInput
from interp.numerals import numeral, span

MOST_SETS = 200
FEWEST_SETS = 20  # with fewer sets a p-value could not fall below 1/20

Tail = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class MatchedSets:
    """Random head sets to compare a chosen set with; prints a sentence that says how they were drawn."""

    sets: tuple[tuple[Head, ...], ...]
    n_possible: int
    exhaustive: bool
    overlap: bool
    by_choice: bool = False  # the overlap was asked for

    def __str__(self) -> str:
        count = len(self.sets)
        if not count:
            return "No other head set has as many heads per layer."
        drawn = (
            f"all {count} sets" if self.exhaustive else f"{count} random sets of {numeral(self.n_possible)} possible"
        )
        why = "" if self.by_choice else "too few other heads, so "
        shared = f"; {why}a set may share heads with the chosen one" if self.overlap else ""
        few = f"; fewer than {FEWEST_SETS}, so no p-value" if count < FEWEST_SETS else ""
        return f"{drawn[0].upper()}{drawn[1:]} with as many heads per layer{shared}{few}."


def matched_random_sets(
    heads: Iterable[Head],
    pool: Sequence[int] | Mapping[str | None, Sequence[int]],
    *,
    n_draws: int = MOST_SETS,
    seed: int = 0,
    exclude: Iterable[Head] = (),
    overlap: bool | None = None,
) -> MatchedSets:
    """Distinct random head sets with the same number of heads in every layer as ``heads``.

    All of them where at most ``n_draws`` exist, else ``n_draws`` drawn without repetition. They keep clear of ``heads``
    as long as at least 20 such sets exist; otherwise they may share heads with it (never all), which ``overlap`` says.

    Sets that keep clear of the chosen one share heads with each other instead, so that they scatter less than it does
    by chance: where all heads are alike, p reaches 0.05 in 5 % of cases with 1 of 12 heads per layer, but in 8 % with
    3 of 12 and in 10 % with 4 of 12. ``overlap=True`` makes all sets alike and p exact; but then sets that hold one of
    several heads that only work together do as much as all of them.

    Args:
        heads: the chosen set.
        pool: number of heads per layer, of the default stack; or stack name -> number of heads per layer.
        n_draws: most sets to return.
        seed: of the draw.
        exclude: heads that stay out of every random set, such as other heads known to matter.
        overlap: whether sets may share heads with the chosen one; only if they have to, by default.

    Raises:
        BadInput: no head, a head twice, or one that the pool does not have.

    Example:
        >>> drawn = matched_random_sets([Head(1, 0)], [4, 4], n_draws=10)
        >>> [str(head) for (head,) in drawn.sets], drawn.exhaustive
        (['L1.H1', 'L1.H2', 'L1.H3'], True)
    """
    chosen = tuple(Head(*head) for head in heads)
    widths = _check_pool(chosen, pool)
    out = {Head(*head) for head in exclude} - set(chosen)
    layers: dict[tuple[str | None, int], int] = {}
    for head in chosen:
        layers[head.stack, head.layer] = layers.get((head.stack, head.layer), 0) + 1

    def candidates(avoid: set[Head]) -> list[tuple[list[Head], int]]:
        return [
            ([head for i in range(widths[stack][layer]) if (head := Head(layer, i, stack)) not in avoid], count)
            for (stack, layer), count in sorted(layers.items(), key=lambda item: (item[0][0] or "", item[0][1]))
        ]

    choices = candidates(out | set(chosen))
    n_possible = math.prod(math.comb(len(rest), count) for rest, count in choices)
    shared = False
    if overlap or (overlap is None and n_possible < FEWEST_SETS):
        wider = candidates(out)
        n_wider = math.prod(math.comb(len(rest), count) for rest, count in wider) - 1
        if n_wider > n_possible:
            choices, n_possible, shared = wider, n_wider, True
    exhaustive = n_possible <= n_draws
    sets = _all_sets(choices) if exhaustive else _drawn_sets(choices, n_draws, seed, frozenset(chosen))
    sets = [one for one in sets if frozenset(one) != frozenset(chosen)]
    return MatchedSets(tuple(sets), n_possible, exhaustive, shared, by_choice=shared and bool(overlap))


def _check_pool(
    chosen: tuple[Head, ...], pool: Sequence[int] | Mapping[str | None, Sequence[int]]
) -> dict[str | None, Sequence[int]]:
    widths: dict[str | None, Sequence[int]] = dict(pool) if isinstance(pool, Mapping) else {None: pool}
    if not chosen:
        raise BadInput("matched_random_sets: no head was given; name at least one.")
    if len(set(chosen)) != len(chosen):
        raise BadInput(f"matched_random_sets: a head stands twice in {', '.join(map(str, chosen))}.")
    for head in chosen:
        known = widths.get(head.stack)
        if known is None or not 0 <= head.layer < len(known) or not 0 <= head.index < known[head.layer]:
            raise BadInput(f"matched_random_sets: {head} is not in the pool; heads per layer came as {dict(widths)}.")
    return widths


def _all_sets(choices: list[tuple[list[Head], int]]) -> list[tuple[Head, ...]]:
    parts = [itertools.combinations(rest, count) for rest, count in choices]
    return [tuple(itertools.chain.from_iterable(one)) for one in itertools.product(*parts)]


def _drawn_sets(
    choices: list[tuple[list[Head], int]], n_draws: int, seed: int, chosen: frozenset[Head]
) -> list[tuple[Head, ...]]:
    generator = np.random.default_rng(seed)
    drawn: dict[tuple[Head, ...], None] = {}
    while len(drawn) < n_draws:
        one = tuple(
            rest[place]
            for rest, count in choices
            for place in sorted(generator.choice(len(rest), count, replace=False))
        )
        if frozenset(one) != chosen:
            drawn[one] = None
    return list(drawn)


@dataclass(frozen=True)
class NullComparison:
    """An observed value beside a null; prints a sentence. ``p`` is None where the null has fewer than 20 values."""

    observed: float
    null_mean: float
    low: float
    high: float
    n: int
    p: float | None
    tail: Tail = "two-sided"
    confidence: float = 0.95
    overlap: bool = False

    def __str__(self) -> str:
        if not self.n:
            return f"{numeral(self.observed)}; there is nothing to compare it with."
        text = (
            f"{numeral(self.observed)} against {numeral(self.null_mean)} {span(self.low, self.high)} "
            f"(mean and central {100 * self.confidence:g} % of {self.n} matched random sets"
            f"{', some sharing heads' if self.overlap else ''})"
        )
        if self.p is None:
            return f"{text}; {self.n} sets are too few for a p-value."
        return f"{text}; p = {numeral(self.p)}, {self.tail}."


def compare_with_null(
    observed: float,
    null: Float[np.ndarray, " draw"] | Sequence[float],
    *,
    tail: Tail = "two-sided",
    confidence: float = 0.95,
    sets: MatchedSets | None = None,
) -> NullComparison:
    """How ``observed`` stands beside the values of a null: their mean and central interval, and a p-value.

    ``p = (1 + #{null at least as extreme}) / (1 + n)``; two-sided means by absolute value. Below 20 values: no p.

    Args:
        observed: the value of the chosen set.
        null: the values of the random sets.
        tail: which side counts as extreme.
        confidence: share of the null inside ``low`` and ``high``.
        sets: what ``matched_random_sets`` returned, so that the sentence can tell of an overlap.

    Example:
        >>> compare_with_null(3.0, np.zeros(99), tail="greater").p
        0.01
    """
    values = np.asarray(null, dtype=float)
    if not math.isfinite(observed) or not np.isfinite(values).all():
        raise BadInput("compare_with_null: the observed value and every value of the null must be finite numbers.")
    overlap = sets is not None and sets.overlap
    if not values.size:
        return NullComparison(observed, math.nan, math.nan, math.nan, 0, None, tail, confidence, overlap)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    p = p_value(observed, values, tail=tail) if values.size >= FEWEST_SETS else None
    return NullComparison(
        float(observed), float(values.mean()), float(low), float(high), values.size, p, tail, confidence, overlap
    )


def p_value(observed: float, null: Float[np.ndarray, " draw"], *, tail: Tail = "two-sided") -> float:
    """``(1 + #{null at least as extreme as observed}) / (1 + n)``: never 0, and valid at any ``n``.

    Reference: Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    null = np.asarray(null, dtype=float)
    extreme = {
        "two-sided": np.abs(null) >= abs(observed),
        "greater": null >= observed,
        "less": null <= observed,
    }[tail]
    return float((1 + extreme.sum()) / (1 + null.size))


def largest_effect_p(
    observed: Float[np.ndarray, "*cell"], permuted: Float[np.ndarray, "draw ..."]
) -> Float[np.ndarray, "*cell"]:
    """p-value of each head against the largest absolute head effect under permutation; NaN where no head is.

    ``p = (1 + #{draws: max over heads |permuted| >= |observed|}) / (1 + n)``. The maximum makes it valid for all heads
    together (Westfall and Young 1993). ``permuted`` holds the effects with right and wrong answers reassigned.

    Example:
        >>> largest_effect_p(np.array([[5.0, 0.0]]), np.ones((19, 1, 2))).tolist()
        [[0.05, 1.0]]
    """
    observed, permuted = np.asarray(observed, dtype=float), np.asarray(permuted, dtype=float)
    if permuted.ndim != observed.ndim + 1 or permuted.shape[1:] != observed.shape:
        raise BadInput(
            f"largest_effect_p: permuted came as {permuted.shape}; expected one draw axis before {observed.shape}."
        )
    largest = np.nanmax(np.abs(permuted).reshape(permuted.shape[0], -1), axis=1)
    reached = (largest.reshape(-1, *[1] * observed.ndim) >= np.abs(observed)).sum(0)
    return np.where(np.isfinite(observed), (1 + reached) / (1 + len(largest)), np.nan)


@dataclass(frozen=True, eq=False)
class Discoveries:
    """p-values after Benjamini-Hochberg, and which stay at or below the level; prints a sentence."""

    adjusted: np.ndarray
    found: np.ndarray
    level: float

    def __str__(self) -> str:
        tested = int(np.isfinite(self.adjusted).sum())
        return (
            f"{int(self.found.sum())} of {tested} pass at a false discovery rate of {100 * self.level:g} % "
            "(Benjamini-Hochberg)."
        )


def benjamini_hochberg(p_values: Float[np.ndarray, "*cell"], *, level: float = 0.05) -> Discoveries:
    """``p_values`` adjusted for the number of tests so that at most a share ``level`` of the finds is false on average.

    Args:
        p_values: of any shape; NaN (no test) stays NaN and does not count.
        level: the false discovery rate.

    Reference: Benjamini and Hochberg 1995.

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.04, 0.9])).adjusted.round(3).tolist()
        [0.03, 0.06, 0.9]
    """
    p_values = np.asarray(p_values, dtype=float)
    tested = np.isfinite(p_values)
    adjusted = np.full(p_values.shape, np.nan)
    if tested.any():
        adjusted[tested] = scipy_stats.false_discovery_control(p_values[tested], method="bh")
    found: Bool[np.ndarray, "*cell"] = np.zeros(p_values.shape, dtype=bool)
    found[tested] = adjusted[tested] <= level
    return Discoveries(adjusted, found, level)
