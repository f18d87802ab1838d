"""The same prompts with other token ids: tokens put in, replaced or added at the end, everything else kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.handle import Model
from interp.model.inputs import pad_id, position_ids

NEW = -1  # in place of a column: the token was not there before


def rewritten(
    model: Model, batch: Batch, ids: Sequence[Sequence[int]], source: Sequence[Sequence[int]]
) -> tuple[Batch, Int[Tensor, "batch pos"]]:
    """The prompts of ``ids``, with the images, answers, spans and read positions of ``batch``; and where tokens went.

    Spans hold the tokens that they held, at their new places, and no new token. A read position whose token is gone
    moves to the end of its prompt.

    Args:
        model: the handle.
        batch: prompts with token ids, of a model without an encoder of its own for text.
        ids: the new prompts.
        source: for each of their tokens its column in ``batch``, -1 where it is new.

    Returns:
        The new batch, and ``[batch, pos]`` for each column of the old one the column where its token is now, or -1.

    Raises:
        BadInput: prompts without token ids, an encoder-decoder, or a family that cannot take their lengths together.
    """
    old = batch.inputs.get("input_ids")
    if not isinstance(old, Tensor) or batch.encoder_mask is not None or old.shape != batch.mask.shape:
        raise BadInput(
            f"{model.name!r}: tokens can be added to prompts of token ids alone, and not to those of an "
            "encoder-decoder; for one, encode the answer with decoder=."
        )
    width = max(map(len, ids))
    on_the_left = model.card.padding == "left only"
    real = torch.zeros(len(ids), width, dtype=torch.bool, device=old.device)
    moved = torch.full_like(old, NEW)
    made = {
        name: value.new_full((len(ids), width, *value.shape[2:]), pad_id(model) if name == "input_ids" else 0)
        for name, value in batch.inputs.items()
        if isinstance(value, Tensor) and value.shape[:2] == old.shape and name not in ("attention_mask", "position_ids")
    }
    for row, (tokens, columns) in enumerate(zip(ids, source, strict=True)):
        lead = width - len(tokens) if on_the_left else 0
        real[row, lead : lead + len(tokens)] = True
        came = torch.tensor(columns, device=old.device)
        places = torch.arange(lead, lead + len(tokens), device=old.device)
        kept = came >= 0
        for name, value in made.items():
            value[row, places[kept]] = batch.inputs[name][row, came[kept]]
        made["input_ids"][row, places] = torch.tensor(list(tokens), device=old.device, dtype=old.dtype)
        moved[row, came[kept]] = places[kept]
    ready: dict[str, Any] = {**batch.inputs, **made, "attention_mask": real.long()}
    ready.pop("position_ids", None)
    ready.pop("cache_position", None)
    positions = position_ids(model, real)
    if positions is not None:
        ready["position_ids"] = positions
    last = (torch.arange(width, device=old.device) * real).argmax(-1)
    read_at = moved.gather(1, batch.read_at[:, None])[:, 0]
    new = replace(
        encode(model, inputs=ready),
        answers=batch.answers,
        read_at=torch.where(read_at < 0, last, read_at),
        bos=batch.bos,
    )
    return replace(new, spans={name: carried(span, moved, new) for name, span in batch.spans.items()}), moved


def carried(member: Tensor, moved: Int[Tensor, "batch pos"], new: Batch) -> Tensor:
    """``[batch, pos]`` True at the places in ``new`` of the tokens that are True in ``member``."""
    made = torch.zeros_like(new.mask)
    row, column = (member.to(moved.device) & (moved >= 0)).nonzero(as_tuple=True)
    made[row, moved[row, column]] = True
    return made
