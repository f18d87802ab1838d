"""Activations at one address as a table of samples and features, the form that linear models are fitted on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from interp.address import At, Site
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.run import run


def features(model: Model, batches: Batch | Iterable[Batch], at: At | Site | str, *, pos: int | str = -1) -> np.ndarray:
    """``[sample, feature]`` float32 activations at ``at``: one sample per prompt and position.

    Args:
        model: the handle.
        batches: one batch, or several whose prompts follow one another.
        at: an address of one layer; a head axis is unrolled into features, head by head. Attention maps are refused.
        pos: which position of each prompt: an int over its own tokens (-1 is the last), or a span's name, whose tokens
            are averaged.

    Raises:
        BadInput: an address of several layers, of an attention map, or with a position of its own.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3], [0, 5, 6, 5]]))
        >>> features(model, batch, At(Site.Z, layer=1)).shape[0]
        2
    """
    where = At.parse(at)
    if not isinstance(where.layer, int):
        raise BadInput(f"features: {where} addresses several layers; name one (layer=int).")
    if where.site in (Site.SCORES, Site.PATTERN):
        raise BadInput(f"features: {where.site!r} is an attention map, whose width changes with the prompt.")
    if where.pos is not None:
        raise BadInput(f"features: give the position as pos=, not in the address {where}.")
    rows: list[np.ndarray] = []
    for batch in [batches] if isinstance(batches, Batch) else batches:
        seen = run(model, batch, read=[where.with_(pos=pos)], logits=fewest_logits(model))[where.with_(pos=pos)]
        rows.append(seen.float().mean(dim=1).flatten(1).cpu().numpy())
    if not rows:
        raise BadInput("features: no batch was given.")
    return np.concatenate(rows)
