"""Asks about a small vision transformer of any grid, and maps planted between its patches."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor

import interp
from interp.model.handle import Model
from interp.scores.ask import Ask

PIXELS = 2  # of a patch, each way


@cache
def vision_model(rows: int, columns: int, heads: int = 2) -> Model:
    """A vision transformer of one layer that sees ``rows`` x ``columns`` patches after a CLS token."""
    config = hf.ViTConfig(
        hidden_size=4 * heads, intermediate_size=8, num_hidden_layers=1, num_attention_heads=heads,
        image_size=(rows * PIXELS, columns * PIXELS), patch_size=PIXELS, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return interp.load(hf.ViTForImageClassification(config).eval())


def vision_ask(
    rows: int, columns: int, *, batch_size: int = 1, name: str = "planted", dropped: Tensor | None = None
) -> Ask:
    """An ask about images of that grid, whose own maps nobody runs."""
    model = vision_model(rows, columns)
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch_size, 3, rows * PIXELS, columns * PIXELS, generator=draw)
    return Ask(name, model, interp.encode(model, inputs={"pixel_values": pixels}), model.stack("vision"), dropped)


def with_class(maps: Tensor, share: float = 0.25) -> Tensor:
    """``[..., 1 + cell, 1 + cell]``: the maps between patches, each row giving ``share`` to a CLS token put first."""
    n = maps.shape[-1]
    whole = torch.zeros(*maps.shape[:-2], n + 1, n + 1)
    whole[..., 1:, 1:] = (1 - share) * maps
    whole[..., 1:, 0] = share
    whole[..., 0, :] = 1 / (n + 1)  # what CLS looks at is part of no score of patches
    return whole


def shifted(rows: int, columns: int, down: int, right: int) -> Tensor:
    """``[cell, cell]`` every patch looks ``down`` and ``right`` of itself; where that is outside, at itself."""
    maps = torch.zeros(rows * columns, rows * columns)
    for r in range(rows):
        for c in range(columns):
            there = 0 <= r + down < rows and 0 <= c + right < columns
            maps[r * columns + c, (r + down * there) * columns + c + right * there] = 1
    return maps


def seen_by_all(maps: Tensor) -> dict[str, Any]:
    """Options of ``reduced``: every patch sees every patch."""
    return {"visible": torch.ones(maps.shape[-2:], dtype=torch.bool)}


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    """Random maps ``[*shape]`` whose rows sum to 1."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)
