"""Effects as shares of the difference between the two sides of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.attribution.request import Request
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Run, run
from interp.model.sweep import metric_values

_SMALL = 0.1  # of the median difference: prompts below it have no ratio of their own
_NOTHING = 1e-4  # of the metric's size: a median difference below it is no difference
_ROUNDING = 1e-6  # of the largest effect: a median difference below it is rounding, where both sides are 0


@dataclass(frozen=True)
class Shares:
    """Effects divided by the differences of their prompts.

    Attributes:
        values: ``[cell, prompt]``, NaN for prompts whose difference is too small.
        weights: ``[prompt]`` the size of each difference, 0 where it is too small: with these weights the mean of the
            ratios is the ratio of the means.
        sign: +1 where the source's metric is the larger one, -1 where it is the smaller one.
        about: what the metadata says of it.
    """

    values: Float[np.ndarray, "cell prompt"]
    weights: Float[np.ndarray, " prompt"]
    sign: int
    about: dict[str, Any]


def differences(model: Model, batch: Batch, request: Request) -> Float[np.ndarray, " prompt"]:
    """``[prompt]`` ``m(source) - m(batch)``; the source's logits are read as the batch's (its answers and positions).

    Raises:
        BadInput: the differences are zero within rounding, with the prompts.
    """
    source = request.source
    if isinstance(source, Run):
        if source.edits:
            raise BadInput("normalise=True: the source run has edits in force; give an unedited run, or its Batch.")
        source = source.batch
    of_source = _metric_of(model, source, batch, request)
    of_batch = _metric_of(model, batch, batch, request)
    difference = (of_source - of_batch).double().cpu().numpy()
    size = float((of_source.abs() + of_batch.abs()).double().mean()) / 2
    if abs(float(np.median(difference))) <= _NOTHING * size:
        near = np.flatnonzero(np.abs(difference) <= _NOTHING * size).tolist()
        raise BadInput(
            f"normalise=True: m(source) - m(batch) is {float(np.median(difference)):.3g} in the median (metric "
            f"{request.metric_name}, of size {size:.3g}); prompts {near[:20] or 'on both sides of 0'} have nothing to "
            "divide by. Leave them out, or use normalise=False."
        )
    return difference


def _metric_of(model: Model, prompts: Batch, batch: Batch, request: Request) -> Tensor:
    logits = "all" if request.logits(model) == "all" else batch.read_at[:, None]
    return metric_values(request.metric, run(model, prompts, logits=logits).logits, batch)


def shares(effects: Float[np.ndarray, "cell prompt"], difference: Float[np.ndarray, " prompt"]) -> Shares:
    """The effects as shares of the prompts' differences.

    A prompt has a ratio where its difference is above 10 % of the median difference (of the same sign).

    Raises:
        BadInput: the differences are rounding beside the effects.

    Example:
        >>> made = shares(np.array([[1.0, 3.0, 2.0]]), np.array([2.0, 4.0, 0.1]))
        >>> made.values.tolist(), made.weights.tolist(), made.about["prompts without a ratio"]
        ([[0.5, 0.75, nan]], [2.0, 4.0, 0.0], 1)
    """
    median = float(np.median(difference))
    largest = float(np.nanmax(np.abs(effects), initial=0.0))
    if abs(median) <= _ROUNDING * largest:
        raise BadInput(
            f"normalise=True: m(source) - m(batch) is {median:.3g} in the median beside effects up to {largest:.3g}; "
            "the prompts of both sides give the same, and there is nothing to divide by. Use normalise=False."
        )
    kept = difference / median > _SMALL
    safe = np.where(kept, difference, 1.0)
    return Shares(
        values=np.where(kept, effects / safe, np.nan),
        weights=np.where(kept, np.abs(difference), 0.0),
        sign=1 if median > 0 else -1,
        about={
            "normalised": "effect / (m(source) - m(batch)); the value of a head is the ratio of the means",
            "prompts without a ratio": int((~kept).sum()),
            "which prompts have no ratio": np.flatnonzero(~kept).tolist(),
        },
    )
