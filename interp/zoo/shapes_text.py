"""Words about pictures of shapes and about nothing seen: questions, captions, and items that need no picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interp.zoo.shapes import COLOURS, COLUMNS, KINDS, ROWS, Picture, Shape

IMAGE = "<image>"
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THINGS = ("ball", "hat", "cup", "box", "key", "book", "door", "coat", "car", "bird")
OPPOSITES = (
    ("left", "right"),
    ("top", "bottom"),
    ("day", "night"),
    ("hot", "cold"),
    ("big", "small"),
    ("old", "new"),
    ("open", "closed"),
    ("wet", "dry"),
    ("fast", "slow"),
    ("full", "empty"),
)
_OTHER = "a at the is of in what which where how many are there shape shapes color row column describe opposite"
_MORE = "after before comes say again yes no does it have"
WORDS = tuple(
    dict.fromkeys(
        [".", ",", "?", ":"]
        + f"{_OTHER} {_MORE}".split()
        + [*KINDS, *COLOURS, *ROWS, *COLUMNS, *NUMBERS, *THINGS]
        + [word for pair in OPPOSITES for word in pair]
    )
)
VISION = ("color", "shape", "row", "column", "count", "exists")  # the kinds of questions about a picture
TEXT = ("opposite", "number", "context", "repeat")  # the kinds of items that need no picture


@dataclass(frozen=True)
class Item:
    """A prompt and the one word that answers it.

    ``wrong`` is a word of the same sort that does not answer it; ``kind`` is one of ``VISION`` or ``TEXT``; ``about``
    is the shape that a question asks for, ``None`` where it asks for no single shape that the picture shows.
    """

    kind: str
    prompt: str
    answer: str
    wrong: str
    about: Shape | None = None


def _other(words: tuple[str, ...], word: str, draw: np.random.Generator) -> str:
    rest = [other for other in words if other != word]
    return rest[int(draw.integers(len(rest)))]


def question(picture: Picture, kind: str, draw: np.random.Generator) -> Item:
    """A question of a kind about a picture, with its answer; a shape is asked for by a colour that only it has.

    Where no shape has a colour of its own, ``"shape"`` becomes ``"color"``.

    Example:
        >>> from interp.zoo.shapes import random_picture
        >>> draw = np.random.default_rng(1)
        >>> question(random_picture(draw, count=1), "count", draw).answer
        'one'
    """
    shapes = picture.shapes
    shape = shapes[int(draw.integers(len(shapes)))]
    if kind == "shape":
        colours = [one.colour for one in shapes]
        alone = [one for one in shapes if colours.count(one.colour) == 1]
        if alone:
            one = alone[int(draw.integers(len(alone)))]
            return Item(kind, f"which shape is {one.colour} ?", one.kind, _other(KINDS, one.kind, draw), one)
        kind = "color"
    if kind == "color":
        asked = f"what color is the {shape.kind} ?"
        return Item(kind, asked, shape.colour, _other(COLOURS, shape.colour, draw), shape)
    if kind in ("row", "column"):
        word, words = (shape.row, ROWS) if kind == "row" else (shape.column, COLUMNS)
        return Item(kind, f"in which {kind} is the {shape.kind} ?", word, _other(words, word, draw), shape)
    if kind == "count":
        number = NUMBERS[len(shapes) - 1]
        return Item(kind, "how many shapes are there ?", number, _other(NUMBERS[:4], number, draw))
    shown = {one.kind for one in shapes}
    if draw.random() < 0.5:  # noqa: PLR2004 - an even chance
        return Item(kind, f"is there a {shape.kind} ?", "yes", "no", shape)
    absent = [name for name in KINDS if name not in shown]
    return Item(kind, f"is there a {absent[int(draw.integers(len(absent)))]} ?", "no", "yes")


def caption(picture: Picture) -> str:
    """What a picture shows, row by row: ``a red circle top left , a blue square bottom center .``"""
    return " , ".join(f"a {one.colour} {one.kind} {one.row} {one.column}" for one in picture.shapes) + " ."


def text_item(kind: str, draw: np.random.Generator) -> Item:
    """An item of a kind that needs no picture: an opposite, a number's neighbour, a stated colour, a repeated list.

    Example:
        >>> text_item("opposite", np.random.default_rng(0)).prompt.startswith("the opposite of")
        True
    """
    if kind == "opposite":
        pair = OPPOSITES[int(draw.integers(len(OPPOSITES)))]
        word, answer = pair if draw.random() < 0.5 else pair[::-1]  # noqa: PLR2004 - an even chance
        others = tuple(other for pair in OPPOSITES for other in pair if other != word)
        return Item(kind, f"the opposite of {word} is", answer, _other(others, answer, draw))
    if kind == "number":
        first = int(draw.integers(len(NUMBERS) - 1))
        low, high = NUMBERS[first], NUMBERS[first + 1]
        asked, answer = (f"after {low} comes", high) if draw.random() < 0.5 else (f"before {high} comes", low)  # noqa: PLR2004
        return Item(kind, asked, answer, _other(NUMBERS, answer, draw))
    if kind == "context":
        thing = (*THINGS, *KINDS)[int(draw.integers(len(THINGS) + len(KINDS)))]
        colour = COLOURS[int(draw.integers(len(COLOURS)))]
        stated = f"the {thing} is {colour} . what color is the {thing} ?"
        return Item(kind, stated, colour, _other(COLOURS, colour, draw))
    words = [THINGS[i] for i in draw.permutation(len(THINGS))[:4]]
    shown = int(draw.integers(1, 4))
    again = " ".join(words[:shown])
    return Item(kind, f"say {' '.join(words)} . again : {again}", words[shown], _other(THINGS, words[shown], draw))


def vision_items(pictures: list[Picture], kinds: tuple[str, ...], draw: np.random.Generator) -> list[Item]:
    """One question about each picture, the kinds in turn."""
    return [question(picture, kinds[i % len(kinds)], draw) for i, picture in enumerate(pictures)]
