"""Doses: a set of heads scaled by factors, with the metric's change beside that of matched random heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.address import Head
from interp.attribution.removal import by_layer, place_of
from interp.edits.activations import scale, zero
from interp.edits.base import Edit
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.sweep import sweep
from interp.stats import MatchedSets, NullComparison, bootstrap_means, compare_with_null, matched_random_sets

FACTORS = (1.3, 0.5, 0.0)


@dataclass(frozen=True, eq=False)
class Doses:
    """What scaling a set of heads does to a metric.

    Attributes:
        heads: the set.
        factors: what the heads' z was multiplied by.
        changes: ``[factor, prompt]`` change of the metric.
        random: ``[factor, draw, prompt]`` the same for random sets with as many heads in each layer.
        sets: the random sets, and how they were drawn.
        cluster: one label per prompt, or None.
    """

    heads: tuple[Head, ...]
    factors: tuple[float, ...]
    changes: Float[np.ndarray, "factor prompt"]
    random: Float[np.ndarray, "factor draw prompt"]
    sets: MatchedSets
    cluster: tuple[str, ...] | None = None

    def against_random(self, factor: float) -> NullComparison:
        """The mean change at one factor beside the random sets, two-sided; a p-value from 20 sets on.

        Raises:
            BadInput: a factor that was not run.
        """
        if factor not in self.factors:
            raise BadInput(f"factor={factor!r} was not run; the factors are {', '.join(map(str, self.factors))}.")
        place = self.factors.index(factor)
        return compare_with_null(float(self.changes[place].mean()), self.random[place].mean(-1), sets=self.sets)

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per factor: the change with its interval, and mean, central share and p-value of the random sets."""
        low, high = bootstrap_means(self.changes.T, confidence=confidence, cluster=self.cluster)
        nulls = [self.against_random(factor) for factor in self.factors]
        return pd.DataFrame(
            {
                "heads": [" ".join(map(str, self.heads))] * len(self.factors),
                "factor": self.factors,
                "change": self.changes.mean(1),
                "low": low,
                "high": high,
                "random": [null.null_mean for null in nulls],
                "random_low": [null.low for null in nulls],
                "random_high": [null.high for null in nulls],
                "sets": [null.n for null in nulls],
                "p": [np.nan if null.p is None else null.p for null in nulls],
            }
        )


def head_doses(
    model: Model,
    batch: Batch,
    heads: Sequence[Head],
    metric: Metric,
    *,
    factors: Sequence[float] = FACTORS,
    random: int = 200,
    seed: int = 0,
    cluster: tuple[str, ...] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Doses:
    """The change of ``metric`` as z of ``heads`` is multiplied by each factor, beside matched random heads.

    Args:
        model, batch, metric, batch_size, progress: as in ``interp.sweep``.
        heads: the set, not empty.
        factors: 0 ablates, 1 leaves everything as it is.
        random: most random sets to draw, each with as many heads in every layer; see ``matched_random_sets``.
        seed: of the draw.
        cluster: one label per prompt; prompts of one label are resampled together.

    Emergent heads are tested so, by ablation and by factors of 1.3 and 0.5, in "Thinking Sparks!" (2025).

    Raises:
        BadInput: no head, no factor, or a factor that is not a finite number.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3], [0, 5, 6, 5]], answers=[(4, 5), (6, 4)])
        >>> doses = head_doses(model, batch, [Head(1, 0)], interp.logit_difference)
        >>> doses.table()[["factor", "change", "random"]].round(2).values.tolist()
        [[1.3, 3.0, 0.0], [0.5, -5.0, 0.0], [0.0, -10.0, 0.0]]
    """
    wrong = [factor for factor in factors if isinstance(factor, bool) or not np.isfinite(factor)]
    if wrong or not len(factors):
        raise BadInput(f"factors={list(factors)!r}; expected finite numbers such as 1.3, 0.5 and 0.")
    pool = {
        None if name == model.default_stack else name: [stack.n_heads(layer) for layer in range(stack.n_layers)]
        for name, stack in model.stacks.items()
    }
    drawn = matched_random_sets(heads, pool, n_draws=random, seed=seed)
    sets = [tuple(heads), *drawn.sets]
    variants = [_scaled(one, factor) for factor in factors for one in sets]
    swept = sweep(model, batch, variants, metric, batch_size=batch_size, progress=progress)
    if swept.values.ndim != 2:  # noqa: PLR2004 - [variant, batch]
        raise BadInput(f"The metric gives {list(swept.values.shape[2:])} numbers per prompt; this needs one.")
    effects = swept.effects.detach().to(torch.float64).cpu().numpy().reshape(len(factors), len(sets), -1)
    return Doses(tuple(heads), tuple(map(float, factors)), effects[:, 0], effects[:, 1:], drawn, cluster)


def _scaled(heads: Sequence[Head], factor: float) -> list[Edit]:
    places = [place_of(*item) for item in by_layer(heads).items()]
    return [zero(at) if factor == 0 else scale(at, factor) for at in places]
