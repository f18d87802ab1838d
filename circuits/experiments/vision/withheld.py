"""What the model answers with its image, with an even one, and without any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import interp
from circuits.experiments.vision.job import Job
from circuits.experiments.vision.measuring import even_images
from circuits.experiments.vision.questions import Questions
from interp.edits.base import Edit
from interp.model.batch import Batch
from interp.model.image_tokens import image_columns
from interp.model.shortening import shortened

WAYS = ("with the image", "with an even image", "without the image")


@dataclass(frozen=True, eq=False)
class Answers:
    """The likeliest answers to some questions, and how likely the right one is.

    Attributes:
        said: ``[question]`` token id.
        right: ``[question]`` token id of the right answer.
        logprob: ``[question]`` of the right answer, in nats.
    """

    said: np.ndarray
    right: np.ndarray
    logprob: np.ndarray

    @property
    def is_right(self) -> np.ndarray:
        """``[question]`` 1 where the likeliest answer is the right one."""
        return (self.said == self.right).astype(float)


def answers_in_every_way(job: Job, questions: Questions, purpose: str) -> dict[str, Answers]:
    """Way -> the answers to ``questions``, in their order."""
    parts = chunks(questions, job.config.batch_size)
    rows: dict[str, list[Answers]] = {way: [] for way in WAYS}
    with job.progress.stage(f"Answers, {purpose}", len(parts)) as done:
        for part in parts:
            found = job.pieces.arrays("answers", part.fingerprint, lambda p=part: _in_every_way(job, p))
            for way in WAYS:
                rows[way].append(Answers(found[f"{way}/said"], found["right"], found[f"{way}/logprob"]))
            done()
    return {way: joined(parts) for way, parts in rows.items()}


def joined(parts: list[Answers]) -> Answers:
    """Answers one after the other."""
    return Answers(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("said", "right", "logprob")))


def chunks(questions: Questions, size: int) -> list[Questions]:
    """Those questions, at most ``size`` at a time."""
    return [
        questions.select(range(begin, min(begin + size, len(questions)))) for begin in range(0, len(questions), size)
    ]


def _in_every_way(job: Job, questions: Questions) -> dict[str, np.ndarray]:
    batch = job.batch(questions)
    found = {WAYS[0]: answers_of(job, batch), WAYS[1]: answers_of(job, even_images(batch))}
    said, logprob = np.zeros(len(batch), dtype=int), np.zeros(len(batch))
    for part in shortened(job.model, batch, image_columns(job.model, batch, edges=True)):
        own, rows = answers_of(job, part.batch), part.rows.cpu().numpy()
        said[rows], logprob[rows] = own.said, own.logprob
    found[WAYS[2]] = Answers(said, found[WAYS[0]].right, logprob)
    plain = {f"{way}/{name}": getattr(one, name) for way, one in found.items() for name in ("said", "logprob")}
    return {**plain, "right": found[WAYS[0]].right}


def answers_of(job: Job, batch: Batch, edits: list[Edit] | None = None) -> Answers:
    """The answers to the prompts of a batch, with ``edits`` in force."""
    run = interp.run(job.model, batch, edits=edits or [], logits="answers")
    assert run.logits is not None
    assert batch.answers is not None
    logits = run.logits.float().view(len(batch), -1)
    right = batch.answers[:, 0].to(logits.device)
    logprob = logits.log_softmax(-1).gather(1, right[:, None])[:, 0]
    return Answers(logits.argmax(-1).cpu().numpy(), right.cpu().numpy(), logprob.double().cpu().numpy())


def by_prior(answers: Answers, withheld: Answers) -> np.ndarray:
    """``[question]`` 1 where a wrong answer is the one that the model gives without the image."""
    return ((answers.said != answers.right) & (answers.said == withheld.said)).astype(float)


def words_of(job: Job, tokens: np.ndarray) -> list[str]:
    """Token ids as words."""
    decode = getattr(job.model.tokenizer, "decode", str)
    return [str(decode([int(token)])).strip() for token in np.asarray(torch.as_tensor(tokens))]
