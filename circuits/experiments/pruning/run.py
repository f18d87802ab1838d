"""The pruning experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path

from circuits.experiments.copying.job import copying_job
from circuits.experiments.copying.measuring import measured
from circuits.experiments.pruning.conclusion import answer, doubt
from circuits.experiments.pruning.config import PruningConfig
from circuits.experiments.pruning.curves import curves_of, orders_of
from circuits.experiments.pruning.findings import Findings
from circuits.experiments.pruning.report import report
from circuits.outcome import Outcome, Workplace

VERSION = "pruning/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: PruningConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts longer than the context, a vocabulary too small, attention to later tokens.
        RunFailed: NaN or infinity on the way.
    """
    job = copying_job(config, place, VERSION)
    rankings = measured(job, job.selection, config.rankings, "selection")
    orders = orders_of(job, config, rankings)
    findings = Findings(
        model=Path(config.model).name,
        rankings=rankings,
        orders=orders,
        curves=curves_of(job, config, orders),
        keep=config.keep,
        confidence=config.confidence,
        ablation=config.ablation,
    )
    page, figures = report(job, config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.wide(),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
    )


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    adjusted = findings.adjusted()
    return {
        "all heads": findings.whole,
        "no head": findings.empty,
        "curves": {
            name: {
                "area": [curve.area.mean, curve.area.low, curve.area.high],
                "lead": [curve.lead.mean, curve.lead.low, curve.lead.high],
                "p adjusted": adjusted[name],
                "heads enough": findings.kept(name),
                "order": [str(head) for head in findings.orders[name]],
            }
            for name, curve in findings.curves.items()
        },
        "heads enough at random": findings.kept_by_random().tolist(),
    }
