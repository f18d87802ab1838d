"""The loss on the second copy without a head, without several, and without one while every pattern is held still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

import interp
from circuits.experiments.induction.answers import Answers, joined, measure, second_copy_columns
from circuits.experiments.induction.job import Job
from circuits.experiments.repeated import Repeated
from circuits.units import Arrays, fingerprint_of
from interp.address import At, Head, Site
from interp.edits import Edit
from interp.errors import Unsupported

SETS_PER_UNIT = 20


@dataclass(frozen=True)
class Replacement:
    """Edits that put something else in place of the outputs of heads, after the method in the settings."""

    job: Job

    def edits(self, heads: Sequence[Head], prompts: Repeated) -> list[Edit]:
        """One edit for each layer that has one of ``heads``."""
        by_layer: dict[int, list[int]] = {}
        for head in sorted(heads):
            by_layer.setdefault(head.layer, []).append(head.index)
        places = {layer: At(Site.Z, layer=layer, heads=tuple(indices)) for layer, indices in by_layer.items()}
        match self.job.config.ablation:
            case "zero":
                return [interp.zero(at) for at in places.values()]
            case "mean":
                return [
                    interp.patch(at, self._means[layer][None][:, :, list(by_layer[layer])])
                    for layer, at in places.items()
                ]
            case _:
                return self._resampled(places, prompts)

    @cached_property
    def _means(self) -> list[Tensor]:
        """Per layer ``[pos, head, d_head]``: z averaged over the reference prompts, position by position."""
        sums: list[Tensor] = []
        for chunk in self.job.reference.chunks(self.job.config.batch_size):
            reads = [At(Site.Z, layer=layer) for layer, width in enumerate(self.job.widths) if width]
            run = interp.run(self.job.model, self.job.batch(chunk), read=reads, logits="last")
            parts = [run[at].cpu().double().sum(0) for at in reads]
            sums = parts if not sums else [total + part for total, part in zip(sums, parts, strict=True)]
        means = iter(total / len(self.job.reference) for total in sums)
        return [next(means).float() if width else torch.empty(0) for width in self.job.widths]

    def _resampled(self, places: dict[int, At], prompts: Repeated) -> list[Edit]:
        generator = np.random.default_rng([self.job.config.seed, int(prompts.fingerprint, 16) % 2**32])
        donors = self.job.reference.select(generator.integers(len(self.job.reference), size=len(prompts)).tolist())
        run = interp.run(self.job.model, self.job.batch(donors), read=list(places.values()), logits="last")
        return [interp.patch(at, run[at]) for at in places.values()]


def losses_without(job: Job, prompts: Repeated, answers: Answers, edits: Sequence[Edit]) -> dict[str, np.ndarray]:
    """``loss`` and ``lead`` on the second copy under ``edits``; see :func:`measure`."""
    run = interp.run(job.model, job.batch(prompts), edits=list(edits), logits=second_copy_columns(prompts))
    assert run.logits is not None, "a decoder gives logits"
    return measure(run.logits, answers)


def unedited(job: Job, prompts: Repeated, answers: Answers, split: str) -> Arrays:
    """``loss`` ``[prompt]`` and ``lead`` ``[1 + draw]`` with nothing changed."""
    parts = []
    with job.progress.stage(f"Unedited, {split}", len(prompts.chunks(job.config.batch_size))) as done:
        for chunk, its in _chunks(job, prompts, answers):
            parts.append(
                job.get(
                    f"unedited/{split}",
                    chunk,
                    lambda c=chunk, a=its: losses_without(job, c, a, ()),
                    also=[its.fingerprint],
                )
            )
            done()
    return joined(parts)


def without_each_head(
    job: Job, replacement: Replacement, prompts: Repeated, answers: Answers, split: str
) -> dict[Head, Arrays]:
    """Head -> ``loss`` ``[prompt]`` and ``lead`` ``[1 + draw]`` with that head's output replaced."""
    method, heads = job.config.ablation, job.model.heads()
    layers = [layer for layer, width in enumerate(job.widths) if width]
    collected: dict[Head, list[Arrays]] = {head: [] for head in heads}
    chunks = _chunks(job, prompts, answers)
    with job.progress.stage(f"Without each head, {split}", len(chunks) * len(layers)) as done:
        for chunk, its in chunks:
            for layer in layers:
                mine = [head for head in heads if head.layer == layer]

                def compute(chunk: Repeated = chunk, its: Answers = its, mine: list[Head] = mine) -> Arrays:
                    found = [losses_without(job, chunk, its, replacement.edits([head], chunk)) for head in mine]
                    return {name: np.stack([part[name] for part in found]) for name in found[0]}

                key = f"without/{method}/{split}/layer {layer}"
                part = job.get(key, chunk, compute, also=[its.fingerprint, job.reference.fingerprint])
                for place, head in enumerate(mine):
                    collected[head].append({name: array[place] for name, array in part.items()})
                done()
    return {head: joined(parts) for head, parts in collected.items()}


