"""The experiment on traces of texts from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from circuits.experiments.trace_text.conclusion import answer, doubt
from circuits.experiments.trace_text.config import TraceTextConfig
from circuits.experiments.trace_text.findings import Findings
from circuits.experiments.trace_text.measuring import Job, heads_of, spreads_of, text_job
from circuits.experiments.trace_text.prompts import counted_sources
from circuits.experiments.trace_text.report import report
from circuits.experiments.tracing.predicting import How, predictions_of, references_of
from circuits.experiments.tracing.rows import traced_batch
from circuits.outcome import Outcome, Workplace
from circuits.units import fingerprint_of
from interp.errors import HeadscopeError

VERSION = "trace_text/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones
LONGEST_SHOWN = 256  # tokens of a prompt whose maps are drawn


def run(config: TraceTextConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts that cannot be made, or no reference that this model can do.
        RunFailed: NaN or infinity on the way.
    """
    job = text_job(config, place, VERSION)
    traced = job.tracer.traced(config)
    references = references_of(traced, config.references, job.model.name)
    counted, other = (
        counted_sources(job.model, job.prompts, special=special) for special in (config.special, not config.special)
    )
    how = How(config.how, config.undefined, True, config.random_orders, config.confidence, config.seed)
    findings = Findings(
        model=Path(config.model).name,
        prompts=job.prompts,
        tokens=_tokens(job),
        counted=counted,
        traced=traced,
        predictions=predictions_of(references, traced.rows, counted, how),
        beside=predictions_of(references, traced.rows, other, how) if (counted != other).any() else {},
        signed=predictions_of(references, traced.rows, counted, how, signed=True),
        spreads=spreads_of(job, traced),
        heads=heads_of(job) if config.heads else None,
        maps=_maps(job),
        metric=job.metric_name,
        special=config.special,
        confidence=config.confidence,
    )
    page, figures = report(config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.head_rows(),
        top=findings.short_rows(),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
        tables={"methods": findings.table(), "layers": findings.layers(), "traces": findings.traces()},
    )


def _tokens(job: Job) -> tuple[tuple[str, ...], ...]:
    batch = job.prompts.batch(job.model)
    if batch.tokens:
        return batch.tokens
    return tuple(tuple(str(token) for token in row) for row in job.prompts.ids)


def _maps(job: Job) -> np.ndarray | None:
    """The maps of the first prompt, heads averaged; None where they cannot be read or are too large to show."""
    first = job.prompts.select([0])
    if len(first.ids[0]) > LONGEST_SHOWN:
        return None

    def compute() -> dict[str, np.ndarray]:
        trace = traced_batch(job.tracer, "raw", first.batch(job.model), {}, targets="all")
        assert trace.layers is not None
        return {"maps": trace.layers[:, 0]}

    try:
        return job.pieces.arrays("maps", fingerprint_of(first.fingerprint), compute)["maps"]
    except HeadscopeError:
        return None


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    return {
        "verdicts": {name: None if one is None else one.facts() for name, one in findings.verdicts.items()},
        "correlations": {
            name: {method: [(found := one.interval(method)).mean, found.low, found.high] for method in one.order}
            for name, one in findings.predictions.items()
        },
        "random": {name: float(np.nanmean(one.random)) for name, one in findings.predictions.items()},
        "by layer": {
            name: {method: np.nanmean(layers, axis=1).tolist() for method, layers in one.layers.items()}
            for name, one in findings.predictions.items()
        },
        "spread over targets": {name: values.tolist() for name, values in findings.spreads.values.items()},
        "refused": dict(findings.traced.refused),
        "heads": {}
        if findings.heads is None
        else {"tables": list(findings.heads.tables), "refused": dict(findings.heads.refused)},
    }
