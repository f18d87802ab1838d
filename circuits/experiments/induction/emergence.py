"""Scores and losses over the checkpoints that a model keeps of its training."""

from __future__ import annotations

import dataclasses

import numpy as np

import interp
from circuits.experiments.checkpoints import checkpoints_of
from circuits.experiments.induction.findings import Emergence
from circuits.experiments.induction.job import Job
from circuits.experiments.induction.reading import losses_of
from circuits.experiments.induction.scoring import scores_of
from circuits.manifest import files_fingerprint
from circuits.progress import Silent

SCORES = ("previous_token", "induction")


def emergence(job: Job) -> Emergence | None:
    """How scores and losses grew during training, on the first batch of the selection prompts; ``None`` without
    checkpoints."""
    places = checkpoints_of(job.config.model)
    if not places:
        return None
    prompts = job.selection.select(slice(0, job.config.batch_size))
    names = [name for name in SCORES if name in job.config.scores]
    first, second = [], []
    scores: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with job.progress.stage("Over training", len(places)) as done:
        for _step, place in places:
            model = interp.load(str(place), tokenizer=job.model.tokenizer, check=False)
            fingerprint = str(files_fingerprint(str(place)))
            then = dataclasses.replace(job, model=model, fingerprint=fingerprint, progress=Silent())
            losses = losses_of(then, prompts, "checkpoint")
            first.append(float(losses.first.mean()))
            second.append(float(losses.second.mean()))
            for name, found in scores_of(then, prompts, names, "checkpoint").items():
                scores[name].append(found.values)
            done()
    stacked = {name: np.stack(values) for name, values in scores.items()}
    return Emergence([step for step, _ in places], first, second, stacked)
