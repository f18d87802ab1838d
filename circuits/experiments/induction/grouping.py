"""Sets of heads chosen on one half of the prompts and judged on the other, against random sets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from circuits.experiments.induction.ablation import (
    Replacement,
    can_hold_patterns,
    without_moving_patterns,
    without_sets,
)
from circuits.experiments.induction.answers import Answers
from circuits.experiments.induction.findings import (
    Group,
    SingleHeads,
    adjusted_for_each_other,
    group_of,
    heads_above,
)
from circuits.experiments.induction.job import Job
from interp.address import Head
from interp.results import HeadScores
from interp.stats import matched_random_sets

BY_EFFECT = "largest effects"
INDUCTION_HEADS = "induction heads"
PREVIOUS_HEADS = "previous-token heads"
SHARING_HEADS = "heads sharing the look back"
LARGEST_GROUP = 16  # heads replaced at once at most, the highest scores first


def choose(job: Job, effects: SingleHeads, scores: Mapping[str, HeadScores]) -> dict[str, tuple[Head, ...]]:
    """Name -> heads of each set, from the selection prompts alone; sets without a head are left out.

    Args:
        job: the run.
        effects: of replacing each head, on the selection prompts.
        scores: on the selection prompts.
    """
    sets = {BY_EFFECT: effects.effect.top_heads(job.config.top_k, by="helps")}
    if "induction" in scores:
        sets[INDUCTION_HEADS] = _above(scores["induction"], job.config.threshold)
    if "previous_token" in scores:
        sets[PREVIOUS_HEADS] = _above(scores["previous_token"], job.config.threshold)
        if not sets[PREVIOUS_HEADS]:
            sets[SHARING_HEADS] = _above(scores["previous_token"], job.config.threshold / 2)
    return {name: tuple(sorted(heads)) for name, heads in sets.items() if heads}


def _above(scores: HeadScores, threshold: float) -> list[Head]:
    return [head for head, _ in heads_above(scores.values, threshold)[:LARGEST_GROUP]]


def judge(
    job: Job, replacement: Replacement, answers: Answers, base: np.ndarray, sets: Mapping[str, tuple[Head, ...]]
) -> tuple[list[Group], list[str]]:
    """Each set with its effect on the evaluation prompts, its random sets, and its effect with patterns held still;
    and a note where the last could not be had.

    Args:
        job: the run.
        replacement: what takes the place of outputs.
        answers: of the evaluation prompts.
        base: ``[prompt]`` the loss with nothing replaced.
        sets: name -> heads.
    """
    held, why_not = _held(job, replacement, answers, sets)
    groups = []
    for name, heads in sets.items():
        matched = matched_random_sets(heads, job.widths, n_draws=job.config.draws, seed=job.config.seed)
        own, *random = without_sets(
            job, replacement, job.evaluation, answers, [heads, *matched.sets], name=f"sets: {name}"
        )
        groups.append(
            group_of(
                name,
                heads,
                base=base,
                without=own,
                random=np.array(random),
                matched=matched,
                confidence=job.config.confidence,
                held=held.get(name),
            )
        )
    return adjusted_for_each_other(groups), [
        f"The part with patterns held still was left out: {why_not}"
    ] if why_not else []


def _held(
    job: Job, replacement: Replacement, answers: Answers, sets: Mapping[str, tuple[Head, ...]]
) -> tuple[dict[str, np.ndarray], str | None]:
    why_not = can_hold_patterns(job)
    if why_not or not sets:
        return {}, why_not
    base, *rows = without_moving_patterns(job, replacement, job.evaluation, answers, list(sets.values()))
    return {name: row.astype(float) - base for name, row in zip(sets, rows, strict=True)}, None
