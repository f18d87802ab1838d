"""What a score needs besides a batch before the conformance sweep can ask for it.

``SETTINGS[name](case, batch) -> (batch, options)``; a score that is not here is asked for with the batch as it is and
no options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from interp import Batch

from .support import Case

Setting = Callable[[Case, Batch], tuple[Batch, dict[str, Any]]]


def with_spans(batch: Batch, **slices: slice) -> Batch:
    """The batch with spans that are slices of each prompt's own tokens."""
    spans = {}
    for name, chosen in slices.items():
        member = torch.zeros_like(batch.mask)
        for row, real in enumerate(batch.mask):
            columns = real.nonzero().flatten()[chosen]
            member[row, columns] = True
        spans[name] = member
    return replace(batch, spans={**batch.spans, **spans})


SETTINGS: Mapping[str, Setting] = {
    "negative_attention": lambda case, batch: (batch, {"yes": 0, "no": 1}),
}
