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

ENTRIES = 2**20  # of maps that are made into steps at once


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
    alike = fusion.weights is None and len({layer.shape for layer in layers}) == 1
    at_once = max(1, ENTRIES // layers[0].numel()) if alike else 1
    made = np.empty((len(layers), length, length))
    for start in range(0, len(layers), at_once):
        some = slice(start, start + at_once)
        maps = torch.stack([layer.cpu() for layer in layers[some]]).double()
        check_rows(maps, f"patterns[{start}]" if at_once == 1 else "patterns", missing=missing)
        share = torch.stack([torch.as_tensor(one, dtype=maps.dtype).reshape(-1) for one in shares[some]])
        step = transition_rows(
            maps, rows.expand(len(maps), -1), fusion=fusion, index=start, residual=share, missing=missing
        )
        made[some] = step.dense(length).numpy()
    return made
