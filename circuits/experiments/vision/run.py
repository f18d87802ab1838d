"""The vision experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from circuits.experiments.vision.conclusion import answer, doubt
from circuits.experiments.vision.config import VisionConfig
from circuits.experiments.vision.findings import Findings
from circuits.experiments.vision.job import vision_job
from circuits.experiments.vision.measuring import DIVERGENCE, effects_of, scores_of
from circuits.experiments.vision.reinforcing import reinforced
from circuits.experiments.vision.report import report
from circuits.experiments.vision.sets import sets_of
from circuits.experiments.vision.withheld import WAYS, answers_in_every_way, words_of
from circuits.outcome import Outcome, Workplace

VERSION = "vision/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: VisionConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: a model without images, or questions that do not do.
        RunFailed: NaN or infinity on the way.
    """
    job = vision_job(config, place, VERSION)
    scores = scores_of(job)
    judged, hard = job.questions("vision", "evaluation"), job.sorts.hard
    answers = answers_in_every_way(job, judged, "evaluation")
    hard_answers = answers if hard is judged else answers_in_every_way(job, hard, "hard questions")
    said = np.unique(np.concatenate([getattr(answers[way], name) for way in WAYS for name in ("said", "right")]))
    findings = Findings(
        model=Path(config.model).name,
        scores=scores,
        effects=effects_of(job),
        sets=sets_of(job, scores),
        answers=answers,
        prompts=tuple(prompt.replace("<image>", "").strip() for prompt in judged.prompts),
        kinds=judged.kinds,
        clusters=judged.sources,
        words=dict(zip(said.tolist(), words_of(job, said), strict=True)),
        reinforced=reinforced(job, hard, hard_answers[WAYS[0]], hard_answers[WAYS[2]]),
        metric=config.metric,
        ablation=config.ablation,
        confidence=config.confidence,
    )
    page, figures = report(job, config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.short_rows(),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(findings)],
        facts=facts(findings),
    )


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    own = findings.reinforced
    return {
        "divergence against cost": {
            sort: [(found := findings.correlation(DIVERGENCE, sort)).mean, found.low, found.high]
            for sort in findings.effects
        },
        "sets": [
            {
                "chosen by": one.ranking,
                "heads": [str(head) for head in one.heads],
                **{sort: [(effect := one.interval(sort)).mean, effect.low, effect.high] for sort in findings.effects},
                "random": {sort: one.against_random(sort).null_mean for sort in findings.effects},
                "p": {sort: one.against_random(sort).p for sort in findings.effects},
                "selective p": one.selective.p,
                "found": findings.found(one),
            }
            for one in findings.sets
        ],
        "right": {way: findings.right(way).mean for way in WAYS},
        "without the image": findings.withheld_rows().to_dict(orient="records"),
        "reinforced": {
            what: {
                "before": float(own.measure(own.before, what).mean()),
                "change": [(change := own.change(what)[0]).mean, change.low, change.high],
                "random": own.change(what)[1].null_mean if own.random else None,
                "p": own.change(what)[1].p,
            }
            for what in ("right", "prior", "logprob")
        },
    }
