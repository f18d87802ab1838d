"""Which heads may be said to matter, by two nulls, on the evaluation prompts; one piece of work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

import interp
from circuits.experiments.attribution.config import AttributionConfig
from circuits.experiments.copying.job import Job
from circuits.experiments.pieces import arrays_of, table_of
from circuits.units import Arrays, fingerprint_of
from interp.attribution.claim_table import Claims
from interp.stats import NullComparison

GRIDS = ("p", "adjusted", "largest", "matched", "passed", "claimed_cells")
WORDS = ("level", "null", "method", "metric", "notes")


def claims_of(job: Job, config: AttributionConfig) -> Claims:
    """What may be said of every head, with the ablation of the settings."""

    def compute() -> Arrays:
        return arrays_of_claims(
            interp.claims(
                job.model,
                job.evaluation.clean_batch(job.model),
                config.ablation,
                reference=None if config.ablation == "zero" else job.reference_batch,
                draws=config.reassignments,
                random_sets=config.draws,
                seed=config.seed,
            )
        )

    made_of = fingerprint_of(job.evaluation.fingerprint, job.reference.fingerprint, config.reassignments, config.draws)
    with job.progress.stage("Claims", 1) as done:
        arrays = job.pieces.arrays(f"claims/{config.ablation}", made_of, compute)
        done()
    return claims_from(arrays)


def arrays_of_claims(claims: Claims) -> Arrays:
    """Claims as arrays; :func:`claims_from` gives them back."""
    together = None if claims.together is None else dataclasses.asdict(claims.together)
    words = {**{name: getattr(claims, name) for name in WORDS}, "together": together}
    return {
        **{f"effects.{name}": array for name, array in arrays_of(claims.effects).items()},
        **{name: np.asarray(getattr(claims, name)) for name in GRIDS},
        "words": np.frombuffer(json.dumps(words, sort_keys=True).encode(), dtype=np.uint8),
    }


def claims_from(arrays: Mapping[str, np.ndarray]) -> Claims:
    """The claims that :func:`arrays_of_claims` made into arrays."""
    words = json.loads(arrays["words"].tobytes())
    together = words.pop("together")
    effects = {name.removeprefix("effects."): array for name, array in arrays.items() if name.startswith("effects.")}
    return Claims(
        effects=table_of(effects),
        together=None if together is None else NullComparison(**together),
        **{name: arrays[name] for name in GRIDS},
        **{**words, "notes": tuple(words["notes"])},
    )
