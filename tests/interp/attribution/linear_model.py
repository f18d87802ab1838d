"""A model whose logits are linear in every head's z, values and pattern: one layer, no MLP, norms that do nothing."""

from __future__ import annotations

from itertools import pairwise

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp import Batch, Model

EPSILON, GAIN = 1e8, 1e4  # a norm divides by sqrt(var + 1e8), which is 1e4 up to 1e-8 of it
N_HEADS = 4


def linear_model(dtype: torch.dtype = torch.float64) -> Model:
    """GPT-2 of one layer of four heads; the MLP writes 0, and scaling by 1e4 / sqrt(1e8) leaves centring alone."""
    torch.manual_seed(1)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=N_HEADS, vocab_size=13, n_positions=16, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, initializer_range=0.4, layer_norm_epsilon=EPSILON,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter.fill_(GAIN)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
        for part in (hf.transformer.h[0].mlp.c_proj.weight, hf.transformer.h[0].mlp.c_proj.bias):
            part.zero_()
    return interp.load(hf.to(dtype), check=False)


def prompts(model: Model, *rows: list[int], mask: list[list[int]] | None = None) -> Batch:
    """The rows of ids with two answers each, which are their first and second own tokens."""
    answers = [(row[-1], row[-2]) for row in rows]
    assert all(len(a) == len(b) for a, b in pairwise(rows))
    given = None if mask is None else torch.tensor(mask)
    return interp.encode(model, torch.tensor(rows), answers=answers, mask=given)
