"""Metrics of running text: the loss of each next token, and of answers of several tokens."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.metrics.declare import declared
from interp.metrics.precision import wide
from interp.model.batch import Batch


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
    logp = torch.log_softmax(wide(logits[:, :-1]), dim=-1)
    losses = -logp.gather(-1, ids[:, 1:, None])[..., 0]
    losses = losses.masked_fill(~_predicted(mask), torch.nan)
    return torch.cat([losses, losses.new_full((len(batch), 1), torch.nan)], dim=1)


@declared(sense=-1)
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


@declared()
def sequence_logprob(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` log-probability, in nats, of the answer that stands in the prompt: the tokens of the span "answer".

    Teacher-forced: ``sum over the span's tokens of log p(token | everything before it)``. The answer may have any
    number of tokens, another one in each prompt. For a span of one token at the end it equals the ``answer_logprob``
    of the prompt without that token.

    Raises:
        BadInput: no span "answer", a prompt without a token in it, or an answer that begins with the first token, which
            nothing predicts.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4, 5]]), spans={"answer": range(5, 7)})
        >>> sequence_logprob(interp.run(model, batch).logits, batch).shape
        torch.Size([1])
    """
    if "answer" not in batch.spans:
        raise BadInput(
            "sequence_logprob reads the answer's tokens in the prompt; give encode(..., spans={'answer': ...}) "
            f"(the batch has the spans {sorted(batch.spans) or 'none'})."
        )
    span, mask = batch.spans["answer"].to(logits.device), batch.mask.to(logits.device)
    if span.shape != mask.shape:
        raise BadInput(
            f"sequence_logprob: the span 'answer' is {list(span.shape)}, the logits' rows {list(mask.shape)}."
        )
    wanted = span[:, 1:] & _predicted(mask)
    lost = span.sum(1) - wanted.sum(1)
    for prompt in (lost > 0).nonzero()[:, 0].tolist():
        raise BadInput(
            f"sequence_logprob: the answer of prompt {prompt} holds the prompt's first token (or padding), which "
            "nothing predicts; put a token before it."
        )
    for prompt in (wanted.sum(1) == 0).nonzero()[:, 0].tolist():
        raise BadInput(f"sequence_logprob: prompt {prompt} has no token in the span 'answer'.")
    return -token_losses(logits, batch)[:, :-1].masked_fill(~wanted, 0.0).sum(1)
