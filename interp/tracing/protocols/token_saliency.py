"""``token_saliency``: what each token of a decoder owes to each position of what it reads, by taking that away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.attention import knockout
from interp.errors import Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import run
from interp.model.stacks import Stack
from interp.model.sweep import sweep
from interp.names import lookup
from interp.scores.audits.references import one_by_one
from interp.tracing.ask import TraceAsk
from interp.tracing.occlusion.absence import absence
from interp.tracing.occlusion.explained import Explained
from interp.tracing.occlusion.pixels import Fill
from interp.tracing.occlusion.replaced import Replacement
from interp.tracing.trace import target_columns

PLACES: Mapping[str, str] = {
    "input": "the position's frames (or token) are covered in what the encoder is given",
    "encoder": "the encoder's output at the position is hidden from every cross-attention",
}


def token_saliency(
    model: Model,
    batch: Batch,
    of: Literal["input", "encoder"] = "input",
    *,
    replacement: Replacement = None,
    fill: Fill = "zero",
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Float[Tensor, "batch token key"]:
    """``[batch, token, key]`` how much the log-probability of each next token falls without each encoder position.

    Row t is about the token that follows the decoder's t-th; behind the last (and at padding) it is what the model says
    of the whole prompt. Positive: the position speaks for that token. NaN at padded positions.

    Args:
        model: the handle of an encoder-decoder.
        batch: prompts with decoder tokens.
        of: ``"input"`` the position's frames or token are covered in what the encoder is given, so that other positions
            cannot have read it either; ``"encoder"`` the encoder's output there is hidden from the decoder, so that
            they can.
        replacement, fill: what is put in the place of tokens and frames; see
            :func:`interp.tracing.occlusion.single.blank_out`.
        batch_size: prompts in one forward.
        progress: called with the number of forwards just finished.

    Raises:
        UnknownName: another place.
        Unsupported: a model without cross-attention.

    Perturbation saliency of the input and of the encoder's output, as cross-attention is compared with in speech
    recognition. What it covers positions with is ours.

    Example:
        >>> import torch, interp
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> small = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        ...                  decoder_start_token_id=0)
        >>> model = interp.load(T5ForConditionalGeneration(small))
        >>> batch = interp.encode(model, torch.tensor([[3, 4, 5]]), decoder=torch.tensor([[0, 6]]))
        >>> token_saliency(model, batch, replacement=1).shape
        torch.Size([1, 2, 3])
    """
    lookup(of, PLACES, "place of perturbation (of=)")
    cross = [stack for stack in model.stacks.values() if stack.cross]
    if not cross:
        raise Unsupported(
            f"token_saliency: {model.name!r} has no cross-attention; its stacks are {', '.join(model.stacks)}. Of "
            "other models, trace the answer: interp.trace(model, batch, 'blank-out')."
        )
    wanted = _with_next_tokens(model, batch)
    columns, _ = target_columns(batch, cross[0], None)
    ask = TraceAsk("token_saliency", model, batch, cross[0], columns, next_logprobs, progress=progress)
    about = Explained(wanted, next_logprobs, "log-probability of each next token")
    gone = absence(ask, "replace" if of == "input" else "hide", replacement=replacement, fill=fill,
                   batch_size=batch_size)  # fmt: skip
    members = torch.stack(one_by_one(gone.free, None))
    if of == "input":
        values, whole = gone.values(about, members)
    else:
        values, whole = _hidden_from_decoder(model, wanted, cross, members, batch_size, progress)
    falls = (whole - values).permute(1, 2, 0)  # [batch, token, n-th position]
    made = torch.full((len(batch), batch.width, gone.free.shape[1]), torch.nan, dtype=torch.float64)
    for number, member in enumerate(members.cpu()):
        row, key = member.nonzero(as_tuple=True)
        made[row, :, key] = falls[row, :, number]
    return made.masked_fill(~batch.mask.cpu()[:, :, None], torch.nan)


def next_logprobs(logits: Tensor, batch: Batch) -> Float[Tensor, "batch token"]:
    """``[batch, token]`` the log-probability of ``batch.answers[:, t]`` at each position t."""
    assert batch.answers is not None
    ids = batch.answers.to(logits.device)[:, :, None]
    return torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1).gather(-1, ids)[:, :, 0]


def _with_next_tokens(model: Model, batch: Batch) -> Batch:
    """``batch`` with the token that follows each position as its answers."""
    assert batch.ids is not None, "a decoder has ids"
    logits = run(model, batch).logits
    assert logits is not None, "a decoder with cross-attention has an unembedding"
    said = logits.argmax(-1).to(batch.ids.device)
    following = torch.cat([batch.ids[:, 1:], said[:, -1:]], dim=1)
    real = torch.cat([batch.mask[:, 1:], torch.zeros_like(batch.mask[:, :1])], dim=1)
    return replace(batch, answers=torch.where(real, following, said))


def _hidden_from_decoder(
    model: Model,
    batch: Batch,
    cross: list[Stack],
    members: Tensor,
    batch_size: int | None,
    progress: Callable[[int], Any] | None,
) -> tuple[Tensor, Tensor]:
    """The metric while keys are hidden in every cross-attention, and nowhere else."""
    variants = [[knockout(None, member, stack=stack.name) for stack in cross] for member in members]
    swept = sweep(model, batch, variants, next_logprobs, batch_size=batch_size, progress=progress)
    return swept.values.double().cpu(), swept.unedited.double().cpu()
