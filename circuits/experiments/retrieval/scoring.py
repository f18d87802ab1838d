"""The retrieval score of every head: on the answers as they should be, on those the model writes, and by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

import interp
from circuits.experiments.pieces import Pieces
from circuits.experiments.retrieval.config import RetrievalConfig
from circuits.experiments.retrieval.prompts import Prompts
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.model.handle import Model
from interp.results import HeadScores
from interp.scores.long_context.haystack import Haystack


@dataclass(frozen=True)
class Job:
    """One run: the model, the settings, and what is finished."""

    model: Model
    config: RetrievalConfig
    pieces: Pieces
    progress: Progress


@dataclass(frozen=True, eq=False)
class Written:
    """What the model writes itself on some prompts.

    Attributes:
        scores: the retrieval score while it writes; NaN at prompts that do not count.
        recall: ``[prompt]`` share of the answer's words that it says.
        answers: ``[prompt]`` its answers.
    """

    scores: HeadScores
    recall: np.ndarray
    answers: tuple[str, ...]


def scored(job: Job, prompts: Prompts, purpose: str, *, without_first: bool = False) -> HeadScores:
    """The teacher-forced score of every head on every prompt.

    Args:
        job: the run.
        prompts: in chunks' order.
        purpose: what they are for; part of the names of the pieces.
        without_first: each prompt's first token is left out of every row.
    """
    chunks = prompts.chunks(job.config.batch_size)
    kind = "scores without the first token" if without_first else "scores"
    parts = []
    with job.progress.stage(f"{kind}, {purpose}".capitalize(), len(chunks)) as done:
        for chunk in chunks:
            parts.append(
                job.pieces.table(
                    f"{purpose}/{kind}", chunk.fingerprint, lambda own=chunk: _scored(job, own, without_first)
                )
            )
            done()
    return _clustered(HeadScores.concat(parts), prompts)


def by_chance(job: Job, prompts: Prompts) -> np.ndarray:
    """``[draw, layer, head]`` the mean score over prompts whose words were shuffled."""
    chunks, config = prompts.chunks(job.config.batch_size), job.config
    total = None
    with job.progress.stage("Scores of shuffled words", len(chunks)) as done:
        for chunk in chunks:
            made_of = fingerprint_of(chunk.fingerprint, config.null_draws)
            values = job.pieces.arrays("null", made_of, lambda own=chunk: _shuffled(job, own))["values"] * len(chunk)
            total = values if total is None else total + values
            done()
    assert total is not None
    return total / len(prompts)


def written(job: Job, prompts: Prompts, purpose: str) -> Written:
    """What the model writes on every prompt, and the score of every head meanwhile."""
    chunks, config = prompts.chunks(job.config.batch_size), job.config
    tables, recall, answers = [], [], []
    with job.progress.stage(f"Answers, {purpose}", len(chunks)) as done:
        for chunk in chunks:
            made_of = fingerprint_of(chunk.fingerprint, config.max_new_tokens, config.stop)
            table = job.pieces.table(f"{purpose}/written", made_of, lambda own=chunk: _written(job, own))
            tables.append(table)
            recall += table.metadata["recall"]
            answers += table.metadata["answers"]
            done()
    return Written(_clustered(HeadScores.concat(tables), prompts), np.array(recall), tuple(answers))


def recall_grid(prompts: Sequence[Haystack], recall: np.ndarray) -> tuple[np.ndarray, list[int], list[float]]:
    """``[depth, length]`` the mean recall, with the lengths and the depths."""
    lengths = sorted({one.length for one in prompts})
    depths = sorted({one.depth for one in prompts})
    grid = np.array(
        [
            [recall[[one.length == length and one.depth == depth for one in prompts]].mean() for length in lengths]
            for depth in depths
        ]
    )
    return grid, lengths, depths


def _scored(job: Job, prompts: Prompts, without_first: bool) -> HeadScores:
    sinks = "first" if without_first else None
    return interp.score(job.model, prompts.batch(job.model), "retrieval", exclude_sinks=sinks)["retrieval"]


def _shuffled(job: Job, prompts: Prompts) -> Arrays:
    config, batch = job.config, prompts.batch(job.model)
    found = interp.score(job.model, batch, "retrieval", null="shuffled", draws=config.null_draws, seed=config.seed)
    return {"values": np.asarray(found.nulls["retrieval"].samples)}


def _written(job: Job, prompts: Prompts) -> HeadScores:
    options = {"max_new_tokens": job.config.max_new_tokens, "stop": job.config.stop}
    name = "retrieval_generated"
    return interp.score(job.model, prompts.batch(job.model, answers=False), {name: options})[name]


def _clustered(table: HeadScores, prompts: Prompts) -> HeadScores:
    """With the prompts of one fact as one cluster, since they share words."""
    return replace(table, cluster=tuple(f"fact {owner}" for owner in prompts.owners))
