"""Patches of an image covered in its pixels: by the image's mean, by nothing, or by a blurred image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.names import lookup
from interp.scores.grids.grid import PatchGrid

Fill = str | float
FILLS: Mapping[str, str] = {
    "mean": "each image's own mean, channel by channel",
    "zero": "0 in what the model is given: the mean of its training images, where pixels are normalised by it",
    "blur": "the image blurred by a Gaussian whose standard deviation is a patch's side",
}
_IMAGES = 4  # axes of pixel values: batch, channel, row, column
_REACH = 3  # standard deviations to which the Gaussian is cut


@dataclass(frozen=True, eq=False)
class PatchPixels:
    """How patches are covered.

    Attributes:
        grid: the patches.
        height, width: pixels of one patch.
        fill: what is put in: a name of ``FILLS``, or a number.
        keyword: the input that holds the images.
    """

    grid: PatchGrid
    height: int
    width: int
    fill: Fill
    keyword: str = "pixel_values"

    @property
    def size(self) -> int:
        """Patches in all."""
        return self.grid.size

    def covered(
        self, pixels: Float[Tensor, "batch channel row column"], cells: Bool[Tensor, "batch cell"]
    ) -> Float[Tensor, "batch channel row column"]:
        """The images with the patches at ``cells`` (counted row by row) covered."""
        inside = torch.zeros(len(pixels), 1, *pixels.shape[-2:], dtype=torch.bool, device=pixels.device)
        mask = cells.to(pixels.device).view(-1, 1, self.grid.rows, self.grid.columns)
        mask = mask.repeat_interleave(self.height, -2).repeat_interleave(self.width, -1)
        inside[..., : mask.shape[-2], : mask.shape[-1]] = mask
        return torch.where(inside, self._filling(pixels), pixels)

    def _filling(self, pixels: Tensor) -> Tensor:
        if not isinstance(self.fill, str):
            return torch.full_like(pixels, self.fill)
        if self.fill == "zero":
            return torch.zeros_like(pixels)
        if self.fill == "mean":
            return pixels.float().mean((-2, -1), keepdim=True).to(pixels.dtype).expand_as(pixels)
        return blurred(pixels, float(max(self.height, self.width)))


def blurred(
    pixels: Float[Tensor, "batch channel row column"], deviation: float
) -> Float[Tensor, "batch channel row column"]:
    """The images under a Gaussian of a standard deviation in pixels; outside an image its edge goes on.

    Example:
        >>> bool(torch.allclose(blurred(torch.full((1, 1, 5, 5), 2.0), 1.5), torch.tensor(2.0)))
        True
    """
    made = pixels.float()
    for axis in (-2, -1):
        size = made.shape[axis]
        place = torch.arange(size, device=made.device)
        reach = int(_REACH * deviation) + 1
        step = torch.arange(-reach, reach + 1, device=made.device)
        weight = torch.exp(-0.5 * (step / deviation) ** 2)
        weight = weight / weight.sum()
        kernel = torch.zeros(size, size, device=made.device)
        kernel.index_put_(
            (place[:, None].expand(-1, len(step)), (place[:, None] + step).clamp(0, size - 1)),
            weight.expand(size, -1),
            accumulate=True,
        )
        made = torch.einsum("...j, ij -> ...i", made.movedim(axis, -1), kernel).movedim(-1, axis)
    return made.to(pixels.dtype)


def check_fill(name: str, fill: Fill) -> None:
    """Refuse what a patch cannot be covered with.

    Raises:
        UnknownName: another name.
        BadInput: neither a name nor a number.
    """
    if isinstance(fill, str):
        lookup(fill, FILLS, "filling of patches (fill=)")
    elif isinstance(fill, bool) or not isinstance(fill, int | float):
        raise BadInput(f"{name}: fill={fill!r}; expected {', '.join(map(repr, FILLS))} or a number.")


def patch_pixels(model: Model, batch: Batch, grid: PatchGrid, fill: Fill, *, name: str) -> PatchPixels:
    """How the patches of ``grid`` are covered in the images of ``batch``.

    Raises:
        BadInput: prompts without one image each.
        Unsupported: pixels that do not come as images.
    """
    pixels = batch.inputs.get("pixel_values")
    if not isinstance(pixels, Tensor):
        raise BadInput(f"{name}: the prompts have no images (pixel_values).")
    if pixels.ndim != _IMAGES or len(pixels) != len(batch):
        raise Unsupported(
            f"{name}: pixel_values came as {list(pixels.shape)}; patches can be covered in one image per prompt, "
            "[batch, channel, row, column]. Use 'occlusion', which hides the patches' tokens."
        )
    sides = [size // count for size, count in zip(pixels.shape[-2:], (grid.rows, grid.columns), strict=True)]
    stated = _stated_side(model)
    if stated is not None and all(
        size // stated == count for size, count in zip(pixels.shape[-2:], (grid.rows, grid.columns), strict=True)
    ):
        sides = [stated, stated]
    elif pixels.shape[-2] % grid.rows or pixels.shape[-1] % grid.columns:
        raise BadInput(
            f"{name}: images of {pixels.shape[-2]} x {pixels.shape[-1]} pixels do not fall into {grid.rows} x "
            f"{grid.columns} patches of one size; give images whose sides are multiples."
        )
    return PatchPixels(grid, sides[0], sides[1], fill)


def _stated_side(model: Model) -> int | None:
    """Pixels of a patch's side as the config says, where it says one."""
    for config in (getattr(model.hf.config, "vision_config", None), model.hf.config):
        side = getattr(config, "patch_size", None)
        if isinstance(side, int) and not isinstance(side, bool):
            return side
    return None
