"""The same prompts with some tokens taken out, encoded again: positions close up, and images whose tokens are gone
are not given to the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.handle import Model
from interp.model.image_tokens import image_token_ids
from interp.model.inputs import pad_id, position_ids

_MADE_AGAIN = ("attention_mask", "position_ids", "cache_position")


@dataclass(frozen=True, eq=False)
class Shortened:
    """Some prompts without the tokens taken out.

    Attributes:
        rows: which prompts of the whole batch these are.
        batch: the prompts, in that order.
        moved: ``[prompt, pos]`` for each column of the whole batch the column where its token is now, -1 where it is
            gone. In an encoder-decoder, whose encoder tokens are taken out, the decoder's columns stay.
    """

    rows: Int[Tensor, " prompt"]
    batch: Batch
    moved: Int[Tensor, "prompt pos"]


def source_mask(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` the real tokens that can be taken out: the encoder's in an encoder-decoder, else all."""
    return batch.mask if batch.encoder_mask is None else batch.encoder_mask


def shortened(model: Model, batch: Batch, removed: Bool[Tensor, "batch pos"]) -> tuple[Shortened, ...]:
    """``batch`` without the tokens at ``removed``: one part, or one per length where the model cannot be padded.

    Inputs with one entry per token (token types) lose the same entries; padding, masks and positions are made anew.
    Where all image tokens of the prompts are taken out, the inputs that carry the images are left out as well.

    Args:
        model: the handle.
        batch: prompts with token ids.
        removed: True at the tokens to take out; see :func:`source_mask`.

    Raises:
        BadInput: no ids, another shape, nothing left of a prompt, the position that is read is taken out, or some image
            tokens and not all.
    """
    source = source_mask(batch)
    ids = batch.inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape != source.shape:
        raise BadInput("Tokens can be taken out of prompts of token ids alone; these prompts have other inputs.")
    if removed.shape != source.shape:
        raise BadInput(
            f"The tokens to take out have shape {list(removed.shape)}; expected [batch, pos] {list(source.shape)}, the "
            "tokens that the prompts are read from (the encoder's, in an encoder-decoder)."
        )
    kept = source & ~removed
    empty = (~kept.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise BadInput(f"Nothing is left of prompts {empty[:5]} without the tokens to take out; name fewer.")
    drop = _drops_images(model, ids, source, kept)
    parts = []
    for rows, side in _parts(model, batch, kept):
        parts.append(_part(model, batch, rows, kept[rows], side, drop_images=drop))
    return tuple(parts)


def _parts(model: Model, batch: Batch, kept: Tensor) -> Iterator[tuple[Tensor, str]]:
    lengths = kept.sum(-1)
    everyone = torch.arange(len(batch), device=kept.device)
    own = batch.padding_side if not bool(source_mask(batch).all()) else None  # padded already: so are these
    side = {"invariant": batch.padding_side, "right only": "right", "left only": "left"}.get(model.card.padding, own)
    if int(lengths.min()) == int(lengths.max()):
        yield everyone, batch.padding_side
    elif side is not None:
        yield everyone, side
    else:
        for length in sorted(set(lengths.tolist())):
            yield everyone[lengths == length], batch.padding_side


def _drops_images(model: Model, ids: Tensor, source: Tensor, kept: Tensor) -> bool:
    """Whether the images go: every image token is taken out.

    Raises:
        BadInput: some are, and not all.
    """
    wanted = torch.tensor(image_token_ids(model), dtype=ids.dtype, device=ids.device)
    images = torch.isin(ids, wanted) & source
    left, gone = images & kept, images & ~kept
    if bool(gone.any()) and bool(left.any()):
        raise BadInput(
            f"{int(gone.sum())} of {int(images.sum())} image tokens would be taken out, and the model needs one for "
            "each image feature; take out all of them or none, or hide them (by masking) where they stand."
        )
    return bool(gone.any())


def _part(model: Model, batch: Batch, rows: Tensor, kept: Tensor, side: str, *, drop_images: bool) -> Shortened:
    source = source_mask(batch)
    counts = kept.sum(-1, keepdim=True)
    width = int(counts.max())
    lead = width - counts if side == "left" else torch.zeros_like(counts)
    moved = torch.where(kept, kept.cumsum(-1) - 1 + lead, -1)
    prompt, column = kept.nonzero(as_tuple=True)
    place = moved[prompt, column]
    real = torch.zeros(len(rows), width, dtype=torch.bool, device=kept.device)
    real[prompt, place] = True
    ready: dict[str, Any] = {"attention_mask": real.long()}
    for name, value in batch.inputs.items():
        aligned = isinstance(value, Tensor) and value.shape[:2] == source.shape and not name.startswith("decoder_")
        if name in _MADE_AGAIN:
            continue
        if aligned:
            fill = pad_id(model) if name == "input_ids" else 0
            made = value.new_full((len(rows), width, *value.shape[2:]), fill)
            made[prompt, place] = value[rows[prompt], column]
            ready[name] = made
        elif not isinstance(value, Tensor):
            ready[name] = value
        elif not drop_images:
            ready[name] = value if len(rows) == len(batch) else batch.select(rows).inputs[name]
    positions = position_ids(model, real)
    if positions is not None:
        ready["position_ids"] = positions
    at_decoder = batch.encoder_mask is not None
    if at_decoder:
        moved = torch.arange(batch.width, device=kept.device).expand(len(rows), -1)
    read_at = moved.gather(1, batch.read_at[rows, None])[:, 0]
    lost = (read_at < 0).nonzero().flatten().tolist()
    if lost:
        raise BadInput(
            f"The tokens to take out hold the position that is read in prompts {rows[lost[:5]].tolist()}; name a span "
            "that leaves it."
        )
    new = encode(model, inputs=ready)
    spans = {} if at_decoder else {name: span.to(real.device) for name, span in batch.spans.items()}
    return Shortened(
        rows,
        replace(
            new,
            read_at=read_at,
            answers=None if batch.answers is None else batch.answers[rows],
            spans={name: _moved_span(span[rows], prompt, column, place, real) for name, span in spans.items()},
            bos=batch.bos,
        ),
        moved,
    )


def _moved_span(span: Tensor, prompt: Tensor, column: Tensor, place: Tensor, real: Tensor) -> Tensor:
    made = torch.zeros_like(real)
    made[prompt, place] = span[prompt, column]
    return made
