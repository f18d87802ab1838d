"""Metrics of the answer: what the logits at its position make of the right answer and the wrong ones."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.metrics.declare import declared
from interp.metrics.precision import wide
from interp.model.batch import Batch


def answer_logits(logits: Tensor, batch: Batch) -> Float[Tensor, "batch vocab"]:
    """``[batch, vocab]`` logits at the position that predicts the answer, in float32 at least."""
    if logits.ndim == 2:  # noqa: PLR2004 - a classifier
        return wide(logits)
    if logits.shape[1] == 1:
        return wide(logits[:, 0])
    if logits.shape[1] != batch.width:
        raise BadInput(
            f"The logits hold {logits.shape[1]} positions, the batch {batch.width}; this metric reads the answer's "
            "position: run with logits='answers' or logits='all'."
        )
    rows = torch.arange(len(batch), device=logits.device)
    return wide(logits[rows, batch.read_at.to(logits.device)])


def _answers(batch: Batch) -> Int[Tensor, "batch k"]:
    if batch.answers is None:
        raise BadInput("This metric needs answers; give encode(..., answers=[(right, wrong), ...]).")
    return batch.answers


@declared(positions="answers")
def logit_difference(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` logit(right answer) - mean logit(wrong answers), at the answer's position.

    Raises:
        BadInput: a prompt without a wrong answer.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> logit_difference(interp.run(model, batch).logits, batch).shape
        torch.Size([1])
    """
    answers = _answers(batch).to(logits.device)
    if answers.shape[1] == 1 or bool((answers[:, 1] < 0).any()):
        raise BadInput("logit_difference needs a wrong answer beside each right one: answers=[(right, wrong), ...].")
    at_answer = answer_logits(logits, batch)
    chosen = at_answer.gather(1, answers.clamp(min=0))
    wrong = answers[:, 1:] >= 0
    return chosen[:, 0] - chosen[:, 1:].masked_fill(~wrong, 0.0).sum(1) / wrong.sum(1)


@declared(positions="answers")
def answer_logprob(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` log-probability of the right answer, in nats.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> answer_logprob(interp.run(model, batch).logits, batch).shape
        torch.Size([1])
    """
    answers = _answers(batch).to(logits.device)
    return torch.log_softmax(answer_logits(logits, batch), dim=-1).gather(1, answers[:, :1])[:, 0]


@declared(positions="answers")
def accuracy(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` 1 where the right answer has the largest logit, else 0.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> accuracy(interp.run(model, batch).logits, batch).shape
        torch.Size([1])
    """
    answers = _answers(batch).to(logits.device)
    return (answer_logits(logits, batch).argmax(-1) == answers[:, 0]).float()


@declared(positions="answers")
def probability(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` probability of the right answer among the whole vocabulary, softmax(logits)[right].

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> probability(interp.run(model, batch).logits, batch).round(decimals=3).tolist()  # e^10 / (e^10 + 15)
        [0.999...]
    """
    return answer_logprob(logits, batch).exp()


@declared(positions="answers", sense=-1)
def rank(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` how many tokens have a strictly larger logit than the right answer; 0 is the top.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]] * 2), answers=[(4, 5), (5, 4)])
        >>> rank(interp.run(model, batch).logits, batch).tolist()
        [0.0, 1.0]
    """
    answers = _answers(batch).to(logits.device)
    at_answer = answer_logits(logits, batch)
    right = at_answer.gather(1, answers[:, :1])
    counts = (at_answer > right).sum(1).to(at_answer.dtype)
    return counts.masked_fill(at_answer.isnan().any(1), torch.nan)  # NaN compares as false and would pass for the top
