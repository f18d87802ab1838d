"""Head scores on the prompts of the experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import interp
from circuits.experiments.induction.job import Job
from circuits.experiments.repeated import Repeated
from circuits.units import Arrays
from interp.errors import BadInput, Unsupported
from interp.results import HeadScores
from interp.scores import SCORES


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


def of_the_prompts(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are measured on the prompts given, not on random tokens of their own."""
    return [name for name in names if SCORES[name].needs == "pass" and SCORES[name].prompts == "given"]


def measurable(job: Job, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of ``names`` that this model can be given, and a note on each that it cannot.

    A score with prompts of its own may need more ordinary tokens, or a longer context, than a small model has; others
    need options, or give several numbers per head.
    """
    kept, notes = [], []
    first = job.batch(job.evaluation.select(slice(0, 1)))
    for name in names:
        try:
            found = interp.score(job.model, first, name)[name]
            if found.positions is not None or found.sample_axis != "prompt" or found.unit != "query":
                raise BadInput("it is not one number per prompt and query head.")
            kept.append(name)
        except Unsupported:
            raise
        except BadInput as error:
            notes.append(f"The score {name} was left out: {error}")
    return kept, notes


def _scores(job: Job, prompts: Repeated, names: Sequence[str]) -> Arrays:
    batch = job.batch(prompts)
    theirs = of_the_prompts(names)
    found = (
        {name: scores.per_prompt for name, scores in interp.score(job.model, batch, theirs).items()} if theirs else {}
    )
    for name in names:
        if name not in found:  # these unembed every head at every position: one prompt at a time keeps that small
            parts = [interp.score(job.model, batch.select([row]), name)[name].per_prompt for row in range(len(prompts))]
            found[name] = np.concatenate(parts)
    return {name: np.asarray(found[name]) for name in names}


def _table(name: str, samples: np.ndarray) -> HeadScores:
    return HeadScores.from_array(samples, name=name, quantity="score", sample_axis="prompt")
