"""The data of the zoo's trained models: sequences of random words in which a stretch repeats."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.zoo.recipes import Recipe
from interp.zoo.words import BOS, SPECIAL, vocabulary


class Repeats(NamedTuple):
    """Training rows: ``weight`` is that of predicting the token there, ``period`` how long the stretch of each row is.

    ``predictable`` is True from the second token of the second copy on.
    """

    ids: Int[Tensor, "batch pos"]
    weight: Float[Tensor, "batch pos"]
    predictable: Tensor
    period: Int[Tensor, " batch"]


def training_rows(recipe: Recipe, generator: torch.Generator) -> Repeats:
    """A batch: ``<bos>``, some random words, then a random stretch repeated to the end of the context.

    Words are drawn with replacement. The stretch's length is uniform from ``shortest_segment`` to
    ``longest_segment``, its start uniform among those that leave room for two copies.
    """
    size = len(vocabulary())
    first = len(SPECIAL)
    ids = torch.randint(first, size, (recipe.batch, recipe.context), generator=generator)
    ids[:, 0] = vocabulary()[BOS]
    predictable = torch.zeros(recipe.batch, recipe.context, dtype=torch.bool)
    periods = torch.randint(recipe.shortest_segment, recipe.longest_segment + 1, (recipe.batch,), generator=generator)
    for row, period in enumerate(periods.tolist()):
        start = 1 + int(torch.randint(0, recipe.context - 2 * period, (1,), generator=generator))
        room = recipe.context - start
        ids[row, start:] = ids[row, start : start + period].repeat(math.ceil(room / period))[:room]
        predictable[row, start + period + 1 :] = True
    weight = torch.where(predictable, 1.0, recipe.unpredictable_weight)
    return Repeats(ids, weight, predictable, periods)


def evaluation_rows(n_rows: int, *, length: int = 60, seed: int = 20260) -> Int[Tensor, "row pos"]:
    """``<bos>``, ``length`` distinct random words, and the same words again: ``1 + 2 length`` tokens a row."""
    generator = torch.Generator().manual_seed(seed)
    first = len(SPECIAL)
    n_words = len(vocabulary()) - first
    words = torch.stack([torch.randperm(n_words, generator=generator)[:length] + first for _ in range(n_rows)])
    bos = torch.full((n_rows, 1), vocabulary()[BOS])
    return torch.cat([bos, words, words], dim=1)
