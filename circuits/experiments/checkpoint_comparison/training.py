"""One table of heads per checkpoint, the timeline made of them, and the doses of gained and lost heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import interp
from circuits.experiments.checkpoint_comparison.config import CheckpointConfig
from circuits.experiments.checkpoints import checkpoints_of
from circuits.experiments.copying.job import Job
from circuits.experiments.copying.measuring import measured
from circuits.experiments.copying.pairs import CopyingPairs
from circuits.experiments.opening import widths_of
from circuits.manifest import files_fingerprint
from circuits.progress import Silent
from circuits.units import Arrays, fingerprint_of
from interp.address import Head
from interp.attribution.changes import HeadChanges, compare_heads
from interp.attribution.doses import Doses, head_doses
from interp.attribution.head_sets import default_threshold
from interp.attribution.timeline import HeadTimeline
from interp.errors import BadInput
from interp.results import HeadScores
from interp.stats import matched_random_sets


@dataclass(frozen=True, eq=False)
class Training:
    """What was found at the checkpoints.

    Attributes:
        steps: training step of each.
        tables: what every head does at each, on the selection prompts.
        metric: ``[checkpoint]`` mean logit difference on the evaluation prompts.
        timeline: which heads are active at each.
        pair: the steps that are compared.
        changes: heads gained and lost between those two, with their doses.
    """

    steps: tuple[int, ...]
    tables: tuple[HeadScores, ...]
    metric: np.ndarray
    timeline: HeadTimeline
    pair: tuple[int, int]
    changes: HeadChanges


def followed(job: Job, config: CheckpointConfig) -> Training:
    """Everything about the checkpoints of the model in the settings.

    Raises:
        BadInput: a model without two checkpoints, or a step that is not there.
    """
    places = checkpoints_of(config.model)
    pair = chosen_pair(config, [step for step, _ in places])
    tables: dict[int, HeadScores] = {}
    metric = []
    with job.progress.stage("Checkpoints", len(places)) as done:
        for step, place in places:
            then = at_checkpoint(job, place)
            tables[step] = measured(then, then.selection, [config.method], "checkpoint")[config.method]
            metric.append(_metric(then))
            done()
    ordered = tuple(tables.values())
    threshold = default_threshold(ordered) if config.threshold is None else config.threshold
    settings: dict[str, Any] = {"confidence": config.confidence, "seed": config.seed, "threshold": threshold}
    timeline = HeadTimeline.of(list(tables), ordered, **settings)
    changes = _compared(job, config, dict(places), tables, pair, settings)
    return Training(tuple(tables), ordered, np.array(metric), timeline, pair, changes)


def chosen_pair(config: CheckpointConfig, steps: list[int]) -> tuple[int, int]:
    """The two steps that are compared.

    Raises:
        BadInput: fewer than two checkpoints, a step that is not there, or the later before the earlier.
    """
    if len(steps) < 2:  # noqa: PLR2004 - two to compare
        raise BadInput(
            f"model={config.model}: {len(steps)} checkpoints; two are the least. Give a zoo model that has them, or a "
            "folder with step-N or checkpoint-N folders in it."
        )
    first = steps[0] if config.first is None else config.first
    second = steps[-1] if config.second is None else config.second
    for name, step in (("first", first), ("second", second)):
        if step not in steps:
            raise BadInput(f"{name}={step}: no checkpoint of that step; they are {', '.join(map(str, steps))}.")
    if first >= second:
        raise BadInput(f"first={first} and second={second}: the earlier checkpoint comes first.")
    return first, second


def at_checkpoint(job: Job, place: Path) -> Job:
    """The same run with the model of a checkpoint."""
    model = interp.load(str(place), tokenizer=job.model.tokenizer, check=False)
    pieces = dataclasses.replace(job.pieces, model=str(files_fingerprint(str(place))))
    return dataclasses.replace(job, model=model, pieces=pieces, progress=Silent())


def _metric(job: Job) -> float:
    def compute() -> Arrays:
        batch = job.evaluation.clean_batch(job.model)
        logits = interp.run(job.model, batch, logits="answers").logits
        assert logits is not None, "a decoder gives logits"
        return {"difference": interp.logit_difference(logits, batch).double().cpu().numpy()}

    return float(job.pieces.arrays("metric", job.evaluation.fingerprint, compute)["difference"].mean())


def _compared(
    job: Job,
    config: CheckpointConfig,
    places: Mapping[int, Path],
    tables: Mapping[int, HeadScores],
    pair: tuple[int, int],
    settings: Mapping[str, Any],
) -> HeadChanges:
    jobs = [at_checkpoint(job, places[step]) for step in pair]
    batch = job.evaluation.clean_batch(job.model)
    method = (tables[pair[0]], tables[pair[1]])
    found = compare_heads(jobs[0].model, jobs[1].model, batch, method=method, factors=(), **settings)
    groups = [("gained", found.gained, jobs[1]), ("lost", found.lost, jobs[0])]
    doses = {}
    for name, heads, then in groups:
        if heads:
            with job.progress.stage(f"Doses of {name} heads", len(job.evaluation.chunks(config.batch_size))) as done:
                doses[name] = _doses(then, config, heads, done)
    return dataclasses.replace(found, doses=doses)


def _doses(job: Job, config: CheckpointConfig, heads: tuple[Head, ...], done: Callable[[], None]) -> Doses:
    """The doses on all evaluation prompts; every (checkpoint, prompts) is a piece of its own."""
    parts = []
    for chunk in job.evaluation.chunks(config.batch_size):

        def compute(own: CopyingPairs = chunk) -> Arrays:
            made = head_doses(
                job.model, own.clean_batch(job.model), heads, interp.logit_difference, factors=config.factors,
                random=config.draws, seed=config.seed,
            )  # fmt: skip
            return {"changes": made.changes, "random": made.random}

        made_of = fingerprint_of(chunk.fingerprint, [str(head) for head in heads], config.factors, config.draws)
        parts.append(job.pieces.arrays("doses", made_of, compute))
        done()
    return Doses(
        heads=heads,
        factors=config.factors,
        changes=np.concatenate([part["changes"] for part in parts], axis=-1),
        random=np.concatenate([part["random"] for part in parts], axis=-1),
        sets=matched_random_sets(heads, widths_of(job.model), n_draws=config.draws, seed=config.seed),
    )
