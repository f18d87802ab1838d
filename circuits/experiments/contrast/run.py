"""The contrastive gating experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuits.experiments.contrast.conclusion import answer, doubt
from circuits.experiments.contrast.config import ContrastConfig
from circuits.experiments.contrast.findings import Findings
from circuits.experiments.contrast.fitting import contrast_job, contrasts
from circuits.experiments.contrast.report import report
from circuits.outcome import Outcome, Workplace


def run(config: ContrastConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts longer than the context, a vocabulary too small, attention to later tokens.
        RunFailed: NaN or infinity on the way.
    """
    job = contrast_job(config, place)
    findings = Findings(Path(config.model).name, contrasts(job), config.confidence)
    page, figures = report(job, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.effects(),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
    )


def facts(findings: Findings) -> dict[str, Any]:
    """The numbers behind the answer as plain values."""
    found = []
    for one in findings.contrasts:
        rises = {name: findings.rise(one, name) for name in (one.retain, one.forget)}
        nulls = {name: findings.null(one, name) for name in (one.retain, one.forget)}
        found.append(
            {
                "retain": one.retain,
                "forget": one.forget,
                "closed": [str(head) for head in one.closed],
                "open": [str(head) for head in findings.open_heads(one)],
                "rise": {name: [rise.mean, rise.low, rise.high] for name, rise in rises.items()},
                "random": {name: None if null is None else [null.null_mean, null.p] for name, null in nulls.items()},
                "separates": findings.separates(one),
            }
        )
    return {"contrasts": found}
