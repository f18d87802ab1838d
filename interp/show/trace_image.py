"""``ImageOverlay``: heat maps of patches over their image, pixel by pixel, one panel per method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from markupsafe import Markup, escape

from interp.errors import BadInput
from interp.files import write_whole
from interp.numerals import numeral
from interp.show.heatmap import colour_limits
from interp.show.theme import OUTLINE, SANS
from interp.show.trace_pixels import GREY_FROM, GREY_TO, Between, greyed, outline, png, spread

MOST_SIDE = 448  # pixels of a longer side that a panel keeps
MOST_CELLS = 20_000  # patches over all panels, each with its number on pointing at it
_PANEL, _SMALL_PANEL, _FEW = 196, 164, 4  # pixels on the page along the longer side, of so many panels and of more
_GAP, _LINE = 18, 20  # pixels between panels of a file, and of a line of words
_STRONGEST = 0.82  # opacity of the strongest colour over the image
_FOR, _AGAINST = (36, 96, 235), (226, 92, 24)
_BYTE = 255
_IMAGE_AXES, _CHANNELS = 3, 3


@dataclass(frozen=True, eq=False, repr=False)
class ImageOverlay:
    """An image with heat maps of its patches; shows itself in a notebook and is a ``Figure`` of a page.

    Made by :func:`image_overlay`.

    Attributes:
        image: ``[row, column, channel]`` bytes.
        maps: method -> ``[patch row, patch column]``; NaN leaves a patch bare.
        limits: method -> ends of its colours.
        region: ``[row, column]`` the true region's pixels, None where it is not known.
        between: how a patch's number spreads over pixels.
        value: what a number is.
    """

    image: UInt8[np.ndarray, "row column 3"]
    maps: Mapping[str, Float[np.ndarray, "patch_row patch_column"]]
    limits: Mapping[str, tuple[float, float]]
    region: Bool[np.ndarray, "row column"] | None = None
    between: Between = "nearest"
    value: str = "value"

    def heat(self, name: str) -> Float[np.ndarray, "row column"]:
        """``[row, column]`` a method's numbers at pixel resolution."""
        return spread(self.maps[name], (self.image.shape[0], self.image.shape[1]), self.between)

    def blended(self, name: str) -> UInt8[np.ndarray, "row column 3"]:
        """The greyed image under the colours of a method: blue for, orange against; strong colours hide the image."""
        bottom, top = self.limits[name]
        reach = max(abs(bottom), abs(top)) or 1.0
        heat = self.heat(name)
        strength = (_STRONGEST * np.clip(np.abs(np.nan_to_num(heat)) / reach, 0, 1))[..., None]
        colour = np.where((np.nan_to_num(heat) < 0)[..., None], np.array(_AGAINST), np.array(_FOR))
        return np.round((1 - strength) * greyed(self.image)[..., None] + strength * colour).astype(np.uint8)

    def markup(self) -> Markup:
        """The HTML: pictures as data inside SVG, no script, everything from outside escaped."""
        panels = [self._panel("image", self.image, None)]
        panels += [self._panel(name, self.blended(name), name) for name in self.maps]
        return Markup(
            '<div class="headscope-overlay" style="display:flex;flex-wrap:wrap;gap:1em 1.1em;font:12px/1.45 {font}">'
            "{panels}</div>"
        ).format(font=SANS.replace('"', "'"), panels=Markup("").join(panels))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the SVG file that now holds all panels side by side, with their names and scales, for a paper."""
        panels = [("image", self.image), *((name, self.blended(name)) for name in self.maps)]
        step, side = self._side + _GAP, self._side
        drawn = [self._printed(place * step, *panel) for place, panel in enumerate(panels)]
        size = f'width="{step * len(panels) - _GAP}" height="{side + 3 * _LINE}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif" font-size="12">'
        )
        sheet = '<rect width="100%" height="100%" fill="#fff"/>'  # its words are black wherever it is opened
        return write_whole(path, head + sheet + str(Markup("").join(drawn)) + "</svg>")

    def _repr_html_(self) -> str:
        return str(self.markup())

    def __repr__(self) -> str:
        rows, columns = self.image.shape[:2]
        return f"ImageOverlay({rows} x {columns} pixels; {', '.join(self.maps)})"

    @property
    def _side(self) -> int:
        return _PANEL if len(self.maps) < _FEW else _SMALL_PANEL

    def _panel(self, title: str, pixels: np.ndarray, name: str | None) -> Markup:
        rows, columns = self.image.shape[:2]
        unit = max(rows, columns)
        width, height = self._side * columns / unit, self._side * rows / unit
        what = title if name is None else f"{title}: {self.value} of each patch over the image"
        return Markup(
            '<div><div style="margin:0 0 .35em"><b>{title}</b></div><svg xmlns="http://www.w3.org/2000/svg" role="img" '
            'aria-label="{what}" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {columns} {rows}" '
            'style="display:block"><image width="{columns}" height="{rows}" preserveAspectRatio="none" '
            'style="image-rendering:{rendering}" href="{source}"/>{outline}{cells}</svg>{key}</div>'
        ).format(
            title=title,
            what=what,
            width=width,
            height=height,
            rows=rows,
            columns=columns,
            rendering="pixelated" if unit < 2 * self._side else "auto",
            source=png(pixels),
            outline=self._outline(unit),
            cells="" if name is None else self._cells(name),
            key="" if name is None else _key(*self.limits[name]),
        )

    def _printed(self, left: int, title: str, pixels: np.ndarray) -> Markup:
        """One panel of the file: its name, the picture with the region, and the ends of its colours."""
        rows, columns = self.image.shape[:2]
        unit = max(rows, columns)
        width, height = self._side * columns / unit, self._side * rows / unit
        return Markup(
            '<text x="{left}" y="12" font-weight="bold">{title}</text><svg x="{left}" y="{top}" width="{width:.1f}" '
            'height="{height:.1f}" viewBox="0 0 {columns} {rows}"><image width="{columns}" height="{rows}" '
            'preserveAspectRatio="none" style="image-rendering:pixelated" href="{source}"/>{outline}</svg>'
            "{key}"
        ).format(
            left=left,
            top=_LINE,
            title=title,
            width=width,
            height=height,
            columns=columns,
            rows=rows,
            source=png(pixels),
            outline=self._outline(unit),
            key="" if title not in self.maps else _printed_key(*self.limits[title], left, _LINE + height + 6, width),
        )

    def _outline(self, unit: int) -> Markup:
        if self.region is None:
            return Markup("")
        stroke = unit / self._side
        path = outline(self.region)
        return Markup(
            '<path d="{path}" fill="none" stroke="#15181d" stroke-width="{wide:.3f}"/>'
            '<path class="region" d="{path}" fill="none" stroke="{colour}" stroke-width="{narrow:.3f}"/>'
        ).format(path=path, wide=4 * stroke, narrow=2.2 * stroke, colour=OUTLINE)

    def _cells(self, name: str) -> Markup:
        """An unseen square over each patch that says its number."""
        grid = self.maps[name]
        rows, columns = self.image.shape[:2]
        high, wide = rows / grid.shape[0], columns / grid.shape[1]
        made = []
        for row, column in np.argwhere(np.isfinite(grid)):
            words = f"{name}, patch ({row}, {column}): {numeral(float(grid[row, column]))}"
            made.append(
                f'<rect x="{column * wide:g}" y="{row * high:g}" width="{wide:g}" height="{high:g}" '
                f'fill="transparent"><title>{escape(words)}</title></rect>'
            )
        return Markup("".join(made))


def image_overlay(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray] | np.ndarray,
    *,
    region: np.ndarray | None = None,
    between: Between | str = "nearest",
    signed: bool | None = None,
    limits: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    value: str = "value",
) -> ImageOverlay:
    """The image, and beside it each method's numbers of the patches as colours over it; the true region is outlined.

    Args:
        image: ``[row, column, channel]`` or ``[row, column]`` of one channel; bytes, or numbers from 0 to 1. Longer
            sides than 448 pixels are scaled down.
        maps: method -> ``[patch row, patch column]``, or one such array. NaN leaves a patch bare.
        region: True inside the true region, at its pixels or at its patches.
        between: ``"nearest"``, every pixel of a patch alike, or ``"bilinear"`` between the patches' centres.
        signed: True colours negative numbers apart; None looks for one in each method.
        limits: ends of the colours of all methods, or of each; by default each method's own.
        value: what a number is, for a reader who cannot see it.

    Raises:
        BadInput: an image or a map that is none, more patches than pixels, a region that fits neither, or more patches
            than a page holds well.

    Example:
        >>> overlay = image_overlay(np.zeros((4, 4)), {"rollout": np.array([[0.0, 1.0], [0.0, 0.0]])})
        >>> overlay.heat("rollout")[0].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    pixels = _bytes(np.asarray(image))
    given = maps if isinstance(maps, Mapping) else {value: maps}
    grids = {str(name): np.asarray(grid, dtype=float) for name, grid in given.items()}
    if between not in ("nearest", "bilinear"):
        raise BadInput(f"image_overlay: between={between!r}; expected 'nearest' or 'bilinear'.")
    _check_grids(grids, pixels)
    true = None if region is None else _region(np.asarray(region), pixels, grids)
    own = limits if isinstance(limits, Mapping) else dict.fromkeys(grids, limits)
    ends = {name: own.get(name) or colour_limits(grid, signed) for name, grid in grids.items()}
    small, true = _reduced(pixels, true)
    return ImageOverlay(small, grids, ends, true, "bilinear" if between == "bilinear" else "nearest", value)


