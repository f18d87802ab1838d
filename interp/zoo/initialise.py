"""The untrained network of the zoo's models: a small GPT-2 and its two special initialisations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.zoo.recipes import Recipe
from interp.zoo.words import BOS, PAD, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

COPY_SCALE = 0.05  # of a head's output weights, where they are its transposed values
CHANNEL_SCALE = 0.1  # of the output weights of head 0.0 into the channel
SLOWEST, FASTEST = 0.05, 3.0  # radians per position of the positional waves


def untrained(recipe: Recipe, seed: int) -> GPT2LMHeadModel:
    """The network before its first step, the same for the same recipe and seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = vocabulary()
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=words[BOS],
        eos_token_id=words[BOS],
        pad_token_id=words[PAD],
    )
    torch.manual_seed(seed)
    network = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if recipe.initialisation == "composition":
            _lay_composition(network, recipe, generator)
        else:
            _make_mimetic(network, recipe, generator)
    return network


def _lay_composition(network: GPT2LMHeadModel, recipe: Recipe, generator: torch.Generator) -> None:
    """Head 0.0 compares positions and writes a little of what it reads where head 1.0's keys look.

    Three orthogonal subspaces of the residual stream, each as wide as a head: ``place`` holds the position
    embeddings, slow to fast waves; ``content`` is what head 0.0 copies and what head 1.0's queries read; ``channel``
    is where head 0.0 writes and what head 1.0's keys read. Head 0.0's queries equal its keys, so at the start it
    attends to its own position most, not to the previous one, and no head has an induction pattern. The heads of
    layer 1 copy faintly what they attend to. All other weights are as GPT-2 draws them.
    """
    width = recipe.width // recipe.heads
    axes = _subspace(recipe.width, recipe.width, generator)
    place, content, channel = axes[:, :width], axes[:, width : 2 * width], axes[:, 2 * width : 3 * width]
    body: Any = network.transformer
    body.wpe.weight.copy_(_waves(recipe, network.config.initializer_range) @ place.T)
    body.wte.weight.sub_(body.wte.weight @ channel @ channel.T)
    first, second = body.h[0].attn, body.h[1].attn
    _set_head(first.c_attn.weight, 0, query=place, key=place, value=content)
    first.c_proj.weight[:width] = CHANNEL_SCALE * channel.T
    _set_head(second.c_attn.weight, 0, query=content, key=channel)
    for head in range(recipe.heads):
        _make_copying(second, head, recipe, generator)


def _make_mimetic(network: GPT2LMHeadModel, recipe: Recipe, generator: torch.Generator) -> None:
    """In every head the queries equal the keys, and the output weights are the transposed values, scaled."""
    width = recipe.width // recipe.heads
    blocks: Any = network.transformer.h
    for block in blocks:
        for head in range(recipe.heads):
            compared = _subspace(recipe.width, width, generator)
            _set_head(block.attn.c_attn.weight, head, query=compared, key=compared)
            _make_copying(block.attn, head, recipe, generator)


def _make_copying(attention: Any, head: int, recipe: Recipe, generator: torch.Generator) -> None:
    width = recipe.width // recipe.heads
    copied = _subspace(recipe.width, width, generator)
    _set_head(attention.c_attn.weight, head, value=copied)
    attention.c_proj.weight[head * width : (head + 1) * width] = COPY_SCALE * copied.T


def _subspace(size: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, width, generator=generator))[0]


def _waves(recipe: Recipe, scale: float) -> Tensor:
    pairs = recipe.width // recipe.heads // 2
    frequencies = torch.exp(torch.linspace(math.log(SLOWEST), math.log(FASTEST), pairs))
    angles = torch.arange(recipe.context, dtype=torch.float32)[:, None] * frequencies
    waves = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    return waves * math.sqrt(2 * recipe.heads) * scale  # as long as a row of width entries of this scale


def _set_head(weight: Tensor, head: int, **parts: Tensor) -> None:
    d_model = weight.shape[0]  # GPT-2's fused projection is [d_model, query | key | value]
    for offset, name in enumerate(("query", "key", "value")):
        if name in parts:
            width = parts[name].shape[1]
            start = offset * d_model + head * width
            weight[:, start : start + width] = parts[name]
