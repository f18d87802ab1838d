"""Training rows of ``shapes-vlm``: pictures with questions and captions, and rows of words alone, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.zoo.shapes import CLEAR, COLOURS, Picture, random_picture
from interp.zoo.shapes_model import N_PATCHES, PIXEL_MEAN, PIXEL_SPREAD, ShapesRecipe
from interp.zoo.shapes_text import TEXT, VISION, WORDS, caption, question, text_item
from interp.zoo.words import BOS, PAD, vocabulary

ITEMS = 6  # of a row with a picture, and of one about a picture that is not shown
CAPTION_SHARE = 0.06  # of the items about a picture
TEXT_SHARE = 0.1  # of the items in a row with a picture
_SHARES = (0.2, 0.2, 0.17, 0.17, 0.12, 0.14)  # of the kinds of questions, in the order of VISION


class Rows(NamedTuple):
    """Token ids and the loss weight of each, ``[batch, pos]``, real tokens, and pixel values (if any)."""

    ids: Tensor
    weight: Tensor
    mask: Tensor
    pixels: Tensor | None


@dataclass(frozen=True)
class Vocabulary:
    """Token -> id, ``<image>`` included."""

    ids: dict[str, int]

    @classmethod
    def of_shapes(cls) -> Vocabulary:
        """That of ``shapes-vlm``."""
        known = vocabulary(WORDS)
        return cls({**known, "<image>": len(known)})


def pixel_values(pictures: list[Picture]) -> Tensor:
    """``[batch, 3, 24, 24]`` as the stored image processor makes them."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - PIXEL_MEAN) / PIXEL_SPREAD


def training_rows(recipe: ShapesRecipe, draw: np.random.Generator, step: int) -> tuple[Rows, Rows]:
    """One step's rows with pictures, and its rows without."""
    words = Vocabulary.of_shapes()
    if step < recipe.first_lesson:
        easy = {"usual": 1 / len(COLOURS), "contrast": CLEAR}
        pictures = [random_picture(draw, count=1 + int(draw.integers(2)), **easy) for _ in range(recipe.pictures)]
    else:
        pictures = [random_picture(draw) for _ in range(recipe.pictures)]
    seen = [_row(_items(picture, draw, TEXT_SHARE), recipe, words.ids, image=True) for picture in pictures]
    blind = []
    for _ in range(recipe.texts):
        if draw.random() < recipe.unseen_share:
            items = _items(random_picture(draw), draw, 0.0)
        else:
            items = [text_item(TEXT[i], draw) for i in draw.permutation(len(TEXT))]
            items = [(item.prompt, f"{item.answer} .", 1) for item in items]
        blind.append(_row(items, recipe, words.ids, image=False))
    return _padded(seen, words.ids[PAD], pixel_values(pictures)), _padded(blind, words.ids[PAD], None)


def _items(picture: Picture, draw: np.random.Generator, text_share: float) -> list[tuple[str, str, int]]:
    """(prompt, answer, number of answer words that nothing before foretells wholly) of each item."""
    made = []
    for _ in range(ITEMS):
        chance = draw.random()
        captioned = any(not answered for _, _, answered in made)
        if chance < text_share:
            item = text_item(TEXT[int(draw.integers(len(TEXT)))], draw)
        elif chance < text_share + CAPTION_SHARE and not captioned:
            made.append(("describe :", caption(picture), 0))
            continue
        else:
            item = question(picture, VISION[int(draw.choice(len(VISION), p=_SHARES))], draw)
        made.append((item.prompt, f"{item.answer} .", 1))
    return made


def _row(
    items: list[tuple[str, str, int]], recipe: ShapesRecipe, ids: dict[str, int], *, image: bool
) -> tuple[list[int], list[float]]:
    row = [ids[BOS]] + ([ids["<image>"]] * N_PATCHES if image else [])
    weights = [0.0] * len(row)
    for prompt, answer, answered in items:
        asked, said = [ids[word] for word in prompt.split()], [ids[word] for word in answer.split()]
        row += asked + said
        weights += [recipe.other_weight] * len(asked)
        weights += [1.0, recipe.other_weight] if answered else [recipe.caption_weight] * len(said)
    return row, weights


def _padded(rows: list[tuple[list[int], list[float]]], pad: int, pixels: Tensor | None) -> Rows:
    width = max(len(row) for row, _ in rows)
    ids = torch.full((len(rows), width), pad)
    weight = torch.zeros(len(rows), width)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, (row, weights) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        weight[index, : len(row)] = torch.tensor(weights)
        mask[index, : len(row)] = 1
    return Rows(ids, weight, mask, pixels)
