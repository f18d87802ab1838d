"""What is measured of every head: divergence, attention to the image, and the exact effect of taking it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import interp
from circuits.experiments.vision.job import SORTS, Job, Part
from interp import At, Site
from interp.model.batch import Batch
from interp.model.image_tokens import image_columns
from interp.results import HeadScores
from interp.scores.divergence.divergence import head_divergence

DIVERGENCE = "vision divergence"  # from no image, as the paper has it
CONTENT = "content divergence"  # from an even image; ours
MASS = "attention to the image"
BARE = "divergence of an even image"  # from no image: what image tokens do that show nothing
EFFECTS = {"vision": "effect on questions with an image", "text": "effect on text questions"}


def scores_of(job: Job) -> dict[str, HeadScores]:
    """Every score of heads, on the selection questions."""
    measures: dict[str, Callable[[Batch], HeadScores]] = {
        DIVERGENCE: lambda batch: divergence_of(job, batch),
        CONTENT: lambda batch: content_divergence_of(job, batch),
        MASS: lambda batch: mass_of(job, batch),
        BARE: lambda batch: divergence_of(job, even_images(batch)),
    }
    parts = job.parts("vision", "selection")
    found = {}
    for name, measure in measures.items():
        tables = []
        key = f"{name}/{job.config.outliers}/{job.config.relative}"
        with job.progress.stage(name[0].upper() + name[1:], len(parts)) as done:
            for part in parts:
                made_of = part.questions.fingerprint
                tables.append(job.pieces.table(key, made_of, lambda m=measure, p=part: m(job.batch(p.questions))))
                done()
        found[name] = HeadScores.concat(tables)
    return found


def divergence_of(job: Job, batch: Batch) -> HeadScores:
    """How far each head's output at the answer moves as the image goes (VHD)."""
    options = {"score": "vision_divergence", "outliers": job.config.outliers, "relative": job.config.relative}
    return interp.score(job.model, batch, {DIVERGENCE: options}, batch_size=job.config.batch_size)[DIVERGENCE]


def content_divergence_of(job: Job, batch: Batch) -> HeadScores:
    """How far each head's output at the answer moves as the image becomes even: ``||z(image) - z(even image)||``.

    Positions stay, so that only what the image shows can move it. The rule for outliers has no part in it.
    """
    z = {}
    for name, own in (("with", batch), ("without", even_images(batch))):
        run = interp.run(job.model, own, read=[At(Site.Z, pos=own.read_at[:, None])], logits="last")
        z[name] = [run[At(Site.Z, layer=layer, pos=own.read_at[:, None])][:, 0] for layer in _layers(job)]
    values = np.full((len(batch), len(job.widths), max(job.widths)), np.nan)
    for layer, first, second in zip(_layers(job), z["with"], z["without"], strict=True):
        moved = head_divergence(first, second, relative=job.config.relative)
        values[:, layer, : moved.shape[1]] = moved.cpu().numpy()
    exists = np.arange(max(job.widths)) < np.array(job.widths)[:, None]
    return HeadScores.from_array(
        values, name=CONTENT, sample_axis="prompt", stack=job.model.default_stack, exists=exists
    )


def _layers(job: Job) -> list[int]:
    return [layer for layer, width in enumerate(job.widths) if width]


def mass_of(job: Job, batch: Batch) -> HeadScores:
    """Share of each head's attention at the answer's position that goes to the image's tokens."""
    options = {"score": "group_mass", "keys": image_columns(job.model, batch), "queries": batch.read_at[:, None]}
    return interp.score(job.model, batch, {MASS: options}, batch_size=job.config.batch_size)[MASS]


def even_images(batch: Batch) -> Batch:
    """The same prompts with every image replaced by its mean colour: as many image tokens, and nothing to see."""
    pixels = batch.inputs["pixel_values"]
    axes = (-2, -1) if pixels.ndim > 3 else (0,)  # noqa: PLR2004 - packed patches have no height and width
    even = pixels.mean(axes, keepdim=True).expand_as(pixels).contiguous()
    return replace(batch, inputs={**batch.inputs, "pixel_values": even})


def effects_of(job: Job) -> dict[str, HeadScores]:
    """``vision`` and ``text`` -> the exact effect of taking each head out, on the evaluation questions."""
    heads = list(job.model.heads())
    layers = sorted({head.layer for head in heads})
    found = {}
    for sort in SORTS:
        tables, parts = [], job.parts(sort, "evaluation")
        with job.progress.stage(EFFECTS[sort][0].upper() + EFFECTS[sort][1:], len(parts) * len(layers)) as done:
            for part in parts:
                tables.append(_effects(job, part, layers, done))
        found[sort] = HeadScores.concat(tables)
    return found


def _effects(job: Job, part: Part, layers: list[int], done: Callable[[], None]) -> HeadScores:
    from circuits.experiments.pieces import beside

    tables = []
    for layer in layers:
        own = [head for head in job.model.heads() if head.layer == layer]
        key = f"effect/{job.config.metric}/{job.config.ablation}/layer {layer}"

        def measured(heads: list[interp.Head] = own) -> HeadScores:
            options: dict[str, Any] = {} if part.reference is None else reference_of(job, part)
            return interp.attribute(
                job.model,
                job.batch(part.questions),
                job.config.ablation,
                metric=job.metric,
                heads=heads,
                seed=job.config.seed,
                cluster=part.questions.sources,
                **options,
            )

        tables.append(job.pieces.table(key, part.fingerprint, measured))
        done()
    return beside(tables)


def reference_of(job: Job, part: Part) -> dict[str, Batch]:
    """``reference=`` for mean and resample."""
    assert part.reference is not None
    return {"reference": job.batch(part.reference)}
