"""Arrays of samples: brought to one shape, averaged without NaN, made read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.errors import BadInput


def as_samples(
    values: Any, *, name: str, sample_axis: str | None, positions: Sequence[object] | None
) -> Float[np.ndarray, "sample layer head ..."]:
    """A floating-point copy of ``values`` with a leading sample axis, of length 1 where there is none.

    Args:
        values: ``[layer, head]``, with a leading axis where ``sample_axis`` is given and a trailing one where
            ``positions`` are; an array, nested lists or a tensor.
        name: for the message.
        sample_axis: what the leading axis is, or None.
        positions: labels of the trailing axis, or None.

    Raises:
        BadInput: the shape is another one, or an axis is empty.
    """
    array = _as_array(values)
    n_axes = 2 + (sample_axis is not None) + (positions is not None)
    if sample_axis is None and array.ndim == n_axes + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != n_axes or 0 in array.shape:
        wanted = f"[{'' if sample_axis is None else 'sample, '}layer, head{'' if positions is None else ', pos'}]"
        raise BadInput(
            f"{name!r}: values came as {list(array.shape)}; expected {wanted}, none of them empty. "
            "Say sample_axis='prompt' (or 'seed', 'permutation') for a leading sample axis, None without one."
        )
    if positions is not None and len(positions) != array.shape[-1]:
        raise BadInput(f"{name!r}: {len(positions)} position labels for {array.shape[-1]} positions; give one each.")
    return array[None] if sample_axis is None else array


def mean_of_samples(
    samples: Float[np.ndarray, "sample ..."], weights: Sequence[float] | None = None
) -> Float[np.ndarray, "*cell"]:
    """Mean over the first axis without NaN (weighted, with one weight per sample); NaN where every sample is.

    Example:
        >>> mean_of_samples(np.array([[1.0, np.nan], [np.nan, np.nan]])).tolist()
        [1.0, nan]
        >>> mean_of_samples(np.array([[1.0], [0.0]]), weights=[3.0, 1.0]).tolist()
        [0.75]
    """
    shares = np.ones(len(samples)) if weights is None else np.asarray(weights, dtype=float)
    present = np.isfinite(samples)
    total = np.tensordot(shares, present.astype(float), axes=1)
    sums = np.tensordot(shares, np.where(present, samples, 0.0), axes=1) if weights is not None else None
    if sums is None:  # the order of summation of a plain mean
        sums = np.where(present, samples, 0).sum(0, dtype=float)
    return np.where(present.any(0), sums / np.where(total != 0, total, 1), np.nan)


def join_samples(
    parts: Sequence[Mapping[str, np.ndarray]],
    clusters: Sequence[Sequence[str] | None],
    *,
    sample_axis: str | None,
) -> Mapping[str, np.ndarray]:
    """Stack -> samples of all ``parts``: other stacks side by side, or more samples of the same stacks.

    Args:
        parts: stack -> ``[sample, layer, head]``, one mapping per table.
        clusters: the cluster labels of each table's samples, or None.
        sample_axis: what the samples are.

    Raises:
        BadInput: stacks that are neither all different nor all equal, other shapes, or nothing to join along.
    """
    if sum(map(len, parts)) == len(set().union(*parts)):
        if any(labels != clusters[0] for labels in clusters):
            raise BadInput("The stacks to join have different cluster labels; they need the same samples.")
        return read_only({stack: samples for part in parts for stack, samples in part.items()})
    shapes = [{stack: samples.shape[1:] for stack, samples in part.items()} for part in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise BadInput(f"The tables to join differ in stacks or shapes: {shapes}; give all equal or all disjoint.")
    if sample_axis is None:
        raise BadInput("The tables to join name the same heads and have no sample axis to join along.")
    if any((labels is None) != (clusters[0] is None) for labels in clusters):
        raise BadInput("Some of the tables to join have cluster labels and others have none; give all or none.")
    return read_only({stack: np.concatenate([part[stack] for part in parts]) for stack in parts[0]})


def read_only(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The same arrays in a mapping that cannot be changed, and neither can they."""
    for array in arrays.values():
        array.setflags(write=False)
    return MappingProxyType(dict(arrays))


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.array(values, copy=True)
        return array if np.issubdtype(array.dtype, np.floating) else array.astype(float)
    except (TypeError, ValueError) as error:
        raise BadInput(f"values cannot be read as an array of numbers: {error}.") from None
