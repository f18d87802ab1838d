"""Curves over layers: the mass of a trace on chosen sources, or how well each layer agrees with something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interp.errors import BadInput
from interp.show.curves import Line, Panel, curve_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MOST_LINES = 8  # curves in one panel that can be told apart
_SAMPLED = 2  # axes of [prompt, layer]


def layer_curves(
    curves: Mapping[str, Sequence[float] | np.ndarray],
    *,
    bands: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]] | None = None,
    layers: Sequence[int] | None = None,
    value: str = "value",
    title: str = "",
    confidence: float = 0.95,
    seed: int = 0,
) -> go.Figure:
    """A plotly figure of one curve per name over layers; where numbers per prompt are given, their mean and interval.

    Args:
        curves: name -> ``[layer]``, or ``[prompt, layer]`` of which the mean is drawn with the percentile bootstrap
            interval of the mean over prompts (NaN left out).
        bands: name -> lower and upper ends ``[layer]``, where they are known already.
        layers: the layers' numbers; 0, 1, ... by default.
        value: what is measured; stands at the vertical axis.
        title: heading inside the figure.
        confidence: of the intervals that are made here.
        seed: of their resampling.

    Raises:
        BadInput: no curves or more than can be told apart, or curves of different lengths.

    Example:
        >>> layer_curves({"rollout": [0.1, 0.4], "raw": [0.3, 0.2]}).data[0].y.tolist()
        [0.1, 0.4]
    """
    if not 1 <= len(curves) <= _MOST_LINES:
        raise BadInput(f"layer_curves: {len(curves)} curves came; expected 1 to {_MOST_LINES}, so that each is seen.")
    arrays = {name: np.asarray(numbers, dtype=float) for name, numbers in curves.items()}
    lengths = {name: array.shape[-1] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or any(array.ndim not in (1, _SAMPLED) for array in arrays.values()):
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        raise BadInput(f"layer_curves: expected [layer] or [prompt, layer] over the same layers, got {shapes}.")
    places = list(range(next(iter(lengths.values())))) if layers is None else list(layers)
    strange = [name for name in bands or {} if name not in arrays]
    if strange:
        raise BadInput(f"layer_curves: bands for {strange}, but the curves are {list(arrays)}.")
    lines = [_line(name, array, (bands or {}).get(name), confidence, seed) for name, array in arrays.items()]
    figure = curve_panels(places, [Panel(value, lines)], x_name="layer", title=title)
    layout: Any = figure.layout
    figure.update_layout(showlegend=len(lines) > 1, height=int(layout["height"]) + 70)
    return figure.update_xaxes(tickmode="array", tickvals=places[:: max(1, len(places) // 16)])


def mass_by_layer(
    layers: Float[np.ndarray, "layer prompt target source"], sources: Sequence[int] | np.ndarray, target: int = -1
) -> Float[np.ndarray, "prompt layer"]:
    """``[prompt, layer]`` what one target owes to the sources together, at the top of each layer; NaN is padding.

    Args:
        layers: the trace at the top of each layer.
        sources: columns whose numbers are added.
        target: which target.

    Example:
        >>> mass_by_layer(np.full((3, 1, 1, 4), 0.25), [0, 1]).tolist()
        [[0.5, 0.5, 0.5]]
    """
    chosen = layers[:, :, target][..., list(sources)]
    nothing = np.isnan(chosen).all(-1)
    return np.where(nothing, np.nan, np.nansum(chosen, axis=-1)).T


def _line(
    name: str,
    array: np.ndarray,
    band: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray] | None,
    confidence: float,
    seed: int,
) -> Line:
    if array.ndim == 1:
        return Line(name, array) if band is None else Line(name, array, band[0], band[1])
    from interp.stats import bootstrap_means

    finite = np.isfinite(array)
    mean = np.where(finite.any(0), np.where(finite, array, 0).sum(0) / np.maximum(finite.sum(0), 1), np.nan)
    if band is not None:
        return Line(name, mean, band[0], band[1])
    low, high = bootstrap_means(array, confidence=confidence, seed=seed)
    return Line(name, mean, low, high) if np.isfinite(low).any() else Line(name, mean)
