"""From given attention maps to the capacities of a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.fusion import Heads, fusion_of
from interp.tracing.given_maps import given_layers
from interp.tracing.rollout import shares_of
from interp.tracing.transitions import Missing, check_options, check_rows, transition_rows


def square_layers(patterns: Any) -> list[Float[Tensor, "head query key"]]:
    """The self-attention maps of each layer.

    Raises:
        BadInput: another shape, or cross-attention.
    """
    layers = given_layers(patterns, "patterns")
    queries, keys = layers[0].shape[1:]
    if queries != keys:
        raise BadInput(
            f"patterns: maps of {queries} queries and {keys} keys; a flow goes down through layers of one stack "
            "(self-attention), whose keys are its own queries. Of cross-attention take interp.rollout(..., cross=)."
        )
    return layers


def given_steps(
    layers: Sequence[Float[Tensor, "head query key"]],
    *,
    heads: Heads = "mean",
    residual: Any = 0.5,
    missing: Missing | None = None,
) -> Float[np.ndarray, "layer query key"]:
    """``[layer, query, key]`` capacities ``((1 - r) A + r I) / rowsum`` of given maps, float64.

    Args:
        layers: from :func:`square_layers`.
        heads, residual, missing: see :func:`interp.attention_flow`.

    Raises:
        BadInput: maps that are no distributions, or options outside their range.
    """
    check_options(missing=missing)
    length = layers[0].shape[-1]
    fusion = fusion_of(heads, [len(layer) for layer in layers])
    shares = shares_of(0.0 if residual is None else residual, len(layers), length)
    rows = torch.arange(length)[None]
    made = np.empty((len(layers), length, length))
    for index, layer in enumerate(layers):
        maps = layer.cpu().double()
        check_rows(maps, f"patterns[{index}]", missing=missing)
        step = transition_rows(
            maps[None], rows, fusion=fusion, index=index, residual=shares[index], missing=missing
        ).dense(length)
        made[index] = step[0].numpy()
    return made
