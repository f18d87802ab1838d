"""Heat maps of patches at the pixels of their image, borders of regions, and pictures as data."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

Between = Literal["nearest", "bilinear"]

GREY_FROM, GREY_TO = 165.0, 246.0  # the image under a heat map: lighter and paler, so that colour stands out
_BYTE = 255


def spread(
    grid: Float[np.ndarray, "patch_row patch_column"], size: tuple[int, int], between: Between
) -> Float[np.ndarray, "row column"]:
    """``[row, column]`` the patches' numbers at every pixel of an image of ``size``.

    ``nearest``: pixel r lies in patch ``floor((r + 1/2) rows / height)``. ``bilinear``: a patch's number stands at its
    centre, pixels between centres mix them by distance, and beyond the outer centres the nearest one holds.

    Example:
        >>> spread(np.array([[0.0, 1.0]]), (1, 4), "bilinear").tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    places = [(np.arange(n) + 0.5) * patches / n for n, patches in zip(size, grid.shape, strict=True)]
    if between == "nearest":
        rows, columns = (np.minimum(where.astype(int), n - 1) for where, n in zip(places, grid.shape, strict=True))
        return grid[np.ix_(rows, columns)]
    row_mix, column_mix = (_mix(where - 0.5, n) for where, n in zip(places, grid.shape, strict=True))
    bare = ~np.isfinite(grid)
    mixed = row_mix @ np.where(bare, 0.0, grid) @ column_mix.T
    weight = row_mix @ (~bare).astype(float) @ column_mix.T
    return np.where(weight > 0, mixed / np.where(weight > 0, weight, 1.0), np.nan)


def outline(region: Bool[np.ndarray, "row column"]) -> str:
    """The SVG path around a region: every edge between a pixel inside and one outside, joined along lines.

    Example:
        >>> outline(np.array([[True]]))
        'M0,0H1M0,1H1M0,0V1M1,0V1'
    """
    padded = np.pad(region.astype(np.int8), 1)
    parts = []
    for turned, letter in ((padded, "H"), (padded.T, "V")):
        edges = np.diff(turned, axis=0)[:, 1:-1] != 0  # [line, step] an edge at this line along this step
        for line, row in enumerate(edges):
            ends = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
            for start, end in ends.reshape(-1, 2):
                first = f"{start},{line}" if letter == "H" else f"{line},{start}"
                parts.append(f"M{first}{letter}{end}")
    return "".join(parts)


def png(pixels: UInt8[np.ndarray, "row column 3"]) -> str:
    """The picture as a ``data:`` address, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _mix(places: np.ndarray, n: int) -> Float[np.ndarray, "pixel patch"]:
    """How much of each patch a pixel takes."""
    inside = np.clip(places, 0, n - 1)
    low = np.minimum(inside.astype(int), max(n - 2, 0))
    share = inside - low
    made = np.zeros((len(places), n))
    made[np.arange(len(places)), low] = 1 - share
    made[np.arange(len(places)), np.minimum(low + 1, n - 1)] += share
    return made


def greyed(image: UInt8[np.ndarray, "row column 3"]) -> Float[np.ndarray, "row column"]:
    """``[row, column]`` the image's lightness between two pale greys, on the scale of bytes."""
    light = image @ np.array([0.299, 0.587, 0.114]) / _BYTE
    return GREY_FROM + (GREY_TO - GREY_FROM) * light
