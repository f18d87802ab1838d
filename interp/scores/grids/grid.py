"""``patch_grid``: which position of a vision stack is which patch of the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.stacks import Stack

Given = Sequence[Any]  # (rows, columns, skip): skip is a number of first positions, or the positions themselves

# what the parameters of an embedding hold, where it puts them before the patches, in this order
_SPECIAL: Mapping[str, str] = {
    "cls_token": "class",
    "class_token": "class",
    "class_embedding": "class",
    "distillation_token": "distillation",
    "dist_token": "distillation",
    "register_tokens": "register",
}
_NO_POSITION = ("mask_token", "position", "pos_embed", "token_type")  # parameters of an embedding that add no position
_PADDING_MASKS = ("pixel_attention_mask", "pixel_mask")


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of an image as positions of a stack.

    Attributes:
        rows: patches from top to bottom.
        columns: patches from left to right.
        order: ``[cell]`` the position of each patch, row by row.
        skipped: positions that are no patch: CLS, distillation token, registers.
        special: what each of ``skipped`` is.
    """

    rows: int
    columns: int
    order: Int[Tensor, " cell"]
    skipped: tuple[int, ...] = ()
    special: tuple[str, ...] = ()

    @property
    def positions(self) -> int:
        """Positions in all."""
        return len(self.order) + len(self.skipped)

    @property
    def size(self) -> int:
        """Patches in all."""
        return self.rows * self.columns

    @cached_property
    def cells(self) -> Int[Tensor, " pos"]:
        """``[pos]`` the patch at each position, counted row by row, -1 at skipped ones."""
        made = torch.full((self.positions,), -1)
        made[self.order] = torch.arange(self.size)
        return made

    @cached_property
    def places(self) -> Int[Tensor, "cell 2"]:
        """``[cell, 2]`` row and column of each patch."""
        cell = torch.arange(self.size)
        return torch.stack([cell // self.columns, cell % self.columns], dim=-1)

    @cached_property
    def coordinates(self) -> Float[Tensor, "cell 2"]:
        """``[cell, 2]`` y and x of each patch with the image from 0 to 1 both ways (0 along a side of one patch)."""
        sides = torch.tensor([max(self.rows - 1, 1), max(self.columns - 1, 1)])
        return self.places / sides

    def __repr__(self) -> str:
        named = ", ".join(dict.fromkeys(self.special)) or "nothing"
        return f"PatchGrid({self.rows} x {self.columns} patches; before or between them {len(self.skipped)}: {named})"


def patch_grid(
    model: Model, batch: Batch, stack: str | None = None, *, grid: Given | None = None, name: str = "patch_grid"
) -> PatchGrid:
    """The grid of patches that a vision stack sees of every image of ``batch``.

    Rows and columns come from the pixels that the model is given and its own patch embedding, the special positions
    from the parameters beside that embedding: nothing is assumed about a family or an image size.

    Args:
        model: the handle.
        batch: prompts with images (``pixel_values``).
        stack: the vision stack; the default stack if it is one, else ``"vision"``.
        grid: ``(rows, columns, skip)`` where it is not known, or to say otherwise: ``skip`` is the number of first
            positions that are no patch, or a list of those positions.
        name: who asks, for messages.

    Raises:
        BadInput: no images, images of different sizes, or a grid that is none.
        Unsupported: a stack that sees no images, or an embedding whose positions are not understood.

    Example:
        >>> import interp
        >>> from interp.scores.grids.grid import given_grid
        >>> given_grid((2, 3, 1)).places[4].tolist()
        [1, 1]
    """
    default = model.default_stack if model.default_stack.startswith("vision") else "vision"
    if grid is not None:
        return given_grid(grid, name)
    if stack is None and default not in model.stacks:
        raise Unsupported(
            f"{name}: {model.name!r} has no stack that sees images; its stacks are {', '.join(model.stacks)}."
        )
    found = model.stack(default if stack is None else stack)
    if not found.name.startswith("vision"):
        raise Unsupported(
            f"{name}: it is about patches of images, and stack {found.name!r} sees none; score a vision stack"
            f"{f' ({default!r})' if default in model.stacks else ''}."
        )
    pixels = batch.inputs.get("pixel_values")
    if not isinstance(pixels, Tensor):
        raise BadInput(
            f"{name}: the prompts have no images (the inputs are {', '.join(sorted(batch.inputs))}); encode with "
            "images=, or inputs={'pixel_values': ...}."
        )
    for mask in _PADDING_MASKS:
        real = batch.inputs.get(mask)
        if isinstance(real, Tensor) and not bool(real.bool().all()):
            raise BadInput(
                f"{name}: the images have different sizes ({mask} is not all 1), so that positions mean other places "
                "in each; score images of one size at a time."
            )
    shapes = batch.inputs.get("spatial_shapes")
    if isinstance(shapes, Tensor):
        return _listed(shapes, pixels.shape[1], name)
    packed = batch.inputs.get("image_grid_thw")
    if isinstance(packed, Tensor):
        return _merged(found, packed, name)
    if found.family.packed:
        raise _unknown(name, found, "its images are packed one after the other")
    return _convolved(model, found, pixels, name)


def given_grid(grid: Given, name: str = "grid") -> PatchGrid:
    """The grid that a user says: ``(rows, columns, skip)``.

    Raises:
        BadInput: it is something else.
    """
    wrong = BadInput(
        f"{name}: grid={grid!r}; expected (rows, columns, skip), where skip is the number of first positions that are "
        "no patch, or a list of those positions."
    )
    if isinstance(grid, str) or not isinstance(grid, Sequence) or len(grid) != 3:  # noqa: PLR2004
        raise wrong
    rows, columns, skip = grid
    skipped = range(skip) if isinstance(skip, int) and not isinstance(skip, bool) and skip >= 0 else skip
    if not isinstance(skipped, Iterable) or any(not isinstance(n, int) or n < 1 for n in (rows, columns)):
        raise wrong
    left_out = sorted(set(skipped))
    positions = rows * columns + len(left_out)
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < positions for n in left_out):
        raise wrong
    order = torch.tensor([n for n in range(positions) if n not in set(left_out)])
    return PatchGrid(rows, columns, order, tuple(left_out), ("skipped",) * len(left_out))


def _listed(shapes: Tensor, positions: int, name: str) -> PatchGrid:
    """The grid where the processor lists rows and columns of each image."""
    kinds = sorted({(int(r), int(c)) for r, c in shapes.tolist()})
    if len(kinds) > 1 or kinds[0][0] * kinds[0][1] != positions:
        raise BadInput(
            f"{name}: the images have grids {kinds} in {positions} positions; score images of one size at a time."
        )
    return given_grid((*kinds[0], 0), name)


def _merged(stack: Stack, grids: Tensor, name: str) -> PatchGrid:
    """The grid of one packed image whose patches come in the square groups that are merged later."""
    side = getattr(stack.config, "spatial_merge_size", None)
    if len(grids) != 1 or int(grids[0, 0]) != 1:
        raise BadInput(
            f"{name}: {len(grids)} images (or frames) are packed into one sequence on stack {stack.name!r}; score one "
            "image at a time."
        )
    rows, columns = int(grids[0, 1]), int(grids[0, 2])
    if not isinstance(side, int) or hasattr(stack.config, "window_size") or rows % side or columns % side:
        raise _unknown(name, stack, "the order of its patches is not known")
    cell = torch.arange(rows * columns).view(rows, columns)
    groups = cell.view(rows // side, side, columns // side, side).transpose(1, 2).flatten()  # [pos] -> cell
    return PatchGrid(rows, columns, groups.argsort())


def _convolved(model: Model, stack: Stack, pixels: Tensor, name: str) -> PatchGrid:
    """The grid of a tower whose patches are cut by one convolution that steps by its own size."""
    embedding = _embedding(model, stack)
    if embedding is None:
        raise _unknown(name, stack, "no single convolution that cuts patches was found before its blocks")
    cut, around = embedding
    if pixels.ndim < 4:  # noqa: PLR2004 - [batch, channel, height, width]
        raise _unknown(name, stack, f"pixel_values came as {list(pixels.shape)}, not as images")
    special: list[str] = []
    for module in around:
        for key, parameter in module.named_parameters(recurse=False):
            if key in _SPECIAL:
                special += [_SPECIAL[key]] * (parameter.shape[-2] if parameter.ndim > 1 else 1)
            elif "token" in key and not any(part in key for part in _NO_POSITION):
                raise _unknown(name, stack, f"what its parameter {key!r} adds to the positions is not known")
    order = sorted(special, key=list(dict.fromkeys(_SPECIAL.values())).index)
    rows, columns = pixels.shape[-2] // cut.stride[0], pixels.shape[-1] // cut.stride[1]
    first = len(order)
    return PatchGrid(rows, columns, torch.arange(first, first + rows * columns), tuple(range(first)), tuple(order))


def _embedding(model: Model, stack: Stack) -> tuple[nn.Conv2d, list[nn.Module]] | None:
    """The convolution that cuts patches, and the modules around it up to the part that also holds the blocks."""
    parts = stack.path.split(".")
    for end in range(len(parts) - 1, -1, -1):
        root = model.hf.get_submodule(".".join(parts[:end]))
        found = [(path, module) for path, module in root.named_modules() if _cuts(module)]
        if len(found) > 1:
            return None
        if found:
            path, cut = found[0]
            assert isinstance(cut, nn.Conv2d)
            steps = path.split(".")
            return cut, [root.get_submodule(".".join(steps[:n])) for n in range(len(steps))]
    return None


def _cuts(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride
        and module.padding in ((0, 0), "valid")
        and module.groups == 1
    )


def _unknown(name: str, stack: Stack, reason: str) -> Unsupported:
    return Unsupported(
        f"{name}: the grid of stack {stack.name!r} ({stack.model_type}) is not known: {reason}. Say it with "
        "grid=(rows, columns, skip), where skip is the number of first positions that are no patch."
    )
