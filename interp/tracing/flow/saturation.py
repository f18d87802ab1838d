"""Whether a flow still depends on its target."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Bool, Float

DEEP = 4  # layers from which flows of dense maps that look both ways are known to saturate
INDEPENDENT = 1e-6  # spread below which rows are called the same


class SaturatedFlow(UserWarning):
    """The flow is the same for all targets: it says how much the first layer attends to each source, and no more."""


def row_spread(
    values: Float[np.ndarray, "target source"], path: Bool[np.ndarray, "target source"]
) -> Float[np.ndarray, " source"]:
    """``[source]`` the standard deviation of the flow over the targets that have a path to the source.

    NaN where fewer than two have one. 0 says that the flow does not depend on the target.
    """
    counts = path.sum(0)
    few = np.maximum(counts, 1)
    mean = np.where(path, values, 0).sum(0) / few
    squares = np.where(path, (values - mean) ** 2, 0).sum(0)
    return np.where(counts > 1, np.sqrt(squares / few), np.nan)


def saturated(
    spread: Float[np.ndarray, " source"], bottom: Bool[np.ndarray, "target source"], *, n_layers: int, causal: bool
) -> bool:
    """Whether nothing in the flow depends on the target, in deep maps that look both ways.

    Args:
        spread: of the flow over targets.
        bottom: where the flow is all that the source's column of the first layer lets through: what is asked where
            there is one target alone.
        n_layers: how deep.
        causal: whether tokens see only earlier ones; their flows differ by their windows.
    """
    if causal or n_layers < DEEP or bottom.shape[1] < 1:
        return False
    return bool((spread <= INDEPENDENT).all()) if bottom.shape[0] > 1 else bool(bottom.all())


def warn_saturated(n_layers: int, *, stacklevel: int) -> None:
    """Say that the flow does not depend on the target."""
    warnings.warn(
        f"The flow through these {n_layers} layers is the same whatever the target: every source's flow is limited by "
        "the edges above the source alone (the column sums of the first layer, at most 1). Dense attention in both "
        "directions does that from about four layers on. Take fewer layers, interp.rollout, or a method that knows "
        "values.",
        SaturatedFlow,
        stacklevel=stacklevel + 1,
    )
