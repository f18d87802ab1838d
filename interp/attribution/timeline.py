"""``HeadTimeline``: which heads are active at each checkpoint of a training, since when, and for how long."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.address import Head
from interp.attribution.attribute import attribute
from interp.attribution.changes import refuse_other_shape
from interp.attribution.head_sets import default_threshold, head_set
from interp.errors import BadInput
from interp.metrics import logit_difference
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.load import load
from interp.model.run import Metric
from interp.names import unknown
from interp.numerals import numeral
from interp.results import HeadScores
from interp.stats import p_value
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KIND = "a head timeline"
VIEWS = ("active", "retention", "cohorts")


@dataclass(frozen=True, eq=False, repr=False)
class HeadTimeline:
    """Which heads are active at each checkpoint; prints a sentence. Made by ``interp.head_timeline`` or ``of``.

    Attributes:
        steps: training step of each checkpoint, ascending.
        heads: the heads, layer by layer.
        active: ``[checkpoint, head]`` whether the head is in the checkpoint's set.
        values: ``[checkpoint, head]`` what the heads were judged by, NaN where sets were given as they are.
        support: ``[checkpoint, head]`` share of resampled prompts in which the head is over the threshold.
        metadata: how the numbers were made.
    """

    steps: tuple[int, ...]
    heads: tuple[Head, ...]
    active: Bool[np.ndarray, "checkpoint head"]
    values: Float[np.ndarray, "checkpoint head"]
    support: Float[np.ndarray, "checkpoint head"]
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        steps: Sequence[int],
        tables: Sequence[HeadScores],
        *,
        threshold: float | None = None,
        by: str = "abs",
        confidence: float = 0.95,
        seed: int = 0,
    ) -> HeadTimeline:
        """The timeline of one table of head scores per checkpoint.

        Args:
            steps: training step of each checkpoint, ascending.
            tables: of the same heads, measured the same way.
            threshold: a head is active where its mean value is at least this large in a share ``confidence`` of the
                resampled prompts; by default a tenth of the largest value at any checkpoint.
            by: ``"abs"``, ``"helps"`` or ``"hurts"``; see ``interp.compare_heads``.
            confidence: see ``threshold``.
            seed: of the resampling.

        Raises:
            BadInput: not one table per step, or tables of other heads.

        Example:
            >>> tables = [HeadScores.from_array([[0.0, value]], name="zero") for value in (0.1, 2.0, 3.0)]
            >>> HeadTimeline.of([0, 100, 200], tables).active.tolist()
            [[False, False], [False, True], [False, True]]
        """
        _check_steps(steps, len(tables))
        limit = default_threshold(tables) if threshold is None else threshold
        sets = [head_set(one, threshold=limit, by=by, confidence=confidence, seed=seed) for one in tables]
        if any(one.heads != sets[0].heads for one in sets):
            raise BadInput("The tables hold other heads at other checkpoints; give tables of the same heads.")
        about = {"measure": tables[0].name, "threshold": limit, "by": by, "confidence": confidence, "seed": seed}
        return cls(
            tuple(map(int, steps)),
            sets[0].heads,
            np.stack([one.member for one in sets]),
            np.stack([one.values for one in sets]),
            np.stack([one.support for one in sets]),
            plain_json(about),
        )

    @classmethod
    def of_sets(cls, steps: Sequence[int], sets: Sequence[Iterable[Head]], heads: Sequence[Head]) -> HeadTimeline:
        """The timeline of one set of heads per checkpoint, such as the heads of a circuit.

        Raises:
            BadInput: not one set per step, or a head that is not among ``heads``.

        Example:
            >>> timeline = HeadTimeline.of_sets([0, 100], [[], [Head(0, 1)]], [Head(0, 0), Head(0, 1)])
            >>> timeline.counts.tolist()
            [0, 1]
        """
        _check_steps(steps, len(sets))
        members = [set(one) for one in sets]
        strange = sorted(set().union(*members) - set(heads)) if members else []
        if strange:
            raise BadInput(f"{', '.join(map(str, strange))} stand in a set but not among the heads; name every head.")
        active = np.array([[head in one for head in heads] for one in members], dtype=bool).reshape(len(sets), -1)
        nothing = np.full(active.shape, np.nan)
        about = {"measure": "given sets"}
        return cls(tuple(map(int, steps)), tuple(heads), active, nothing, active.astype(float), about)

    @property
    def counts(self) -> np.ndarray:
        """``[checkpoint]`` how many heads are active."""
        return self.active.sum(1)

    @property
    def frequency(self) -> Float[np.ndarray, " head"]:
        """``[head]`` share of the checkpoints at which the head is active."""
        return self.active.mean(0)

    @property
    def retention(self) -> Float[np.ndarray, "from to"]:
        """``[t, t']`` share of the heads active at t that are active at t', ``|C_t & C_t'| / |C_t|``; NaN where C_t is
        empty."""
        counts = self.counts.astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.active.astype(float) @ self.active.T.astype(float)) / counts[:, None]

    @property
    def first(self) -> tuple[int | None, ...]:
        """The step at which each head is first active; None where it never is."""
        return tuple(self.steps[int(column.argmax())] if column.any() else None for column in self.active.T)

    @property
    def turnover(self) -> int:
        """How often a head becomes active or falls silent from one checkpoint to the next, over all heads."""
        return int((self.active[1:] != self.active[:-1]).sum())

    def at(self, step: int) -> tuple[Head, ...]:
        """The heads active at a step.

        Raises:
            BadInput: no checkpoint of that step.
        """
        if step not in self.steps:
            raise BadInput(f"No checkpoint of step {step}; they are {', '.join(map(str, self.steps))}.")
        row = self.active[self.steps.index(step)]
        return tuple(head for head, inside in zip(self.heads, row, strict=True) if inside)

    def cohorts(self) -> pd.DataFrame:
        """One row per step at which heads are first active, with how many they are (``size``), and one column per
        step with how many of them are active then; NaN before the cohort's own step."""
        rows = []
        for step in sorted({one for one in self.first if one is not None}):
            cohort = np.array([one == step for one in self.first])
            active = self.active[:, cohort].sum(1).astype(float)
            active[: self.steps.index(step)] = np.nan
            rows.append([step, int(cohort.sum()), *active])
        return pd.DataFrame(rows, columns=["first", "size", *self.steps]).set_index("first")

    def shuffled(self, seed: int = 0) -> HeadTimeline:
        """The same checkpoints under permuted labels, which breaks whatever order in time there was."""
        return self._reordered(np.random.default_rng(seed).permutation(len(self.steps)))

    def order_p(self, *, draws: int = 999, seed: int = 0) -> float:
        """Share of permuted checkpoint orders with as little turnover, ``(1 + #) / (1 + n)``.

        Small where heads stay once they came; near 1 where the sets follow each other in no order.
        """
        generator = np.random.default_rng(seed)
        null = [self._reordered(generator.permutation(len(self.steps))).turnover for _ in range(draws)]
        return p_value(self.turnover, np.array(null, dtype=float), tail="less")

    def _reordered(self, order: np.ndarray) -> HeadTimeline:
        return replace(self, active=self.active[order], values=self.values[order], support=self.support[order])

    def table(self) -> pd.DataFrame:
        """One row per checkpoint and head: step, label, stack, layer, head, value, support, active."""
        rows = [
            (step, str(head), head.stack or "", head.layer, head.index, *cells)
            for place, step in enumerate(self.steps)
            for head, *cells in zip(
                self.heads, self.values[place], self.support[place], self.active[place], strict=True
            )
        ]
        return pd.DataFrame(rows, columns=["step", "label", "stack", "layer", "head", "value", "support", "active"])

    def plot(self, view: str = "active", *, title: str = "") -> go.Figure:
        """A plotly heatmap of one view.

        Args:
            view: ``"active"`` each head at each step, its value where it is active; ``"retention"`` of the sets from
                step to step; ``"cohorts"`` the share of each cohort still active.
            title: heading inside the figure.
        """
        from interp.show import timeline as figures

        steps = [str(step) for step in self.steps]
        if view == "active":
            ever = [place for place in range(len(self.heads)) if self.active[:, place].any() or not self.active.any()]
            labels = [str(self.heads[place]) for place in ever]
            values = self.support if np.isnan(self.values).all() else self.values
            shown = np.where(self.active, values, np.nan)[:, ever].T
            return figures.active_figure(shown, labels, steps, name=str(self.metadata.get("measure")), title=title)
        if view == "retention":
            return figures.retention_figure(self.retention, steps, title=title)
        if view == "cohorts":
            return figures.cohort_figure(self.cohorts(), title=title)
        raise BadInput(unknown(view, VIEWS, "view"))

    def __str__(self) -> str:
        came = [
            f"{label} at {step}"
            for label, step in zip(map(str, self.heads), self.first, strict=True)
            if step is not None
        ]
        last = len(self.at(self.steps[-1]))
        return (
            f"{len(came)} of {len(self.heads)} heads are active at some of {len(self.steps)} checkpoints "
            f"({', '.join(came) or 'none'}), {last} at the last; turnover {self.turnover}, "
            f"p = {numeral(self.order_p())} against permuted checkpoints."
        )

    def __repr__(self) -> str:
        ever = int(self.active.any(0).sum())
        return f"HeadTimeline({len(self.steps)} checkpoints, {len(self.heads)} heads, {ever} ever active)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds the timeline; see ``open``."""
        arrays = {name: getattr(self, name) for name in ("active", "values", "support")}
        about = {"steps": self.steps, "heads": [list(head) for head in self.heads], "metadata": self.metadata}
        return write_arrays(path, arrays, kind=_KIND, metadata=about)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> HeadTimeline:
        """The timeline that ``save`` wrote to ``path``.

        Raises:
            BadInput: the file is not there, is damaged, or is something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        heads = tuple(Head(*head) for head in about["heads"])
        return cls(tuple(about["steps"]), heads, **arrays, metadata=about["metadata"])


def head_timeline(
    checkpoints: Iterable[tuple[int, Model | str | os.PathLike[str]]],
    batch: Batch,
    *,
    method: str = "zero",
    metric: Metric | str = logit_difference,
    threshold: float | None = None,
    by: str = "abs",
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> HeadTimeline:
    """Which heads are active at each checkpoint, by one method of ``interp.attribute``.

    Args:
        checkpoints: training step and model, or step and what ``interp.load`` reads (one is held at a time), such as
            ``interp.zoo.checkpoints("induction")``.
        batch: the prompts, the same for all.
        method: a method of ``interp.attribute``.
        metric: ``(logits, batch) -> [batch]``, or the name of a metric.
        threshold, by, confidence, seed: as in ``HeadTimeline.of``.
        progress: called with 1 after each checkpoint.
        **options: further arguments of ``interp.attribute``.

    Head trajectories over post-training: "Thinking Sparks! Emergent Attention Heads in Reasoning Models During Post
    Training" (2025, arXiv 2509.25758).

    Raises:
        BadInput: no checkpoint, steps that do not ascend, or models of other shapes.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3], [0, 5, 6, 5]], answers=[(4, 5), (6, 4)])
        >>> timeline = head_timeline([(0, model), (100, model)], batch)
        >>> [str(head) for head in timeline.at(100)], timeline.retention.tolist(), timeline.turnover
        (['L0.H0', 'L1.H0'], [[1.0, 1.0], [1.0, 1.0]], 0)
    """
    places = [(int(step), place) for step, place in checkpoints]
    _check_steps([step for step, _ in places], len(places))
    tables: list[HeadScores] = []
    first: Model | None = None
    for _, place in places:
        model = place if isinstance(place, Model) else load(os.fspath(place), check=False)
        if first is not None:
            refuse_other_shape(first, model)
        first = first or model
        tables.append(attribute(model, batch, method, metric=metric, seed=seed, **options))
        if progress is not None:
            progress(1)
    return HeadTimeline.of(
        [step for step, _ in places], tables, threshold=threshold, by=by, confidence=confidence, seed=seed
    )


def _check_steps(steps: Sequence[int], count: int) -> None:
    if not count or len(steps) != count:
        raise BadInput(f"{len(steps)} steps for {count} checkpoints; give one step each, and one checkpoint at least.")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise BadInput(f"steps={list(steps)}: expected them ascending, each once.")
