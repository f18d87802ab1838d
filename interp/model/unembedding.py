"""Which positions reach the unembedding: the others are never multiplied by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from interp.model.handle import Model
from interp.model.inputs import output_embeddings
from interp.model.scopes import removing


@contextmanager
def unembedding(model: Model, positions: Tensor | None, final: list[Tensor]) -> Iterator[None]:
    """Inside, only the columns ``positions [batch, k]`` are unembedded (``None``: all); nothing else changes.

    Args:
        model: the handle; where it has no unembedding, nothing happens.
        positions: columns.
        final: receives the whole input of the unembedding.
    """
    head = output_embeddings(model)

    def cut(module: nn.Module, args: tuple[Any, ...]) -> Any:
        hidden = args[0]
        final.append(hidden.detach())
        if positions is None:
            return None
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return (hidden[rows, positions.to(hidden.device)], *args[1:])

    with removing(head.register_forward_pre_hook(cut)) if head is not None else nullcontext():
        yield


def logits_of(output: Any) -> Tensor | None:
    """The logits of a model's output, ``None`` without a head."""
    return first_tensor(output, "logits", "logits_per_image")


def first_tensor(output: Any, *names: str) -> Tensor | None:
    """The first of the attributes ``names`` of a model's output that is a tensor."""
    return next((found for name in names if isinstance(found := getattr(output, name, None), Tensor)), None)
