"""Null prompts: the same prompts with their content shuffled, or replaced by random tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.names import lookup
from interp.scores.prompts import ordinary_tokens

_IDS = ("decoder_input_ids", "input_ids")  # of the default stack: an encoder-decoder's are the decoder's

Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def null_prompts(model: Model, batch: Batch, kind: str, seed: int) -> Batch:
    """The batch with other content: same length, padding, special tokens and spans; inputs beside the ids stay.

    Args:
        model: its tokenizer says which tokens are ordinary (no special, added or lone-byte tokens).
        batch: the prompts.
        kind: ``"shuffled"`` puts each prompt's ordinary tokens in another order; ``"random"`` draws ordinary tokens of
            the vocabulary in their place, without repetition where the vocabulary is large enough.
        seed: of the draw; a prompt's draw depends on it and on the prompt's content, not on the batch around it.

    Raises:
        BadInput: the batch has no token ids, or a prompt has no ordinary token.
        UnknownName: another kind.

    Example:
        >>> import interp
        >>> model = interp.load("induction")
        >>> batch = interp.encode(model, torch.tensor([[0, 5, 6, 7, 8]]))
        >>> null = null_prompts(model, batch, "shuffled", seed=1)
        >>> sorted(null.ids[0].tolist()), null.ids[0, 0].item()
        ([0, 5, 6, 7, 8], 0)
    """
    change = lookup(kind, KINDS, "null")
    if batch.ids is None:
        raise BadInput(f"null={kind!r}: the prompts have no token ids to change; leave null= out for this model.")
    pool = torch.tensor(ordinary_tokens(model))
    ids = batch.ids.clone()
    for row in range(len(batch)):
        places = (batch.mask[row].cpu() & torch.isin(batch.ids[row].cpu(), pool)).nonzero().flatten()
        if not len(places):
            raise BadInput(f"null={kind!r}: prompt {row} has no ordinary token to change.")
        draw = torch.Generator().manual_seed((seed * 1_000_003 + int(batch.content_keys[row])) % (1 << 63))
        ids[row, places.to(ids.device)] = change(batch.ids[row].cpu()[places], pool, draw).to(ids.device)
    inputs: dict[str, Any] = dict(batch.inputs)
    for name in _IDS:
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.shape == batch.ids.shape and torch.equal(value, batch.ids):
            inputs[name] = ids
            break
    else:
        raise BadInput(
            f"null={kind!r}: none of the inputs {sorted(inputs)} holds the token ids that are to be changed."
        )
    tokens = batch.tokens
    if tokens and model.tokenizer is not None:
        tokens = tuple(
            tuple(model.tokenizer.convert_ids_to_tokens(line[real].tolist()))
            for line, real in zip(ids.cpu(), batch.mask.cpu(), strict=True)
        )
    return replace(batch, inputs=inputs, ids=ids, tokens=tokens, texts=())


def _shuffled(own: Tensor, pool: Tensor, draw: torch.Generator) -> Tensor:
    return own[torch.randperm(len(own), generator=draw)]


def _random(own: Tensor, pool: Tensor, draw: torch.Generator) -> Tensor:
    if len(own) <= len(pool):
        return pool[torch.randperm(len(pool), generator=draw)[: len(own)]]
    return pool[torch.randint(len(pool), own.shape, generator=draw)]


KINDS: Mapping[str, Change] = MappingProxyType({"shuffled": _shuffled, "random": _random})
