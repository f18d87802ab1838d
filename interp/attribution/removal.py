"""Sets of heads out of the way at once: one edit per layer, made ready once for any number of sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.address import At, Head, Site
from interp.edits.activations import mean, patch, resample, scale, zero
from interp.edits.attention import uniform
from interp.edits.base import Edit
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import prepared_edits
from interp.names import unknown

REPLACEMENTS = ("zero", "mean", "resample", "uniform")
EditsOf = Callable[[Sequence[Head]], list[Edit]]
LayerName = tuple[str | None, int]


def by_layer(heads: Iterable[Head]) -> dict[LayerName, tuple[int, ...]]:
    """``(stack, layer) -> head indices`` in ascending order.

    Example:
        >>> by_layer([Head(1, 3), Head(0, 2), Head(1, 0)])
        {(None, 0): (2,), (None, 1): (0, 3)}
    """
    layers: dict[LayerName, list[int]] = {}
    for head in sorted(heads, key=lambda head: (head.stack or "", head.layer, head.index)):
        layers.setdefault((head.stack, head.layer), []).append(head.index)
    return {layer: tuple(indices) for layer, indices in layers.items()}


def place_of(layer: LayerName, heads: tuple[int, ...] | None = None, site: Site = Site.Z) -> At:
    """The address of some heads of one layer, of all of them for None."""
    return At(site, layer=layer[1], heads=heads, stack=layer[0])


def removal(
    model: Model,
    batch: Batch,
    heads: Sequence[Head],
    *,
    replacement: str = "zero",
    reference: Batch | None = None,
    rescale: bool = False,
    seed: int = 0,
) -> EditsOf:
    """A function from a set of heads to the edits that take it out, one per layer.

    Args:
        model: the handle.
        batch: the prompts that the edits will run on.
        heads: every head that may be taken out.
        replacement: ``"zero"`` z becomes 0; ``"mean"`` z becomes its mean over ``reference`` (over the batch's other
            prompts without one); ``"resample"`` z of another prompt, of ``reference`` where it is given; ``"uniform"``
            the heads attend evenly.
        reference: prompts for mean and resample.
        rescale: the heads that stay in a layer are multiplied by (heads of the layer) / (heads that stay), as in the
            translation experiments of Michel et al. (2019); with ``"zero"`` alone.
        seed: of resample's draw.

    Raises:
        BadInput: an unknown replacement, or an option that it has no use for.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3]])
        >>> removal(model, batch, model.heads())([Head(1, 1), Head(0, 0), Head(1, 0)])
        [zero(At(Site.Z, layer=0, heads=(0,))), zero(At(Site.Z, layer=1, heads=(0, 1)))]
    """
    refuse_replacement(replacement, reference, rescale=rescale)
    if replacement in ("mean", "resample"):
        held = _held(model, batch, by_layer(heads), replacement, reference, seed)
        return lambda some: [
            patch(place_of(layer, indices), held[layer][:, :, list(indices)])
            for layer, indices in by_layer(some).items()
        ]
    if replacement == "uniform":
        return lambda some: [uniform(place_of(*item, Site.PATTERN)) for item in by_layer(some).items()]
    if not rescale:
        return lambda some: [zero(place_of(*item)) for item in by_layer(some).items()]
    return lambda some: [edit for item in by_layer(some).items() for edit in _rescaled(model, *item)]


def refuse_replacement(replacement: str, reference: Batch | None, *, rescale: bool = False) -> None:
    """Refuse what ``removal`` cannot do.

    Raises:
        BadInput: an unknown replacement, or an option that it has no use for.
    """
    if replacement not in REPLACEMENTS:
        raise BadInput(unknown(replacement, REPLACEMENTS, "replacement"))
    if reference is not None and replacement not in ("mean", "resample"):
        raise BadInput(f"reference= was given, but replacement={replacement!r} has no use for it; use 'mean'.")
    if rescale and replacement != "zero":
        raise BadInput(f"rescale=True goes with replacement='zero', where heads fall silent; got {replacement!r}.")


def _held(
    model: Model,
    batch: Batch,
    layers: Mapping[LayerName, Any],
    replacement: str,
    reference: Batch | None,
    seed: int,
) -> dict[LayerName, Tensor]:
    """Per layer ``[batch or 1, pos or 1, head, d_head]``: what z is replaced by."""
    make = (
        (lambda at: mean(at, reference)) if replacement == "mean" else (lambda at: resample(at, reference, seed=seed))
    )
    ready, _ = prepared_edits(model, batch, [make(place_of(layer)) for layer in layers])
    return {layer: edit.values[0].data for layer, edit in zip(layers, ready, strict=True)}


def _rescaled(model: Model, layer: LayerName, removed: tuple[int, ...]) -> list[Edit]:
    n_heads = model.stack(layer[0]).n_heads(layer[1])
    left = [index for index in range(n_heads) if index not in removed]
    if not left:
        return [zero(place_of(layer, removed))]
    factors = torch.full((n_heads,), n_heads / len(left))
    factors[list(removed)] = 0.0
    return [scale(place_of(layer), factors)]
