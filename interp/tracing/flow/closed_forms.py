"""Flows that need no search: through one layer, through two, and where no path leads."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

ENTRIES = 2**21  # of one block of minima: what a processor's cache holds


def bottleneck_sums(
    first: Float[np.ndarray, "row node"], second: Float[np.ndarray, "node column"]
) -> Float[np.ndarray, "row column"]:
    """``[row, column]`` ``sum_k min(first[row, k], second[k, column])``: what two steps in a row let through.

    The maximum flow through two layers exactly: every path has its own two edges.

    Example:
        >>> bottleneck_sums(np.array([[0.5, 0.5]]), np.array([[0.2, 0.8], [0.9, 0.1]]))
        array([[0.7, 0.6]])
    """
    made = np.empty((first.shape[0], second.shape[1]))
    step = max(1, ENTRIES // max(1, second.size))
    for start in range(0, len(first), step):
        part = first[start : start + step]
        np.minimum(part[:, :, None], second[None]).sum(1, out=made[start : start + step])
    return made


def short_flows(
    steps: Float[np.ndarray, "layer query key"],
    targets: Int[np.ndarray, " target"],
    sources: Int[np.ndarray, " source"],
) -> Float[np.ndarray, "target source"]:
    """``[target, source]`` the maximum flows through one layer or two.

    ``F_1 = S_1`` and ``F_2[i, j] = sum_k min(S_2[i, k], S_1[k, j])``.
    """
    below = steps[0][:, sources]
    return below[targets] if len(steps) == 1 else bottleneck_sums(steps[1][targets], below)
