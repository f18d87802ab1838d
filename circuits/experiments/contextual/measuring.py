"""What is measured: the answers, the scores with their null, and the answers without some heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import interp
from circuits.experiments.contextual.config import ContextualConfig
from circuits.experiments.contextual.prompts import Prompts
from circuits.experiments.opening import widths_of
from circuits.experiments.pieces import Pieces
from circuits.experiments.retrieval.masking import LATER_LAYERS, SAME_LAYERS, HeadSets, head_sets
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.address import Head
from interp.attribution.curve import values_of_sets
from interp.attribution.removal import removal
from interp.errors import BadInput
from interp.metrics.declare import declared
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.results import HeadScores
from interp.scores.long_context.chosen_rows import one_before

SCORE, COMPANIONS, GOLD_ONLY = "contextual", "contextual_companions", "contextual_gold_only"
NOTHING = -1  # fills up answers of fewer tokens
SETS_PER_PIECE = 16
FEWEST_REFERENCES = 8  # prompts that a mean is taken over
CONTROLS = (SAME_LAYERS, LATER_LAYERS)


@dataclass(frozen=True)
class Job:
    """One run: the model, the settings, and what is finished."""

    model: Model
    config: ContextualConfig
    pieces: Pieces
    progress: Progress


def answered(job: Job, prompts: Prompts, purpose: str) -> Prompts:
    """The prompts with the answers that are read: the right ones, or what the model writes greedily.

    Raises:
        BadInput: a stop text of more than one token, or prompts after which the model writes nothing.
    """
    config = job.config
    if config.answer == "given":
        return prompts
    stop = _stop(job)
    chunks, found = prompts.chunks(config.batch_size), []
    with job.progress.stage(f"Answers, {purpose}", len(chunks)) as done:
        for chunk in chunks:
            made_of = fingerprint_of(chunk.fingerprint, config.max_new_tokens, stop)
            rows = job.pieces.arrays("answers", made_of, lambda own=chunk: _written(job, own, stop))["ids"]
            found += [[token for token in row if token != NOTHING] for row in rows.tolist()]
            done()
    return prompts.with_answers(found)


def _stop(job: Job) -> list[int]:
    if job.config.stop is None:
        return []
    if job.model.tokenizer is None:
        raise BadInput("stop=: the model has no tokenizer; leave it out.")
    tokens = job.model.tokenizer(job.config.stop, add_special_tokens=False)["input_ids"]
    if len(tokens) != 1:
        raise BadInput(f"stop={job.config.stop!r} is {len(tokens)} tokens here; give a text of one token.")
    return list(tokens)


def _written(job: Job, prompts: Prompts, stop: list[int]) -> Arrays:
    batch = prompts.batch(job.model, answers=False)
    made = interp.with_generated(job.model, batch, max_new_tokens=job.config.max_new_tokens, stop=stop)
    assert made.ids is not None
    span = made.spans["generated"]
    ids = np.full((len(made), int(span.sum(-1).max())), NOTHING)
    for row, own in enumerate(span):
        ids[row, : int(own.sum())] = made.ids[row, own].tolist()
    return {"ids": ids}


def scored(job: Job, prompts: Prompts, purpose: str) -> dict[str, HeadScores]:
    """The contextual score of every head on every prompt, its companions, and the score without other documents."""
    chunks, parts = prompts.chunks(job.config.batch_size), []
    with job.progress.stage(f"Scores, {purpose}", len(chunks)) as done:
        for chunk in chunks:
            parts.append(_scored(job, chunk))
            done()
    return {name: _clustered(HeadScores.concat([part[name] for part in parts]), prompts) for name in parts[0]}


def _scored(job: Job, prompts: Prompts) -> dict[str, HeadScores]:
    made: dict[str, HeadScores] = {}

    def of(name: str) -> HeadScores:
        if not made:
            options = {"answer": "answer", "rows": job.config.rows}
            names = (SCORE, COMPANIONS, GOLD_ONLY)
            made.update(interp.score(job.model, prompts.batch(job.model), dict.fromkeys(names, options)))
        return made[name]

    key = f"scores/{job.config.rows}"
    return {
        name: job.pieces.table(f"{key}/{name}", prompts.fingerprint, lambda own=name: of(own))
        for name in (SCORE, COMPANIONS, GOLD_ONLY)
    }


def by_chance(job: Job, prompts: Prompts) -> Float[np.ndarray, "draw layer head"]:
    """The mean score over prompts whose words were shuffled, draw by draw; documents keep their places."""
    config = job.config
    chunks, total = prompts.chunks(config.batch_size), None
    with job.progress.stage("Scores of shuffled words", len(chunks)) as done:
        for chunk in chunks:
            made_of = fingerprint_of(chunk.fingerprint, config.null_draws, config.rows)
            values = job.pieces.arrays("null", made_of, lambda own=chunk: _shuffled(job, own))["values"] * len(chunk)
            total = values if total is None else total + values
            done()
    assert total is not None
    return total / len(prompts)


def _shuffled(job: Job, prompts: Prompts) -> Arrays:
    config, batch = job.config, prompts.batch(job.model)
    options = {SCORE: {"answer": "answer", "rows": config.rows}}
    found = interp.score(job.model, batch, options, null="shuffled", draws=config.null_draws, seed=config.seed)
    return {"values": np.asarray(found.nulls[SCORE].samples)}


def effects(job: Job, prompts: Prompts, reference: Prompts, *, at_answer: bool = False) -> HeadScores:
    """What replacing each head does to the log-probability of the answer, per prompt.

    Args:
        job: the run.
        prompts: those that judge.
        reference: where replaced outputs come from.
        at_answer: replace it only at the rows from which the answer's tokens are predicted; else at every row.
    """
    config = job.config
    where = "at the answer" if at_answer else "anywhere"
    chunks, parts = prompts.chunks(config.batch_size), []
    made_of = [] if config.ablation == "zero" else [reference.fingerprint]
    with job.progress.stage(f"Without one head {where}", len(chunks)) as done:
        for chunk in chunks:

            def compute(own: Prompts = chunk) -> HeadScores:
                batch = own.batch(job.model)
                return interp.attribute(
                    job.model,
                    batch,
                    config.ablation,
                    metric="sequence_logprob",
                    reference=_reference(job, reference),
                    pos=predicting_rows(batch) if at_answer else None,
                    seed=config.seed,
                )

            key = fingerprint_of(chunk.fingerprint, *made_of)
            parts.append(job.pieces.table(f"effects {where}/{config.ablation}", key, compute))
            done()
    return _clustered(HeadScores.concat(parts), prompts)


def predicting_rows(batch: Batch) -> Int[Tensor, "batch k"]:
    """``[batch, k]`` the columns that predict the tokens of the span "answer"; shorter answers repeat their last."""
    rows = one_before(batch.spans["answer"], batch.mask)[0]
    order = (~rows).long().argsort(dim=-1, stable=True)
    place = torch.arange(int(rows.sum(-1).max()), device=rows.device)
    return order.gather(1, torch.minimum(place, rows.sum(-1, keepdim=True) - 1))


def _reference(job: Job, reference: Prompts) -> Batch | None:
    """What means and resamples are taken over: some of the prompts, as many as one forward takes."""
    if job.config.ablation == "zero":
        return None
    step = max(1, len(reference) // max(job.config.batch_size, FEWEST_REFERENCES))
    return Prompts(reference.made[::step]).batch(job.model)


@dataclass(frozen=True, eq=False)
class Removed:
    """Answers without sets of heads.

    Attributes:
        sets: the most contextual heads by count, and random sets that share no head with them.
        logprob: set -> ``[prompt]`` log-probability of the answer without it; the empty set is the model itself.
        right: the same for the model itself and for the most contextual heads: the share of the answer's tokens that
            stay the most likely next token.
    """

    sets: HeadSets
    logprob: dict[tuple[Head, ...], np.ndarray]
    right: dict[tuple[Head, ...], np.ndarray]


def removed(job: Job, prompts: Prompts, reference: Prompts, order: Sequence[Head]) -> Removed:
    """What is left of the answers without the most contextual heads, and without random ones.

    Args:
        job: the run.
        prompts: those that judge.
        reference: where replaced outputs come from.
        order: all heads, the most contextual on other prompts first.
    """
    config = job.config
    counts = [count for count in config.counts if count < len(order)]
    found = head_sets(order, (), widths_of(job.model), counts=counts, draws=config.draws, seed=config.seed)
    sets = HeadSets(found.chosen, {key: one for key, one in found.random.items() if key[0] in CONTROLS})
    every = sets.every()
    chunks = prompts.chunks(config.batch_size)
    few = [(), *(tuple(sorted(heads)) for heads in sets.chosen.values())]
    groups = [every[begin : begin + SETS_PER_PIECE] for begin in range(0, len(every), SETS_PER_PIECE)]
    logprob, right = [], []
    with job.progress.stage("Without several heads", len(chunks) * (len(groups) + 1)) as done:
        for chunk in chunks:
            parts = []
            for group in groups:
                parts.append(_without(job, chunk, reference, group, interp.sequence_logprob))
                done()
            logprob.append(np.concatenate(parts))
            right.append(_without(job, chunk, reference, few, tokens_right))
            done()
    return Removed(
        sets,
        dict(zip(every, np.concatenate(logprob, axis=1), strict=True)),
        dict(zip(few, np.concatenate(right, axis=1), strict=True)),
    )


def _without(
    job: Job, prompts: Prompts, reference: Prompts, sets: Sequence[tuple[Head, ...]], metric: Metric
) -> Float[np.ndarray, "set prompt"]:
    """The metric without each set of heads; a piece."""

    def compute() -> Arrays:
        batch = prompts.batch(job.model)
        edits_of = removal(
            job.model,
            batch,
            job.model.heads(),
            replacement=job.config.ablation,
            reference=_reference(job, reference),
            seed=job.config.seed,
        )
        return {"values": np.asarray(values_of_sets(job.model, batch, sets, edits_of, metric))}

    names = [" ".join(map(str, heads)) for heads in sets]
    key = fingerprint_of(prompts.fingerprint, reference.fingerprint, names)
    return job.pieces.arrays(f"{metric.__name__}/{job.config.ablation}", key, compute)["values"]


@declared()
def tokens_right(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` the share of the tokens of the span "answer" that are the most likely next token."""
    assert batch.ids is not None
    span = batch.spans["answer"][:, 1:].to(logits.device)
    hits = (logits[:, :-1].argmax(-1) == batch.ids[:, 1:].to(logits.device)) & span
    return hits.sum(-1) / span.sum(-1)


def _clustered(table: HeadScores, prompts: Prompts) -> HeadScores:
    """With the prompts of one question as one cluster, since they share its documents."""
    return replace(table, cluster=prompts.cluster)
