"""``masked_forward``: the answer of a model that sees some patches or tokens alone, in every layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import At, Site
from interp.edits.activations import custom
from interp.edits.attention import knockout
from interp.edits.base import Context, Edit
from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.gathered import check_gatherable, gathered
from interp.model.handle import Model
from interp.model.run import Metric, run
from interp.model.stacks import Stack
from interp.model.sweep import metric_values
from interp.scores.grids.grid import Given, PatchGrid, patch_grid
from interp.tracing.occlusion.pixels import PatchPixels, patch_pixels
from interp.tracing.protocols.patch_columns import patch_columns

Layers = Literal["all"] | int | Iterable[int]
FLOOR = 1e-10  # added to a soft mask before its logarithm


@dataclass(frozen=True, eq=False, repr=False)
class MaskedForward:
    """What a model says when it sees some patches or tokens alone.

    Attributes:
        logits: as the model gives them.
        batch: the prompts.
        keep: ``[batch, source]`` what it saw: True and False, or a factor in [0, 1].
        how: ``"hard"``, ``"soft"`` or ``"drop"``.
        layers: in which layers; None for all.
    """

    logits: Tensor
    batch: Batch
    keep: Tensor
    how: str
    layers: tuple[int, ...] | None = None

    def metric(self, metric: Metric) -> Float[Tensor, " batch"]:
        """``[batch]`` a metric of its logits."""
        return metric_values(metric, self.logits, self.batch)

    def __repr__(self) -> str:
        seen = self.keep.double().mean()
        where = "all layers" if self.layers is None else f"layers {list(self.layers)}"
        return f"MaskedForward({self.how}, {where}, {len(self.batch)} prompts, {100 * float(seen):.0f} % seen)"


@dataclass(frozen=True, eq=False)
class Masking:
    """A mask that was checked against a model.

    Attributes:
        stack: whose keys are hidden.
        keep: ``[batch, source]``.
        grid: of the patches, None for tokens.
        columns: ``[batch, source]`` the stack's column of each source.
        width: columns of the stack.
        tokens: ``[batch, source]`` the columns of the image tokens in the text stack that reads the patches, None
            without.
        about: how.
    """

    stack: Stack
    keep: Tensor
    grid: PatchGrid | None
    columns: Tensor
    width: int
    tokens: Tensor | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def spread(self, columns: Tensor, width: int) -> Tensor:
        """``[batch, width]`` the mask over a stack's columns, 1 (seen) at those that are no sources."""
        made = torch.ones(len(self.keep), width, dtype=torch.float64, device=self.keep.device)
        return made.scatter(1, columns.to(made.device), self.keep.double())


def masked_forward(
    model: Model,
    batch: Batch,
    keep: Tensor,
    *,
    layers: Layers = "all",
    drop: bool = False,
    soft: bool = False,
    stack: str | None = None,
    grid: Given | None = None,
) -> MaskedForward:
    """What ``model`` says of ``batch`` when no position sees the patches or tokens that are not kept.

    Args:
        model: the handle.
        batch: the prompts.
        keep: ``[batch, patch]`` (patches counted row by row), or ``[batch, pos]`` for tokens of a text stack. True and
            False; numbers in [0, 1] with ``soft``. CLS, registers and padding are no patches: they stay as they are.
        layers: ``"all"``, or the layers in which keys are hidden. Hidden in the upper layers only, what is dropped
            leaks: the patches have mixed below.
        drop: take patches out before the first block, each of the others with the position embedding that it has. For
            image classifiers whose positions are in those embeddings alone.
        soft: add ``log(keep + 1e-10)`` to the scores; else scores of hidden keys are minus infinity.
        stack: whose keys: by default the vision stack of an image classifier, else the default stack. With
            ``"vision"`` of a vision-language model, the image tokens that patches become are hidden from the text
            as well.
        grid: ``(rows, columns, skip)`` where the grid of patches is not known.

    With ``keep`` all True it is the plain model, bit for bit in the same kernels. A model that pools its patches (no
    CLS token) still pools those that are hidden; use ``drop``. :func:`interp.tracing.protocols.pixel_test.pixel_test`
    says whether anything leaks.

    Raises:
        BadInput: a mask of another shape or other numbers, nothing kept, ``drop`` with ``soft`` or with some layers.
        Unsupported: attention that cannot be edited, or patches that cannot be taken out.

    Inherently faithful attention maps (iFAM), 2025: the mask in every layer makes independence hold by construction.

    Example:
        >>> import interp
        >>> from interp.zoo.digits import digit_images, pixel_values
        >>> model = interp.load("digits-vit")
        >>> images = digit_images(2).images
        >>> batch = interp.encode(model, inputs={"pixel_values": pixel_values(images)})
        >>> masked_forward(model, batch, images.flatten(1) > 0, drop=True)
        MaskedForward(drop, all layers, 2 prompts, 51 % seen)
    """
    mask = masking(model, batch, keep, layers=layers, drop=drop, soft=soft, stack=stack, grid=grid)
    chosen = _layers(mask.stack, layers)
    if drop:
        return MaskedForward(_dropped(model, batch, mask), batch, mask.keep, "drop")
    edits = _edits(model, batch, mask, chosen, soft=soft)
    logits = run(model, batch, edits=edits).logits
    if logits is None:
        raise BadInput(f"masked_forward: {model.name!r} gives no logits; load it with its head.")
    return MaskedForward(logits, batch, mask.keep, "soft" if soft else "hard", chosen)


