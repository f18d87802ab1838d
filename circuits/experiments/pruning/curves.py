"""The curve of every ranking and of every random order; each (order, prompts) is a piece of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import interp
from circuits.experiments.copying.job import Job
from circuits.experiments.copying.measuring import measured
from circuits.experiments.copying.pairs import CopyingPairs
from circuits.experiments.pruning.config import PruningConfig
from circuits.units import Arrays, fingerprint_of
from interp.address import Head
from interp.attribution.curve import prefixes, values_of_sets
from interp.attribution.pruning import PruningCurve, pruning_curve
from interp.attribution.ranking import ranking_of
from interp.attribution.removal import removal
from interp.results import HeadScores

RECOMPUTED = "recomputed after every cut"
RANDOM = "random orders"
ORDERS_PER_PIECE = 25


def orders_of(job: Job, config: PruningConfig, rankings: Mapping[str, HeadScores]) -> dict[str, tuple[Head, ...]]:
    """Name -> heads in the order in which they go, the least important first.

    Args:
        job: the run.
        config: the settings.
        rankings: tables of heads on the selection prompts.
    """
    orders = {name: ranking_of(table, job.model).ascending() for name, table in rankings.items()}
    if config.recompute:
        orders[RECOMPUTED] = _recomputed(job, config)
    return orders


def curves_of(job: Job, config: PruningConfig, orders: Mapping[str, Sequence[Head]]) -> dict[str, PruningCurve]:
    """Name -> the curve on the evaluation prompts; all are compared with the same random orders."""
    curves = {name: _curve(job, config, order, name) for name, order in orders.items()}
    random = _random(job, config, next(iter(curves.values())).kept.tolist())
    return {name: replace(curve, random=random) for name, curve in curves.items()}


def _recomputed(job: Job, config: PruningConfig) -> tuple[Head, ...]:
    """The order that ranks what is left by exact removal after every cut, all of it on the selection prompts."""
    first = measured(job, job.selection, [config.ablation], "selection")[config.ablation]

    def compute() -> Arrays:
        prompts = job.selection.clean_batch(job.model)
        curve = pruning_curve(
            job.model,
            prompts.select([0]),
            first,
            recompute="removal",
            selection=prompts,
            steps=len(job.model.heads()),
            random=0,
            seed=config.seed,
            **_removal(job, config),
        )
        return {"order": np.array([[head.layer, head.index] for head in curve.order])}

    made_of = fingerprint_of(job.selection.fingerprint, job.reference.fingerprint)
    with job.progress.stage("Rank again after every cut", 1) as done:
        found = job.pieces.arrays(f"order/{config.ablation}/recomputed", made_of, compute)["order"]
        done()
    return tuple(Head(layer, index) for layer, index in found.tolist())


def _curve(job: Job, config: PruningConfig, order: Sequence[Head], name: str) -> PruningCurve:
    parts = []
    chunks = job.evaluation.chunks(config.batch_size)
    with job.progress.stage(f"Curve, {name}", len(chunks)) as done:
        for chunk in chunks:
            parts.append(
                job.pieces.arrays(
                    f"curve/{config.ablation}/{config.cuts}/{name}",
                    fingerprint_of(chunk.fingerprint, job.reference.fingerprint, [str(head) for head in order]),
                    lambda own=chunk: {"values": _run(job, config, order, own).values},
                )["values"]
            )
            done()
    whole = _run(job, config, order, job.evaluation.select(slice(0, 1)))
    metadata = {**whole.metadata, "disjoint": True}
    values = np.concatenate(parts, axis=1)
    return replace(whole, name=name, values=values, random=np.zeros((0, *values.shape)), metadata=metadata)


def _random(job: Job, config: PruningConfig, kept: Sequence[int]) -> np.ndarray:
    """``[draw, step, prompt]`` the metric along random orders; order number i is a function of (seed, i) alone.

    Args:
        job: the run.
        config: the settings.
        kept: how many heads are left at each step.
    """
    heads = sorted(job.model.heads())
    counts = [len(heads) - left for left in kept]
    draws = []
    for number in range(config.draws):
        order = np.random.default_rng([config.seed, number]).permutation(len(heads))
        draws.append([heads[place] for place in order])
    chunks = job.evaluation.chunks(config.batch_size)
    begins = range(0, len(draws), ORDERS_PER_PIECE)
    rows = []
    with job.progress.stage(f"Curves, {RANDOM}", len(begins) * len(chunks)) as done:
        for begin in begins:
            group, parts = draws[begin : begin + ORDERS_PER_PIECE], []
            sets = [one for order in group for one in prefixes(order, counts)]
            key = f"random/{config.ablation}/{config.cuts}/{begin}"
            for chunk in chunks:
                made_of = fingerprint_of(chunk.fingerprint, job.reference.fingerprint, len(group))
                values = job.pieces.arrays(key, made_of, lambda s=sets, c=chunk: {"values": _values(job, config, s, c)})
                parts.append(values["values"].reshape(len(group), len(counts), -1))
                done()
            rows.append(np.concatenate(parts, axis=2))
    return np.concatenate(rows)


def _values(job: Job, config: PruningConfig, sets: Sequence[Sequence[Head]], pairs: CopyingPairs) -> np.ndarray:
    """``[set, prompt]`` the metric without each set of heads."""
    batch = pairs.clean_batch(job.model)
    edits_of = removal(job.model, batch, job.model.heads(), seed=config.seed, **_removal(job, config))
    return values_of_sets(job.model, batch, sets, edits_of, interp.logit_difference)


def _run(job: Job, config: PruningConfig, order: Sequence[Head], pairs: CopyingPairs) -> PruningCurve:
    return pruning_curve(
        job.model,
        pairs.clean_batch(job.model),
        list(order),
        steps=min(config.cuts, len(order)),
        random=0,
        seed=config.seed,
        **_removal(job, config),
    )


def _removal(job: Job, config: PruningConfig) -> dict[str, Any]:
    reference = None if config.ablation == "zero" else job.reference_batch
    return {"replacement": config.ablation, "reference": reference}
