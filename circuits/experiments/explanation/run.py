"""The experiment on attention as an explanation from its settings to its outcome."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from circuits.experiments.explanation.comparing import Comparison
from circuits.experiments.explanation.conclusion import answer, doubt
from circuits.experiments.explanation.config import ExplanationConfig
from circuits.experiments.explanation.findings import Findings
from circuits.experiments.explanation.measuring import (
    Hidden,
    Job,
    comparison_of,
    curves_of,
    explanation_job,
    heads_of,
    hidden_of,
    other_weights,
)
from circuits.experiments.explanation.report import report
from circuits.outcome import Outcome, Workplace
from interp.errors import BadInput, HeadscopeError

VERSION = "explanation/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones
Made = TypeVar("Made")


def run(config: ExplanationConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts that cannot be made, or nothing to compare.
        RunFailed: NaN or infinity on the way.
    """
    job = explanation_job(config, place, VERSION)
    comparison, refused = comparison_of(job)
    if comparison is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise BadInput(f"{config.model!r} has no row of attention to hold against an explanation. {reasons}")

    def tried(what: str, measure: Callable[[], Made]) -> Made | None:
        try:
            return measure()
        except HeadscopeError as error:
            refused[what] = " ".join(str(error).split())
            return None

    findings = Findings(
        model=Path(config.model).name,
        prompts=job.prompts,
        comparison=comparison,
        refused=refused,
        heads=tried("heads against explanations", lambda: heads_of(job)) or {},
        hidden=tried("tokens that attention hides", lambda: _hidden(job, comparison)),
        other=tried("other weights", lambda: other_weights(job)),
        curves=tried("hiding tokens", lambda: curves_of(job, comparison)),
        metric=job.metric_name,
        top=config.top,
        important=config.important,
        confidence=config.confidence,
    )
    tokens = job.prompts.batch(job.model).tokens or tuple(tuple(map(str, row)) for row in job.prompts.ids)
    page, figures = report(config, findings, tokens)
    return Outcome(
        answer=answer(findings),
        heads=findings.head_rows(),
        top=findings.rows_table().filter(["attention", "kendall", "kendall low", "kendall high", "overlap", "signs"]),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
        tables={"pairs": comparison.table(), "hidden": findings.hidden_table(), "weights": findings.other_table()},
    )


def _hidden(job: Job, comparison: Comparison) -> dict[str, Hidden] | None:
    config = job.config
    if config.important in comparison.explanations:
        importance = comparison.explanations[config.important]
    else:
        importance = job.tracer.rows(config.important, config.options.get(config.important, {})).values
    return hidden_of(job, importance, comparison.counted)


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    comparison = findings.comparison
    themselves, gap = comparison.themselves(), findings.gap()
    return {
        "agreement": {
            name: [(found := findings.mean(comparison.of(name))).mean, found.low, found.high]
            for name in comparison.attention
        },
        "explanations among themselves": None if themselves is None else float(np.nanmean(themselves)),
        "gap": None if gap is None else [gap.mean, gap.low, gap.high],
        "against the answer": {
            f"{first} by {second}": float(np.nanmean(values))
            for (first, second), values in comparison.values["signs"].items()
        },
        "hidden": findings.hidden_table().to_dict(orient="records"),
        "other weights": findings.other_table().to_dict(orient="records"),
        "curves": [] if findings.curves is None else findings.curves.table().to_dict(orient="records"),
        "refused": dict(findings.refused),
    }
