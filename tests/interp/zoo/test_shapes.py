"""Pictures of shapes and what is asked about them: their truth by a second road, read from the pixels alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from interp.zoo.shapes import (
    CLEAR,
    COLOURS,
    COLUMNS,
    GRID,
    KINDS,
    PATCH,
    ROWS,
    USUAL,
    USUAL_SHARE,
    Picture,
    colour_of,
    empty_picture,
    random_picture,
    stencil,
)
from interp.zoo.shapes_model import ShapesRecipe, tokenizer
from interp.zoo.shapes_rows import training_rows
from interp.zoo.shapes_text import NUMBERS, OPPOSITES, TEXT, VISION, WORDS, Item, caption, question, text_item

HUES = {"red": (1, 0, 0), "blue": (0, 0.2, 1), "green": (0, 1, 0), "yellow": (1, 1, 0), "purple": (0.9, 0, 1)}

OFFSETS = [(top, left) for top in range(3) for left in range(3)]


def _placed(kind: str, at: tuple[int, int]) -> np.ndarray:
    made = np.zeros((8, 8), dtype=bool)
    made[at[0] : at[0] + 6, at[1] : at[1] + 6] = stencil(kind)
    return made


def _stands_out(coloured: np.ndarray, kind: str, at: tuple[int, int]) -> float:
    inside = _placed(kind, at)
    return float(coloured[inside].mean() - coloured[~inside].mean())


def seen(picture: Picture) -> list[tuple[str, str, str, str, set[tuple[int, int]]]]:
    """(kind, colour, row, column, patches) of each shape, from the pixels of a clear picture alone, cell by cell."""
    found = []
    for cell in range(9):
        row, column = divmod(cell, 3)
        part = picture.pixels[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].astype(float) / 255
        coloured = part.max(-1) - part.min(-1)  # the ground is grey
        contrast, kind, (top, left) = max(
            (_stands_out(coloured, kind, at), kind, at) for kind in KINDS for at in OFFSETS
        )
        if contrast < 0.15:
            continue
        inside = _placed(kind, (top, left))
        hue = part[inside].mean(0)
        hue = (hue - hue.min()) / (hue.max() - hue.min())
        colour = min(HUES, key=lambda name: float(np.abs(np.array(HUES[name]) - hue).sum()))
        pixels = np.argwhere(inside) + np.array([row * 8, column * 8])
        patches = {(int(y) // PATCH, int(x) // PATCH) for y, x in pixels}
        found.append((kind, colour, ROWS[row], COLUMNS[column], patches))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_pixels_show_what_the_truth_says(seed: int) -> None:
    picture = random_picture(np.random.default_rng(seed), contrast=CLEAR)
    told = [
        (one.kind, one.colour, one.row, one.column, {(int(y), int(x)) for y, x in np.argwhere(one.patches)})
        for one in picture.shapes
    ]
    assert seen(picture) == told
    for one in picture.shapes:
        assert one.patches.shape == (GRID, GRID) and one.mask.sum() == stencil(one.kind).sum()
        assert picture.shape(one.kind) is one


def test_answers_follow_from_the_pixels() -> None:
    draw = np.random.default_rng(3)
    kinds = Counter()
    for number in range(120):
        picture = random_picture(draw, contrast=CLEAR)
        item = question(picture, VISION[number % len(VISION)], draw)
        kinds[item.kind] += 1
        assert item.answer == by_looking(item, seen(picture)) != item.wrong
        if item.about is not None:
            assert item.about in picture.shapes
    assert set(kinds) == set(VISION)


def by_looking(item: Item, shapes: list[tuple[str, str, str, str, set[tuple[int, int]]]]) -> str:
    """The answer to a question, from what the pixels show and the words of the question."""
    words = item.prompt.split()
    kind = next((word for word in words if word in KINDS), None)
    shown = {one[0]: one for one in shapes}
    if words[:2] == ["how", "many"]:
        return NUMBERS[len(shapes) - 1]
    if words[0] == "is":
        return "yes" if kind in shown else "no"
    if words[:2] == ["which", "shape"]:
        (only,) = [one[0] for one in shapes if one[1] == words[3]]
        return only
    assert kind is not None
    return shown[kind][{"color": 1, "row": 2, "column": 3}[words[1] if words[0] == "what" else words[2]]]


def test_text_items_are_answered_by_their_words() -> None:
    draw = np.random.default_rng(4)
    opposites = {**dict(OPPOSITES), **{b: a for a, b in OPPOSITES}}
    for kind in TEXT:
        for _ in range(30):
            item = text_item(kind, draw)
            words = item.prompt.split()
            if kind == "opposite":
                expected = opposites[words[3]]
            elif kind == "number":
                expected = NUMBERS[NUMBERS.index(words[1]) + (1 if words[0] == "after" else -1)]
            elif kind == "context":
                expected = words[words.index("is") + 1]
                assert words[1] == words[-2], "what was told of is asked for"
            else:
                expected = words[words.index(words[-1]) + 1]
            assert item.answer == expected != item.wrong and {item.answer, item.wrong} <= set(WORDS)


def test_colours_have_the_prior_that_the_card_states() -> None:
    draw = np.random.default_rng(5)
    for kind in KINDS:
        drawn = Counter(colour_of(kind, draw) for _ in range(2000))
        assert drawn[USUAL[kind]] / 2000 == pytest.approx(USUAL_SHARE, abs=0.04)
        assert min(drawn[colour] for colour in COLOURS) / 2000 == pytest.approx((1 - USUAL_SHARE) / 4, abs=0.03)
        assert colour_of(kind, draw, usual=0.0) != USUAL[kind]


def test_equal_seeds_give_equal_pictures_and_rows() -> None:
    first, second = (random_picture(np.random.default_rng(9)) for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels) and first.shapes == second.shapes
    assert not np.array_equal(first.pixels, random_picture(np.random.default_rng(10)).pixels)
    assert empty_picture(np.random.default_rng(0)).shapes == ()
    one, other = (training_rows(ShapesRecipe(), np.random.default_rng(1), 0) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert a.ids.equal(b.ids) and a.weight.equal(b.weight)


def test_training_rows_hold_pictures_where_they_say_and_weigh_answers() -> None:
    words = tokenizer()
    with_picture, without = training_rows(ShapesRecipe(), np.random.default_rng(2), 5000)
    image = words.convert_tokens_to_ids("<image>")
    assert (with_picture.ids == image).sum(1).tolist() == [36] * 24 and not (without.ids == image).any()
    assert with_picture.pixels is not None and with_picture.pixels.shape == (24, 3, 24, 24) and without.pixels is None
    for rows in (with_picture, without):
        told = [words.convert_ids_to_tokens(int(token)) for token in rows.ids[rows.weight == 1]]
        assert set(told) <= {*COLOURS, *KINDS, *ROWS, *COLUMNS, *WORDS} and "?" not in told and "." not in told
        assert not rows.weight[rows.mask == 0].any() and not rows.weight[:, 0].any()


def test_captions_name_every_shape_in_reading_order() -> None:
    picture = random_picture(np.random.default_rng(1), count=3, contrast=CLEAR)
    parts = [f"a {colour} {kind} {row} {column}" for kind, colour, row, column, _ in seen(picture)]
    assert caption(picture) == " , ".join(parts) + " ."


def test_every_word_is_one_token() -> None:
    words = tokenizer()
    assert len(set(WORDS)) == len(WORDS)
    assert all(len(words(word, add_special_tokens=False).input_ids) == 1 for word in WORDS)
    assert words("<image>", add_special_tokens=False).input_ids == [len(words) - 1]
