"""The importance of the heads that are left once others are out: exact, or to first order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.address import Head
from interp.attribution.curve import values_of_sets
from interp.attribution.ranking import Ranking
from interp.attribution.removal import EditsOf, by_layer, place_of
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric, run
from interp.model.sweep import logits_for

RECOMPUTED = ("removal", "gradient", "gate_gradient_abs")


def importance_left(
    model: Model,
    batch: Batch,
    removed: Sequence[Head],
    left: Sequence[Head],
    *,
    method: str,
    edits_of: EditsOf,
    metric: Metric,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Ranking:
    """The heads of ``left`` ranked while those of ``removed`` are out.

    Args:
        model, batch, metric: as in ``interp.run``.
        removed: the heads that are out.
        left: the heads to rank.
        method: ``"removal"`` what the metric loses when the head goes too, ``sense (m(removed) - m(removed + head))``;
            ``"gradient"`` its first-order estimate ``sense <z, dm/dz>``; ``"gate_gradient_abs"`` the mean over prompts
            of ``|<z, dm/dz>|`` (Michel et al., 2019). The last two take one forward and one backward for all heads.
        edits_of: from heads to the edits that take them out.
        batch_size, progress: as in ``interp.sweep``; of ``"removal"`` alone.
    """
    sense = getattr(metric, "sense", 1)
    if method == "removal":
        sets = [tuple(removed), *((*removed, head) for head in left)]
        values = values_of_sets(model, batch, sets, edits_of, metric, batch_size=batch_size, progress=progress)
        return Ranking(method, tuple(left), sense * (values[0] - values[1:]).mean(1))
    slopes = _slopes(model, batch, left, edits_of(removed), metric)
    importance = sense * slopes.mean(1) if method == "gradient" else np.abs(slopes).mean(1)
    return Ranking(method, tuple(left), importance)


def _slopes(
    model: Model, batch: Batch, heads: Sequence[Head], edits: list[Any], metric: Metric
) -> Float[np.ndarray, "head prompt"]:
    """``<z, dm/dz>`` of each head: the slope of the metric in the head's gate, at 1."""
    layers = by_layer(heads)
    reads = [place_of(layer) for layer in layers]
    found = run(model, batch, read=reads, edits=edits, logits=logits_for(metric, model), grad=metric)
    assert found.grad is not None
    slopes: dict[Head, np.ndarray] = {}
    for (layer, indices), at in zip(layers.items(), reads, strict=True):
        products = (found[at].double() * found.grad[at].double()).sum((1, 3)).cpu().numpy()  # [batch, head]
        slopes |= {Head(layer[1], index, layer[0]): products[:, index] for index in indices}
    return np.stack([slopes[head] for head in heads])
