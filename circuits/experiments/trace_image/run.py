"""The experiment on traces of images from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from circuits.experiments.trace_image.conclusion import answer, doubt
from circuits.experiments.trace_image.config import TraceImageConfig
from circuits.experiments.trace_image.findings import Findings
from circuits.experiments.trace_image.measuring import curves_of, image_job, localised, randomised, traced_patches
from circuits.experiments.trace_image.report import report
from circuits.experiments.tracing.predicting import How, predictions_of, references_of
from circuits.outcome import Outcome, Workplace

VERSION = "trace_image/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: TraceImageConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: images that cannot be read, or no reference that this model can do.
        RunFailed: NaN or infinity on the way.
    """
    job = image_job(config, place, VERSION)
    traced = traced_patches(job)
    references = references_of(traced, config.references, job.model.name)
    how = How(config.how, config.undefined, True, config.random_orders, config.confidence, config.seed)
    counted = np.ones((len(job.images), job.grid.size), dtype=bool)
    findings = Findings(
        model=Path(config.model).name,
        images=job.images,
        shape=(job.grid.rows, job.grid.columns),
        regions=job.regions,
        traced=traced,
        predictions=predictions_of(references, traced.rows, counted, how),
        signed=predictions_of(references, traced.rows, counted, how, signed=True),
        located=localised(job, traced),
        curves=curves_of(job, traced),
        randomised=randomised(job, traced),
        metric=config.metric,
        confidence=config.confidence,
    )
    page, figures = report(config, findings)
    return Outcome(
        answer=answer(findings),
        heads=pd.DataFrame(columns=["quantity", "stack", "layer", "head", "value"]),
        top=findings.short_rows(),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
        tables={
            "methods": findings.table(),
            "layers": findings.layers(),
            "traces": findings.traces(),
            **({} if findings.located is None else {"places": findings.places()}),
            **({} if findings.curves is None else {"areas": findings.areas()}),
        },
    )


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    own = findings.randomised
    return {
        "verdicts": {name: None if one is None else one.facts() for name, one in findings.verdicts.items()},
        "correlations": {
            name: {method: [(found := one.interval(method)).mean, found.low, found.high] for method in one.order}
            for name, one in findings.predictions.items()
        },
        "places": findings.places().to_dict(orient="records"),
        "areas": findings.areas().to_dict(orient="records"),
        "unchanged as layers are drawn anew": [] if own is None else list(own.blind),
        "alike with all layers drawn anew": {}
        if own is None
        else {name: float(found[-1].mean()) for name, found in own.similarity.items()},
        "refused": dict(findings.traced.refused),
    }
