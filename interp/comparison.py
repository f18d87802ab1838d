"""``agreement``: how far tables of heads agree on the order of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import BadInput
from interp.names import unknown
from interp.numerals import numeral
from interp.results import HeadScores
from interp.stats import Agreement, RankStatistics, Resampling, rank_statistics, shared_resampling

if TYPE_CHECKING:
    import plotly.graph_objects as go

Order = Literal["importance", "abs"]
Statistic = Literal["kendall", "spearman", "overlap"]
DRAWS = 1000
FEWEST_CELLS = 2


@dataclass(frozen=True, eq=False, repr=False)
class AgreementMatrix:
    """Rank agreement of every table with every other; prints the range of Kendall's tau. Made by ``interp.agreement``.

    Attributes:
        names: of the tables.
        values: the statistics ``[table, table]``.
        low, high: ends of their bootstrap intervals, NaN where neither table of a pair has samples.
        resampled: ``[table][table]`` what was resampled, in words.
        n: heads (cells) that all tables have.
        confidence: of the intervals.
    """

    names: tuple[str, ...]
    values: RankStatistics
    low: RankStatistics
    high: RankStatistics
    resampled: tuple[tuple[str, ...], ...]
    n: int
    confidence: float = 0.95

    def of(self, first: int | str, second: int | str) -> Agreement:
        """The agreement of two tables, by their names or places.

        Raises:
            UnknownName: no such table.
        """
        i, j = (self._place(one) for one in (first, second))
        words = self.resampled[i][j]

        def ends(name: str) -> tuple[float, float] | None:
            both = (float(getattr(side, name)[i, j]) for side in (self.low, self.high))
            return (next(both), next(both)) if words else None

        return Agreement(
            spearman=float(self.values.spearman[i, j]),
            kendall=float(self.values.kendall[i, j]),
            n=self.n,
            top_overlap=float(self.values.overlap[i, j]),
            top=self.values.top,
            expected_overlap=self.values.top / self.n,
            spearman_interval=ends("spearman"),
            kendall_interval=ends("kendall"),
            overlap_interval=ends("overlap"),
            resampled=words,
            confidence=self.confidence,
        )

    def table(self) -> pd.DataFrame:
        """One row per pair: first, second, kendall, spearman, overlap with their ends, expected_overlap, resampled."""
        rows = []
        for i, first in enumerate(self.names):
            for j in range(i + 1, len(self.names)):
                row: dict[str, object] = {"first": first, "second": self.names[j]}
                for name in get_args(Statistic):
                    sides = (("", self.values), ("_low", self.low), ("_high", self.high))
                    row |= {f"{name}{end}": float(getattr(side, name)[i, j]) for end, side in sides}
                chance = self.values.top / self.n
                rows.append({**row, "expected_overlap": chance, "resampled": self.resampled[i][j]})
        return pd.DataFrame(rows)

    def plot(self, of: Statistic | str = "kendall", *, title: str = "") -> go.Figure:
        """A heatmap, table by table, with the interval on hovering.

        Args:
            of: ``"kendall"``, ``"spearman"`` or ``"overlap"`` (share of the top heads in common).
            title: heading inside the figure.
        """
        from interp.show.heatmap import grid_heatmap

        if of not in get_args(Statistic):
            raise BadInput(unknown(of, get_args(Statistic), "statistic"))
        what = f"overlap of the top {self.values.top}" if of == "overlap" else f"{of.title()}'s rank correlation"
        return grid_heatmap(
            getattr(self.values, of),
            rows=self.names,
            columns=self.names,
            low=getattr(self.low, of),
            high=getattr(self.high, of),
            name=of,
            title=title or what,
            limits=(0.0, 1.0) if of == "overlap" else (-1.0, 1.0),
            note=f"{100 * self.confidence:g} % interval",
        )

    def __repr__(self) -> str:
        pairs = self.values.kendall[np.triu_indices(len(self.names), 1)]
        finite = pairs[np.isfinite(pairs)]
        spread = f"{numeral(float(finite.min()))} to {numeral(float(finite.max()))}" if finite.size else "undefined"
        return f"AgreementMatrix({', '.join(self.names)}; {self.n} heads, Kendall {spread})"

    def _repr_html_(self) -> str:
        from interp.show.scores import rows_html

        return rows_html(repr(self), self.table())

    def _place(self, table: int | str) -> int:
        if isinstance(table, int) and -len(self.names) <= table < len(self.names):
            return table
        if table not in self.names:
            raise BadInput(unknown(table, self.names, "table"))
        return self.names.index(str(table))


def agreement(
    first: HeadScores,
    second: HeadScores,
    *more: HeadScores,
    top: int = 10,
    by: Order | str = "importance",
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Agreement | AgreementMatrix:
    """How far two tables agree on the order of heads: an ``Agreement``; of several tables an ``AgreementMatrix``.

    Kendall's tau-b, Spearman's rho, and the share of the ``top`` heads in common beside the share ``top / n`` that two
    unrelated rankings share on average. Intervals are percentile bootstraps: tables over equally many prompts are taken
    to be over the same ones and resampled together (in clusters where they have them), every other table over its own
    prompts or seeds. A resampled table is noisier than the table, so that an interval may lie below a high agreement.

    Args:
        first, second, more: tables of the same heads; cells that any of them lacks are left out.
        top: how many of the foremost heads to compare.
        by: ``"importance"`` sense times value, so that heads that help come first (the values, where all are unsigned);
            ``"abs"`` size alone, which compares signed with unsigned tables too.
        names: of the tables, by default their own.
        confidence: of the intervals.
        draws: resamples.
        seed: of the resampling.

    Raises:
        BadInput: signed beside unsigned tables, or tables of other heads.

    Example:
        >>> direct = HeadScores.from_array([[1.0, 3.0], [2.0, 0.0]], name="direct", quantity="contribution", sense=1)
        >>> zero = HeadScores.from_array([[-1.0, -9.0], [-4.0, 0.0]], name="zero", quantity="effect", sense=-1)
        >>> print(agreement(direct, zero, top=2))
        Spearman 1.000, Kendall 1.000 over 4 heads; 100 % of the top 2 are shared (50 % expected by chance).
    """
    tables = (first, second, *more)
    _check(tables, by, confidence, draws)
    labels = _names(tables, names)
    kept = [_kept(table, by) for table in tables]
    shared = np.all(
        [np.isfinite(_means(samples, table.weights, by)) for samples, table in zip(kept, tables, strict=True)], axis=0
    )
    n = int(shared.sum())
    if n < FEWEST_CELLS:
        raise BadInput(f"agreement: {', '.join(labels)} have values for {n} heads in common; two make an order.")
    kept = [samples[:, shared] for samples in kept]
    values = rank_statistics(
        np.stack([_means(samples, table.weights, by) for samples, table in zip(kept, tables, strict=True)]), top=top
    )
    axes = [(table.sample_axis, len(samples), table.cluster) for table, samples in zip(tables, kept, strict=True)]
    resampling = shared_resampling(axes, draws=draws, seed=seed)
    low, high = _ends(kept, tables, by, resampling, values, confidence=confidence, draws=draws)
    words = tuple(tuple(_words(a, b) for b in resampling) for a in resampling)
    matrix = AgreementMatrix(labels, values, low, high, words, n, confidence)
    return matrix if more else matrix.of(0, 1)


def _check(tables: Sequence[HeadScores], by: str, confidence: float, draws: int) -> None:
    for table in tables:
        if not isinstance(table, HeadScores):
            raise BadInput(f"agreement: a {type(table).__name__} was given; expected HeadScores.")
    if by not in get_args(Order):
        raise BadInput(unknown(by, get_args(Order), "order"))
    if not 0 < confidence < 1 or draws < 1:
        raise BadInput(
            f"agreement: confidence={confidence}, draws={draws}; expected one inside (0, 1), and at least 1."
        )
    if by == "importance" and len({bool(table.sense) for table in tables}) > 1:
        signed = next(table.name for table in tables if table.sense)
        unsigned = next(table.name for table in tables if not table.sense)
        raise BadInput(
            f"agreement: {signed!r} says whether a head helps or hurts and {unsigned!r} does not; compare two signed "
            "or two unsigned tables, or sizes with by='abs'."
        )
    places = [({stack: there.shape for stack, there in t.exists.items()}, t.unit, t.positions) for t in tables]
    if any(place != places[0] for place in places):
        shown = "; ".join(f"{t.name}: {shapes} {t.unit} heads" for t, (shapes, *_) in zip(tables, places, strict=True))
        raise BadInput(f"agreement: the tables are of different heads ({shown}); compare tables of the same heads.")


def _names(tables: Sequence[HeadScores], names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None:
        if len(names) != len(tables) or len(set(names)) != len(names):
            raise BadInput(f"agreement: names={list(names)} for {len(tables)} tables; give each its own.")
        return tuple(names)
    given = [table.name for table in tables]
    return tuple(
        name if given.count(name) == 1 else f"{name} {given[:place].count(name) + 1}"
        for place, name in enumerate(given)
    )


def _kept(table: HeadScores, by: str) -> Float[np.ndarray, "sample cell"]:
    """The samples of every stack, in the order of their names, with the sign that says what helps."""
    flat = [table.data[stack].reshape(len(table.data[stack]), -1) for stack in sorted(table.stacks)]
    samples = np.concatenate(flat, axis=1).astype(float)
    return samples * table.sense if by == "importance" and table.sense else samples


def _means(
    samples: Float[np.ndarray, "sample cell"], weights: Sequence[float] | np.ndarray | None, by: str
) -> Float[np.ndarray, " cell"]:
    present = np.isfinite(samples)
    weighted = np.ones(len(samples)) if weights is None else np.asarray(weights, dtype=float)
    totals = weighted @ present
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(totals != 0, weighted @ np.where(present, samples, 0.0) / totals, np.nan)
    return np.abs(means) if by == "abs" else means


def _ends(
    kept: Sequence[np.ndarray],
    tables: Sequence[HeadScores],
    by: str,
    resampling: Sequence[Resampling | None],
    values: RankStatistics,
    *,
    confidence: float,
    draws: int,
) -> tuple[RankStatistics, RankStatistics]:
    nothing = np.full(values.kendall.shape, np.nan)
    if all(one is None for one in resampling):
        empty = RankStatistics(nothing, nothing.copy(), nothing.copy(), values.top)
        return empty, empty
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in get_args(Statistic)}
    for draw in range(draws):
        rows = [
            _means(samples, table.weights if how is None else how.weights[draw] * _own_weights(table), by)
            for samples, table, how in zip(kept, tables, resampling, strict=True)
        ]
        # a cell without a value in this draw stands at the end of the order
        found = rank_statistics(np.nan_to_num(np.stack(rows), nan=-np.finfo(float).max), top=values.top)
        for name, values_so_far in drawn.items():
            values_so_far.append(getattr(found, name))
    idle = np.array([[a is None and b is None for b in resampling] for a in resampling])
    sides = []
    for share in ((1 - confidence) / 2, (1 + confidence) / 2):
        ends = {
            name: np.where(idle, np.nan, np.quantile(np.stack(each), share, axis=0)) for name, each in drawn.items()
        }
        sides.append(RankStatistics(ends["spearman"], ends["kendall"], ends["overlap"], values.top))
    return sides[0], sides[1]


def _own_weights(table: HeadScores) -> float | np.ndarray:
    return 1.0 if table.weights is None else np.asarray(table.weights)


def _words(first: Resampling | None, second: Resampling | None) -> str:
    if first is None or second is None or first is second:
        found = first or second
        return found.words if found else ""
    return f"{first.words} and {second.words}"
