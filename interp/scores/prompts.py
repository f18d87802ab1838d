"""Sequences of random tokens, for scores that bring their own prompts. Each is a function of its seed alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.scores.ask import Ask

_SAMPLE = 25  # tokens of a random sequence (Olsson et al., 2022)

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def ordinary_tokens(model: Any) -> list[int]:
    """Ids of the vocabulary that are no special or added tokens and no lone bytes, in order.

    Tokens that the config gives a part to (padding, BOS, the place of an image ...) are left out as well.
    """
    size = model.hf.get_input_embeddings().num_embeddings
    tokenizer = model.tokenizer
    named = _named_tokens(model.hf.config)
    if tokenizer is None:
        return [number for number in range(size) if number not in named]
    left_out = {*named, *tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    known = {number for token, number in tokenizer.get_vocab().items() if not _BYTE.fullmatch(token)}
    return sorted(number for number in known - left_out if number < size)


def _named_tokens(config: Any) -> set[int]:
    """The ids that a config and the configs inside it call by names such as ``image_token_id``."""
    found: set[int] = set()
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            found |= _named_tokens(value)
        elif name.endswith(("_token_id", "_token_index")):
            found |= {number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)}
    return found


def start_token(model: Any) -> int | None:
    """The id put first: BOS, else EOS, else none."""
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(model.tokenizer, name, None)
        if isinstance(found, int):
            return found
    return None


def repeated_random(model: Any, seeds: Sequence[int], length: int, repeats: int) -> Int[Tensor, "batch pos"]:
    """``[batch, pos]`` a start token, then ``length`` distinct ordinary tokens said ``repeats`` times.

    Args:
        model: its tokenizer says which tokens are ordinary.
        seeds: one per sequence.
        length: tokens per repeat.
        repeats: how many times.

    Raises:
        BadInput: fewer ordinary tokens than ``length``.
    """
    start = start_token(model)
    pool = torch.tensor([token for token in ordinary_tokens(model) if token != start])
    if len(pool) < length:
        raise BadInput(f"{length} distinct tokens were asked for; the vocabulary has {len(pool)} ordinary ones.")
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = pool[torch.randperm(len(pool), generator=generator)[:length]].repeat(repeats)
        rows.append(torch.cat([torch.tensor([start]), drawn]) if start is not None else drawn)
    return torch.stack(rows)


def four_repeats(ask: Ask) -> Batch:
    """For each prompt of the ask one of 25 random tokens said four times, drawn from a seed that its ids make."""
    return _drawn(ask, 4)


def said_once(ask: Ask) -> Batch:
    """For each prompt of the ask one of 25 random tokens said once, drawn from a seed that its ids make."""
    return _drawn(ask, 1)


def _drawn(ask: Ask, repeats: int) -> Batch:
    if ask.batch.ids is None:
        raise BadInput(f"{ask.name}: it draws a prompt for each prompt of the batch by its token ids; there are none.")
    seeds = [
        int.from_bytes(hashlib.sha256(repr((repeats, row[real].tolist())).encode()).digest()[:6], "big")
        for row, real in zip(ask.batch.ids, ask.batch.mask, strict=True)
    ]
    return encode(ask.model, repeated_random(ask.model, seeds, _SAMPLE, repeats))
