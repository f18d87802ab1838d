"""Metrics: from logits and a batch to one number per prompt. Nothing is reduced silently.

Logits are ``[batch, pos, vocab]`` over all columns, ``[batch, 1, vocab]`` where only the answer's position was
unembedded, or ``[batch, class]``. Log-probabilities are taken in float32.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch


def answer_logits(logits: Tensor, batch: Batch) -> Float[Tensor, "batch vocab"]:
    """``[batch, vocab]`` logits at the position that predicts the answer, in float32 at least."""
    if logits.ndim == 2:  # noqa: PLR2004 - a classifier
        return _wide(logits)
    if logits.shape[1] == 1:
        return _wide(logits[:, 0])
    if logits.shape[1] != batch.width:
        raise BadInput(
            f"The logits hold {logits.shape[1]} positions, the batch {batch.width}; this metric reads the answer's "
            "position: run with logits='answers' or logits='all'."
        )
    rows = torch.arange(len(batch), device=logits.device)
    return _wide(logits[rows, batch.read_at.to(logits.device)])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _answers(batch: Batch) -> Int[Tensor, "batch k"]:
    if batch.answers is None:
        raise BadInput("This metric needs answers; give encode(..., answers=[(right, wrong), ...]).")
    return batch.answers


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


logit_difference.positions = "answers"  # type: ignore[attr-defined]


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


answer_logprob.positions = "answers"  # type: ignore[attr-defined]


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


accuracy.positions = "answers"  # type: ignore[attr-defined]


def token_losses(logits: Tensor, batch: Batch) -> Float[Tensor, "batch pos"]:
    """``[batch, pos]`` next-token cross-entropy in nats: entry i is the loss of predicting token i + 1.

    NaN where the token predicted is padding, or where there is none (the last column).

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> token_losses(interp.run(model, batch).logits, batch).shape
        torch.Size([1, 4])
    """
    if batch.ids is None:
        raise BadInput("token_losses needs token ids; this batch has none.")
    if logits.shape[1] != batch.width:
        raise BadInput("token_losses needs every position: run with logits='all'.")
    ids, mask = batch.ids.to(logits.device), batch.mask.to(logits.device)
    logp = torch.log_softmax(_wide(logits[:, :-1]), dim=-1)
    losses = -logp.gather(-1, ids[:, 1:, None])[..., 0]
    losses = losses.masked_fill(~_predicted(mask), torch.nan)
    return torch.cat([losses, losses.new_full((len(batch), 1), torch.nan)], dim=1)


def loss(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` mean next-token cross-entropy over each prompt's real tokens, in nats.

    Over the positions of ``batch.spans["loss"]`` (the tokens predicted) where the batch has that span.

    Raises:
        BadInput: a prompt of which no token is predicted.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> loss(interp.run(model, batch).logits, batch).shape
        torch.Size([1])
    """
    wanted = _predicted(batch.mask.to(logits.device))
    if "loss" in batch.spans:
        wanted = wanted & batch.spans["loss"].to(logits.device)[:, 1:]
    counts = wanted.sum(1)
    if not bool(counts.all()):
        raise BadInput(
            f"loss: prompt {int(counts.argmin())} holds no token to predict; it needs at least two tokens (one of "
            "them in the span 'loss', where the batch has that span)."
        )
    return token_losses(logits, batch)[:, :-1].masked_fill(~wanted, 0.0).sum(1) / counts


def _predicted(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos-1"]:
    """True at i where token i + 1 is predicted from a real token."""
    return mask[:, 1:] & mask[:, :-1]
