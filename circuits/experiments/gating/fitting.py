"""The fit of gates, and the exact effect of zeroing each head on prompts that the fit never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import interp
from circuits.experiments.fitting import FitStore
from circuits.experiments.gating.config import GatingConfig
from circuits.experiments.opening import open_model, refuse_unless_causal
from circuits.experiments.pieces import Pieces, beside
from circuits.experiments.repeated import Repeated, random_prompts
from circuits.outcome import Workplace
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.address import Head
from interp.metrics import token_losses
from interp.results import HeadScores

if TYPE_CHECKING:
    from interp.model.handle import Model

VERSION = "gating/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        model: the handle.
        about: what the manifest says about the model.
        config: the settings.
        pieces: what is finished.
        progress: told about every stage.
        fitted: prompts that gates are fitted on.
        held_out: prompts that they are checked on, independent of the former.
    """

    model: Model
    about: dict[str, Any]
    config: GatingConfig
    pieces: Pieces
    progress: Progress
    fitted: Repeated
    held_out: Repeated


def gating_job(config: GatingConfig, place: Workplace) -> Job:
    """The run that the settings ask for, with its model loaded and its prompts drawn.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts longer than the context, a vocabulary too small, attention to later tokens.
    """
    opened = open_model(config, place)
    half = config.n_prompts // 2
    fitted, held_out = (
        random_prompts(opened.model, n=n, segment=config.segment, seed=config.seed, purpose=purpose)
        for purpose, n in (("gates", half), ("gates held out", config.n_prompts - half))
    )
    refuse_unless_causal(opened.model, fitted.select([0]).batch(opened.model))
    pieces = Pieces(place.units, VERSION, opened.fingerprint, config.batch_size, config.seed)
    return Job(opened.model, opened.about, config, pieces, place.progress, fitted, held_out)


def fitted_gates(job: Job) -> interp.Gates:
    """The gates, fitted from where an earlier run left them."""
    config = job.config
    settings = {
        "seeds": config.fits,
        "updates": config.updates,
        "batch_size": config.prompts_per_update,
        "lam": config.lam,
        "schedule": config.schedule,
        "seed": config.seed,
    }
    store = FitStore(job.pieces, "fit", fingerprint_of(job.fitted.fingerprint, settings))
    with job.progress.stage("Fit gates", 2 * config.updates) as done:
        return interp.fit_gates(
            job.model,
            job.fitted.batch(job.model),
            **settings,
            store=store,
            keep_every=config.keep_every,
            progress=lambda count: [done() for _ in range(count)],
        )


def foreseen(job: Job) -> tuple[float, float]:
    """The mean loss of the first and of the second copy of the held-out prompts with every head in place, in nats."""

    def compute(own: Repeated) -> Arrays:
        batch = own.batch(job.model)
        logits = interp.run(job.model, batch).logits
        assert logits is not None, "a decoder gives logits"
        return {"losses": token_losses(logits, batch)[:, :-1].double().cpu().numpy()}

    chunks = job.held_out.chunks(job.config.batch_size)
    parts = [job.pieces.arrays("unedited", own.fingerprint, lambda c=own: compute(c))["losses"] for own in chunks]
    losses = np.concatenate(parts)
    copies = (slice(part.start - 1, part.stop - 1) for part in (job.held_out.first, job.held_out.second))
    first, second = (float(losses[:, copy].mean()) for copy in copies)
    return first, second


def exact_effects(job: Job) -> HeadScores:
    """The rise of the loss on held-out prompts when a head is set to zero, which is what a gate of 0 does."""
    heads = job.model.heads()
    layers = sorted({head.layer for head in heads})
    chunks = job.held_out.chunks(job.config.batch_size)
    parts = []
    with job.progress.stage("Exact zero ablation", len(chunks) * len(layers)) as done:
        for chunk in chunks:
            tables = []
            for layer in layers:
                own = [head for head in heads if head.layer == layer]
                key = f"zero/layer {layer}"
                tables.append(job.pieces.table(key, chunk.fingerprint, lambda c=chunk, h=own: _zeroed(job, c, h)))
                done()
            parts.append(beside(tables))
    return HeadScores.concat(parts)


def _zeroed(job: Job, prompts: Repeated, heads: list[Head]) -> HeadScores:
    return interp.attribute(job.model, prompts.batch(job.model), "zero", metric=interp.loss, heads=heads)
