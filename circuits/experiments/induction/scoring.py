"""Head scores on the prompts of the experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import interp
from circuits.experiments.induction.job import Job
from circuits.experiments.induction.prompts import Repeated
from circuits.units import Arrays
from interp.results import HeadScores


def scores_of(job: Job, prompts: Repeated, names: Sequence[str], purpose: str) -> dict[str, HeadScores]:
    """Name -> score of every head on every prompt.

    Args:
        job: the run.
        prompts: of one length.
        names: which scores; all come from one forward pass.
        purpose: what the prompts are for; part of the names of the units.
    """
    if not names:
        return {}
    parts: list[Arrays] = []
    chunks = prompts.chunks(job.config.batch_size)
    with job.progress.stage(f"Scores, {purpose}", len(chunks)) as done:
        for chunk in chunks:
            parts.append(
                job.get(f"scores/{purpose}", chunk, lambda c=chunk: _scores(job, c, names), also=[list(names)])
            )
            done()
    return {name: _table(name, np.concatenate([part[name] for part in parts])) for name in names}


def _scores(job: Job, prompts: Repeated, names: Sequence[str]) -> Arrays:
    found = interp.score(job.model, job.batch(prompts), list(names))
    return {name: np.asarray(found[name].per_prompt) for name in names}


def _table(name: str, samples: np.ndarray) -> HeadScores:
    return HeadScores.from_array(samples, name=name, quantity="score", sample_axis="prompt")
