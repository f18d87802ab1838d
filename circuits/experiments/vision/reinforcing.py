"""Vision-aware heads amplified (VHR), on questions where prior and picture disagree, beside random halves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from circuits.experiments.vision.job import Job
from circuits.experiments.vision.questions import Questions
from circuits.experiments.vision.withheld import Answers, answers_of, by_prior, chunks, joined
from circuits.units import Arrays, fingerprint_of
from interp.address import At, Site
from interp.edits.activations import scale
from interp.edits.base import Edit
from interp.model.batch import Batch
from interp.scores.divergence.reinforcement import reinforced_heads
from interp.stats import Interval, NullComparison, compare_with_null, mean_interval


@dataclass(frozen=True, eq=False)
class Reinforced:
    """Answers before and after.

    Attributes:
        before, after, withheld: answers as the model is, with the chosen heads amplified, and without the image.
        random: answers with a random half of each layer's heads amplified, one per draw.
        share: of the heads that were amplified, mean over questions.
        cluster: one label per question.
        by: the factor.
        confidence: of the intervals.
    """

    before: Answers
    after: Answers
    withheld: Answers
    random: list[Answers]
    share: float
    cluster: tuple[str, ...]
    by: float
    confidence: float

    def interval(self, values: np.ndarray) -> Interval:
        """A mean over the questions."""
        return mean_interval(values, confidence=self.confidence, cluster=self.cluster)

    def change(self, what: str) -> tuple[Interval, NullComparison]:
        """The change of ``"right"``, ``"prior"`` or ``"logprob"`` by amplifying, and beside the random halves."""
        start = self.measure(self.before, what)
        own = self.measure(self.after, what) - start
        random = np.array([(self.measure(one, what) - start).mean() for one in self.random])
        return self.interval(own), compare_with_null(float(own.mean()), random, confidence=self.confidence)

    def measure(self, answers: Answers, what: str) -> np.ndarray:
        """``[question]`` right (1 or 0), by the prior (1 or 0), or the right answer's log-probability."""
        if what == "right":
            return answers.is_right
        return by_prior(answers, self.withheld) if what == "prior" else answers.logprob


def reinforced(job: Job, questions: Questions, before: Answers, withheld: Answers) -> Reinforced:
    """The answers to ``questions`` with the heads amplified that VHR chooses for each of them."""
    parts = chunks(questions, job.config.batch_size)
    rows: list[Arrays] = []
    settings = (job.config.reinforce, job.config.outliers, job.config.reinforce_draws, job.config.first_layer)
    with job.progress.stage("Amplify vision-aware heads", len(parts)) as done:
        for part in parts:
            made_of = fingerprint_of(part.fingerprint, settings)
            rows.append(job.pieces.arrays("reinforced", made_of, lambda p=part: _amplified(job, p)))
            done()

    def every(name: str) -> Answers:
        return joined([Answers(row[f"{name}/said"], row["right"], row[f"{name}/logprob"]) for row in rows])

    weights = [len(part) for part in parts]
    return Reinforced(
        before=before,
        after=every("chosen"),
        withheld=withheld,
        random=[every(f"random {draw}") for draw in range(job.config.reinforce_draws)],
        share=float(np.average([float(row["share"]) for row in rows], weights=weights)),
        cluster=questions.sources,
        by=job.config.reinforce,
        confidence=job.config.confidence,
    )


def _amplified(job: Job, questions: Questions) -> Arrays:
    batch = job.batch(questions)
    layers = [layer for layer, width in enumerate(job.widths) if width and layer >= job.config.first_layer]
    by, outliers = job.config.reinforce, job.config.outliers
    found = reinforced_heads(job.model, batch, by=by, layers=layers, outliers=outliers)
    exists = np.isfinite(found.divergence.samples).any(0)
    answers = {"chosen": answers_of(job, batch, list(found.edits))}
    for draw in range(job.config.reinforce_draws):
        answers[f"random {draw}"] = answers_of(job, batch, _random_half(job, batch, draw))
    plain = {f"{way}/{name}": getattr(one, name) for way, one in answers.items() for name in ("said", "logprob")}
    return {**plain, "right": answers["chosen"].right, "share": np.array(found.chosen[:, exists].mean())}


def _random_half(job: Job, batch: Batch, draw: int) -> list[Edit]:
    """Half of each layer's heads, the same for all questions, amplified where VHR amplifies."""
    edits = []
    for layer, width in enumerate(job.widths):
        if width and layer >= job.config.first_layer:
            chosen = np.random.default_rng([job.config.seed, draw, layer]).permutation(width)[: width // 2]
            factor = torch.ones(width)
            factor[chosen] = job.config.reinforce
            edits.append(scale(At(Site.Z, layer, pos=batch.read_at[:, None]), factor))
    return edits
