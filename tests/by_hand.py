"""Batches, contexts and a tiny model for tests whose numbers are worked out by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp import At, Batch, Model
from interp.edits.base import Context, Edit


def batch_of(ids: list[list[int]], mask: list[list[int]] | None = None, **fields: Any) -> Batch:
    """A batch of the given columns, all of them real tokens unless a mask says otherwise."""
    columns = torch.tensor(ids)
    real = torch.ones_like(columns, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool)
    last = (torch.arange(columns.shape[1]) * real).argmax(-1)
    inputs = {"input_ids": columns, "attention_mask": real.long()}
    return Batch(**{"inputs": inputs, "mask": real, "ids": columns, "read_at": last, **fields})


def context(edit: Edit, layer: int = 0, *, layers: tuple[int, ...] | None = None, batch: Batch | None = None,
            rows: int = 3, first: int = 0, keys: int | None = None, visible: Tensor | None = None,
            row_mask: Tensor | None = None, decode: Tensor | None = None, prompts: int = 1,
            stack: str = "text") -> Context:  # fmt: skip
    """The context of one call: ``rows`` rows from absolute column ``first`` on, a key per column by default."""
    n_keys = first + rows if keys is None else keys
    return Context(
        at=edit.at[0].with_(stack=stack),
        layer=layer,
        layers=layers if layers is not None else edit.at[0].layers or (layer,),
        batch=batch,
        step=0,
        rows=first + torch.arange(rows),
        keys=torch.arange(n_keys) if "key" in edit.at[0].site.axes else None,
        row_mask=row_mask,
        visible=visible,
        decode=torch.zeros(rows, dtype=torch.bool) if decode is None else decode,
        prompts=torch.arange(prompts if batch is None else len(batch)),
    )


def apply(edit: Edit, x: Tensor, **about: Any) -> Tensor:
    """What the edit's function makes of ``x``."""
    assert edit.function is not None
    return edit.function(x, context(edit, **about))


def causal(size: int) -> Tensor:
    """``[1, 1, size, size]`` True where the key is not after the query."""
    return torch.ones(size, size, dtype=torch.bool).tril()[None, None]


def tiny_gpt2(*, layers: int = 3, dtype: torch.dtype = torch.float32, check: bool = False, seed: int = 0) -> Model:
    """A GPT-2 of width 8 with 2 heads a layer, 13 tokens and 16 positions, and weights wide enough to matter."""
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=layers, n_embd=8, n_head=2, vocab_size=13, n_positions=16, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return interp.load(hf.to(dtype), check=check)


def z_at(layer: int | None, **more: Any) -> At:
    """An address at z."""
    return At("z", layer, **more)
