"""``patch_columns``: which sources of a trace are the patches of the image."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.image_tokens import image_columns
from interp.scores.grids.grid import Given, patch_grid


def patch_columns(
    model: Model, batch: Batch, stack: str | None = None, *, grid: Given | None = None
) -> Int[Tensor, "batch patch"]:
    """``[batch, patch]`` the source column of each patch, patches counted row by row.

    Of a vision stack the columns of the patches, without CLS and registers; of a text stack that reads images the
    columns of its image tokens, where there is one for each patch.

    Args:
        model: the handle.
        batch: prompts with images.
        stack: whose sources; the default stack for None.
        grid: ``(rows, columns, skip)`` where the grid of patches is not known.

    Raises:
        BadInput: no images, or another number of image tokens than of patches.
        Unsupported: a grid that is not known.

    Example:
        >>> import interp
        >>> from interp.zoo.digits import digit_images, pixel_values
        >>> model = interp.load("digits-vit")
        >>> batch = interp.encode(model, inputs={"pixel_values": pixel_values(digit_images(2).images)})
        >>> patch_columns(model, batch).shape
        torch.Size([2, 64])
    """
    name = model.stack(stack).name
    if name.startswith("vision"):
        found = patch_grid(model, batch, name, grid=grid, name="patch_columns")
        return found.order.expand(len(batch), -1)
    member = image_columns(model, batch)
    found = patch_grid(model, batch, "vision", grid=grid, name="patch_columns")
    counts = sorted(set(member.sum(-1).tolist()))
    if counts != [found.size]:
        raise BadInput(
            f"patch_columns: the prompts have {counts} image tokens and the image {found.size} patches, so that tokens "
            "are no single patches; compare on stack='vision'."
        )
    return member.nonzero()[:, 1].view(len(batch), -1).to(torch.long)
