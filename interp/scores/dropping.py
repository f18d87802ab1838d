"""``exclude_sinks``: which key columns a score leaves out before it renormalises the rows."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.edits.groups import columns_of
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.stacks import Stack

Sinks = Any  # None | "first" | "detected" | int (the first n tokens) | span name | BoolTensor [batch, key]


def dropped_columns(sinks: Sinks, batch: Batch, stack: Stack) -> Bool[Tensor, "batch key"] | None:
    """``[batch, key]`` True at the columns to leave out; None for none.

    Args:
        sinks: ``None`` or ``False`` nothing; ``"first"`` or ``True`` each prompt's first token (BOS where there is
            one); an int n its first n tokens; a span's name; a BoolTensor ``[batch, key]``.
        batch: the prompts.
        stack: whose keys.

    Raises:
        BadInput: something else, or columns of another shape, or every key of a prompt.
    """
    if sinks is None or sinks is False:
        return None
    mask = batch.key_mask(stack.name)
    if isinstance(sinks, Tensor) and sinks.dtype == torch.bool:
        wanted = tuple(sinks.shape) if mask is None else tuple(mask.shape)
        if sinks.ndim != 2 or tuple(sinks.shape) != wanted:  # noqa: PLR2004 - batch, key
            raise BadInput(f"exclude_sinks: a mask of shape {list(sinks.shape)}; expected [batch, key] {list(wanted)}.")
        member = sinks if mask is None else sinks.to(mask.device)
    elif mask is None:
        raise BadInput(
            f"exclude_sinks={sinks!r}: the keys of stack {stack.name!r} are not tokens; give a BoolTensor "
            "[batch, key], True at the columns to leave out (column 0 for a CLS token)."
        )
    elif sinks == "first" or sinks is True:
        member = columns_of(0, batch, mask.shape[1], mask.device, mask=mask)
    elif isinstance(sinks, int) and sinks > 0:
        member = columns_of(slice(0, sinks), batch, mask.shape[1], mask.device, mask=mask)
    elif isinstance(sinks, str):
        member = columns_of(sinks, batch, mask.shape[1], mask.device, mask=mask)
    else:
        raise BadInput(
            f"exclude_sinks={sinks!r}: expected None, 'first', the number of first tokens, a span's name, or a "
            "BoolTensor [batch, key]."
        )
    left = ~member if mask is None else mask & ~member
    if not bool(left.any(-1).all()):
        raise BadInput(f"exclude_sinks={sinks!r} leaves a prompt without any key; leave out fewer columns.")
    return member