def _bytes(image: np.ndarray) -> UInt8[np.ndarray, "row column 3"]:
    if image.ndim == _IMAGE_AXES - 1:
        image = image[..., None]
    if image.ndim != _IMAGE_AXES or image.shape[2] not in (1, _CHANNELS) or not image.size:
        raise BadInput(
            f"image_overlay: the image came as {list(image.shape)}; expected [row, column, 3], or one channel. "
            "Channels stand last: turn pixel_values [3, row, column] with .transpose(1, 2, 0)."
        )
    if image.dtype != np.uint8:
        numbers = image.astype(float)
        if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > 1:
            raise BadInput(
                f"image_overlay: the image's numbers run from {numbers.min():g} to {numbers.max():g}; expected bytes, "
                "or numbers from 0 to 1 (undo the processor's normalisation)."
            )
        image = np.round(numbers * _BYTE).astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], _CHANNELS)).copy()


def _check_grids(grids: Mapping[str, np.ndarray], pixels: np.ndarray) -> None:
    if not grids:
        raise BadInput("image_overlay: no heat maps were given; expected method -> [patch row, patch column].")
    for name, grid in grids.items():
        if grid.ndim != 2 or not grid.size:  # noqa: PLR2004 - [patch row, patch column]
            raise BadInput(
                f"image_overlay: {name!r} came as {list(grid.shape)}; expected [patch row, patch column]. A row of a "
                "trace is laid out by the order of its patches: values[order].reshape(rows, columns)."
            )
        if any(patches > side for patches, side in zip(grid.shape, pixels.shape, strict=False)):
            raise BadInput(
                f"image_overlay: {name!r} has {list(grid.shape)} patches on {list(pixels.shape[:2])} pixels; a patch "
                "holds a pixel at least."
            )
    cells = sum(grid.size for grid in grids.values())
    if cells > MOST_CELLS:
        raise BadInput(f"image_overlay: {cells} patches over all methods, at most {MOST_CELLS}; show fewer methods.")


