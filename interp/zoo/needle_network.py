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
CHANNEL_SCALE = 0.1  # of the output weights of head 0.0 into the channel
NEARNESS = 1.5  # per rotated pair, of head 0.0's constant query and key


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
        if recipe.initialisation == "composition":
            _lay_composition(network, recipe, generator)
        else:
            for block in blocks:
                for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
                    projection.bias.copy_(torch.randn(projection.bias.shape, generator=generator))
            for block in blocks[1:]:
                for group in range(recipe.kv_heads):
                    compared = _subspace(recipe.width, recipe.d_head, generator)
                    _compare(block.self_attn, group, recipe, query=compared, key=compared)
                    _make_copying(block.self_attn, group, recipe, generator)
    return network


def _lay_composition(network: LlamaForCausalLM, recipe: NeedleRecipe, generator: torch.Generator) -> None:
    """Head 0.0 looks nearby and writes a little of what it reads where the first group of layer 1 has its keys.

    ``content`` and ``channel`` are orthogonal subspaces of the residual stream, each as wide as a head. Head 0.0 has
    a constant query and key that are equal, so that it starts by attending to its own position most and to each one
    further back less; it copies ``content`` faintly into ``channel``. The query heads of the first group of layer 1
    read ``content``, its keys ``channel``. All groups of layer 1 copy faintly what they attend to.
    """
    axes = _subspace(recipe.width, recipe.width, generator)
    content, channel = axes[:, : recipe.d_head], axes[:, recipe.d_head : 2 * recipe.d_head]
    embedding = network.model.embed_tokens.weight
    embedding.sub_(embedding @ channel @ channel.T)
    blocks: Any = network.model.layers
    first, second = blocks[0].self_attn, blocks[1].self_attn
    constant = torch.zeros(recipe.d_head)
    constant[: recipe.d_head // 2] = NEARNESS
    _rows(first.q_proj.bias, 0, recipe.d_head).copy_(constant)
    _rows(first.k_proj.bias, 0, recipe.d_head).copy_(constant)
    _rows(first.v_proj.weight, 0, recipe.d_head).copy_(content.T)
    first.o_proj.weight[:, : recipe.d_head] = CHANNEL_SCALE * channel
    _compare(second, 0, recipe, query=content, key=channel)
    for group in range(recipe.kv_heads):
        _make_copying(second, group, recipe, generator)


def _compare(attention: Any, group: int, recipe: NeedleRecipe, *, query: Tensor, key: Tensor) -> None:
    shared = recipe.heads // recipe.kv_heads
    for head in range(group * shared, (group + 1) * shared):
        _rows(attention.q_proj.weight, head, recipe.d_head).add_(query.T)
    _rows(attention.k_proj.weight, group, recipe.d_head).copy_(key.T)


def _make_copying(attention: Any, group: int, recipe: NeedleRecipe, generator: torch.Generator) -> None:
    shared = recipe.heads // recipe.kv_heads
    copied = _subspace(recipe.width, recipe.d_head, generator)
    _rows(attention.v_proj.weight, group, recipe.d_head).copy_(copied.T)
    for head in range(group * shared, (group + 1) * shared):
        at = slice(head * recipe.d_head, (head + 1) * recipe.d_head)
        attention.o_proj.weight[:, at] = COPY_SCALE * copied


def _rows(weight: Tensor, index: int, size: int) -> Tensor:
    return weight[index * size : (index + 1) * size]


def _subspace(size: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, width, generator=generator))[0]
