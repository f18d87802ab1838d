"""The retrieval experiment from its settings to its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from circuits.experiments.opening import open_model, refuse_unless_causal, widths_of
from circuits.experiments.pieces import Pieces
from circuits.experiments.retrieval.conclusion import answer, doubt
from circuits.experiments.retrieval.config import RetrievalConfig
from circuits.experiments.retrieval.findings import Findings, order_of
from circuits.experiments.retrieval.masking import CONTROLS, HeadSets, answers_without, head_sets
from circuits.experiments.retrieval.prompts import Prompts, retrieval_prompts
from circuits.experiments.retrieval.report import report
from circuits.experiments.retrieval.scoring import Job, by_chance, scored, written
from circuits.outcome import Outcome, Workplace
from circuits.units import fingerprint_of
from interp.address import Head
from interp.results import HeadScores
from interp.scores.long_context.continuation import refuse_beyond_context

VERSION = "retrieval/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones
SETS_PER_PIECE = 32


def run(config: RetrievalConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: no tokenizer, a text too short, a fact that is not found again, answers longer than the context has
            room for, attention to later tokens.
        RunFailed: NaN or infinity on the way.
    """
    opened = open_model(config, place)
    selection, evaluation = retrieval_prompts(opened.model, config)
    longest = max(len(one.ids) for one in (*selection.made, *evaluation.made))
    refuse_beyond_context("retrieval", opened.model, longest, config.max_new_tokens)
    refuse_unless_causal(opened.model, selection.chunks(1)[0].batch(opened.model))
    pieces = Pieces(place.units, VERSION, opened.fingerprint, config.batch_size, config.seed)
    job = Job(opened.model, config, pieces, place.progress)
    scores = scored(job, selection, "selection")
    sets = _sets(job, scores)
    findings = Findings(
        model=Path(config.model).name,
        selection=selection,
        evaluation=evaluation,
        scores=scores,
        scores_elsewhere=scored(job, evaluation, "evaluation"),
        scores_without_first=scored(job, selection, "selection", without_first=True),
        null=by_chance(job, selection),
        written=written(job, selection, "selection"),
        written_elsewhere=written(job, evaluation, "evaluation"),
        sets=sets,
        masked={mask: _masked(job, selection, evaluation, sets, mask) for mask in config.masks},
        threshold=config.threshold,
        confidence=config.confidence,
    )
    page, figures = report(config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.wide(),
        page=page,
        figures=figures,
        model=opened.about,
        notes=[doubt(findings)],
        facts=facts(findings),
    )


def _sets(job: Job, scores: HeadScores) -> HeadSets:
    config, order = job.config, order_of(scores)
    over = [head for head in order if scores.values[head.layer, head.index] >= config.threshold]
    return head_sets(order, over, widths_of(job.model), counts=config.counts, draws=config.draws, seed=config.seed)


def _masked(
    job: Job, selection: Prompts, evaluation: Prompts, sets: HeadSets, mask: str
) -> Mapping[tuple[Head, ...], np.ndarray]:
    """Every set -> ``[prompt]`` share of right answer tokens without it; each (chunk, some sets) is a piece."""
    every = sets.every()
    chunks = evaluation.chunks(job.config.batch_size)
    groups = [every[begin : begin + SETS_PER_PIECE] for begin in range(0, len(every), SETS_PER_PIECE)]
    rows = []
    with job.progress.stage(f"Masking, {mask}", len(chunks) * len(every)) as done:
        for chunk in chunks:
            reference = _of_length(selection, chunk)
            parts = []
            for group in groups:
                names = [" ".join(map(str, heads)) for heads in group]
                made_of = fingerprint_of(chunk.fingerprint, reference.fingerprint, names)

                def compute(chunk: Prompts = chunk, group: list = group, other: Prompts = reference) -> dict:
                    return {"right": answers_without(job.model, chunk, group, mask, other, done)}

                parts.append(job.pieces.arrays(f"masked/{mask}", made_of, compute)["right"])
            rows.append(np.concatenate(parts))
    values = np.concatenate(rows, axis=1)
    return {tuple(heads): values[place] for place, heads in enumerate(every)}


def _of_length(prompts: Prompts, like: Prompts) -> Prompts:
    """The prompts made for the same length."""
    kept = [index for index, one in enumerate(prompts.made) if one.length == like.made[0].length]
    return Prompts(tuple(prompts.made[index] for index in kept), tuple(prompts.owners[index] for index in kept))


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    return {
        "retrieval heads": [str(head) for head in findings.over],
        "scores": {str(head): float(findings.scores.values[head.layer, head.index]) for head in findings.order},
        "scores on other facts": {
            str(head): float(findings.scores_elsewhere.values[head.layer, head.index]) for head in findings.order
        },
        "recall": float(findings.written.recall.mean()),
        "prompts counted": int(np.isfinite(findings.written.scores.samples).any(axis=(1, 2)).sum()),
        "masking": {
            mask: {
                str(count): {
                    "heads": [str(head) for head in heads],
                    "right": findings.right(mask, heads).mean,
                    **{control: findings.random(mask, control, count).tolist() for control in CONTROLS},
                }
                for count, heads in findings.sets.chosen.items()
            }
            for mask in findings.masked
        },
        "right with all heads": findings.right(next(iter(findings.masked)), ()).mean,
    }
