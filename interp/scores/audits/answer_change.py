"""How much a model's answer changes: total variation between the distributions it gives at the answer's position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.base import Edit
from interp.errors import BadInput
from interp.metrics import answer_logits, answer_logprob
from interp.metrics.declare import declared
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric, run
from interp.model.sweep import logits_for, sweep

_NUMBERS = 1 << 25  # probabilities held at once: variants x prompts x vocabulary


@declared(positions="answers")
def answer_distribution(logits: Tensor, batch: Batch) -> Float[Tensor, "batch vocab"]:
    """``[batch, vocab]`` probabilities at the position that predicts the answer (of classes, for classifiers)."""
    return torch.softmax(answer_logits(logits, batch), dim=-1)


@declared(positions="answers")
def predicted_logprob(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` log-probability of what the model itself says: the metric where prompts have no answers."""
    return torch.log_softmax(answer_logits(logits, batch), dim=-1).amax(-1)


def total_variation(first: Float[Tensor, "*#batch n"], second: Float[Tensor, "*#batch n"]) -> Float[Tensor, ...]:
    """``1/2 sum |p - q|`` over the last axis, in [0, 1].

    Example:
        >>> total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor(1.)
    """
    return (first - second).abs().sum(-1) / 2


def jensen_shannon(first: Float[Tensor, "*#batch n"], second: Float[Tensor, "*#batch n"]) -> Float[Tensor, ...]:
    """Jensen-Shannon divergence over the last axis in nats, in [0, ln 2].

    ``JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2`` (Lin, 1991).

    Example:
        >>> jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor(0.6931)
    """

    def entropy(p: Tensor) -> Tensor:
        return -torch.special.xlogy(p, p.clamp(min=torch.finfo(p.dtype).tiny)).sum(-1)

    return (entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2).clamp(min=0)


def distribution_of(model: Model, batch: Batch) -> Float[Tensor, "batch vocab"]:
    """The answer's distribution in an unedited run.

    Raises:
        BadInput: a model without logits.
    """
    logits = run(model, batch, logits=logits_for(answer_distribution, model)).logits
    if logits is None:
        raise BadInput(f"{model.name!r} gives no logits, so that no change of its answer can be measured.")
    return answer_distribution(logits, batch)


def answer_changes(
    model: Model,
    batch: Batch,
    variants: Sequence[Sequence[Edit]],
    *,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Float[Tensor, "variant batch"]:
    """``[variant, batch]`` total variation between the answer with the variant's edits and without.

    Args:
        model: the handle.
        batch: the prompts.
        variants: lists of edits.
        batch_size: prompts in one forward.
        progress: called with the number of variants finished.
    """
    found: list[Tensor] = []
    step = 1  # the first tells how large the vocabulary is
    while (first := sum(map(len, found))) < len(variants):
        swept = sweep(
            model,
            batch,
            variants[first : first + step],
            answer_distribution,
            batch_size=batch_size,
            progress=progress,
        )
        found.append(total_variation(swept.values, swept.unedited))
        step = max(1, _NUMBERS // swept.values[0].numel())
    return torch.cat(found)


def metric_or_own(metric: Metric | None, batch: Batch) -> Metric:
    """``metric``, or for None the log-probability of the right answer (of what the model says, without answers)."""
    if metric is not None:
        return metric
    return predicted_logprob if batch.answers is None else answer_logprob