def masking(
    model: Model,
    batch: Batch,
    keep: Tensor,
    *,
    layers: Layers = "all",
    drop: bool = False,
    soft: bool = False,
    stack: str | None = None,
    grid: Given | None = None,
) -> Masking:
    """The mask of :func:`masked_forward`, checked before anything runs.

    Raises:
        BadInput, Unsupported: see :func:`masked_forward`.
    """
    place = model.stack(stack)
    if drop and (soft or not (isinstance(layers, str) and layers == "all")):
        raise BadInput("masked_forward: drop=True takes patches out of the whole model; leave soft= and layers= out.")
    _layers(place, layers)
    if not drop:
        place.require(Site.SCORES, edit=True)
    tokens = None
    if place.name.startswith("vision"):
        found = patch_grid(model, batch, place.name, grid=grid, name="masked_forward")
        columns = found.order.expand(len(batch), -1)
        width = found.positions
        if place.name != model.default_stack and model.default_stack == "text":
            tokens = patch_columns(model, batch, model.default_stack, grid=grid)
        if drop and place.name != model.default_stack:
            raise Unsupported(
                f"masked_forward: drop=True needs an image classifier; {model.name!r} ({type(model.hf).__name__}) puts "
                "every patch into a text. Use drop=False."
            )
    else:
        mask = batch.key_mask(place.name)
        if mask is None or drop:
            raise Unsupported(
                f"masked_forward: stack {place.name!r} holds no patches"
                + (
                    "; tokens are taken out by the trace method 'leave-one-out' and by removal_curves(by='remove')."
                    if drop
                    else " and no tokens of a prompt; give the stack whose keys are hidden."
                )
            )
        found, width = None, mask.shape[1]
        columns = torch.arange(width).expand(len(batch), -1)
    checked = _checked_keep(keep, columns, batch, place, soft=soft)
    if drop:
        assert found is not None
        check_gatherable(model, batch, place, found.order, torch.tensor(found.skipped, dtype=torch.long))
    return Masking(place, checked.to(model.device), found, columns, width, tokens)


