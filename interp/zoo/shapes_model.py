"""The untrained network of ``shapes-vlm``, its tokenizer and its processor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.zoo.shapes import GRID, PATCH, SIDE
from interp.zoo.shapes_text import IMAGE, WORDS
from interp.zoo.words import BOS, PAD, build_tokenizer, vocabulary

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

N_PATCHES = GRID * GRID
CONTEXT = 128
QUERY_NOISE = 0.06  # standard deviation, beside entries of size 1 over the root of the width (0.1)
COPY_SCALE = 0.2  # of a head's output weights against its transposed values
_SCALES = {"embed_tokens": 0.1, "position_embedding": 0.5}  # standard deviations; all others: 1 / sqrt(inputs)
PIXEL_MEAN, PIXEL_SPREAD = 0.3, 0.25  # what the image processor takes off and divides by, of 1


@dataclass(frozen=True)
class ShapesRecipe:
    """Every number that the training depends on; lengths in tokens, rates of losses in nats."""

    steps: int = 2000
    warmup: int = 150
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    pictures: int = 24  # rows with a picture in a step
    texts: int = 16  # rows without one
    width: int = 96
    layers: int = 3
    heads: int = 6
    kv_heads: int = 3
    inner: int = 192
    tower_width: int = 64
    tower_layers: int = 3
    tower_heads: int = 4
    tower_inner: int = 128
    caption_weight: float = 0.3
    other_weight: float = 0.02
    first_lesson: int = 300  # steps
    tower_steps: int = 600
    tower_pictures: int = 40
    unseen_share: float = 0.25
    evaluate_every: int = 200


def untrained(recipe: ShapesRecipe, seed: int) -> LlavaForConditionalGeneration:
    """The network before its first step, the same for the same recipe and seed.

    Matrices are normal with a standard deviation of one over the root of their inputs, embeddings of words with 0.1 and
    of the tower's places with 0.5; biases are zero and gains one. The heads of the language model start with queries
    that nearly equal their keys (see :func:`_make_mimetic`).
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    words = vocabulary(WORDS)
    image: dict[str, Any] = {"image_token_id": len(words), "image_seq_length": N_PATCHES}
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=len(words) + 1,
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=words[BOS],
            eos_token_id=words[BOS],
            pad_token_id=words[PAD],
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=recipe.tower_width,
            intermediate_size=recipe.tower_inner,
            num_hidden_layers=recipe.tower_layers,
            num_attention_heads=recipe.tower_heads,
            image_size=SIDE,
            patch_size=PATCH,
            hidden_act="gelu_pytorch_tanh",
        ),
        **image,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    network = LlavaForConditionalGeneration(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:  # gains, biases and the class embedding stay as they are
                scale = _SCALES.get(name.split(".")[-2], 1 / math.sqrt(parameter[0].numel()))
                parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
        for layer in network.model.language_model.layers:
            _make_mimetic(layer.self_attn, recipe, draw)
    return network


def _make_mimetic(attention: Any, recipe: ShapesRecipe, draw: torch.Generator) -> None:
    """Queries that nearly equal the keys of their group, and output weights that are the transposed values, scaled."""
    size, per_group = recipe.width // recipe.heads, recipe.heads // recipe.kv_heads
    for group in range(recipe.kv_heads):
        own = slice(group * size, (group + 1) * size)
        compared, copied = (torch.linalg.qr(torch.randn(recipe.width, size, generator=draw))[0] for _ in range(2))
        attention.k_proj.weight[own] = compared.T
        attention.v_proj.weight[own] = copied.T
        for head in range(group * per_group, (group + 1) * per_group):
            rows = slice(head * size, (head + 1) * size)
            noise = torch.randn(size, recipe.width, generator=draw)
            attention.q_proj.weight[rows] = compared.T + QUERY_NOISE * noise
            attention.o_proj.weight[:, rows] = COPY_SCALE * copied


def tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer; ``<image>`` is its last token."""
    made = build_tokenizer(WORDS, context=CONTEXT)
    made.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return made


def processor() -> Any:
    """What takes texts with ``<image>`` in them and pictures of 24 x 24 pixels; it needs pillow."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        crop_size={"height": SIDE, "width": SIDE},
        do_convert_rgb=True,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_SPREAD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )
