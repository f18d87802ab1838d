"""The heads that a score ranks first, taken out together, on both sorts of questions and beside random heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuits.experiments.vision.job import SORTS, Job, Part
from circuits.experiments.vision.measuring import CONTENT, DIVERGENCE, EFFECTS, MASS, reference_of
from circuits.units import fingerprint_of
from interp.address import Head
from interp.attribution.curve import values_of_sets
from interp.attribution.removal import removal
from interp.errors import BadInput
from interp.results import HeadScores
from interp.stats import Interval, MatchedSets, NullComparison, compare_with_null, matched_random_sets, mean_interval

RANKINGS = (DIVERGENCE, CONTENT, MASS)


@dataclass(frozen=True, eq=False)
class SetEffect:
    """What taking out the first heads of a ranking does to each sort of questions.

    Attributes:
        ranking: the score that the heads were chosen by, on the selection questions.
        each_layer: whether the foremost heads of every layer were taken, or the foremost of all.
        heads: foremost first.
        sets: random sets with as many heads per layer.
        effects: sort -> ``[set, question]`` metric without the heads minus metric with them; the chosen set first.
        clusters: sort -> one label per question.
        confidence: of the intervals.
    """

    ranking: str
    each_layer: bool
    heads: tuple[Head, ...]
    sets: MatchedSets
    effects: dict[str, Float[np.ndarray, "set question"]]
    clusters: dict[str, tuple[str, ...]]
    confidence: float

    def interval(self, sort: str) -> Interval:
        """The mean effect of the chosen heads on one sort of questions."""
        return mean_interval(self.effects[sort][0], confidence=self.confidence, cluster=self.clusters[sort])

    def against_random(self, sort: str) -> NullComparison:
        """The mean effect beside those of the random sets; small p: few random sets cost as much."""
        means = self.effects[sort].mean(1)
        return compare_with_null(float(means[0]), means[1:], tail="less", confidence=self.confidence, sets=self.sets)

    @property
    def selective(self) -> NullComparison:
        """How much more the questions with an image lose than the text questions, beside random sets."""
        means = self.effects["vision"].mean(1) - self.effects["text"].mean(1)
        return compare_with_null(float(means[0]), means[1:], tail="less", confidence=self.confidence, sets=self.sets)


def sets_of(job: Job, tables: dict[str, HeadScores]) -> list[SetEffect]:
    """What taking the foremost heads out does, for each ranking: some numbers of them, and last the half of each layer.

    Raises:
        BadInput: no number of heads that is smaller than the number there is.
    """
    found, n_heads = [], sum(job.widths)
    if max(job.widths[job.config.first_layer :], default=0) < 2:  # noqa: PLR2004 - a half needs two
        raise BadInput(f"No heads to take out: no layer from {job.config.first_layer} on has two heads or more.")
    for name in RANKINGS:
        order = [head for head in tables[name].top_heads(n_heads, by="value") if head.layer >= job.config.first_layer]
        chosen = [(False, tuple(order[:count])) for count in job.config.top if count < len(order)]
        chosen += [(True, _of_each_layer(order, count)) for count in job.config.per_layer if count < max(job.widths)]
        chosen += [(True, _upper_halves(order, job.widths))]
        for each_layer, heads in chosen:
            sets = matched_random_sets(heads, job.widths, n_draws=job.config.random_sets, seed=job.config.seed)
            every = [heads, *sets.sets]
            what = f"{name}, {len(heads)}"
            effects = {sort: _effects(job, sort, every, what) for sort in SORTS}
            clusters = {sort: job.questions(sort, "evaluation").sources for sort in SORTS}
            found.append(SetEffect(name, each_layer, heads, sets, effects, clusters, job.config.confidence))
    return found


def _upper_halves(order: Sequence[Head], widths: Sequence[int]) -> tuple[Head, ...]:
    """The first half of every layer's heads, rounded down, in their order."""
    firsts = {layer: [head for head in order if head.layer == layer] for layer in range(len(widths))}
    kept = {head for layer, width in enumerate(widths) for head in firsts[layer][: width // 2]}
    return tuple(head for head in order if head in kept)


def _of_each_layer(order: Sequence[Head], count: int) -> tuple[Head, ...]:
    """The first ``count`` heads of every layer, in their order."""
    layers: dict[int, int] = {}
    kept = []
    for head in order:
        layers[head.layer] = layers.get(head.layer, 0) + 1
        if layers[head.layer] <= count:
            kept.append(head)
    return tuple(kept)


def _effects(job: Job, sort: str, sets: Sequence[Sequence[Head]], what: str) -> Float[np.ndarray, "set question"]:
    parts = job.parts(sort, "evaluation")
    named = [[str(head) for head in one] for one in sets]
    rows = []
    with job.progress.stage(f"Sets, {EFFECTS[sort]}: {what}", len(parts)) as done:
        for part in parts:
            made_of = fingerprint_of(part.fingerprint, named)
            key = f"sets/{job.config.metric}/{job.config.ablation}/{sort}"
            rows.append(job.pieces.arrays(key, made_of, lambda p=part: {"effects": _values(job, p, sets)})["effects"])
            done()
    return np.concatenate(rows, axis=1)


def _values(job: Job, part: Part, sets: Sequence[Sequence[Head]]) -> np.ndarray:
    batch = job.batch(part.questions)
    used = sorted({head for one in sets for head in one})
    options = {} if part.reference is None else reference_of(job, part)
    edits_of = removal(job.model, batch, used, replacement=job.config.ablation, seed=job.config.seed, **options)  # type: ignore[arg-type]
    values = values_of_sets(job.model, batch, [(), *sets], edits_of, job.metric)
    return values[1:] - values[0]
