"""The losses token by token, and the attention of a few heads over real tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import interp
from circuits.experiments.induction.job import Job
from circuits.experiments.repeated import Repeated
from circuits.units import Arrays
from interp.address import At, Head, Site
from interp.metrics import token_losses


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of one set of prompts.

    Attributes:
        by_token: ``[prompt, pos - 1]`` in nats; entry j is the loss of the token at column j + 1.
        first: ``[prompt]`` mean over the first copy.
        second: ``[prompt]`` mean over the second copy, from its second token on.
    """

    by_token: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @property
    def learning(self) -> np.ndarray:
        """``[prompt]`` in-context learning: second minus first; negative where the context helped."""
        return self.second - self.first


def losses_of(job: Job, prompts: Repeated, name: str) -> Losses:
    """The losses of ``prompts``, which have one length."""
    parts: list[np.ndarray] = []
    chunks = prompts.chunks(job.config.batch_size)
    with job.progress.stage(f"Losses, {name}", len(chunks)) as done:
        for chunk in chunks:
            parts.append(job.get(f"losses/{name}", chunk, lambda c=chunk: _losses(job, c))["by_token"])
            done()
    return split_losses(np.concatenate(parts), prompts)


def split_losses(by_token: np.ndarray, prompts: Repeated) -> Losses:
    """Losses by token as :class:`Losses` of ``prompts``."""
    first, second = (slice(part.start - 1, part.stop - 1) for part in (prompts.first, prompts.second))
    exact = by_token.astype(np.float64)
    return Losses(by_token, exact[:, first].mean(1), exact[:, second].mean(1))


def _losses(job: Job, prompts: Repeated) -> Arrays:
    batch = job.batch(prompts)
    logits = interp.run(job.model, batch).logits
    assert logits is not None, "a decoder gives logits"
    return {"by_token": token_losses(logits, batch)[:, :-1].cpu().numpy()}


def attention_of(job: Job, prompts: Repeated, heads: Sequence[Head]) -> np.ndarray:
    """``[head, query, key]`` of the first prompt."""
    first = prompts.select(slice(0, 1))
    layers = sorted({head.layer for head in heads})
    run = interp.run(
        job.model, job.batch(first), read=[At(Site.PATTERN, layer=layer) for layer in layers], logits="last"
    )
    return np.stack([run[At(Site.PATTERN, layer=head.layer)][0, head.index].float().cpu().numpy() for head in heads])


def tokens_of(job: Job, prompts: Repeated) -> list[str]:
    """The tokens of the first prompt as text."""
    return list(job.batch(prompts.select(slice(0, 1))).tokens[0])
