"""Tables of heads, one for each method, on the same prompts; every (method, prompts, layer) is a piece of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import interp
from circuits.experiments.copying.config import CopyingConfig
from circuits.experiments.copying.job import Job
from circuits.experiments.copying.orders import groups_of, shapley
from circuits.experiments.copying.pairs import CopyingPairs
from circuits.experiments.pieces import beside
from circuits.units import fingerprint_of
from interp.address import Head
from interp.attribution.methods import METHODS
from interp.results import HeadScores

SHAPLEY_ORDERS = 16  # where the settings do not say


def measured(job: Job, pairs: CopyingPairs, methods: Sequence[str], purpose: str) -> dict[str, HeadScores]:
    """Method -> what it says of every head on every pair.

    Args:
        job: the run.
        pairs: of one length.
        methods: names.
        purpose: what the pairs are for; part of the names of the pieces.
    """
    found = {}
    chunks = pairs.chunks(job.config.batch_size)
    for method in methods:
        if method == "shapley":
            found[method] = _shapley(job, pairs, purpose)
            continue
        parts_of_chunk = len(list(job.layers())) if _by_layer(method) else 1
        with job.progress.stage(f"{method}, {purpose}", len(chunks) * parts_of_chunk) as done:
            found[method] = HeadScores.concat(_chunk(job, chunk, method, purpose, done) for chunk in chunks)
    return found


def _shapley(job: Job, pairs: CopyingPairs, purpose: str) -> HeadScores:
    """Shapley values, whose samples are orders of heads and not prompts; an absent head's output is zero."""
    options = arguments_of(job.config, "shapley")
    permutations = options.pop("permutations", SHAPLEY_ORDERS)
    n_pieces = len(groups_of(permutations)) * len(pairs.chunks(job.config.batch_size))
    with job.progress.stage(f"shapley, {purpose}", n_pieces) as done:
        return shapley(job, pairs, permutations, purpose, options, done)


def _chunk(job: Job, pairs: CopyingPairs, method: str, purpose: str, done: Callable[[], None]) -> HeadScores:
    settings = arguments_of(job.config, method)
    made_of = fingerprint_of(pairs.fingerprint, job.reference.fingerprint, settings)
    key = f"{purpose}/{method}"

    def whole() -> HeadScores:
        return attributed(job, pairs, method)

    if not _by_layer(method):
        table = job.pieces.table(key, made_of, whole)
        done()
        return table
    tables = []
    for layer, heads in job.layers():
        tables.append(
            job.pieces.table(f"{key}/layer {layer}", made_of, lambda own=heads: attributed(job, pairs, method, own))
        )
        done()
    return beside(tables)


def attributed(job: Job, pairs: CopyingPairs, method: str, heads: Sequence[Head] | None = None) -> HeadScores:
    """What ``method`` says of ``heads`` (all for None) on ``pairs``.

    All methods see the clean prompts. Those that patch take the corrupted prompts as the source: what is lost when a
    head's output comes from where there is nothing to copy.
    """
    model = job.model
    options = arguments_of(job.config, method)
    if METHODS[method].needs == "source":
        options |= {"source": pairs.corrupted_batch(model), "direction": "noise"}
    if method == "mean":
        options["reference"] = job.reference_batch
    batch = pairs.clean_batch(model)
    return interp.attribute(model, batch, method, heads=heads, seed=job.config.seed, **options)


def arguments_of(config: CopyingConfig, method: str) -> dict[str, Any]:
    """The method's own options, as far as the settings have them."""
    return {name: getattr(config, name) for name in METHODS[method].options if name in type(config).model_fields}


def _by_layer(method: str) -> bool:
    """Whether its cost grows with the heads, so that a layer is a piece; the others do all heads at once."""
    return METHODS[method].kind == "exact"
