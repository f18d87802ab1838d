"""What is measured of the prompts: traces, how much they depend on their target, and what passes through each head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import interp
from circuits.experiments.opening import open_model
from circuits.experiments.pieces import Pieces
from circuits.experiments.trace_text.config import TextSettings, TraceTextConfig
from circuits.experiments.trace_text.prompts import Drawn, Prompts, prompts_of
from circuits.experiments.tracing.rows import Traced, Tracer, traced_batch
from circuits.experiments.tracing.spread import row_spread
from circuits.outcome import Workplace
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.errors import BadInput, HeadscopeError
from interp.metrics import answer_logits
from interp.metrics.declare import declared
from interp.results import HeadScores
from interp.stats import Agreement
from interp.tracing import METHODS

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model
    from interp.model.run import Metric

GATED_AT_ONCE = 8  # prompts of one update of the gates
SPREAD_PROMPTS = 4  # whose every token is traced


@declared(positions="answers")
def answer_logit(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` the logit of the right answer."""
    assert batch.answers is not None
    return answer_logits(logits, batch).gather(1, batch.answers[:, :1].to(logits.device))[:, 0]


@dataclass(frozen=True, eq=False)
class Job:
    """One run.

    Attributes:
        model: what reads the prompts.
        about: what the manifest says about the model.
        config: the settings.
        pieces: what is finished.
        progress: told about every stage.
        drawn: the prompts.
        metric: what is explained, and its name in words.
    """

    model: Model
    about: dict[str, Any]
    config: TraceTextConfig
    pieces: Pieces
    progress: Progress
    drawn: Drawn
    metric: Metric
    metric_name: str

    @property
    def prompts(self) -> Prompts:
        """The prompts."""
        return self.drawn.prompts

    @property
    def tracer(self) -> Tracer:
        """What traces are made with."""
        return Tracer(
            self.model,
            self.prompts.parts(self.config.batch_size),
            self.pieces,
            self.progress,
            self.metric,
            seed=self.config.seed,
            metric_name=self.metric_name,
            fold="mean" if self.drawn.pooled else "read",
        )


def text_job(config: TraceTextConfig, place: Workplace, version: str) -> Job:
    """The run that the settings ask for, with its model loaded and its prompts made.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts that cannot be made.
    """
    opened = open_model(config, place)
    drawn = prompts_of(opened.model, config)
    metric, name = metric_of(drawn, config)
    return Job(
        model=drawn.model,
        about=opened.about,
        config=config,
        pieces=Pieces(place.units, version, opened.fingerprint, config.batch_size, config.seed),
        progress=place.progress,
        drawn=drawn,
        metric=metric,
        metric_name=name,
    )


def metric_of(drawn: Drawn, config: TextSettings) -> tuple[Metric, str]:
    """What is explained of the prompts, and its name.

    Raises:
        BadInput: logit_difference of prompts without wrong answers.
    """
    if drawn.pooled:
        return answer_logit, "embedding"
    name = config.metric or ("logit_difference" if drawn.prompts.contrasted else "answer_logprob")
    if name == "logit_difference" and not drawn.prompts.contrasted:
        raise BadInput("metric=logit_difference needs a wrong answer beside each right one: answers=[[right, wrong]].")
    return getattr(interp, name), name


@dataclass(frozen=True)
class Spreads:
    """How much traces depend on their target: method -> ``[layer]``, the mean over prompts; the top layer last."""

    values: Mapping[str, Float[np.ndarray, " layer"]]


