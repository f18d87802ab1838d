"""How much what a head puts out depends on a named span: the span is taken out, hidden, or said in other words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.edits.attention import knockout
from interp.edits.base import Edit
from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.image_tokens import image_token_ids
from interp.model.shortening import source_mask
from interp.names import lookup
from interp.scores.ask import Ask, Measured
from interp.scores.divergence.divergence import check_rule, divergence_without, head_divergence
from interp.scores.divergence.head_outputs import (
    Changed,
    Outputs,
    OutputsAt,
    mean_over_tokens,
    named_tokens,
    outputs_edited,
    token_stack,
    tokens_at,
)
from interp.scores.prompts import ordinary_tokens

_WAYS: Mapping[str, str] = {
    "removal": "the span is taken out and the prompt encoded again",
    "masking": "every other token is forbidden to look at the span, in every layer",
    "replacement": "the span's tokens are replaced by random ordinary ones",
}


def span_sensitivity(
    ask: Ask,
    *,
    span: Group = None,
    by: str = "removal",
    relative: bool = False,
    at: Group = "answer",
    draws: int = 4,
) -> Changed | Measured:
    """``||z - z'||_2`` of each head where the answer is read, with z' of the prompt whose span is disturbed.

    Args:
        ask: what is scored.
        span: the tokens in question (of the encoder, in an encoder-decoder).
        by: ``"removal"`` the span is taken out, as in :func:`interp.scores.divergence.divergence.context_divergence`;
            ``"masking"`` it stands where it stood and no other token may look at it (attention knockout, Geva et al.,
            2023); ``"replacement"`` its tokens are others, drawn ``draws`` times.
        relative: divide by the sum of both norms, in [0, 1] then.
        at: the tokens at which heads are compared.
        draws: how many replacements are averaged.

    Removal moves the tokens behind the span and shortens every row; masking keeps places but lets the rest of each row
    share the span's mass; replacement keeps both and adds what the new tokens say. A head that all three find depends
    on the span.

    Raises:
        UnknownName: another ``by``.
        BadInput: no span, a span without tokens, or image tokens to be replaced by words.
        Unsupported: masking where attention cannot be edited.
    """
    lookup(by, _WAYS, "way to disturb a span (by=)")
    check_rule(ask, outliers=False, relative=relative, ddof=0)
    token_stack(ask)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise BadInput(f"{ask.name}: draws={draws!r}; expected a whole number of at least 1.")
    member = named_tokens(ask, span, "span")
    if by == "removal":
        return divergence_without(ask, member, at, relative=relative, outliers=False)
    columns, counted = tokens_at(ask, at)
    compare = partial(head_divergence, relative=relative)
    about = {"by": _WAYS[by]}
    if by == "masking":
        return _masked(ask, member, columns, counted, compare, about)
    changed = list(_replaced(ask, member, draws))
    return Changed(ask, columns, counted, lambda: _outputs(ask, changed, columns), compare, {**about, "draws": draws})


def _masked(ask: Ask, member: Tensor, columns: Tensor, counted: Tensor, compare: Any, about: Any) -> Measured:
    plain, hidden = outputs_edited(ask, columns, hiding_edits(ask, member))
    made = {layer: mean_over_tokens(compare(plain[layer], hidden[layer]), counted) for layer in ask.layers}
    return Measured(made, metadata=about)


def hiding_edits(ask: Ask, member: Bool[Tensor, "batch pos"]) -> list[Edit]:
    """The edits that forbid every token outside ``member`` to look at the tokens inside, in every layer.

    In an encoder-decoder: in the encoder, and for every row of the cross-attention.
    """
    outside = source_mask(ask.batch) & ~member
    if ask.batch.encoder_mask is None:
        return [knockout(outside, member, stack=ask.model.default_stack)]
    cross = [name for name, stack in ask.model.stacks.items() if stack.cross]
    return [knockout(outside, member, stack="encoder"), *(knockout(None, member, stack=name) for name in cross)]


def _replaced(ask: Ask, member: Tensor, draws: int) -> Iterator[Batch]:
    """``draws`` batches with other tokens at ``member``, each prompt's a function of its content and the seed."""
    batch = ask.batch
    ids = batch.inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape != member.shape:
        raise BadInput(f"{ask.name}: by='replacement' puts other tokens into prompts of ids; these have none.")
    images = torch.tensor(image_token_ids(ask.model), dtype=ids.dtype, device=ids.device)
    if bool((torch.isin(ids, images) & member).any()):
        raise BadInput(
            f"{ask.name}: by='replacement' puts words in the place of the span, and this one holds image tokens, which "
            "the model fills by itself; use by='removal' or by='masking'."
        )
    pool = torch.tensor(ordinary_tokens(ask.model))
    for draw in range(draws):
        new = ids.clone()
        for row, key in enumerate(batch.content_keys.tolist()):
            generator = torch.Generator().manual_seed((key ^ (ask.seed * 1_000_003 + draw)) % 2**63)
            count = int(member[row].sum())
            picked = torch.randint(len(pool), (count,), generator=generator)
            new[row, member[row]] = pool[picked].to(new)
        own = {"ids": new} if batch.encoder_mask is None else {}
        yield replace(batch, inputs={**batch.inputs, "input_ids": new}, **own)


def _outputs(ask: Ask, changed: Iterable[Batch], columns: Tensor) -> Iterator[Outputs]:
    for batch in changed:
        seen = OutputsAt(ask, columns)
        ask.stream([seen], batch)
        yield seen.found
