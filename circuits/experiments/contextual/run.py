"""The contextual experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path

from circuits.experiments.contextual.conclusion import answer, doubt
from circuits.experiments.contextual.config import ContextualConfig
from circuits.experiments.contextual.findings import Findings, order_of
from circuits.experiments.contextual.measuring import SCORE, Job, answered, by_chance, effects, removed, scored
from circuits.experiments.contextual.prompts import contextual_prompts
from circuits.experiments.contextual.report import report
from circuits.experiments.opening import open_model, refuse_unless_causal
from circuits.experiments.pieces import Pieces
from circuits.outcome import Outcome, Workplace

VERSION = "contextual/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: ContextualConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: a file of questions that is not as it should be, prompts longer than the context, a model that the
            drawn facts are not made for, or one whose tokens see later ones.
        RunFailed: NaN or infinity on the way.
    """
    opened = open_model(config, place)
    pieces = Pieces(place.units, VERSION, opened.fingerprint, config.batch_size, config.seed)
    job = Job(opened.model, config, pieces, place.progress)
    prompts = contextual_prompts(opened.model, config)
    refuse_unless_causal(opened.model, prompts[0].chunks(1)[0].batch(opened.model, answers=False))
    selection, evaluation = (
        answered(job, own, name) for own, name in zip(prompts, ("selection", "evaluation"), strict=True)
    )
    chosen_by, scores = scored(job, selection, "selection"), scored(job, evaluation, "evaluation")
    null = by_chance(job, evaluation)
    single, at_answer = (effects(job, evaluation, selection, at_answer=where) for where in (False, True))
    together = removed(job, evaluation, selection, order_of(chosen_by[SCORE]))
    findings = Findings(
        model=Path(config.model).name,
        selection=selection,
        evaluation=evaluation,
        chosen_by=chosen_by,
        scores=scores,
        null=null,
        effects=single,
        effects_at_answer=at_answer,
        removed=together,
        confidence=config.confidence,
        ablation=config.ablation,
        seed=config.seed,
    )
    page, figures = report(config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.wide().head(10),
        page=page,
        figures=figures,
        model=opened.about,
        notes=[doubt(findings)],
        facts=facts(findings),
    )


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    return {
        "order": [str(head) for head in findings.order],
        "reading": [str(head) for head in findings.contextual()],
        "scores": {str(head): findings.at(head) for head in findings.order},
        "largest null": float(findings.null.max()),
        "places": [slot + 1 for slot in findings.evaluation.slots],
        "by place": {str(head): findings.by_place(head)["value"].tolist() for head in findings.order},
        "answers by place": findings.answers_by_place().to_dict(orient="list"),
        "effects": {str(head): float(findings.effects.values[head.layer, head.index]) for head in findings.order},
        "effects at the answer": {
            str(head): float(findings.effects_at_answer.values[head.layer, head.index]) for head in findings.order
        },
        "agreement": {
            "everywhere": [findings.agreement.spearman, findings.agreement.spearman_interval],
            "at the answer": [findings.agreement_at_answer.spearman, findings.agreement_at_answer.spearman_interval],
            "foremost in common": findings.agreement_at_answer.top_overlap,
        },
        "sets": findings.sets().to_dict(orient="records"),
        "said": findings.said().mean,
        "right": {str(count): findings.right(count).mean for count in (0, *findings.counts)},
    }