def without_sets(
    job: Job,
    replacement: Replacement,
    prompts: Repeated,
    answers: Answers,
    sets: Sequence[tuple[Head, ...]],
    *,
    name: str = "sets of heads",
) -> np.ndarray:
    """``[set, prompt]``: the loss with all heads of a set replaced at once; ``name`` is for the progress."""
    groups = [sets[begin : begin + SETS_PER_UNIT] for begin in range(0, len(sets), SETS_PER_UNIT)]
    own = Answers(answers.right[..., :1], answers.wrong[..., :1])
    chunks = _chunks(job, prompts, own)
    rows: list[list[np.ndarray]] = []
    with job.progress.stage(f"Without {name}", len(groups) * len(chunks)) as done:
        for group in groups:
            parts = []
            for chunk, its in chunks:

                def compute(
                    chunk: Repeated = chunk, its: Answers = its, group: Sequence[tuple[Head, ...]] = group
                ) -> Arrays:
                    found = [losses_without(job, chunk, its, replacement.edits(heads, chunk)) for heads in group]
                    return {"loss": np.stack([part["loss"] for part in found])}

                names = [[str(head) for head in heads] for heads in group]
                key = f"sets/{job.config.ablation}/{fingerprint_of(names)}"
                parts.append(job.get(key, chunk, compute, also=[names, job.reference.fingerprint])["loss"])
                done()
            rows.append(parts)
    return np.concatenate([np.concatenate(parts, axis=1) for parts in rows])


def without_moving_patterns(
    job: Job, replacement: Replacement, prompts: Repeated, answers: Answers, sets: Sequence[tuple[Head, ...]]
) -> np.ndarray:
    """``[1 + set, prompt]``: the loss with the heads of a set replaced while every attention pattern is held at that of
    the unedited run; the first row has nothing replaced.

    What is left of an effect travels through values; what is gone went through the patterns of later heads.

    Raises:
        Unsupported: the patterns of this model cannot be edited.
    """
    own = Answers(answers.right[..., :1], answers.wrong[..., :1])
    names = [[str(head) for head in heads] for heads in sets]
    chunks = _chunks(job, prompts, own)
    parts = []
    with job.progress.stage("With patterns held still", len(chunks) * (1 + len(sets))) as done:
        for chunk, its in chunks:

            def compute(chunk: Repeated = chunk, its: Answers = its) -> Arrays:
                rows = []
                for heads in ((), *sets):
                    edits = [*replacement.edits(heads, chunk), interp.freeze_pattern(At(Site.PATTERN))]
                    rows.append(losses_without(job, chunk, its, edits)["loss"])
                    done()
                return {"loss": np.stack(rows)}

            key = f"frozen/{job.config.ablation}/{fingerprint_of(names)}"
            parts.append(job.get(key, chunk, compute, also=[names, job.reference.fingerprint])["loss"])
    return np.concatenate(parts, axis=1)


def can_hold_patterns(job: Job) -> str | None:
    """``None`` if attention patterns can be edited on this model, else the reason why not."""
    first = job.evaluation.select(slice(0, 1))
    try:
        interp.run(job.model, job.batch(first), edits=[interp.freeze_pattern(At(Site.PATTERN))], logits="last")
    except Unsupported as error:
        return str(error)
    return None


def _chunks(job: Job, prompts: Repeated, answers: Answers) -> list[tuple[Repeated, Answers]]:
    size = job.config.batch_size
    rows = [slice(begin, begin + size) for begin in range(0, len(prompts), size)]
    return [(prompts.select(row), answers.select(row)) for row in rows]
