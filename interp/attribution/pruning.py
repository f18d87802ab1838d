"""Pruning curves: a metric as heads are removed in the order of a ranking, against random orders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.address import Head
from interp.attribution.curve import area, band, metric_name, prefixes, step_counts, values_of_sets, with_intervals
from interp.attribution.halves import share_prompts
from interp.attribution.ranking import Ranking, ranked_apart
from interp.attribution.recompute import RECOMPUTED, importance_left
from interp.attribution.removal import EditsOf, refuse_replacement, removal
from interp.errors import BadInput
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.names import unknown
from interp.numerals import numeral, span
from interp.results import HeadScores
from interp.stats import FEWEST_SETS, Interval, mean_interval, p_value
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KIND = "a pruning curve"


@dataclass(frozen=True, eq=False, repr=False)
class PruningCurve:
    """The metric as heads are removed; prints a sentence. Made by ``interp.pruning_curve``.

    Attributes:
        name: what the heads were ranked by.
        metric: the metric's name.
        sense: +1 where a larger metric is better, -1 where a smaller one is.
        order: the heads in the order in which they were removed.
        n_heads: how many heads there were.
        kept: ``[step]`` how many heads were left, descending from the first step.
        values: ``[step, prompt]`` the metric.
        random: ``[draw, step, prompt]`` the metric along random rankings that went through the same procedure.
        cluster: one label per prompt, or None.
        metadata: how the numbers were made.
    """

    name: str
    metric: str
    sense: int
    order: tuple[Head, ...]
    n_heads: int
    kept: Int[np.ndarray, " step"]
    values: Float[np.ndarray, "step prompt"]
    random: Float[np.ndarray, "draw step prompt"]
    cluster: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> Float[np.ndarray, " step"]:
        """Share of the heads that were left at each step, descending."""
        return self.kept / self.n_heads

    @property
    def area(self) -> Interval:
        """Area under the curve over the share of heads kept, per unit of share, with its interval over prompts.

        It is the mean height of the curve, in the metric's units.
        """
        return mean_interval(area(self.share, self.values.T), cluster=self.cluster)

    @property
    def random_areas(self) -> Float[np.ndarray, " draw"]:
        """The area of each random order, meaned over prompts."""
        return area(self.share, self.random.mean(2))

    @property
    def lead(self) -> Interval:
        """``sense * (area - mean area of the random orders)``, paired by prompt, with its interval.

        Raises:
            BadInput: no random order was run.
        """
        if not len(self.random):
            raise BadInput("This curve has no random orders to compare with; ask for some with random=20.")
        rival = area(self.share, self.random.mean(0).T)
        return mean_interval(self.sense * (area(self.share, self.values.T) - rival), cluster=self.cluster)

    @property
    def p(self) -> float | None:
        """Share of random orders with at least as good an area, ``(1 + #) / (1 + n)``; None from fewer than 20 orders.

        At least as bad an area, where the most important heads went first.
        """
        if len(self.random) < FEWEST_SETS:
            return None
        towards = self.sense if self.metadata.get("order") != "most" else -self.sense
        return p_value(towards * self.area.mean, towards * self.random_areas, tail="greater")

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per step: heads kept, share kept, the metric with its interval, and the band of the random orders.

        ``low`` and ``high`` are the bootstrap interval over prompts; ``random_low`` and ``random_high`` hold the
        central share of the random orders, NaN without any.
        """
        return pd.DataFrame(
            {
                "kept": self.kept,
                "share": self.share,
                **with_intervals(self.values, self.cluster, confidence=confidence),
                **band(self.random.mean(2), confidence=confidence),
            }
        )

    def plot(self, *, title: str = "", confidence: float = 0.95) -> go.Figure:
        """A plotly chart of the metric against the share of heads kept, with interval and random band."""
        from interp.show.orders import pruning_figure

        rows = self.table(confidence=confidence)
        return pruning_figure(rows, name=self.name, metric=self.metric, title=title, confidence=confidence)

    def __str__(self) -> str:
        head = f"Removing heads by {self.name}: mean {self.metric} along the curve {self.area}"
        if not len(self.random):
            return f"{head}."
        low, high = np.quantile(self.random_areas, [0.025, 0.975])
        rival = f"{numeral(float(self.random_areas.mean()))} {span(float(low), float(high))}"
        verdict = f"p = {numeral(self.p)}" if self.p is not None else "too few for a p-value"
        return f"{head}; {len(self.random)} random orders {rival}, {verdict}."

    def __repr__(self) -> str:
        steps, prompts = self.values.shape
        return f"PruningCurve({self.name!r}, {self.n_heads} heads, {steps} steps, {prompts} prompts)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds the curve; see ``open``."""
        arrays = {name: getattr(self, name) for name in ("kept", "values", "random")}
        about = {name: getattr(self, name) for name in ("name", "metric", "sense", "n_heads", "cluster", "metadata")}
        return write_arrays(path, arrays, kind=_KIND, metadata={**about, "order": [list(head) for head in self.order]})

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PruningCurve:
        """The curve that ``save`` wrote to ``path``.

        Raises:
            BadInput: the file is not there, is damaged, or is something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        about["order"] = tuple(Head(*head) for head in about["order"])
        about["cluster"] = None if about["cluster"] is None else tuple(about["cluster"])
        return cls(**arrays, **about)


def pruning_curve(
    model: Model,
    batch: Batch,
    ranking: HeadScores | Ranking | Sequence[Head] | str | Callable[[Batch], HeadScores],
    *,
    metric: Metric | str = logit_difference,
    steps: int | Sequence[float] = 10,
    by: str = "signed",
    order: str = "least",
    replacement: str = "zero",
    reference: Batch | None = None,
    recompute: bool | str = False,
    keep_per_layer: int = 0,
    rescale: bool = False,
    random: int = 20,
    selection: Batch | None = None,
    cluster: Sequence[object] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> PruningCurve:
    """The metric as more and more heads are removed in the order of a ranking, beside random rankings.

    Args:
        model: the handle.
        batch: the prompts. Where heads are ranked here (a method's name, a function, or ``recompute``) and no
            ``selection`` is given, one half of them ranks and the other half is evaluated, so that no head is judged by
            the prompts that chose it.
        ranking: a table of heads, by its importance; heads, least important first; the name of a method of
            ``interp.attribute``; or a function from a batch to a table.
        metric: ``(logits, batch) -> [batch]``, or the name of a metric.
        steps: number of equal steps from all heads to as few as can be; or numbers of heads kept (ints); or shares of
            heads kept (floats).
        by: ``"signed"`` heads that hurt the metric go first; ``"abs"`` importance is the absolute value.
        order: ``"least"`` removes the least important heads first, ``"most"`` the most important ones.
        replacement: what a removed head's output becomes: ``"zero"``, ``"mean"``, ``"resample"`` or ``"uniform"``.
        reference: prompts for mean and resample; without it the batch's other prompts.
        recompute: rank what is left anew after every step: ``"removal"`` exactly, ``"gradient"`` or
            ``"gate_gradient_abs"`` by one backward; True the ranking's own method where it is one, else ``"removal"``.
        keep_per_layer: so many heads of each layer, the last in the order, are never removed.
        rescale: heads that stay are multiplied by (heads of the layer) / (heads that stay); with ``"zero"`` alone.
        random: number of random rankings that go through the same procedure (never recomputed).
        selection: the prompts that rank, where they are not to be a half of ``batch``.
        cluster: one label per prompt of ``batch``; those of one label go to the same half and are resampled together.
        batch_size, progress: as in ``interp.sweep``.
        seed: of the halves, the random rankings and resample.

    With H heads and the order h1, h2, ..., the curve is ``m(without h1..hn)`` against ``(H - n) / H``. Iterative
    pruning by a head-importance ranking: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?" (2019),
    who rank once by ``gate_gradient_abs``.

    Raises:
        BadInput: steps, options or heads that cannot be, before any forward pass.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3], [0, 5, 6, 5]], answers=[(4, 5), (6, 4)])
        >>> order = [Head(0, 1), Head(1, 1), Head(0, 0), Head(1, 0)]
        >>> pruning_curve(model, batch, order, steps=4, random=0).table()[["kept", "value"]].round(2).values.tolist()
        [[4.0, 10.0], [3.0, 10.0], [2.0, 10.0], [1.0, 0.0], [0.0, 0.0]]
    """
    refuse_replacement(replacement, reference, rescale=rescale)
    method = _recomputed_by(recompute, ranking, order)
    found = ranked_apart(
        ranking, model, batch, metric=metric, by=by, selection=selection, needs_selection=method is not None,
        cluster=cluster, reference=reference if ranking == replacement else None, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    first, settings = found.ranking, {"replacement": replacement, "reference": reference, "rescale": rescale}
    n_heads, prunable = len(first.heads), len(first.ascending(keep_per_layer=keep_per_layer))
    kept = step_counts(steps, n_heads, least=n_heads - prunable)[::-1]
    counts = [n_heads - count for count in kept]
    measure = metric_for(metric, model, found.evaluation)
    procedure = _Procedure(model, keep_per_layer, order == "most", by == "abs", metric, batch_size)
    removed = procedure.once(first)[: counts[-1]]
    if method is not None and found.selection is not None:
        out = removal(model, found.selection, first.heads, seed=seed, **settings)
        removed = procedure.recomputed(first, counts, found.selection, method, out)
    generator = np.random.default_rng(seed)
    orders = [removed, *(procedure.once(first.shuffled(generator)) for _ in range(random))]
    sets = [one for each in orders for one in prefixes(each, counts)]
    out = removal(model, found.evaluation, first.heads, seed=seed, **settings)
    values = values_of_sets(model, found.evaluation, sets, out, measure, batch_size=batch_size, progress=progress)
    curves = values.reshape(1 + random, len(counts), -1)
    disjoint = None if found.selection is None else not share_prompts(found.selection, found.evaluation)
    about = {"replacement": replacement, "rescale": rescale, "seed": seed, "recompute": method or False}
    about |= {"order": order, "by": by, "keep_per_layer": keep_per_layer, "disjoint": disjoint}
    name = f"{first.name}, recomputed by {method}" if method else first.name
    return PruningCurve(
        *(name, metric_name(metric), getattr(measure, "sense", 1), removed, n_heads, np.array(kept)),
        values=curves[0],
        random=curves[1:],
        cluster=found.cluster,
        metadata=plain_json(about),
    )


def _recomputed_by(recompute: bool | str, ranking: object, order: str) -> str | None:
    if order not in ("least", "most"):
        raise BadInput(unknown(order, ("least", "most"), "order of removal"))
    if recompute is False:
        return None
    if recompute is True:
        own = getattr(ranking, "name", ranking)
        return own if own in RECOMPUTED else RECOMPUTED[0]
    if recompute not in RECOMPUTED:
        raise BadInput(unknown(recompute, RECOMPUTED, "way to recompute a ranking"))
    return recompute


@dataclass(frozen=True)
class _Procedure:
    """How a ranking becomes an order of removal."""

    model: Model
    keep_per_layer: int
    most_first: bool
    absolute: bool
    metric: Metric | str
    batch_size: int | None

    def once(self, ranking: Ranking) -> tuple[Head, ...]:
        """The order of one ranking."""
        importance = np.abs(ranking.importance) if self.absolute else ranking.importance
        turned = replace(ranking, importance=-importance if self.most_first else importance)
        return turned.ascending(keep_per_layer=self.keep_per_layer)

    def recomputed(
        self, ranking: Ranking, counts: Sequence[int], batch: Batch, method: str, edits_of: EditsOf
    ) -> tuple[Head, ...]:
        """The order where what is left is ranked anew after every count."""
        metric = metric_for(self.metric, self.model, batch)
        removed: list[Head] = []
        for count in counts:
            if count == 0:
                continue
            if removed:
                left = [head for head in ranking.heads if head not in set(removed)]
                ranking = importance_left(
                    self.model,
                    batch,
                    removed,
                    left,
                    method=method,
                    edits_of=edits_of,
                    metric=metric,
                    batch_size=self.batch_size,
                )
            removed += self.once(ranking)[: count - len(removed)]
        return tuple(removed)
