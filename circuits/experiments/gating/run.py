"""The gating experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuits.experiments.gating.checking import checked, rank_agreement_with
from circuits.experiments.gating.conclusion import answer, doubt
from circuits.experiments.gating.config import GatingConfig
from circuits.experiments.gating.findings import Findings
from circuits.experiments.gating.fitting import exact_effects, fitted_gates, foreseen, gating_job
from circuits.experiments.gating.report import report
from circuits.experiments.gating.validating import validated
from circuits.outcome import Outcome, Workplace


def run(config: GatingConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts longer than the context, a vocabulary too small, attention to later tokens.
        RunFailed: NaN or infinity on the way.
    """
    job = gating_job(config, place)
    gates = fitted_gates(job)
    effects = exact_effects(job)
    findings = Findings(
        model=Path(config.model).name,
        gates=gates,
        effects=effects,
        checks=checked(gates, effects, confidence=config.confidence),
        ranks=rank_agreement_with(gates, effects, confidence=config.confidence, seed=config.seed),
        validations=validated(job, gates),
        losses=foreseen(job),
        threshold=config.threshold,
        confidence=config.confidence,
    )
    page, figures = report(job, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.top().head(10),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
    )


def facts(findings: Findings) -> dict[str, Any]:
    """The numbers behind the answer as plain values."""
    ranks, roles = findings.ranks, findings.gates.taxonomy(findings.threshold)
    return {
        "loss of the first copy": findings.losses[0],
        "loss of the second copy": findings.losses[1],
        "roles": dict(zip(roles["label"], roles["role"], strict=True)),
        "heads": {
            str(one.head): {
                "effect": [one.effect, one.low, one.high],
                "band": list(one.band),
                "outside": one.outside,
                "facilitation": one.facilitation,
                "interference": one.interference,
                "same sign": one.same_sign,
            }
            for one in findings.checks
        },
        "rank agreement": {
            "kendall": [ranks.kendall, *(ranks.kendall_interval or (None, None))],
            "spearman": [ranks.spearman, *(ranks.spearman_interval or (None, None))],
        },
        "validation": {
            one.score: one.table(confidence=findings.confidence)["effect"].tolist() for one in findings.validations
        },
    }
