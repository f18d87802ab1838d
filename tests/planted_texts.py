"""Random maps over padded prompts, and asks about them."""

from __future__ import annotations

from typing import Any

import torch
from planted import ask_for
from tiny_models import TINY
from torch import Tensor

import interp
from interp.scores.ask import Ask


def causal_maps(seed: int, mask: Tensor, heads: int = 3) -> Tensor:
    """``[batch, head, query, key]`` random causal maps over real tokens."""
    width = mask.shape[1]
    visible = torch.ones(width, width).tril().bool() & mask[:, None, :] & mask[:, :, None]
    raw = torch.randn(len(mask), heads, width, width, generator=torch.Generator().manual_seed(seed))
    return raw.masked_fill(~visible[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)


def padded(width: int = 11) -> Tensor:
    """Prompts without padding, padded left, right, and of one token."""
    mask = torch.ones(4, width, dtype=torch.bool)
    mask[1, :4] = False
    mask[2, 7:] = False
    mask[3, 1:] = False
    return mask


def own(pattern: Tensor, mask: Tensor) -> list[Tensor]:
    """Each prompt's map without its padding, ``[head, query, key]``."""
    return [maps[:, real][:, :, real] for maps, real in zip(pattern, mask, strict=True)]


def causal_ask(mask: Tensor, **options: Any) -> Ask:
    ids = torch.arange(mask.numel()).view(mask.shape) % 6
    return ask_for(mask.shape[1], ids=ids, mask=mask, **options)


def encoder_ask(length: int) -> Ask:
    """An ask about one prompt of a tiny encoder, whose queries see every key."""
    model = interp.load(TINY["bert"]().hf)
    return Ask("planted", model, interp.encode(model, torch.arange(5, 5 + length)[None]), model.stack())
