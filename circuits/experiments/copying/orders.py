"""Shapley values piece by piece: every group of orders of heads on every part of the prompts is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import interp
from circuits.experiments.copying.job import Job
from circuits.experiments.copying.pairs import CopyingPairs
from circuits.experiments.pieces import ABOUT
from circuits.units import fingerprint_of
from interp.results import HeadScores

PER_PIECE = 8  # orders; even, so that an order and its reverse stay together
OF_THE_PARTS = ("standard_error", "standard_errors", "efficiency", "cost", "seed", "permutations")


def groups_of(permutations: int) -> list[int]:
    """How many orders each piece has.

    Example:
        >>> groups_of(20)
        [8, 8, 4]
    """
    return [min(PER_PIECE, permutations - begin) for begin in range(0, permutations, PER_PIECE)]


def shapley(
    job: Job, pairs: CopyingPairs, permutations: int, purpose: str, options: dict[str, Any], done: Callable[[], None]
) -> HeadScores:
    """Shapley values of the heads, one sample for each order, averaged over the prompts.

    Args:
        job: the run.
        pairs: whose clean prompts are used.
        permutations: how many orders.
        purpose: what the pairs are for.
        options: further arguments of :func:`interp.attribute`.
        done: called after each piece.
    """
    tables = []
    for number, size in enumerate(groups_of(permutations)):
        seed = int(fingerprint_of("orders", job.config.seed, number), 16) % 2**31
        parts, weights = [], []
        for chunk in pairs.chunks(job.config.batch_size):

            def compute(own: CopyingPairs = chunk, size: int = size, seed: int = seed) -> HeadScores:
                batch = own.clean_batch(job.model)
                return interp.attribute(job.model, batch, "shapley", permutations=size, seed=seed, **options)

            made_of = fingerprint_of(chunk.fingerprint, job.reference.fingerprint, size, sorted(options))
            parts.append(job.pieces.table(f"{purpose}/shapley/{number}", made_of, compute))
            weights.append(len(chunk))
            done()
        tables.append(_averaged(parts, weights, number))
    return HeadScores.concat(tables)


def _averaged(parts: list[HeadScores], weights: list[int], group: int) -> HeadScores:
    """The mean over prompts of tables that are each a mean over some of them; clusters are named after their group."""
    first = parts[0]
    samples = np.average(np.stack([part.samples for part in parts]), axis=0, weights=weights)
    about = {name: getattr(first, name) for name in ABOUT}
    about["metadata"] = {key: value for key, value in first.metadata.items() if key not in OF_THE_PARTS}
    if first.cluster is not None:
        about["cluster"] = [f"{group}/{label}" for label in first.cluster]
    return HeadScores.from_array(samples, stack=first.stacks[0], exists=first.exists[first.stacks[0]], **about)
