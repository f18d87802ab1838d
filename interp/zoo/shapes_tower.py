"""Before ``shapes-vlm`` reads a sentence, its tower and projector learn to see and to name what they see.

Towers of published models are trained before too (CLIP), on pictures and words, and so are projectors (LLaVA).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.zoo.shapes import CELL, CLEAR, COLOURS, COLUMNS, GRID, KINDS, PATCH, ROWS, Picture, random_picture
from interp.zoo.shapes_model import ShapesRecipe
from interp.zoo.shapes_rows import Vocabulary, pixel_values

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

NAMES = (KINDS, COLOURS, ROWS, COLUMNS)  # what each row of patch_labels counts


def patch_labels(picture: Picture) -> np.ndarray:
    """``[4, 36]`` kind and colour under each patch, row and column of its cell, counted from 1; 0 for nothing there."""
    labels = np.zeros((len(NAMES), GRID, GRID), dtype=np.int64)
    for shape in picture.shapes:
        labels[0][shape.patches] = 1 + KINDS.index(shape.kind)
        labels[1][shape.patches] = 1 + COLOURS.index(shape.colour)
    labels[2], labels[3] = 1 + np.indices((GRID, GRID)) * PATCH // CELL
    return labels.reshape(len(NAMES), -1)


def open_eyes(network: LlavaForConditionalGeneration, recipe: ShapesRecipe, seed: int) -> float:
    """Trains tower and projector, in place, so that a patch's token points to the words for what it shows and where.

    Logits are products of the projected patch with the embeddings of the words, which stay as they are; ``0`` is the
    logit of nothing. Colours are drawn evenly here, so that the tower itself has no prior. Returns the share of the
    patches of shapes whose kind was named rightly over the last 50 steps.
    """
    draw = np.random.default_rng([seed, 1])
    body: Any = network.model
    embedded = body.language_model.embed_tokens.weight.detach()
    ids = Vocabulary.of_shapes().ids
    words = [embedded[[ids[name] for name in names]] for names in NAMES]
    parameters = [*body.vision_tower.parameters(), *body.multi_modal_projector.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    found: list[float] = []
    for step in range(recipe.tower_steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.tower_steps))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * cosine)
        pictures = [random_picture(draw, usual=1 / len(COLOURS), contrast=CLEAR) for _ in range(recipe.tower_pictures)]
        labels = torch.from_numpy(np.stack([patch_labels(picture) for picture in pictures]))
        seen = body.vision_tower(pixel_values(pictures), output_hidden_states=True).hidden_states[-1][:, 1:]
        named = [_with_nothing(body.multi_modal_projector(seen) @ own.T) for own in words]
        losses = [F.cross_entropy(one.transpose(1, 2), labels[:, number]) for number, one in enumerate(named)]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        on = labels[:, 0] > 0
        found.append((named[0].argmax(-1)[on] == labels[:, 0][on]).float().mean().item())
    return float(np.mean(found[-50:]))


def _with_nothing(logits: Tensor) -> Tensor:
    return F.pad(logits, (1, 0))
