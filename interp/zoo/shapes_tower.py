"""The vision tower of ``shapes-vlm`` learns to see before any word is learned, as towers of published models do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from interp.zoo.shapes import CELL, CLEAR, COLOURS, COLUMNS, GRID, KINDS, PATCH, ROWS, Picture, random_picture
from interp.zoo.shapes_model import ShapesRecipe
from interp.zoo.shapes_rows import pixel_values

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

N_LABELS = (len(KINDS) + 1, len(COLOURS) + 1, len(ROWS), len(COLUMNS))  # classes of each sort of label


def patch_labels(picture: Picture) -> np.ndarray:
    """``[4, 36]`` kind and colour under each patch, counted from 1 (0: nothing), and the row and column of its cell."""
    labels = np.zeros((len(N_LABELS), GRID, GRID), dtype=np.int64)
    for shape in picture.shapes:
        labels[0][shape.patches] = 1 + KINDS.index(shape.kind)
        labels[1][shape.patches] = 1 + COLOURS.index(shape.colour)
    labels[2], labels[3] = np.indices((GRID, GRID)) * PATCH // CELL
    return labels.reshape(len(N_LABELS), -1)


def open_eyes(network: LlavaForConditionalGeneration, recipe: ShapesRecipe, seed: int) -> float:
    """Trains the tower alone, in place, to name what lies under each patch, and where, by a linear layer thrown away.

    Colours are drawn evenly here, so that the tower itself has no prior. Returns the share of the patches of shapes
    whose kind was named rightly over the last 50 steps.
    """
    draw = np.random.default_rng([seed, 1])
    tower = network.model.vision_tower
    reader = nn.Linear(recipe.tower_width, sum(N_LABELS))
    with torch.no_grad():
        noise = torch.randn(reader.weight.shape, generator=torch.Generator().manual_seed(seed))
        reader.weight.copy_(noise / math.sqrt(recipe.tower_width))
        reader.bias.zero_()
    parameters = [*tower.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    found: list[float] = []
    for step in range(recipe.tower_steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.tower_steps))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * cosine)
        pictures = [random_picture(draw, usual=1 / len(COLOURS), contrast=CLEAR) for _ in range(recipe.tower_pictures)]
        labels = torch.from_numpy(np.stack([patch_labels(picture) for picture in pictures]))
        seen = tower(pixel_values(pictures), output_hidden_states=True).hidden_states[-1][:, 1:]
        named = reader(seen).split(N_LABELS, dim=-1)
        losses = [F.cross_entropy(one.transpose(1, 2), labels[:, number]) for number, one in enumerate(named)]
        loss = torch.stack(losses).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        on = labels[:, 0] > 0
        found.append((named[0].argmax(-1)[on] == labels[:, 0][on]).float().mean().item())
    return float(np.mean(found[-50:]))
