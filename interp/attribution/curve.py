"""Curves over growing sets of heads: the metric of every set from one sweep, areas, intervals, random bands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.address import Head
from interp.attribution.removal import EditsOf
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.sweep import sweep
from interp.stats import bootstrap_means


def values_of_sets(
    model: Model,
    batch: Batch,
    sets: Iterable[Sequence[Head]],
    edits_of: EditsOf,
    metric: Metric,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Float[np.ndarray, "set prompt"]:
    """``[set, prompt]`` the metric with each set of heads edited, from one sweep; equal sets run once.

    A set whose edits move layers to other kernels is compared with an unedited run through the same kernels, and the
    difference stands on the plain model's metric, so that the sets of one curve differ by their edits alone.

    Raises:
        BadInput: a metric with more than one number per prompt.

    Example:
        >>> import interp
        >>> from interp.attribution.removal import removal
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3]], answers=[(4, 5)])
        >>> out = removal(model, batch, model.heads())
        >>> values_of_sets(model, batch, [[], [Head(0, 1)], [Head(1, 0)]], out, interp.logit_difference).round(3)
        array([[10.],
               [10.],
               [ 0.]])
    """
    keys = [frozenset(one) for one in sets]
    distinct = {key: place for place, key in enumerate(dict.fromkeys([frozenset[Head](), *keys]))}
    variants = [edits_of(sorted(key, key=_by_place)) for key in distinct]
    swept = sweep(model, batch, variants, metric, batch_size=batch_size, progress=progress)
    if swept.values.ndim != 2:  # noqa: PLR2004 - [variant, batch]
        name = getattr(metric, "__name__", repr(metric))
        raise BadInput(f"metric {name}: it gives {list(swept.values.shape[2:])} numbers per prompt; a curve needs one.")
    values, unedited = (part.detach().cpu().double().numpy() for part in (swept.values, swept.unedited))
    values = values + (unedited[:1] - unedited)
    return values[[distinct[key] for key in keys]]


def metric_name(metric: Metric | str) -> str:
    """The name of a metric, for results."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", repr(metric))


def _by_place(head: Head) -> tuple[str, int, int]:
    return (head.stack or "", head.layer, head.index)


def prefixes(order: Sequence[Head], counts: Iterable[int]) -> list[tuple[Head, ...]]:
    """The first heads of ``order``, one set per count."""
    return [tuple(order[:count]) for count in counts]


def step_counts(steps: int | Sequence[float], n_heads: int, *, least: int = 0) -> list[int]:
    """How many heads count at each step, ascending, without repetition.

    Args:
        steps: how many equal steps there are; or the counts themselves (ints); or shares of all heads (floats).
        n_heads: all heads, which is the largest count and what shares are of.
        least: the smallest count possible.

    Raises:
        BadInput: fewer than two different counts, or one out of reach.

    Example:
        >>> step_counts(4, 8), step_counts([0.0, 0.5], 8), step_counts([3, 2], 8)
        ([0, 2, 4, 6, 8], [0, 4], [2, 3])
    """
    if isinstance(steps, Integral) and not isinstance(steps, bool):
        if steps < 1:
            raise BadInput(f"steps={steps}: expected at least one step.")
        counts = [round(least + (n_heads - least) * step / int(steps)) for step in range(int(steps) + 1)]
    else:
        given = list(steps) if isinstance(steps, Sequence | np.ndarray) and not isinstance(steps, str) else [np.nan]
        whole = all(isinstance(one, Integral) for one in given)
        # a value out of reach becomes -1, which is out of reach too
        counts = [int(one) if whole else round(one * n_heads) if 0 <= one <= 1 else -1 for one in given]
        if not all(least <= count <= n_heads for count in counts):
            shares = f"{least / n_heads:.3g} to 1 as shares (floats)"
            raise BadInput(f"steps={steps!r}: expected numbers of heads from {least} to {n_heads} (ints), or {shares}.")
    made = sorted(set(counts))
    if len(made) < 2:  # noqa: PLR2004 - two points make a curve
        raise BadInput(f"steps={steps!r} gives the counts {made} of {n_heads} heads; a curve needs two at least.")
    return made


def area(x: Float[np.ndarray, " step"], values: Float[np.ndarray, "*lead step"]) -> Float[np.ndarray, "*lead"]:
    """Area under each curve by trapezoids, divided by the width of ``x``: the mean height of the curve.

    Example:
        >>> area(np.array([0.0, 0.5, 1.0]), np.array([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])).tolist()
        [0.75, 2.0]
    """
    widths = np.diff(x)
    return np.asarray((widths * (values[..., 1:] + values[..., :-1]) / 2).sum(-1) / widths.sum())


def with_intervals(
    values: Float[np.ndarray, "step prompt"], cluster: Sequence[str] | None, *, confidence: float = 0.95
) -> dict[str, np.ndarray]:
    """``value``, ``low`` and ``high`` ``[step]``: mean over prompts and its bootstrap interval."""
    low, high = bootstrap_means(values.T, confidence=confidence, cluster=cluster)
    return {"value": values.mean(1), "low": low, "high": high}


def band(random: Float[np.ndarray, "draw step"], *, confidence: float = 0.95) -> dict[str, np.ndarray]:
    """``random``, ``random_low`` and ``random_high`` ``[step]``: mean and central share of the draws; NaN without."""
    if not len(random):
        nothing = np.full(random.shape[1], np.nan)
        return {"random": nothing, "random_low": nothing, "random_high": nothing}
    low, high = np.quantile(random, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {"random": random.mean(0), "random_low": low, "random_high": high}
