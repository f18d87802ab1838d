"""One fixed label per head, local or long-context, from an oracle on other prompts: what labels per query beat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from interp.errors import BadInput
from interp.results import HeadScores


def static_labels(calibration: HeadScores, *, most: float = 0.5) -> Bool[np.ndarray, "layer head"]:
    """``[layer, head]`` True where a head is called local for good; False where no head is.

    A head is local where the share of queries at which it needs far keys, by the exact mass, is at most ``most`` on the
    calibration prompts ("Unveiling Simplicities of Attention", 2025: the static oracle that adaptive labels are set
    against).

    Args:
        calibration: ``interp.score(model, batch, {"long_context": {"oracle": True, ...}})["long_context"]``.
        most: this library's choice: the label that is right more often.

    Raises:
        BadInput: a table that is not of that score with its oracle, or a share outside [0, 1].

    Example:
        >>> about = {"options": {"oracle": "True"}}
        >>> static_labels(HeadScores.from_array([[0.1, 0.9]], name="long_context", metadata=about)).tolist()
        [[True, False]]
    """
    _check(calibration)
    if not 0 <= most <= 1:
        raise BadInput(f"static_labels: most={most!r}; expected a share between 0 and 1.")
    return np.nan_to_num(calibration.values, nan=np.inf) <= most


def static_agreement(labels: Bool[np.ndarray, "layer head"], oracle: HeadScores) -> HeadScores:
    """The share of queries that the fixed labels get right, per prompt and head.

    ``1 - s`` for a head called local and ``s`` for another, with s the share of queries that need far keys.

    Args:
        labels: from :func:`static_labels`, on other prompts.
        oracle: the score ``long_context`` with ``oracle=True`` on the prompts to judge by.

    Raises:
        BadInput: labels of other heads, or a table without its oracle.

    Example:
        >>> about = {"options": {"oracle": "True"}}
        >>> oracle = HeadScores.from_array([[0.25, 0.75]], name="long_context", metadata=about)
        >>> static_agreement(np.array([[True, True]]), oracle).values.tolist()
        [[0.75, 0.25]]
    """
    _check(oracle)
    stack = oracle.stacks[0]
    given = np.asarray(labels, dtype=bool)
    if given.shape != oracle.exists[stack].shape:
        raise BadInput(f"static_agreement: labels {given.shape} for heads {oracle.exists[stack].shape}; give one each.")
    right = np.where(given, 1 - oracle.samples, oracle.samples)
    return replace(oracle, name="static agreement", data={stack: right})


def _check(table: HeadScores) -> None:
    options = table.metadata.get("options", {})
    if table.positions is not None or options.get("oracle") != "True":
        raise BadInput(
            f"static labels need the score 'long_context' with oracle=True, one number per head; {table.name!r} came "
            f"with the options {options}."
        )
