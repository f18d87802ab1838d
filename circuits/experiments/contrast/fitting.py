"""The contrastive fits, and what closing their heads does to both formats on items that no fit has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

import interp
from circuits.experiments.contrast.config import ContrastConfig, Format
from circuits.experiments.contrast.formats import Items, draw_items
from circuits.experiments.fitting import FitStore
from circuits.experiments.opening import open_model, refuse_unless_causal, widths_of
from circuits.experiments.pieces import Pieces
from circuits.outcome import Workplace
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.address import Head
from interp.attribution.curve import values_of_sets
from interp.attribution.gating.contrastive import ContrastiveGates
from interp.attribution.removal import removal
from interp.stats import MatchedSets, matched_random_sets

if TYPE_CHECKING:
    from interp.model.handle import Model

VERSION = "contrast/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones
HALF = 0.5  # a gate below it is closed; heads closed in more of the seeds count


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        model: the handle.
        about: what the manifest says about the model.
        config: the settings.
        pieces: what is finished.
        progress: told about every stage.
        fitted: items that gates are fitted on.
        held_out: items that they are judged on, independent of the former.
    """

    model: Model
    about: dict[str, Any]
    config: ContrastConfig
    pieces: Pieces
    progress: Progress
    fitted: Items
    held_out: Items


@dataclass(frozen=True, eq=False)
class Contrast:
    """One contrastive fit, and its closed heads set to zero on held-out items.

    Attributes:
        retain, forget: names of the formats.
        lam: weight of the pull: above 0 towards open gates.
        gates: of the fit.
        closed: heads whose gate is below one half in more than half of the seeds.
        matched: random sets with as many heads in every layer; None where no head was closed.
        losses: format -> ``[1 + 1 + draw, item]`` loss in nats with every head, without the closed ones, and without
            each random set.
    """

    retain: Format
    forget: Format
    lam: float
    gates: ContrastiveGates
    closed: tuple[Head, ...]
    matched: MatchedSets | None
    losses: dict[Format, Float[np.ndarray, "set item"]]


def contrast_job(config: ContrastConfig, place: Workplace) -> Job:
    """The run that the settings ask for, with its model loaded and its items drawn.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts longer than the context, a vocabulary too small, attention to later tokens.
    """
    opened = open_model(config, place)
    half = config.n_prompts // 2
    formats: list[Format] = [name for pair in config.contrasts for name in pair]
    fitted, held_out = (
        draw_items(opened.model, n=n, formats=formats, config=config, purpose=purpose)
        for purpose, n in (("gates", half), ("gates held out", config.n_prompts - half))
    )
    refuse_unless_causal(opened.model, fitted.select(slice(0, 1)).batch(opened.model, "twice"))
    pieces = Pieces(place.units, VERSION, opened.fingerprint, config.batch_size, config.seed)
    return Job(opened.model, opened.about, config, pieces, place.progress, fitted, held_out)


def contrasts(job: Job) -> list[Contrast]:
    """One fit for each pair of formats in the settings."""
    lam = job.config.lam if job.config.pull == "open" else -job.config.lam
    return [_contrast(job, retain, forget, lam) for retain, forget in job.config.contrasts]


def _contrast(job: Job, retain: Format, forget: Format, lam: float) -> Contrast:
    gates = _fitted(job, retain, forget, lam)
    votes = np.mean(gates.values < HALF, axis=0)  # of the seeds
    closed = tuple(Head(layer, index) for layer, index in np.argwhere(votes > HALF).tolist())
    matched = None
    if closed:
        matched = matched_random_sets(closed, widths_of(job.model), n_draws=job.config.draws, seed=job.config.seed)
    sets: list[Sequence[Head]] = [(), closed, *(matched.sets if matched else ())]
    formats: tuple[Format, Format] = (retain, forget)
    losses: dict[Format, np.ndarray] = {name: _losses(job, sets, name, f"{retain} not {forget}") for name in formats}
    return Contrast(retain, forget, lam, gates, closed, matched, losses)


def _fitted(job: Job, retain: Format, forget: Format, lam: float) -> ContrastiveGates:
    config = job.config
    settings = {
        "seeds": config.fits,
        "updates": config.updates,
        "batch_size": config.prompts_per_update,
        "lam": lam,
        "seed": config.seed,
    }
    store = FitStore(job.pieces, f"fit/{retain} not {forget}", fingerprint_of(job.fitted.fingerprint, settings))
    names = list(range(len(job.fitted)))
    with job.progress.stage(f"Keep {retain}, lose {forget}", config.updates) as done:
        return interp.fit_contrastive_gates(
            job.model,
            job.fitted.batch(job.model, retain),
            job.fitted.batch(job.model, forget),
            items=(names, names),
            **settings,
            store=store,
            keep_every=config.keep_every,
            progress=lambda count: [done() for _ in range(count)],
        )


def _losses(job: Job, sets: list[Sequence[Head]], name: Format, fit: str) -> np.ndarray:
    """``[set, item]`` the loss of the targets in one format with each set of heads at zero."""
    listed = [[str(head) for head in one] for one in sets]
    parts = []
    chunks = job.held_out.chunks(job.config.batch_size)
    with job.progress.stage(f"{fit}: heads closed in {name}", len(chunks)) as done:
        for chunk in chunks:

            def compute(own: Items = chunk) -> Arrays:
                batch = own.batch(job.model, name)
                edits_of = removal(job.model, batch, job.model.heads())
                return {"losses": values_of_sets(job.model, batch, sets, edits_of, interp.loss)}

            made_of = fingerprint_of(chunk.fingerprint, listed)
            parts.append(job.pieces.arrays(f"closed/{name}/{fit}", made_of, compute)["losses"])
            done()
    return np.concatenate(parts, axis=1)
