"""The top heads of every method, chosen on one half of the prompts and taken away on the other, beside random sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

import interp
from circuits.experiments.attribution.config import AttributionConfig
from circuits.experiments.copying.job import Job
from circuits.experiments.copying.pairs import CopyingPairs
from circuits.experiments.opening import widths_of
from circuits.units import Arrays, fingerprint_of
from interp.address import Head
from interp.results import HeadScores
from interp.stats import (
    Interval,
    MatchedSets,
    NullComparison,
    benjamini_hochberg,
    compare_with_null,
    matched_random_sets,
    mean_interval,
)


@dataclass(frozen=True, eq=False)
class TopHeads:
    """The top heads of some methods, taken away together on the evaluation prompts.

    Attributes:
        methods: those that chose exactly these heads.
        heads: by layer and index.
        effect: metric without them minus metric with them, with its interval over prompts.
        random: ``[set]`` the same of each matched random set, means over prompts.
        matched: how the random sets were drawn.
        null: the effect beside those of the random sets.
        adjusted: the null's p-value after Benjamini-Hochberg over the different sets; None with too few of them.
    """

    methods: tuple[str, ...]
    heads: tuple[Head, ...]
    effect: Interval
    random: np.ndarray
    matched: MatchedSets
    null: NullComparison
    adjusted: float | None = None

    def stands_out(self, level: float = 0.05) -> bool | None:
        """Whether they do more than matched random sets; None where there are too few sets to say."""
        return None if self.adjusted is None else self.adjusted <= level


def top_heads(job: Job, config: AttributionConfig, tables: Mapping[str, HeadScores]) -> list[TopHeads]:
    """One entry for each different set that a method chose, in the order of the methods.

    A signed method chooses the heads that help most, an unsigned one those with the largest values.

    Args:
        job: the run.
        config: the settings.
        tables: method -> table on the selection prompts.
    """
    chosen: dict[tuple[Head, ...], list[str]] = {}
    for method, table in tables.items():
        heads = table.top_heads(config.top_k, by="helps" if table.sense else "abs")
        if heads:
            chosen.setdefault(tuple(sorted(heads)), []).append(method)
    found = []
    with job.progress.stage("Top heads against random ones", len(chosen)) as done:
        for heads, methods in chosen.items():
            found.append(_judged(job, config, heads, tuple(methods)))
            done()
    p = np.array([np.nan if one.null.p is None else one.null.p for one in found])
    adjusted = benjamini_hochberg(p).adjusted
    return [
        replace(one, adjusted=None if np.isnan(value) else float(value))
        for one, value in zip(found, adjusted, strict=True)
    ]


def _judged(job: Job, config: AttributionConfig, heads: tuple[Head, ...], methods: tuple[str, ...]) -> TopHeads:
    """The heads and their random sets on all evaluation prompts, each chunk of prompts a piece of its own."""
    made_of = fingerprint_of(job.reference.fingerprint, config.draws)
    key = f"sets/{config.ablation}/{' '.join(map(str, heads))}"
    parts = [
        job.pieces.arrays(
            key, fingerprint_of(chunk.fingerprint, made_of), lambda own=chunk: _run(job, config, heads, own)
        )
        for chunk in job.evaluation.chunks(config.batch_size)
    ]
    chosen = np.concatenate([part["chosen"] for part in parts])
    random = np.concatenate([part["random"] for part in parts], axis=1).mean(1)
    matched = matched_random_sets(heads, widths_of(job.model), n_draws=config.draws, seed=config.seed)
    assert len(matched.sets) == len(random), "the sets are a function of heads, draws and seed"
    return TopHeads(
        methods=methods,
        heads=heads,
        effect=mean_interval(chosen, confidence=config.confidence),
        random=random,
        matched=matched,
        null=compare_with_null(float(chosen.mean()), random, confidence=config.confidence, sets=matched),
    )


def _run(job: Job, config: AttributionConfig, heads: Sequence[Head], pairs: CopyingPairs) -> Arrays:
    found = interp.ablate_top(
        job.model,
        pairs.clean_batch(job.model),
        list(heads),
        len(heads),
        replacement=config.ablation,
        reference=None if config.ablation == "zero" else job.reference_batch,
        random_sets=config.draws,
        seed=config.seed,
    )
    return {"chosen": found.per_prompt, "random": found.random}
