"""Named spans: substrings or character ranges of a prompt become masks over its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadAddress, BadInput
from interp.model.handle import Model


def span_masks(
    model: Model, texts: Sequence[str], spans: Mapping[str, Any] | None, inputs: Mapping[str, Any], real: Tensor
) -> dict[str, Tensor]:
    """Name -> ``[batch, pos]`` True at the tokens that overlap the span.

    Raises:
        BadAddress: a substring that is not there or not unique, a range outside the prompt.
        BadInput: spans by text for prompts given as ids, or another number of entries than prompts.
    """
    made: dict[str, Tensor] = {}
    for name, given in (spans or {}).items():
        if isinstance(given, Tensor):
            if given.dtype != torch.bool or given.shape != real.shape:
                raise BadInput(
                    f"span {name!r}: a mask {given.dtype} {list(given.shape)}; expected bool {list(real.shape)}."
                )
            made[name] = given.to(real.device)
            continue
        if not isinstance(given, str | range | tuple | list):
            raise BadInput(
                f"span {name!r}: a {type(given).__name__}; expected a substring, a range, or one per prompt."
            )
        entries = list(given) if isinstance(given, list) else [given] * len(real)
        if len(entries) != len(real):
            raise BadInput(f"span {name!r}: {len(entries)} entries for {len(real)} prompts; one each, or one for all.")
        rows = [_one(model, texts, name, i, entries[i], real[i]) for i in range(len(real))]
        made[name] = torch.stack(rows)
    return made


def _one(model: Model, texts: Sequence[str], name: str, index: int, entry: Any, real: Tensor) -> Tensor:
    row = torch.zeros_like(real)
    columns = real.nonzero()[:, 0]
    for part in entry if isinstance(entry, list) else [entry]:
        if isinstance(part, range):
            if len(part) == 0 or min(part) < 0 or max(part) >= len(columns):
                raise BadAddress(
                    f"span {name!r}: {part} is outside prompt {index}, which has {len(columns)} tokens "
                    f"(positions 0 to {len(columns) - 1})."
                )
            row[columns[list(part)]] = True
            continue
        if not texts:
            raise BadInput(f"span {name!r}: prompts given as ids take ranges of positions, such as range(2, 4).")
        start, end = _characters(name, index, texts[index], part)
        row |= _overlap(model, texts[index], name, index, (start, end), columns, row)
    return row


def _characters(name: str, index: int, text: str, part: Any) -> tuple[int, int]:
    if isinstance(part, str):
        count = text.count(part) if part else 0
        if count != 1:
            raise BadAddress(
                f"span {name!r}: {part!r} occurs {count} times in prompt {index} ({text!r}); expected exactly once. "
                "Give a (start, end) range of characters."
            )
        start = text.index(part)
        return start, start + len(part)
    if not (isinstance(part, tuple) and len(part) == 2 and all(isinstance(edge, int) for edge in part)):  # noqa: PLR2004
        raise BadInput(
            f"span {name!r}: {part!r} for prompt {index}; expected a substring, a (start, end) tuple of characters, a "
            "range of positions, or a list of those; one entry per prompt goes into a list."
        )
    start, end = part
    if not 0 <= start < end <= len(text):
        raise BadAddress(
            f"span {name!r}: characters {start} to {end} are outside prompt {index}, which has {len(text)}."
        )
    return int(start), int(end)


def _overlap(
    model: Model, text: str, name: str, index: int, span: tuple[int, int], columns: Tensor, row: Tensor
) -> Tensor:
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise BadInput(f"span {name!r}: this tokenizer gives no character offsets; use ranges of positions with ids.")
    n_special = len(columns) - len(tokenizer(text, add_special_tokens=False)["input_ids"])
    encoded = tokenizer(text, add_special_tokens=n_special > 0, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    lead = len(columns) - len(offsets)  # a BOS that was asked for beside the tokenizer's own habit
    found = torch.zeros_like(row)
    for token, (start, end) in enumerate(offsets):
        if start < span[1] and end > span[0] and end > start:
            found[columns[token + lead]] = True
    if not bool(found.any()):
        raise BadAddress(f"span {name!r}: no token of prompt {index} overlaps characters {span[0]} to {span[1]}.")
    return found