def _checked_keep(keep: Tensor, columns: Tensor, batch: Batch, stack: Stack, *, soft: bool) -> Tensor:
    wanted = list(columns.shape)
    if not isinstance(keep, Tensor) or list(keep.shape) != wanted:
        came = list(keep.shape) if isinstance(keep, Tensor) else type(keep).__name__
        raise BadInput(
            f"masked_forward: keep came as {came}; expected {wanted}, one for each "
            + ("patch, row by row." if stack.name.startswith("vision") else f"key of stack {stack.name!r}.")
        )
    if soft:
        made = keep.double()
        if not bool(((made >= 0) & (made <= 1)).all()):
            raise BadInput("masked_forward: soft=True takes factors from 0 to 1; some lie outside.")
    else:
        if keep.dtype != torch.bool and not bool(((keep == 0) | (keep == 1)).all()):
            raise BadInput("masked_forward: keep holds numbers between 0 and 1; give True and False, or soft=True.")
        made = keep.bool()
    real = batch.key_mask(stack.name)
    seen = made > 0 if real is None else (made > 0) & real.to(made.device)
    empty = (~seen.any(-1)).nonzero().flatten().tolist()
    if empty and not soft:
        raise BadInput(f"masked_forward: nothing is kept of prompts {empty[:5]}; keep at least one.")
    return made


def _layers(stack: Stack, layers: Layers) -> tuple[int, ...] | None:
    if isinstance(layers, str):
        if layers != "all":
            raise BadInput(f"masked_forward: layers={layers!r}; expected 'all', a layer, or a list of layers.")
        return None
    chosen = (layers,) if isinstance(layers, int) else tuple(layers)
    if not chosen:
        raise BadInput("masked_forward: layers= is empty; name at least one, or 'all'.")
    for layer in chosen:
        stack.layer(layer)
    return chosen


def _edits(model: Model, batch: Batch, mask: Masking, layers: tuple[int, ...] | None, *, soft: bool) -> list[Edit]:
    made = [_edit(mask.spread(mask.columns, mask.width), mask.stack.name, layers, soft=soft)]
    if mask.tokens is not None:
        made.append(_edit(mask.spread(mask.tokens, batch.width), model.default_stack, None, soft=soft))
    return made


def _edit(keep: Tensor, stack: str, layers: tuple[int, ...] | None, *, soft: bool) -> Edit:
    if not soft:
        return knockout(None, keep == 0, layers=layers, stack=stack)

    def weigh(scores: Tensor, ctx: Context) -> Tensor:
        own = (keep + FLOOR).log().to(scores.device)[:, None, None, : scores.shape[-1]]
        return scores + own.to(scores.dtype)

    return custom(At(Site.SCORES, layers, stack=stack), weigh, name="soft mask")


def _dropped(model: Model, batch: Batch, mask: Masking) -> Tensor:
    assert mask.grid is not None
    kept = mask.spread(mask.columns, mask.width).cpu() > 0
    logits: Tensor | None = None
    counts = kept.sum(-1)
    for count in sorted(set(counts.tolist())):
        rows = (counts == count).nonzero().flatten()
        columns = kept[rows].nonzero()[:, 1].view(len(rows), -1)
        part = batch if len(rows) == len(batch) else batch.select(rows)
        with gathered(mask.stack, columns):
            found = run(model, part).logits
        assert found is not None, "the model was tried with logits"
        if logits is None:
            logits = found.new_zeros(len(batch), *found.shape[1:])
        logits[rows.to(found.device)] = found
    assert logits is not None
    return logits


def pixels_replaced(model: Model, batch: Batch, mask: Masking, *, seed: int = 0) -> Batch:
    """``batch`` with noise in the pixels of the patches that are not kept; for each image a function of the seed.

    Raises:
        BadInput, Unsupported: images whose pixels are not those of patches.
    """
    if mask.grid is None:
        raise BadInput("pixel_test: it overwrites pixels of patches; keep= is over tokens.")
    how: PatchPixels = patch_pixels(model, batch, mask.grid, 0.0, name="pixel_test")
    pixels = batch.inputs["pixel_values"]
    noise = torch.empty(pixels.shape, dtype=torch.float32)
    for row, key in enumerate(batch.content_keys.tolist()):
        noise[row].normal_(generator=torch.Generator().manual_seed((key ^ seed) % 2**63))
    gone = (mask.keep == 0).cpu()
    inside = how.covered(torch.ones_like(pixels[:, :1], dtype=torch.float32), gone.to(pixels.device)) == 0
    made = torch.where(inside, noise.to(pixels), pixels)
    return replace(batch, inputs={**batch.inputs, "pixel_values": made})
