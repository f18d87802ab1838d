"""``ablate_top``: the top heads chosen on some prompts and put out of the way on others, beside matched random sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.address import Head
from interp.attribution.attribute import attribute
from interp.attribution.curve import values_of_sets
from interp.attribution.halves import halves, labels_of, refuse_same_prompts
from interp.attribution.removal import removal
from interp.errors import BadInput
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.results import By, HeadScores
from interp.stats import Interval, MatchedSets, NullComparison, bootstrap_means, compare_with_null, matched_random_sets
from interp.stats import mean_interval as interval_of


@dataclass(frozen=True, eq=False, repr=False)
class TopAblation:
    """The joint effect of the top heads on prompts they were not chosen by; prints as sentences.

    Attributes:
        heads: the chosen heads, foremost first.
        per_prompt: ``[prompt]`` metric without them minus metric with them, on the evaluation prompts.
        random: ``[set, prompt]`` the same of each matched random set.
        sets: the random sets.
        comparison: the mean effect beside those of the random sets.
        cluster: one label per evaluation prompt, or None.
        n_selection: prompts that the heads were chosen by; 0 where the caller chose them.
        chosen_by, replacement, metric: what was done.
    """

    heads: tuple[Head, ...]
    per_prompt: Float[np.ndarray, " prompt"]
    random: Float[np.ndarray, "set prompt"]
    sets: MatchedSets
    comparison: NullComparison
    cluster: tuple[str, ...] | None
    n_selection: int
    chosen_by: str
    replacement: str
    metric: str

    @property
    def effect(self) -> Interval:
        """The mean effect with its bootstrap interval over the evaluation prompts."""
        return interval_of(self.per_prompt, cluster=self.cluster)

    @property
    def p(self) -> float | None:
        """Share of matched random sets that do as much; None below 20 sets."""
        return self.comparison.p

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per set of heads, the chosen one first: chosen, heads, value, low, high."""
        every = np.concatenate([self.per_prompt[None], self.random])
        low, high = bootstrap_means(every.T, confidence=confidence, cluster=self.cluster)
        return pd.DataFrame(
            {
                "chosen": [True] + [False] * len(self.random),
                "heads": [" ".join(map(str, one)) for one in (self.heads, *self.sets.sets)],
                "value": every.mean(1),
                "low": low,
                "high": high,
            }
        )

    def __str__(self) -> str:
        chosen = f"chosen by {self.chosen_by} on {self.n_selection} other prompts" if self.n_selection else "as given"
        named = ", ".join(map(str, self.heads))
        return f"{self.metric} without {named} ({chosen}; {self.replacement}): {self.effect}. {self.comparison}"

    def __repr__(self) -> str:
        return f"TopAblation({', '.join(map(str, self.heads))}: {self.effect})"

    def _repr_html_(self) -> str:
        from interp.show.scores import rows_html

        return rows_html(repr(self), self.table().drop(columns="chosen"), str(self))


def split(batch: Batch, *, cluster: Sequence[object] | None = None, seed: int = 0) -> tuple[Batch, Batch]:
    """``(selection, evaluation)``: the prompts in two halves that share no prompt and no cluster.

    Args:
        batch: the prompts; two of the same content go to the same half.
        cluster: one label per prompt; prompts with one label go to the same half.
        seed: of the draw.

    Raises:
        BadInput: fewer than two different prompts (or clusters), or not one label per prompt.

    Example:
        >>> import interp
        >>> batch = interp.encode(interp.load("handmade"), [[0, 3, 4, 3], [0, 5, 6, 5], [0, 7, 8, 7], [0, 9, 3, 9]])
        >>> [len(part) for part in split(batch)]
        [2, 2]
    """
    parts = halves(batch, cluster=cluster, seed=seed)
    return parts.selection, parts.evaluation


