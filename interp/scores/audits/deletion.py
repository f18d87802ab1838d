"""``deletion_curves``: how fast a metric falls when tokens are taken away in the order of some weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.shortening import source_mask
from interp.model.sweep import sweep
from interp.scores.ask import Ask
from interp.scores.audits.answer_change import metric_or_own
from interp.scores.divergence.sensitivity import hiding_edits

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class DeletionCurves:
    """A metric as more and more tokens are hidden, largest weights first.

    Attributes:
        shares: of the tokens that may be hidden.
        values: name of the weights -> ``[prompt, share]`` the metric.
    """

    shares: tuple[float, ...]
    values: Mapping[str, Float[np.ndarray, "prompt share"]]

    def area(self) -> dict[str, Float[np.ndarray, " prompt"]]:
        """Name -> ``[prompt]`` area under the curve over shares 0 to 1; small where what matters went first."""
        return {name: np.trapezoid(curve, self.shares, axis=1) for name, curve in self.values.items()}

    def table(self) -> pd.DataFrame:
        """One row per weights and share: weights, share, the mean of the metric, and the mean area of the weights."""
        areas = {name: float(area.mean()) for name, area in self.area().items()}
        rows = [
            {"weights": name, "share": share, "value": float(curve[:, place].mean()), "area": areas[name]}
            for name, curve in self.values.items()
            for place, share in enumerate(self.shares)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {area.mean():.4g}" for name, area in self.area().items())
        return f"DeletionCurves(area under the curve: {shown})"


def deletion_curves(
    model: Model,
    batch: Batch,
    weights: Mapping[str, Float[Tensor, "batch key"]],
    *,
    shares: Sequence[float] = SHARES,
    metric: Metric | None = None,
) -> DeletionCurves:
    """The metric while tokens are hidden from all others in decreasing order of each of ``weights``.

    Hidden is by attention knockout, so that positions stay; the token at which the answer is read is never hidden. Of
    equal weights the earlier token goes first. :func:`interp.removal_curves` sets such curves, and those of insertion,
    against random orders, and takes tokens and patches away in other ways as well.

    Args:
        model: the handle; its attention must be editable.
        batch: the prompts.
        weights: name -> a number per token (of the encoder, in an encoder-decoder): a head's row, a layer's mean, an
            attribution.
        shares: of the tokens, from 0 to 1, rounded to whole tokens.
        metric: by default the log-probability of the right answer, or of what the model says.

    Raises:
        BadInput: weights of another shape, or shares that do not rise from 0 to 1.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
        >>> weights = torch.tensor([[0.0, 8.0, 9.0, 1.0, 0.0]])
        >>> deletion_curves(model, batch, {"right order": weights, "wrong order": -weights}, shares=(0, 0.5, 1))
        DeletionCurves(area under the curve: right order -3.887, wrong order -2.87)
    """
    chosen = tuple(float(share) for share in shares)
    if len(chosen) < 2 or chosen[0] != 0 or chosen[-1] != 1 or list(chosen) != sorted(set(chosen)):  # noqa: PLR2004
        raise BadInput(f"deletion_curves: shares={list(shares)}; expected numbers that rise from 0 to 1.")
    if not weights:
        raise BadInput("deletion_curves: no weights were given; give name -> [batch, key].")
    mask = source_mask(batch)
    for name, given in weights.items():
        if tuple(given.shape) != tuple(mask.shape):
            raise BadInput(
                f"deletion_curves: weights {name!r} have shape {list(given.shape)}; expected [batch, key] "
                f"{list(mask.shape)}."
            )
    free = mask if batch.encoder_mask is not None else mask.scatter(1, batch.read_at[:, None], False)
    ask = Ask("deletion_curves", model, batch, model.stack())
    variants = [
        hiding_edits(ask, foremost(given.to(mask.device), free, share))
        for given in weights.values()
        for share in chosen
    ]
    found = sweep(model, batch, variants, metric_or_own(metric, batch)).values.double().cpu().numpy()
    curves = found.reshape(len(weights), len(chosen), len(batch)).transpose(0, 2, 1)
    return DeletionCurves(chosen, dict(zip(weights, curves, strict=True)))


def foremost(
    weights: Float[Tensor, "batch key"], free: Bool[Tensor, "batch key"], share: float
) -> Bool[Tensor, "batch key"]:
    """True at each prompt's ``share`` of free tokens with the largest weights, rounded to whole tokens.

    Example:
        >>> foremost(torch.tensor([[1.0, 3.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool), 0.67).tolist()
        [[False, True, True]]
    """
    made = torch.zeros_like(free)
    for row, here in enumerate(free):
        places = here.nonzero().flatten()
        order = torch.sort(weights[row, places].double().nan_to_num(-torch.inf), descending=True, stable=True).indices
        made[row, places[order[: round(share * len(places))]]] = True
    return made
