"""Pictures of coloured shapes that keep their truth: what stands where, in which colour, and on which patches.

A picture is ``[24, 24, 3]`` bytes: a grid of 3 x 3 cells of 8 x 8 pixels, in each at most one shape of 6 x 6 pixels,
moved by up to two pixels. A vision tower with patches of 4 x 4 pixels sees 6 x 6 of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE, PATCH, CELL, SIZE = 24, 4, 8, 6  # pixels
GRID = SIDE // PATCH  # patches along a side

KINDS = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "blue", "green", "yellow", "purple")
USUAL: dict[str, str] = dict(zip(KINDS, COLOURS, strict=True))  # the colour that a kind has most often
USUAL_SHARE = 0.68  # how often it has it; each other colour has a fourth of the rest
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
COUNT_SHARES = (0.25, 0.25, 0.25, 0.25)  # of pictures with one, two, three and four shapes
CLEAR = (0.6, 1.0)  # contrast of a shape: its colour's share against the background's
FAINT = (0.04, 0.3)
FAINT_SHARE = 0.15  # of the shapes in training pictures; the rest are clear
NOISE = 0.04  # standard deviation of every pixel's channels, of 1

_RGB = {
    "red": (0.90, 0.15, 0.15),
    "blue": (0.15, 0.30, 0.95),
    "green": (0.15, 0.80, 0.20),
    "yellow": (0.95, 0.90, 0.15),
    "purple": (0.75, 0.20, 0.85),
}
_DRAWN = {
    "circle": (".####.", "######", "######", "######", "######", ".####."),
    "square": ("######", "######", "######", "######", "######", "######"),
    "triangle": ("..##..", "..##..", ".####.", ".####.", "######", "######"),
    "cross": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
    "ring": (".####.", "##..##", "#....#", "#....#", "##..##", ".####."),
}


@dataclass(frozen=True)
class Shape:
    """One shape of a picture: what it is, its cell (row and column from the top left) and its first pixel."""

    kind: str
    colour: str
    cell: tuple[int, int]
    at: tuple[int, int]
    contrast: float

    @property
    def row(self) -> str:
        """``top``, ``middle`` or ``bottom``."""
        return ROWS[self.cell[0]]

    @property
    def column(self) -> str:
        """``left``, ``center`` or ``right``."""
        return COLUMNS[self.cell[1]]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """``[24, 24]`` True at the shape's pixels."""
        made = np.zeros((SIDE, SIDE), dtype=bool)
        made[self.at[0] : self.at[0] + SIZE, self.at[1] : self.at[1] + SIZE] = stencil(self.kind)
        return made

    @property
    def patches(self) -> NDArray[np.bool_]:
        """``[6, 6]`` True at the patches that hold a pixel of the shape."""
        return np.any(self.mask.reshape(GRID, PATCH, GRID, PATCH), axis=(1, 3))


@dataclass(frozen=True)
class Picture:
    """A picture with its truth: the pixels and the shapes, row by row from the top left; no kind occurs twice."""

    pixels: NDArray[np.uint8]
    shapes: tuple[Shape, ...]

    def shape(self, kind: str) -> Shape:
        """The shape of a kind that the picture shows."""
        return next(shape for shape in self.shapes if shape.kind == kind)


def stencil(kind: str) -> NDArray[np.bool_]:
    """``[6, 6]`` True at the pixels of a kind."""
    return np.array([[letter == "#" for letter in line] for line in _DRAWN[kind]])


def colour_of(kind: str, draw: np.random.Generator, usual: float = USUAL_SHARE) -> str:
    """A colour for a shape: with the chance ``usual`` the one that its kind usually has, else one of the others."""
    if draw.random() < usual:
        return USUAL[kind]
    return str(draw.choice([colour for colour in COLOURS if colour != USUAL[kind]]))


def random_shapes(
    draw: np.random.Generator,
    *,
    usual: float = USUAL_SHARE,
    contrast: tuple[float, float] | None = None,
    count: int | None = None,
) -> tuple[Shape, ...]:
    """One to four shapes of different kinds in different cells, row by row.

    Args:
        draw: the generator; the same state gives the same shapes.
        usual: chance of each shape to have its kind's usual colour; 0 for unusual colours throughout.
        contrast: lowest and highest contrast; by default as in training (clear, and now and then faint).
        count: how many shapes; drawn by default.
    """
    number = count if count is not None else 1 + int(draw.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    kinds = draw.permutation(len(KINDS))[:number]
    cells = np.sort(draw.permutation(9)[:number])
    made = []
    for which, cell in zip(kinds, cells, strict=True):
        kind = KINDS[which]
        place = divmod(int(cell), 3)
        corner = [CELL * number + int(draw.integers(0, CELL - SIZE + 1)) for number in place]
        span = contrast if contrast is not None else FAINT if draw.random() < FAINT_SHARE else CLEAR
        colour = colour_of(kind, draw, usual)
        made.append(Shape(kind, colour, place, (corner[0], corner[1]), float(draw.uniform(*span))))
    return tuple(made)


def drawn(shapes: tuple[Shape, ...], draw: np.random.Generator) -> Picture:
    """The shapes on a dark grey ground, every pixel with a little noise of its own."""
    ground = np.full((SIDE, SIDE, 3), draw.uniform(0.15, 0.3))
    for shape in shapes:
        colour = np.array(_RGB[shape.colour])
        inside = shape.mask
        ground[inside] = (1 - shape.contrast) * ground[inside] + shape.contrast * colour
    noisy = ground + draw.normal(0, NOISE, ground.shape)
    return Picture((noisy.clip(0, 1) * 255).round().astype(np.uint8), shapes)


def random_picture(draw: np.random.Generator, **how: object) -> Picture:
    """A picture of ``random_shapes(draw, **how)``.

    Example:
        >>> picture = random_picture(np.random.default_rng(0), count=2)
        >>> picture.pixels.shape, len(picture.shapes)
        ((24, 24, 3), 2)
    """
    return drawn(random_shapes(draw, **how), draw)  # type: ignore[arg-type]


def empty_picture(draw: np.random.Generator) -> Picture:
    """The ground with its noise and no shape."""
    return drawn((), draw)
