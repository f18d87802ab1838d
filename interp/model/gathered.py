"""A vision stack that runs on some of its positions alone: the others are taken out before the first block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import run
from interp.model.scopes import hidden_among, removing
from interp.model.stacks import Stack

_NEAR, _NEAR_COARSE = 1e-4, 5e-2  # of the largest logit, below which two answers are the same: float32, half precision


@contextmanager
def gathered(stack: Stack, columns: Int[Tensor, "batch k"]) -> Iterator[None]:
    """Inside, the blocks of ``stack`` are given the positions at ``columns`` alone, in that order.

    They come with the position embeddings that they had: those were added before.
    """

    def pick(module: Any, args: Any, kwargs: Any) -> Any:
        hidden, put = hidden_among(args, kwargs)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return put(hidden[rows, columns.to(hidden.device)])

    with removing(stack.blocks[0].register_forward_pre_hook(pick, with_kwargs=True)):
        yield


def check_gatherable(
    model: Model, batch: Batch, stack: Stack, order: Int[Tensor, " k"], fixed: Int[Tensor, " m"]
) -> None:
    """Refuse a stack whose positions cannot be taken out: one whose blocks know where a position is.

    Tried on an image of noise (the patches of an empty one are all the same): the patches in reverse order, each with
    its own position embedding, must give the same answer. They do not where positions enter the attention itself
    (rotary or relative positions, windows).

    Args:
        model: the handle.
        batch: the images.
        stack: whose positions.
        order: columns of the patches.
        fixed: columns of the other positions, which stay where they are.

    Raises:
        Unsupported: the answer is another one.
    """
    one = _noise(batch.select([0]))
    columns = torch.arange(len(order) + len(fixed))
    columns[order] = order.flip(0)
    refusal = Unsupported(
        f"Patches cannot be taken out of stack {stack.name!r} of {model.name!r} ({stack.model_type}): its blocks know "
        "where a position is (rotary or relative positions, windows), or the model needs all of them afterwards. Use "
        "drop=False, which hides them in every layer."
    )
    plain = run(model, one).logits
    try:
        with gathered(stack, columns[None]):
            turned = run(model, one).logits
    except RuntimeError as error:
        raise refusal from error
    if plain is None or turned is None:
        raise Unsupported(f"{model.name!r} gives no logits, so that nothing can be said of its answer.")
    near = _NEAR if model.dtype in (torch.float32, torch.float64) else _NEAR_COARSE
    if bool((plain - turned).abs().max() > near * plain.abs().max()):
        raise refusal


def _noise(batch: Batch) -> Batch:
    """The prompts with noise for their images."""
    pixels = batch.inputs.get("pixel_values")
    if not isinstance(pixels, Tensor):
        return batch
    drawn = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels)
    return replace(batch, inputs={**batch.inputs, "pixel_values": drawn})
