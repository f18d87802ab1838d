"""The induction experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.experiments.induction.ablation import Replacement, unedited, without_each_head
from circuits.experiments.induction.answers import assign_answers
from circuits.experiments.induction.conclusion import conclude
from circuits.experiments.induction.config import InductionConfig
from circuits.experiments.induction.emergence import emergence
from circuits.experiments.induction.findings import Findings, SingleHeads, single_heads
from circuits.experiments.induction.grouping import choose, judge
from circuits.experiments.induction.job import Job
from circuits.experiments.induction.natural import natural
from circuits.experiments.induction.offsets import offset_profile
from circuits.experiments.induction.reading import losses_of
from circuits.experiments.induction.report import report
from circuits.experiments.induction.scoring import measurable, scores_of
from circuits.experiments.opening import open_model, refuse_unless_causal
from circuits.experiments.repeated import Repeated, random_prompts
from circuits.outcome import Outcome, Workplace
from circuits.units import Arrays
from interp.stats.nulls import FEWEST_SETS

if TYPE_CHECKING:
    from circuits.experiments.induction.answers import Answers
    from interp.model.handle import Model

CHOOSING = ("induction", "previous_token")  # scores that sets of heads are chosen by
FEWEST_REFERENCES = 8  # prompts that a mean is taken over at least


def run(config: InductionConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts longer than the context, a vocabulary too small, attention that cannot be read.
        RunFailed: NaN or infinity on the way.
    """
    opened = open_model(config, place)
    model = opened.model
    half = config.n_prompts // 2
    job = Job(
        model=model,
        config=config,
        units=place.units,
        progress=place.progress,
        fingerprint=opened.fingerprint,
        selection=_prompts(model, config, "selection", half),
        evaluation=_prompts(model, config, "evaluation", config.n_prompts - half),
        reference=_prompts(model, config, "reference", max(half, FEWEST_REFERENCES)),
    )
    refuse_unless_causal(model, job.batch(job.evaluation.select(slice(0, 1))))
    findings = find(job)
    conclusion = conclude(findings)
    page, figures = report(job, findings, conclusion)
    return Outcome(
        answer=conclusion.answer,
        heads=findings.table(),
        top=findings.wide().drop(columns="duplicate", errors="ignore").head(10),  # what fits a terminal
        page=page,
        figures=figures,
        model=opened.about,
        notes=[conclusion.doubt, *findings.notes],
        facts=facts(findings),
    )


def find(job: Job) -> Findings:
    """Every number of the experiment, stage by stage."""
    config, replacement = job.config, Replacement(job)
    chosen_by = scores_of(job, job.selection, [name for name in CHOOSING if name in config.scores], "selection")
    names, left_out = measurable(job, config.scores)
    scores = scores_of(job, job.evaluation, names, "evaluation")
    losses = losses_of(job, job.evaluation, "evaluation")
    offsets = offset_profile(job)
    choosing, _, _ = _each_head(job, replacement, job.selection, "selection")
    single, answers, base = _each_head(job, replacement, job.evaluation, "evaluation")
    groups, notes = judge(job, replacement, answers, base["loss"].astype(float), choose(job, choosing, chosen_by))
    found, more = natural(job)
    return Findings(
        model=Path(config.model).name,
        confidence=config.confidence,
        threshold=config.threshold,
        ablation=config.ablation,
        segment=config.segment,
        scores=scores,
        losses=losses,
        offsets=offsets,
        single=single,
        groups=groups,
        natural=found,
        emergence=emergence(job) if config.emergence else None,
        notes=[*left_out, *notes, *more],
    )


def facts(findings: Findings) -> dict[str, Any]:
    """The numbers behind the answer as plain values."""
    first, second = (findings.interval(part) for part in (findings.losses.first, findings.losses.second))
    learning = findings.interval(findings.losses.learning)
    return {
        "loss of the first copy": [first.mean, first.low, first.high],
        "loss of the second copy": [second.mean, second.low, second.high],
        "in-context learning": [learning.mean, learning.low, learning.high],
        "heads": {name: {str(head): score for head, score in findings.called(name)} for name in findings.scores},
        "beside": [{"head": str(head), "offset": offset, "share": share} for head, offset, share in findings.beside()],
        "sets": [
            {
                "name": group.name,
                "heads": [str(head) for head in group.heads],
                "effect": [group.effect.mean, group.effect.low, group.effect.high],
                "random sets": group.null.n,
                "random effect": [group.null.null_mean, group.null.low, group.null.high],
                "p": group.null.p,
                "p adjusted": group.adjusted,
                "effect with patterns held still": None if group.held is None else group.held.mean,
            }
            for group in findings.groups
        ],
    }


def _prompts(model: Model, config: InductionConfig, purpose: str, n: int) -> Repeated:
    return random_prompts(model, n=n, segment=config.segment, seed=config.seed, purpose=purpose)


def _each_head(
    job: Job, replacement: Replacement, prompts: Repeated, split: str
) -> tuple[SingleHeads, Answers, Arrays]:
    quick = job.config.draws < FEWEST_SETS
    draws = 0 if split != "evaluation" else job.config.draws if quick else job.config.reassignments
    answers = assign_answers(prompts, draws=draws, seed=job.config.seed)
    base = unedited(job, prompts, answers, split)
    without = without_each_head(job, replacement, prompts, answers, split)
    return single_heads(base, without, job.widths, ablation=job.config.ablation), answers, base