def ablate_top(
    model: Model,
    batch: Batch,
    ranking: str | Callable[[Batch], HeadScores] | HeadScores | Sequence[Head | str] = "mean",
    k: int = 5,
    *,
    metric: Metric | str = logit_difference,
    by: By | str = "abs",
    replacement: str = "mean",
    reference: Batch | None = None,
    random_sets: int = 200,
    overlap: bool | None = None,
    cluster: Sequence[object] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> TopAblation:
    """What taking out the top ``k`` heads together does to the metric, on prompts that they were not chosen by.

    With a method's name (or a function) the prompts are split in two halves that share no prompt and no cluster: the
    heads are ranked on one, and tested on the other beside random sets with as many heads per layer. Given heads or a
    table are tested on the whole batch; a table that was measured on any of it is refused.

    Args:
        model: the handle.
        batch: the prompts.
        ranking: a method of :func:`interp.attribute`; a function from a batch to a table; or a table or heads from
            elsewhere.
        k: how many heads.
        metric: ``(logits, batch) -> [batch]``, or the name of one.
        by: which heads are foremost, as in ``HeadScores.top``.
        replacement: zero, mean, resample or uniform.
        reference: prompts for mean and resample; the tested prompts themselves by default.
        random_sets: most matched random sets; below 20 there is no p.
        overlap: whether random sets may share heads with the chosen one, which makes p exact; only if they have to, by
            default (see :func:`interp.stats.matched_random_sets`).
        cluster: one label per prompt; prompts with one label stay together.
        seed: of the split and the random sets.
        batch_size, progress: as in :func:`interp.sweep`.

    Raises:
        BadInput: fewer heads than ``k``, or fewer prompts (or clusters) than can be split.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> pairs = [(a, b) for a in range(3, 6) for b in range(9, 12)]
        >>> batch = interp.encode(model, [[0, a, b, a] for a, b in pairs], answers=[(b, a) for a, b in pairs])
        >>> sorted(map(str, ablate_top(model, batch, "mean", 2).heads))
        ['L0.H0', 'L1.H0']
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise BadInput(f"ablate_top: k={k!r}; expected how many heads to take, at least 1.")
    judged = metric_for(metric, model, batch)
    labels, evaluation, n_selection = labels_of(batch, cluster), batch, 0
    chosen_by, found = "the caller", ranking
    if isinstance(ranking, str) or (callable(ranking) and not isinstance(ranking, HeadScores)):
        parts = halves(batch, cluster=cluster, seed=seed)
        evaluation, labels, n_selection = parts.evaluation, parts.evaluation_cluster, len(parts.selection)
        if isinstance(ranking, str):
            chosen_by = ranking
            found = attribute(
                model, parts.selection, ranking, metric=judged, cluster=parts.selection_cluster, batch_size=batch_size
            )
        else:
            chosen_by = getattr(ranking, "__name__", "a function")
            found = ranking(parts.selection)
    if isinstance(found, HeadScores):
        refuse_same_prompts(found, evaluation, "ablate_top")
    heads = _top(found, k, by)
    sets = matched_random_sets(heads, _widths(model, heads), n_draws=random_sets, seed=seed, overlap=overlap)
    every = [(), heads, *sets.sets]
    used = {head for one in every for head in one}
    edits_of = removal(model, evaluation, sorted(used), replacement=replacement, reference=reference, seed=seed)
    values = values_of_sets(model, evaluation, every, edits_of, judged, batch_size=batch_size, progress=progress)
    effects = values[1:] - values[0]
    return TopAblation(
        heads=heads,
        per_prompt=effects[0],
        random=effects[1:],
        sets=sets,
        comparison=compare_with_null(float(effects[0].mean()), effects[1:].mean(1), sets=sets),
        cluster=labels,
        n_selection=n_selection,
        chosen_by=chosen_by,
        replacement=replacement,
        metric=getattr(judged, "__name__", repr(judged)),
    )


def _top(found: Any, k: int, by: str) -> tuple[Head, ...]:
    if isinstance(found, HeadScores):
        if found.unit != "query":
            raise BadInput(f"ablate_top: {found.name!r} is a table of KV heads; rank query heads.")
        heads = tuple(found.top_heads(k, by=by)) if found.positions is None else ()
        if found.positions is not None:
            raise BadInput(f"ablate_top: {found.name!r} has a value per position; rank heads with one value each.")
    elif isinstance(found, Sequence) and not isinstance(found, str):
        heads = tuple(Head.parse(head) for head in found)[:k]
    else:
        raise BadInput(f"ablate_top: a ranking came as {type(found).__name__}; expected a method, a table or heads.")
    if len(heads) < k:
        raise BadInput(f"ablate_top: k={k}, but the ranking names {len(heads)} heads{f' (by={by!r})' * (by != 'abs')}.")
    return heads


def _widths(model: Model, heads: Sequence[Head]) -> dict[str | None, list[int]]:
    stacks = {head.stack for head in heads}
    return {name: [model.stack(name).n_heads(layer) for layer in range(model.stack(name).n_layers)] for name in stacks}
