"""Planted attention maps, shown to reducers block by block as the engine would show them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import interp
from interp.address import Site
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.reducer import Reducer


def uniform_causal(length: int) -> Tensor:
    """``[query, key]`` 1 / (visible keys) at every visible key."""
    return torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]


def all_on_first(length: int) -> Tensor:
    """``[query, key]`` everything on key 0."""
    return torch.eye(length)[:1].repeat(length, 1)


def previous_map(length: int) -> Tensor:
    """``[query, key]`` everything on the key before; the first row on itself."""
    made = torch.eye(length).roll(-1, 1).tril(-1)
    made[1:] = torch.eye(length)[:-1]
    made[0, 0] = 1
    return made


def ask_for(
    length: int = 8,
    *,
    batch_size: int = 1,
    name: str = "planted",
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    dropped: Tensor | None = None,
    spans: dict[str, Any] | None = None,
    model: str = "handmade",
) -> Ask:
    """An ask about the hand-made model, whose maps nobody runs: prompts of ``length`` ids."""
    loaded = interp.load(model)
    if ids is None:
        ids = torch.arange(batch_size * length).view(batch_size, length) % 6
    batch = interp.encode(loaded, ids, mask=mask, spans=spans or {})
    return Ask(name, loaded, batch, loaded.stack(), dropped)


def blocks_of(
    pattern: Tensor,
    ask: Ask,
    *,
    rows_per_block: int = 3,
    layer: int = 0,
    cut: bool = True,
    scores: Tensor | None = None,
    visible: Tensor | None = None,
    seen: dict[Site, Tensor] | None = None,
) -> Iterator[Block]:
    """The blocks that ``pattern [batch, head, query, key]`` comes in.

    Args:
        pattern: the planted maps (``[query, key]`` and ``[head, query, key]`` do as well).
        ask: what is scored; its batch says which rows are real, its ``dropped`` what is left out.
        rows_per_block: how many rows a block has.
        layer: the layer that the maps are said to belong to.
        cut: leave out the keys that no row of a block sees, as the engine may.
        scores: the scores before the softmax, ``log pattern`` by default.
        visible: what a query sees, every key up to its own by default.
        seen: activations of the layer.
    """
    while pattern.ndim < 4:
        pattern = pattern.unsqueeze(0)
    length, n_keys = pattern.shape[-2:]
    mask = torch.ones(len(pattern), length, dtype=torch.bool) if ask.mask is None else ask.mask
    pattern = pattern.expand(len(mask), -1, -1, -1).float()
    sees = torch.ones(length, n_keys, dtype=torch.bool).tril() if visible is None else visible
    sees = sees & mask[:, None, :, None] & (mask[:, None, None, :] if n_keys == length else True)
    raw = pattern.log() if scores is None else scores.expand_as(pattern)
    for first in range(0, length, rows_per_block):
        rows = torch.arange(length)[first : first + rows_per_block]
        last = n_keys if not cut or visible is not None else min(n_keys, int(rows.max()) + 1)
        real = mask[:, rows]
        yield Block(
            stack=ask.stack,
            layer=layer,
            rows=rows.expand(len(mask), -1),
            real=real,
            whole=pattern[:, :, rows, :last] * real[:, None, :, None],
            visible=sees[:, :, rows, :last],
            kept=None if ask.dropped is None else ~ask.dropped,
            logits=raw[:, :, rows, :last].masked_fill(~sees[:, :, rows, :last], -torch.inf),
            seen=seen or {},
        )


def reduced(reducer: Reducer, pattern: Tensor, *, rows_per_block: int = 3, **options: Any) -> Tensor:
    """``[sample, head]`` (or with bins) what ``reducer`` makes of the planted maps, shown in small blocks.

    Args:
        reducer: the score.
        pattern: as in :func:`blocks_of`.
        rows_per_block: how many rows a block has.
        options: of :func:`blocks_of`.
    """
    seen = options.get("seen") or {}
    layer = options.get("layer", 0)
    reducer.start(layer, seen)
    for block in blocks_of(pattern, reducer.ask, rows_per_block=rows_per_block, **options):
        features = reducer.features(layer, block.n_keys, block.rows)
        products = None
        if features is not None:
            assert features.shape[-2] == block.n_keys
            products = torch.einsum("bhrk,bkf->bhrf", block.pattern, features.float().expand(len(block.rows), -1, -1))
        reducer.block(block, products)
    reducer.finish(layer, seen)
    return reducer.measured().by_layer[layer]
