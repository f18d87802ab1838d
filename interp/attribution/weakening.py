"""Ordered weakening: heads weakened one after the other, the most relevant first and the least relevant first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.address import At, Head, Site
from interp.attribution.curve import area, band, metric_name, prefixes, step_counts, values_of_sets, with_intervals
from interp.attribution.halves import share_prompts
from interp.attribution.ranking import Ranking, ranked_apart
from interp.attribution.removal import EditsOf, by_layer, place_of
from interp.edits.activations import scale, zero
from interp.edits.groups import Group, columns_of
from interp.errors import BadInput
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.numerals import numeral
from interp.results import HeadScores
from interp.stats import FEWEST_SETS, Interval, mean_interval, p_value
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KIND = "weakening curves"
_SITES = (Site.Z, Site.PATTERN)


@dataclass(frozen=True, eq=False, repr=False)
class WeakeningCurves:
    """The metric as heads are weakened in two orders; prints a sentence. Made by ``interp.weakening_curves``.

    Attributes:
        name: what the heads were ranked by.
        metric: the metric's name.
        sense: +1 where a larger metric is better, -1 where a smaller one is.
        order: the heads, most relevant first.
        weakened: ``[step]`` how many heads were weakened, ascending.
        most: ``[step, prompt]`` the metric, the most relevant heads weakened first.
        least: ``[step, prompt]`` the metric, the least relevant heads weakened first.
        random: ``[draw, step, prompt]`` the metric along random orders.
        random_reversed: ``[draw, step, prompt]`` the metric along the same orders backwards.
        cluster: one label per prompt, or None.
        metadata: how the numbers were made.
    """

    name: str
    metric: str
    sense: int
    order: tuple[Head, ...]
    weakened: Int[np.ndarray, " step"]
    most: Float[np.ndarray, "step prompt"]
    least: Float[np.ndarray, "step prompt"]
    random: Float[np.ndarray, "draw step prompt"]
    random_reversed: Float[np.ndarray, "draw step prompt"]
    cluster: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> Float[np.ndarray, " step"]:
        """Share of the heads that were weakened at each step, ascending."""
        return self.weakened / len(self.order)

    @property
    def gap(self) -> Interval:
        """Area between the curves per unit of share, ``sense * (least first - most first)``, with its interval.

        Positive where weakening the relevant heads first makes the metric worse earlier; about 0 for a random ranking.
        """
        return mean_interval(self.sense * area(self.share, (self.least - self.most).T), cluster=self.cluster)

    @property
    def p(self) -> float | None:
        """Share of random rankings with at least as large a gap, ``(1 + #) / (1 + n)``; None from fewer than 20."""
        if len(self.random) < FEWEST_SETS:
            return None
        gaps = area(self.share, (self.random_reversed - self.random).mean(2))
        return p_value(self.gap.mean, self.sense * gaps, tail="greater")

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per step: heads weakened, their share, both curves with intervals, and the band of random orders."""
        columns: dict[str, np.ndarray] = {"weakened": self.weakened, "share": self.share}
        for name in ("most", "least"):
            found = with_intervals(getattr(self, name), self.cluster, confidence=confidence)
            columns |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        return pd.DataFrame({**columns, **band(self.random.mean(2), confidence=confidence)})

    def plot(self, *, title: str = "", confidence: float = 0.95) -> go.Figure:
        """A plotly chart of both curves with their intervals, and the band of the random orders."""
        from interp.show.orders import weakening_figure

        rows = self.table(confidence=confidence)
        return weakening_figure(rows, name=self.name, metric=self.metric, title=title, confidence=confidence)

    def __str__(self) -> str:
        return (
            f"Weakening heads by {self.name}: area between least and most relevant first {self.gap}"
            + (f", p = {numeral(self.p)}" if self.p is not None else "")
            + f", in {self.metric}."
        )

    def __repr__(self) -> str:
        steps, prompts = self.most.shape
        return f"WeakeningCurves({self.name!r}, {len(self.order)} heads, {steps} steps, {prompts} prompts)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds the curves; see ``open``."""
        arrays = {name: getattr(self, name) for name in ("weakened", "most", "least", "random", "random_reversed")}
        about = {name: getattr(self, name) for name in ("name", "metric", "sense", "cluster", "metadata")}
        return write_arrays(path, arrays, kind=_KIND, metadata={**about, "order": [list(head) for head in self.order]})

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> WeakeningCurves:
        """The curves that ``save`` wrote to ``path``.

        Raises:
            BadInput: the file is not there, is damaged, or is something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        about["order"] = tuple(Head(*head) for head in about["order"])
        about["cluster"] = None if about["cluster"] is None else tuple(about["cluster"])
        return cls(**arrays, **about)


def weakening_curves(
    model: Model,
    batch: Batch,
    ranking: HeadScores | Ranking | Sequence[Head] | str | Callable[[Batch], HeadScores],
    *,
    metric: Metric | str = logit_difference,
    factor: float = 0.0,
    site: Site | str = Site.Z,
    keys: Group = None,
    steps: int | Sequence[float] = 10,
    by: str = "signed",
    random: int = 20,
    selection: Batch | None = None,
    cluster: Sequence[object] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> WeakeningCurves:
    """The metric as heads are weakened one after the other, the most relevant first and the least relevant first.

    Args:
        model: the handle.
        batch: the prompts; one half of them ranks where ``ranking`` has to be measured and no ``selection`` is given.
        ranking: a table of heads, by its importance; heads, least relevant first; the name of a method of
            ``interp.attribute``; or a function from a batch to a table.
        metric: ``(logits, batch) -> [batch]``, or the name of a metric.
        factor: what a weakened head is multiplied by: 0 silences it, 1 leaves it, -2 turns it round and doubles it.
        site: ``Site.Z`` the head's output, or ``Site.PATTERN`` its attention map; rows are not renormalised.
        keys: with ``Site.PATTERN``, only the attention to these keys is multiplied (a span's name, positions as in
            :func:`interp.knockout`); all keys by default.
        steps: number of equal steps from none to all heads; or numbers of heads (ints); or shares of heads (floats).
        by: ``"signed"`` heads that hurt the metric are the least relevant; ``"abs"`` relevance is the absolute value.
        random: number of random rankings, each run forwards and backwards.
        selection: the prompts that rank, where they are not to be a half of ``batch``.
        cluster: one label per prompt of ``batch``; those of one label go to the same half and are resampled together.
        batch_size, progress: as in ``interp.sweep``.
        seed: of the halves and the random orders.

    Ordered weakening of head relevance vectors, there with ``factor=-2`` on the map at one word's keys: Park et al.,
    "Cross-Attention Head Position Patterns Can Align with Human Visual Concepts" (2025).

    Raises:
        BadInput: steps, options or heads that cannot be, before any forward pass.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3], [0, 5, 6, 5]], answers=[(4, 5), (6, 4)])
        >>> order = [Head(0, 1), Head(1, 1), Head(0, 0), Head(1, 0)]
        >>> curves = weakening_curves(model, batch, order, steps=4, random=0)
        >>> curves.table()[["most", "least"]].round(2).values.tolist()
        [[10.0, 10.0], [0.0, 10.0], [0.0, 10.0], [0.0, 0.0], [0.0, 0.0]]
        >>> round(curves.gap.mean, 3)
        5.0
    """
    place = _checked_site(site, factor, keys)
    found = ranked_apart(
        ranking, model, batch, metric=metric, by=by, selection=selection, cluster=cluster, batch_size=batch_size,
        seed=seed,
    )  # fmt: skip
    ranked, evaluated = found.ranking, found.evaluation
    counts = step_counts(steps, len(ranked.heads))
    order = ranked.descending()
    generator = np.random.default_rng(seed)
    orders = [order, *(ranked.shuffled(generator).descending() for _ in range(random))]
    sets = [one for each in orders for way in (each, each[::-1]) for one in prefixes(way, counts)]
    measure = metric_for(metric, model, evaluated)
    edits_of = _weakened(model, evaluated, place, factor, keys)
    values = values_of_sets(model, evaluated, sets, edits_of, measure, batch_size=batch_size, progress=progress)
    values = values.reshape(1 + random, 2, len(counts), -1)
    disjoint = None if found.selection is None else not share_prompts(found.selection, evaluated)
    shown = keys if keys is None or isinstance(keys, str | int) else repr(keys)
    return WeakeningCurves(
        name=ranked.name,
        metric=metric_name(metric),
        sense=getattr(measure, "sense", 1),
        order=order,
        weakened=np.array(counts),
        most=values[0, 0],
        least=values[0, 1],
        random=values[1:, 0],
        random_reversed=values[1:, 1],
        cluster=found.cluster,
        metadata=plain_json(
            {"factor": factor, "site": place.value, "keys": shown, "by": by, "seed": seed, "disjoint": disjoint}
        ),
    )


def _checked_site(site: Site | str, factor: Any, keys: Group) -> Site:
    place = At(site).site
    if place not in _SITES:
        raise BadInput(f"weakening: site={place!r}; expected Site.Z or Site.PATTERN.")
    if keys is not None and place is not Site.PATTERN:
        raise BadInput("weakening: keys= chooses columns of the attention map; give site=Site.PATTERN with it.")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not np.isfinite(factor):
        raise BadInput(f"weakening: factor={factor!r}; expected a finite number such as 0, 0.5 or -2.")
    return place


def _weakened(model: Model, batch: Batch, site: Site, factor: float, keys: Group) -> EditsOf:
    """A function from heads to the edits that weaken them, one per layer."""
    if site is Site.Z:
        return lambda heads: [
            zero(place_of(*item)) if factor == 0 else scale(place_of(*item), factor) for item in by_layer(heads).items()
        ]

    def edits(heads: Sequence[Head]) -> list[Any]:
        made = []
        for (stack, layer), indices in by_layer(heads).items():
            at = place_of((stack, layer), indices, Site.PATTERN)
            if keys is None:
                made.append(scale(at, factor))
                continue
            mask = batch.key_mask(stack)
            width = batch.width if mask is None else mask.shape[1]
            member = columns_of(keys, batch, width, batch.mask.device, mask=mask)
            made.append(scale(at, torch.where(member, float(factor), 1.0), axes="batch key"))
        return made

    return edits