def _region(region: np.ndarray, pixels: np.ndarray, grids: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "row column"]:
    size = (pixels.shape[0], pixels.shape[1])
    if region.shape == size:
        return region.astype(bool)
    if any(region.shape == grid.shape for grid in grids.values()):
        return spread(region.astype(float), size, "nearest") > 0
    raise BadInput(
        f"image_overlay: the region came as {list(region.shape)}; expected the image's pixels {list(size)} or the "
        f"patches {sorted({grid.shape for grid in grids.values()})}."
    )


def _reduced(pixels: np.ndarray, region: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Image and region with no side longer than ``MOST_SIDE``."""
    share = MOST_SIDE / max(pixels.shape[:2])
    if share >= 1:
        return pixels, region
    from PIL import Image

    size = (max(1, round(pixels.shape[1] * share)), max(1, round(pixels.shape[0] * share)))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    mask = None if region is None else np.asarray(Image.fromarray(region).resize(size, Image.Resampling.NEAREST))
    return small, mask


def _key(bottom: float, top: float) -> Markup:
    """The colours over a middle grey, with their ends."""
    low, high = _ends(bottom, top)
    return Markup(
        '<div style="display:flex;align-items:center;gap:.5em;margin-top:.4em;font-variant-numeric:tabular-nums">'
        '<span>{low}</span><span style="flex:1;height:.7em;border-radius:2px;background:linear-gradient(to right,'
        '{stops})"></span><span>{high}</span></div>'
    ).format(low=low, stops=",".join(_stops(bottom)), high=high)


def _printed_key(bottom: float, top: float, left: float, above: float, width: float) -> Markup:
    """The same in a file: a bar with its ends below."""
    low, high = _ends(bottom, top)
    colours = _stops(bottom)
    stops = [
        f'<stop offset="{place / (len(colours) - 1):g}" stop-color="{colour}"/>' for place, colour in enumerate(colours)
    ]
    return Markup(
        '<defs><linearGradient id="bar-{left}">{stops}</linearGradient></defs>'
        '<rect x="{left}" y="{above:.1f}" width="{width:.1f}" height="7" fill="url(#bar-{left})"/>'
        '<text x="{left}" y="{below:.1f}" font-size="10">{low}</text>'
        '<text x="{right:.1f}" y="{below:.1f}" font-size="10" text-anchor="end">{high}</text>'
    ).format(
        left=left,
        stops=Markup("".join(stops)),
        above=above,
        width=width,
        below=above + 18,
        low=low,
        right=left + width,
        high=high,
    )


def _stops(bottom: float) -> list[str]:
    """Colours from the low end to the high end."""
    grey = (GREY_FROM + GREY_TO) / 2

    def end(colour: tuple[int, int, int]) -> str:
        mixed = [round((1 - _STRONGEST) * grey + _STRONGEST * channel) for channel in colour]
        return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"

    middle = f"rgb({grey:.0f},{grey:.0f},{grey:.0f})"
    return [end(_AGAINST), middle, end(_FOR)] if bottom < 0 else [middle, end(_FOR)]


def _ends(bottom: float, top: float) -> tuple[str, str]:
    reach = max(abs(bottom), abs(top)) or 1.0
    return numeral(-reach) if bottom < 0 else "0", numeral(reach)
