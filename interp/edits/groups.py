"""Groups of positions: which tokens a knockout, boost or redistribution means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.errors import BadAddress
from interp.names import unknown

Group = Any  # None (all) | int | slice | span name | BoolTensor [batch, pos] | LongTensor [batch, k] of columns


def columns_of(group: Group, batch: Any, width: int, device: torch.device, *, mask: Tensor | None) -> Tensor:
    """``[batch, width]`` True at the columns that belong to ``group``.

    Args:
        group: ``None`` every column; an int or slice counts over each prompt's own tokens, padding left out, negative
            from the end; a span's name; a BoolTensor ``[batch, pos]``; a LongTensor ``[batch, k]`` of columns.
        batch: the encoded prompts (for their spans), or ``None`` where there is none.
        width: how many columns there are by now; beyond the prompt, only ``None`` and slices open at the end reach.
        device: where the answer is needed.
        mask: ``[batch, pos]`` real tokens of the stack in question, ``None`` where it has no padding that is known of
            (images): then all ``width`` columns are real.

    Raises:
        BadAddress: a position outside a prompt, an unknown span, or a mask of another shape.
    """
    if isinstance(group, str):
        refuse_foreign_span(group, batch, mask)
    if mask is None:
        rows = group.shape[0] if isinstance(group, Tensor) and group.ndim else 1
        mask = torch.ones(rows, width, dtype=torch.bool, device=device)
    real = mask.to(device)
    if group is None:
        return torch.ones(real.shape[0], width, dtype=torch.bool, device=device)
    open_end = False
    if isinstance(group, str):
        member = batch.spans[group].to(device)
    elif isinstance(group, Tensor):
        member = _tensor_group(group.to(device), real)
    else:
        member, open_end = _ordinal_group(group, real)
    if member.shape[-1] < width:
        tail = torch.full((member.shape[0], width - member.shape[-1]), open_end, dtype=torch.bool, device=device)
        member = torch.cat([member, tail], dim=-1)
    return member[:, :width]


def refuse_foreign_span(name: str, batch: Any, mask: Tensor | None) -> None:
    """Refuse a span that the batch does not have, or one over the tokens of another stack than ``mask``'s.

    Raises:
        BadAddress: with the known spans, or with the stack that the span belongs to.
    """
    spans = getattr(batch, "spans", None) or {}
    if name not in spans:
        raise BadAddress(unknown(name, spans, "span") + " Name spans with encode(..., spans={name: ...}).")
    home = batch.mask if batch.encoder_mask is None else batch.encoder_mask
    if mask is not home:
        where = (
            "the encoder's tokens" if batch.encoder_mask is not None else f"the tokens of stack {batch.default_stack!r}"
        )
        raise BadAddress(
            f"Span {name!r} is over {where}, not over the positions asked for; give columns [batch, k] there."
        )


def _tensor_group(group: Tensor, real: Tensor) -> Tensor:
    if group.dtype == torch.bool:
        if group.ndim != 2 or group.shape[-1] != real.shape[-1] or group.shape[0] not in (1, real.shape[0]):  # noqa: PLR2004
            raise BadAddress(
                f"A mask of shape {list(group.shape)} was given, expected {list(real.shape)} [batch, pos]."
            )
        return group.expand(real.shape[0], -1)
    if group.ndim != 2 or group.shape[0] not in (1, real.shape[0]):  # noqa: PLR2004 - [batch, k]
        raise BadAddress(f"Columns of shape {list(group.shape)} were given, expected [batch={real.shape[0]}, k].")
    if int(group.min()) < 0 or int(group.max()) >= real.shape[-1]:
        raise BadAddress(
            f"Columns from {int(group.min())} to {int(group.max())} were given, but the prompts have columns 0 to "
            f"{real.shape[-1] - 1}."
        )
    member = torch.zeros_like(real)
    return member.scatter(1, group.expand(real.shape[0], -1), True)


def _ordinal_group(group: Any, real: Tensor) -> tuple[Tensor, bool]:
    lengths = real.sum(-1)
    ordinal = real.cumsum(-1) - 1  # position among the prompt's own tokens
    if isinstance(group, slice):
        member = torch.zeros_like(real)
        for row, length in enumerate(lengths.tolist()):
            chosen = torch.zeros(length, dtype=torch.bool, device=real.device)
            chosen[group] = True
            member[row, real[row]] = chosen
        return member, group.stop is None and (group.start or 0) >= 0 and group.step in (None, 1)
    if isinstance(group, int):
        shortest = int(lengths.min())
        if not -shortest <= group < shortest:
            raise BadAddress(
                f"Position {group} is outside the shortest prompt, which has {shortest} tokens "
                f"(positions 0 to {shortest - 1}, or -{shortest} to -1)."
            )
        wanted = torch.where(
            torch.tensor(group < 0, device=real.device), lengths + group, torch.full_like(lengths, group)
        )
        return real & (ordinal == wanted[:, None]), False
    raise BadAddress(
        f"{group!r} is not a group of positions: expected None, an int, a slice, a span's name, "
        "a BoolTensor [batch, pos] or a LongTensor [batch, k]."
    )
