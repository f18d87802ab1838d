"""The untrained network of the needle models: a small Llama with grouped keys and values, specially initialised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.zoo.needle_recipes import NeedleRecipe
from interp.zoo.needle_text import needle_vocabulary
from interp.zoo.words import BOS, PAD

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

COPY_SCALE = 0.05  # of a head's output weights, where they are its transposed values


def untrained_needle(recipe: NeedleRecipe, seed: int) -> LlamaForCausalLM:
    """The network before its first step, the same for the same recipe and seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = needle_vocabulary()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.d_head,
        max_position_embeddings=recipe.context,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=words[BOS],
        eos_token_id=words[BOS],
        pad_token_id=words[PAD],
    )
    torch.manual_seed(seed)
    network = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    blocks: Any = network.model.layers
    with torch.no_grad():
        for block in blocks:
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
                projection.bias.copy_(torch.randn(projection.bias.shape, generator=generator))
        for block in blocks[1:]:
            for group in range(recipe.mimetic_groups):
                _make_mimetic(block.self_attn, group, recipe, generator)
    return network


def _make_mimetic(attention: Any, group: int, recipe: NeedleRecipe, generator: torch.Generator) -> None:
    """Queries and keys of a key-value group compare alike, and its output weights are its transposed values, scaled."""
    width, shared = recipe.d_head, recipe.heads // recipe.kv_heads
    compared, copied = (_subspace(recipe.width, width, generator) for _ in range(2))
    _rows(attention.k_proj.weight, group, width).copy_(compared.T)
    _rows(attention.v_proj.weight, group, width).copy_(copied.T)
    for head in range(group * shared, (group + 1) * shared):
        _rows(attention.q_proj.weight, head, width).add_(compared.T)
        attention.o_proj.weight[:, head * width : (head + 1) * width] = COPY_SCALE * copied


def _rows(weight: Tensor, index: int, size: int) -> Tensor:
    return weight[index * size : (index + 1) * size]


def _subspace(size: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, width, generator=generator))[0]
