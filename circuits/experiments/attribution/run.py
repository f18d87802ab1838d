"""The attribution experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import interp
from circuits.experiments.attribution.claiming import claims_of
from circuits.experiments.attribution.conclusion import answer, doubt
from circuits.experiments.attribution.config import AttributionConfig
from circuits.experiments.attribution.findings import Findings, compared
from circuits.experiments.attribution.report import report
from circuits.experiments.attribution.sets import top_heads
from circuits.experiments.copying.job import Job, copying_job
from circuits.experiments.copying.measuring import measured
from circuits.outcome import Outcome, Workplace

VERSION = "attribution/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: AttributionConfig, place: Workplace) -> Outcome:
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
    findings = find(job, config)
    page, figures = report(job, config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.wide().head(10),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
    )


def find(job: Job, config: AttributionConfig) -> Findings:
    """Every number of the experiment, stage by stage."""
    chosen_by = measured(job, job.selection, config.methods, "selection")
    tables = measured(job, job.evaluation, config.methods, "evaluation")
    claims = claims_of(job, config)
    tops = top_heads(job, config, chosen_by)
    compare = {"top": config.top_k, "confidence": config.confidence, "seed": config.seed}
    batch = job.evaluation.clean_batch(job.model)
    logits = interp.run(job.model, batch, logits="answers").logits
    assert logits is not None, "a decoder gives logits"
    return Findings(
        model=Path(config.model).name,
        tables=tables,
        claims=claims,
        tops=tops,
        signed=compared(tables, by="importance", **compare),
        sizes=compared(tables, by="abs", **compare),
        baseline=float(interp.logit_difference(logits, batch).double().mean()),
        n_prompts=len(batch),
        confidence=config.confidence,
        ablation=config.ablation,
    )


def facts(findings: Findings) -> dict[str, Any]:
    """The numbers behind the answer as plain values."""
    claims = findings.claims.table(confidence=findings.confidence)
    effects = claims[["value", "low", "high", "p_adjusted"]].to_numpy(dtype=float).tolist()
    return {
        "logit difference": findings.baseline,
        "claimed": [str(head) for head in findings.claims.claimed],
        "effects": dict(zip(claims["label"], effects, strict=True)),
        "opposite": {str(head): methods for head, methods in findings.signs_apart().items()},
        "tops": [
            {
                "heads": [str(head) for head in top.heads],
                "methods": list(top.methods),
                "effect": [top.effect.mean, top.effect.low, top.effect.high],
                "random sets": top.null.n,
                "random effect": [top.null.null_mean, top.null.low, top.null.high],
                "p adjusted": top.adjusted,
            }
            for top in findings.tops
        ],
        "agreement": [] if findings.signed is None else findings.signed.table().to_dict(orient="records"),
        "agreement on sizes": [] if findings.sizes is None else findings.sizes.table().to_dict(orient="records"),
    }
