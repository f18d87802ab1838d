"""Natural prompts, each said twice: their losses, and what the scores and patterns look like on real text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuits.experiments.induction.job import Job
from circuits.experiments.induction.prompts import natural_prompts
from circuits.experiments.induction.reading import Losses, losses_of, tokens_of
from circuits.experiments.induction.scoring import of_the_prompts, scores_of
from circuits.experiments.repeated import Repeated
from circuits.progress import Silent
from interp.results import HeadScores


@dataclass(frozen=True, eq=False)
class Natural:
    """What was found on natural text.

    Attributes:
        prompts: the ids of each prompt.
        tokens: of each prompt, as text.
        losses: of each prompt.
        scores: over the prompts.
    """

    prompts: Sequence[Repeated]
    tokens: Sequence[list[str]]
    losses: Sequence[Losses]
    scores: Mapping[str, HeadScores]

    @property
    def learning(self) -> np.ndarray:
        """``[prompt]`` loss of the second time minus that of the first; negative where saying it twice helped."""
        return np.array([float(losses.learning[0]) for losses in self.losses])


def natural(job: Job) -> tuple[Natural | None, list[str]]:
    """What was found on natural text, ``None`` without any, and notes on what was dropped."""
    prompts, notes = natural_prompts(job.model, job.config.texts)
    if not prompts:
        return None, notes
    names = of_the_prompts(job.config.scores)
    quiet = dataclasses.replace(job, progress=Silent())
    tokens, losses, parts = [], [], []
    with job.progress.stage("Natural text", len(prompts)) as done:
        for number, prompt in enumerate(prompts, start=1):
            purpose = f"natural text {number}"
            tokens.append(tokens_of(job, prompt))
            losses.append(losses_of(quiet, prompt, purpose))
            parts.append(scores_of(quiet, prompt, names, purpose))
            done()
    scores = {
        name: HeadScores.from_array(
            np.concatenate([part[name].samples for part in parts]), name=name, quantity="score", sample_axis="prompt"
        )
        for name in names
    }
    return Natural(prompts, tokens, losses, scores), notes