def spreads_of(job: Job, traced: Traced) -> Spreads:
    """The row spread of every method that makes a row for each token, at the top of every layer."""
    prompts = job.prompts.select(range(min(SPREAD_PROMPTS, len(job.prompts))))
    names = [name for name in traced.rows if METHODS[name].targets == "rows" and METHODS[name].layered]
    found = {}
    with job.progress.stage("Dependence on the target", len(names)) as done:
        for name in names:
            options = job.config.options.get(name, {})

            def compute(name: str = name, options: Mapping[str, Any] = options) -> Arrays:
                trace = _every_row(job, name, prompts, options)
                assert trace.layers is not None
                rows = [
                    [row_spread(layer[prompt], trace.targets[prompt]) for prompt in range(len(prompts))]
                    for layer in trace.layers
                ]
                return {"spread": np.array(rows)}

            try:
                made_of = fingerprint_of(prompts.fingerprint, job.metric_name, options)
                found[name] = np.nanmean(job.pieces.arrays(f"spread/{name}", made_of, compute)["spread"], axis=1)
            except HeadscopeError:
                continue  # too long for all rows; the method's own trace stands
            finally:
                done()
    return Spreads(found)


def _every_row(job: Job, name: str, prompts: Prompts, options: Mapping[str, Any]) -> interp.Trace:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # saturation is what is measured here
        return traced_batch(job.tracer, name, prompts.batch(job.model), options, targets="all")


@dataclass(frozen=True)
class HeadTables:
    """Heads by several roads.

    Attributes:
        tables: name -> table; those of tracing first.
        agreement: how far they rank heads alike, by size: of two tables, or of all with all; None for a single one.
        refused: name -> why it could not be done.
    """

    tables: Mapping[str, HeadScores]
    agreement: interp.AgreementMatrix | Agreement | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


def heads_of(job: Job) -> HeadTables:
    """What passes through each head by tracing, what its ablation changes, and how far a gate on it stays open."""
    config, tables, refused = job.config, {}, {}
    wanted = {f"traced, {name}": name for name in config.head_methods}
    wanted |= {f"ablated, {config.ablation}": "ablation"}
    if config.gate_updates and not job.drawn.pooled and job.model.stack().causal:
        wanted |= {"gated": "gates"}
    with job.progress.stage("Heads", len(wanted)) as done:
        for label, what in wanted.items():
            made = {"ablation": _ablated, "gates": _gated}.get(what)
            try:
                tables[label] = _table(job, label, made) if made else _table(job, label, _Traced(what))
            except HeadscopeError as error:
                refused[label] = " ".join(str(error).split())
            done()
    named = {name: table for name, table in tables.items() if np.isfinite(table.values).sum() > 1}
    alike = list(named.values())
    agreement = None
    if len(alike) > 1:
        agreement = interp.agreement(*alike, names=list(named), by="abs")
    return HeadTables(tables, agreement, refused)


def _table(job: Job, label: str, compute: Any) -> HeadScores:
    made_of = fingerprint_of(
        job.prompts.fingerprint, job.metric_name, job.config.gate_updates, job.config.gate_fits, job.config.ablation
    )
    return job.pieces.table(f"heads/{label}", made_of, lambda: compute(job))


@dataclass(frozen=True)
class _Traced:
    method: str

    def __call__(self, job: Job) -> HeadScores:
        parts = []
        for part in job.prompts.parts(job.config.batch_size):
            sources = None if part.where is None else torch.tensor(part.where)[:, None]
            targets = "all" if job.drawn.pooled else None
            batch = part.batch(job.model)
            parts.append(interp.trace_heads(job.model, batch, self.method, targets=targets, sources=sources))
        return HeadScores.concat(parts)


def _ablated(job: Job) -> HeadScores:
    parts = [
        interp.attribute(job.model, part.batch(job.model), job.config.ablation, metric=job.metric, seed=job.config.seed)
        for part in job.prompts.parts(job.config.batch_size)
    ]
    return HeadScores.concat(parts)


def _gated(job: Job) -> HeadScores:
    batch = job.prompts.batch(job.model)
    gates = interp.fit_gates(
        job.model,
        batch,
        seeds=job.config.gate_fits,
        updates=job.config.gate_updates,
        batch_size=GATED_AT_ONCE,
        seed=job.config.seed,
    )
    return gates.facilitation
