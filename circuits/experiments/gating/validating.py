"""Heads taken away one after the other in the order of each score, seed by seed, on prompts the fit never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

import interp
from circuits.experiments.gating.fitting import Job
from circuits.experiments.repeated import Repeated
from circuits.units import Arrays, fingerprint_of
from interp.attribution.gating.gates import ROLES
from interp.attribution.gating.validate import cumulative_ablation
from interp.stats import bootstrap_means


@dataclass(frozen=True, eq=False)
class Validation:
    """The change of the targets' log-probability as heads go in the order of one score.

    Attributes:
        score: what they were sorted by, the largest first.
        effects: ``[seed, step, prompt]`` log-probability without the first heads minus with them, in nats, the gates
            of all other heads at their retained values.
    """

    score: str
    effects: Float[np.ndarray, "seed step prompt"]

    def table(self, *, confidence: float) -> pd.DataFrame:
        """One row per step: the mean over seeds and prompts, with its bootstrap interval over seeds."""
        by_seed = self.effects.mean(2)
        low, high = bootstrap_means(by_seed, confidence=confidence)
        steps = np.arange(1, by_seed.shape[1] + 1)
        return pd.DataFrame({"heads": steps, "effect": by_seed.mean(0), "low": low, "high": high})


def validated(job: Job, gates: interp.Gates) -> list[Validation]:
    """One validation for each score that gives a role; every (score, seed, prompts) is a piece of its own."""
    made_from = fingerprint_of(np.asarray(gates.retain), np.asarray(gates.remove))
    chunks = job.held_out.chunks(job.config.batch_size)
    found = []
    with job.progress.stage("Take heads away in turn", len(ROLES) * len(gates.seeds) * len(chunks)) as done:
        for score in ROLES:
            seeds = []
            for place in range(len(gates.seeds)):
                parts = []
                for chunk in chunks:
                    key, made_of = f"cumulative/{score}/{place}", fingerprint_of(chunk.fingerprint, made_from)
                    parts.append(
                        job.pieces.arrays(
                            key, made_of, lambda c=chunk, s=score, p=place: _effects(job, gates, c, s, p)
                        )["effects"]
                    )
                    done()
                seeds.append(np.concatenate(parts, axis=1))
            found.append(Validation(score, np.stack(seeds)))
    return found


def _effects(job: Job, gates: interp.Gates, prompts: Repeated, score: str, place: int) -> Arrays:
    made = cumulative_ablation(job.model, gates, prompts.batch(job.model), by=score, seed=place)
    return {"effects": made.effects}
