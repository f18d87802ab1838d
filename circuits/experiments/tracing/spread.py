"""How much a trace depends on its target: where flow is saturated, every target has the same sources."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from interp.errors import BadInput

FEWEST = 2  # targets, of which there is a spread


def row_spread(values: Float[np.ndarray, "target source"], targets: np.ndarray | None = None) -> float:
    """The spread over targets of what they owe to a source, as a share of what they owe on average.

    ``mean_j sd_i(v_ij) / mean_j mean_i(|v_ij|)``, over the targets i that have a number for source j other than 0
    and are not j itself. 0: which target is traced makes no difference.

    Args:
        values: NaN at padding; a target that cannot see a source has 0 or NaN there.
        targets: the column of each target, so that its own source is left out; 0, 1 ... by default.

    Raises:
        BadInput: not one column per target.

    Example:
        >>> same = np.tile([0.0, 0.6, 0.4], (3, 1))
        >>> other = np.array([[0.0, 0.9, 0.1], [0.5, 0.0, 0.5], [0.8, 0.2, 0.0]])
        >>> row_spread(same), row_spread(other) > 0
        (0.0, True)
    """
    columns = np.arange(len(values)) if targets is None else np.asarray(targets)
    if columns.shape != (len(values),):
        raise BadInput(f"row_spread: {columns.shape} columns for {len(values)} targets; give one each.")
    seen = np.isfinite(values) & (values != 0)
    seen &= columns[:, None] != np.arange(values.shape[1])
    spreads, means = [], []
    for source in range(values.shape[1]):
        own = values[seen[:, source], source]
        if len(own) >= FEWEST:
            spreads.append(0.0 if np.ptp(own) == 0 else float(own.std()))
            means.append(float(np.abs(own).mean()))
    return float(np.mean(spreads) / np.mean(means)) if means and np.mean(means) > 0 else float("nan")
