"""What is measured of the images: traces of their patches, where they point, and what covering patches does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

import interp
from circuits.experiments.opening import open_model
from circuits.experiments.pieces import Pieces
from circuits.experiments.trace_image.config import TraceImageConfig
from circuits.experiments.trace_image.images import Images, images_of, patch_regions
from circuits.experiments.tracing.config import intervenes
from circuits.experiments.tracing.rows import Rows, Traced, Tracer
from circuits.outcome import Workplace
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.errors import HeadscopeError
from interp.scores.grids.grid import PatchGrid
from interp.tracing.protocols.localisation import Localisation, localisation
from interp.tracing.protocols.patch_columns import patch_columns
from interp.tracing.protocols.randomisation import randomisation_check
from interp.tracing.protocols.removal_curves import DIRECTIONS, RemovalCurves, removal_curves

if TYPE_CHECKING:
    from interp.model.handle import Model
    from interp.model.run import Metric

UNCHANGED = 1e-6  # of a trace's largest number


@dataclass(frozen=True, eq=False)
class Job:
    """One run.

    Attributes:
        model: what reads the images.
        about: what the manifest says about the model.
        config: the settings.
        pieces: what is finished.
        progress: told about every stage.
        images: the images.
        grid: their patches.
        columns: ``[image, patch]`` the source that each patch is.
        metric: what is explained.
    """

    model: Model
    about: dict[str, Any]
    config: TraceImageConfig
    pieces: Pieces
    progress: Progress
    images: Images
    grid: PatchGrid
    columns: Int[np.ndarray, "image patch"]
    metric: Metric

    @property
    def regions(self) -> Bool[np.ndarray, "image patch"] | None:
        """True at the patches where the answer is; None where that is not known."""
        if self.images.regions is None:
            return None
        return patch_regions(self.images.regions, self.grid.rows, self.grid.columns)

    def tracer(self, images: Images | None = None, model: Model | None = None) -> Tracer:
        """What traces are made with, of all images or some, by the model or a changed one."""
        return Tracer(
            self.model if model is None else model,
            (self.images if images is None else images).parts(self.config.batch_size),
            self.pieces,
            self.progress,
            self.metric,
            stack=self.config.stack,
            seed=self.config.seed,
            metric_name=self.config.metric,
        )

    def patches(self, rows: Rows, places: slice = slice(None)) -> Rows:
        """Traces with one column per patch, in the order of the image."""
        columns = self.columns[places]
        values = np.take_along_axis(rows.values, columns, axis=1)
        layers = None
        if rows.layers is not None:
            layers = np.stack([np.take_along_axis(layer, columns, axis=1) for layer in rows.layers])
        return replace(rows, values=values, layers=layers)


def image_job(config: TraceImageConfig, place: Workplace, version: str) -> Job:
    """The run that the settings ask for, with its model loaded and its images read.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: images that cannot be read, or a model that reads none.
        Unsupported: patches whose places are not known.
    """
    opened = open_model(config, place)
    model, images = opened.model, images_of(opened.model, config)
    batch = images.batch(model)
    stack = model.stack(config.stack).name
    return Job(
        model=model,
        about=opened.about,
        config=config,
        pieces=Pieces(place.units, version, opened.fingerprint, config.batch_size, config.seed),
        progress=place.progress,
        images=images,
        grid=interp.patch_grid(model, batch, stack if stack.startswith("vision") else "vision"),
        columns=patch_columns(model, batch, stack).cpu().numpy(),
        metric=getattr(interp, config.metric),
    )


def traced_patches(job: Job) -> Traced:
    """The traces of every method, one column per patch."""
    found = job.tracer().traced(job.config)
    rows = {name: job.patches(own) for name, own in found.rows.items()}
    bare = {name: "it has no numbers for patches." for name, own in rows.items() if not np.isfinite(own.values).any()}
    kept = {name: own for name, own in rows.items() if name not in bare}
    return Traced(kept, {**found.refused, **bare})


def localised(job: Job, traced: Traced) -> Localisation | None:
    """Where the traces point, beside chance; None where the true region is not known.

    Methods with signs point with what speaks for the answer.
    """
    regions = job.regions
    if regions is None:
        return None
    return localisation({name: as_trace(rows) for name, rows in traced.rows.items()}, regions)


def as_trace(rows: Rows) -> interp.Trace:
    """Traces of patches as one trace of one target."""
    n, patches = rows.values.shape
    words = tuple(str(place) for place in range(patches))
    return interp.Trace(
        rows.method,
        rows.values[:, None],
        np.zeros((n, 1), dtype=int),
        np.ones((n, patches), dtype=bool),
        (words,) * n,
        (("",),) * n,
        "patches",
        rows.signed,
    )


def curves_of(job: Job, traced: Traced) -> RemovalCurves | None:
    """The metric as patches are covered, and uncovered, in the order of each trace, beside random orders."""
    count = min(job.config.curves, len(job.images))
    if not count or not traced.rows:
        return None
    found = []
    parts = job.images.select(range(count)).parts(job.config.batch_size)
    with job.progress.stage("Covering patches", len(parts)) as done:
        for number, part in enumerate(parts):
            first = number * job.config.batch_size
            place = slice(first, first + len(part))
            own = {name: np.ascontiguousarray(rows.values[place]) for name, rows in traced.rows.items()}
            made_of = fingerprint_of(
                part.fingerprint, job.config.shares, job.config.curve_draws, list(own), *own.values()
            )
            found.append(job.pieces.arrays("curves", made_of, lambda p=part, o=own, s=place: _curves(job, p, o, s)))
            done()
    names = list(traced.rows)
    values = {
        way: dict(zip(names, np.concatenate([one[f"{way}/values"] for one in found], axis=1), strict=True))
        for way in DIRECTIONS
    }
    random = {way: np.concatenate([one[f"{way}/random"] for one in found], axis=1) for way in DIRECTIONS}
    return RemovalCurves(job.config.shares, values, random, {"draws": job.config.curve_draws, "by": "covered pixels"})


def _curves(job: Job, images: Images, weights: Mapping[str, np.ndarray], place: slice) -> Arrays:
    batch = images.batch(job.model)
    columns = torch.from_numpy(job.columns[place])
    width = int(columns.max()) + 1 if batch.ids is None else batch.width
    spread = {name: _on_sources(own, columns, width) for name, own in weights.items()}
    stays = None
    if batch.ids is not None:
        stays = torch.ones(len(batch), batch.width, dtype=torch.bool).scatter(1, columns, False)
    made = removal_curves(
        job.model,
        batch,
        spread,
        by="replace",
        shares=job.config.shares,
        draws=job.config.curve_draws,
        metric=job.metric,
        stack=job.config.stack,
        exclude_sinks=stays,
        seed=job.config.seed,
    )
    arrays = {f"{way}/values": np.stack(list(made.values[way].values())) for way in DIRECTIONS}
    return {**arrays, **{f"{way}/random": np.asarray(made.random[way]) for way in DIRECTIONS}}


def _on_sources(values: np.ndarray, columns: torch.Tensor, width: int) -> Float[torch.Tensor, "image source"]:
    made = torch.full((len(values), width), torch.nan, dtype=torch.float64)
    return made.scatter(1, columns, torch.from_numpy(values).double())


@dataclass(frozen=True)
class Randomised:
    """How alike traces stay as the model's layers are drawn anew.

    Attributes:
        parts: what was drawn anew, from the top: each step also holds all before it.
        similarity: method -> ``[part, image]`` rank correlation with the trace of the model as it is.
        change: method -> ``[part, image]`` largest difference of a patch's number, by the largest number.
        refused: method -> why it could not be done.
    """

    parts: tuple[str, ...]
    similarity: Mapping[str, Float[np.ndarray, "part image"]]
    change: Mapping[str, Float[np.ndarray, "part image"]]
    refused: Mapping[str, str]

    @property
    def blind(self) -> tuple[str, ...]:
        """Methods whose trace did not change when everything was drawn anew."""
        return tuple(name for name, found in self.change.items() if bool((found[-1] <= UNCHANGED).all()))


def randomised(job: Job, traced: Traced) -> Randomised | None:
    """The sanity check by drawing layers anew, from the top down; None where it was not asked for."""
    asked = job.config.randomised
    names = [
        name
        for name in traced.rows
        if (asked is None and not intervenes(name)) or (asked is not None and name in asked)
    ]
    if not names:
        return None
    images = job.images.select(range(min(job.config.randomised_images, len(job.images))))
    parts: tuple[str, ...] = ()
    similarity, change, refused = {}, {}, {}
    with job.progress.stage("Layers drawn anew", len(names)) as done:
        for name in names:
            options = job.config.options.get(name, {})
            made_of = fingerprint_of(images.fingerprint, job.config.metric, job.config.stack, options)
            try:
                found = job.pieces.arrays(f"randomised/{name}", made_of, _Randomise(job, images, name, options))
            except HeadscopeError as error:
                refused[name] = " ".join(str(error).split())
            else:
                parts = tuple(found["parts"].tobytes().decode().split("|"))
                similarity[name], change[name] = found["similarity"], found["change"]
            done()
    return Randomised(parts, similarity, change, refused) if similarity else None


@dataclass(frozen=True)
class _Randomise:
    job: Job
    images: Images
    method: str
    options: Mapping[str, Any]

    def __call__(self) -> Arrays:
        job, batch = self.job, self.images.batch(self.job.model)
        columns = job.columns[: len(self.images)]
        width = batch.width if batch.ids is not None else job.grid.positions
        left_out = np.ones((len(batch), width), dtype=bool)
        np.put_along_axis(left_out, columns, False, axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # flow of a random model saturates
            found = randomisation_check(
                job.model,
                batch,
                self.method,
                modes=["cascading"],
                stack=job.config.stack,
                metric=job.metric,
                exclude=left_out,
                seed=job.config.seed,
                **self.options,
            )
        parts = np.frombuffer("|".join(found.layers).encode(), dtype=np.uint8)
        similarity = np.nan_to_num(found.similarity["cascading"])
        return {"parts": parts, "similarity": similarity, "change": found.change["cascading"]}
