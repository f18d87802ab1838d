"""Traces against true regions: pointing game, mass inside, AUROC of patches, intersection over union."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from interp.errors import BadInput
from interp.names import lookup
from interp.numerals import numeral
from interp.stats import Interval, mean_interval
from interp.tracing.protocols.trace_agreement import one_target
from interp.tracing.result import Trace

MEASURES: Mapping[str, str] = {
    "pointing": "whether the largest number lies in the region; of several equally large ones the share that does",
    "mass": "the share of the positive numbers' sum that lies in the region",
    "auroc": "how often a patch of the region has a larger number than one outside, ties counted half",
    "iou": "intersection over union of the region with as many patches as it has, those with the largest numbers",
}


@dataclass(frozen=True, eq=False, repr=False)
class Localisation:
    """How well traces point at true regions.

    Attributes:
        values: trace -> measure -> ``[prompt]``; NaN where a measure is not defined.
        chance: measure -> ``[prompt]`` what numbers without any knowledge have on average.
        about: how it was made.
    """

    values: Mapping[str, Mapping[str, Float[np.ndarray, " prompt"]]]
    chance: Mapping[str, Float[np.ndarray, " prompt"]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def interval(self, trace: str, measure: str, *, confidence: float = 0.95, seed: int = 0) -> Interval:
        """The mean over prompts with its bootstrap interval."""
        found = lookup(measure, lookup(trace, self.values, "trace"), "measure")
        return mean_interval(found, confidence=confidence, seed=seed)

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per trace and measure: mean, low, high, prompts, chance, and the interval of mean - chance."""
        rows = []
        for trace, measures in self.values.items():
            for measure, found in measures.items():
                mean = self.interval(trace, measure, confidence=confidence, seed=seed)
                gain = mean_interval(found - self.chance[measure], confidence=confidence, seed=seed)
                rows.append(
                    {
                        "trace": trace,
                        "measure": measure,
                        "mean": mean.mean,
                        "low": mean.low,
                        "high": mean.high,
                        "prompts": mean.n,
                        "chance": float(self.chance[measure][np.isfinite(found)].mean()) if mean.n else np.nan,
                        "above_chance": gain.mean,
                        "above_low": gain.low,
                        "above_high": gain.high,
                    }
                )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        first = next(iter(self.chance))
        shown = ", ".join(f"{name} {numeral(self.interval(name, first).mean)}" for name in self.values)
        return f"Localisation({first}: {shown}; chance {numeral(float(self.chance[first].mean()))})"


def localisation(
    traces: Mapping[str, Trace],
    regions: Bool[np.ndarray, "prompt patch"] | Bool[Tensor, "prompt patch"],
    *,
    columns: Any = None,
    measures: tuple[str, ...] = tuple(MEASURES),
    absolute: bool = False,
    target: int = -1,
) -> Localisation:
    """How well each trace points at the true regions, by several measures, with the level of chance.

    Args:
        traces: name -> trace over the patches, or over tokens of which some stand for patches.
        regions: True at the patches of the region, patches counted row by row.
        columns: the source columns that are patches, in the order of the regions' patches: a list, or ``[prompt,
            patch]``; see :func:`patch_columns`. None where every source is a patch.
        measures: names of ``MEASURES``.
        absolute: look at the sizes of numbers. By default a number below 0 ranks below all others and has no mass.
        target: which target of the traces.

    Chance is what the same numbers in random order have on average: the region's share of the patches for
    ``pointing`` (Zhang et al., 2018) and ``mass``, 1/2 for ``auroc``, the mean over a hypergeometric number in common
    for ``iou``. Patches without a number in one of the traces are left out. Prompts whose region is empty or everything
    have no value.

    Raises:
        BadInput: regions of another shape, or a target or columns that are not there.
        UnknownName: another measure.

    Example:
        >>> import interp
        >>> from interp.tracing.protocols.localisation import pointing
        >>> pointing(np.array([0.1, 0.7, 0.2]), np.array([False, True, False]))
        1.0
    """
    if not traces:
        raise BadInput("localisation: no traces were given; give name -> interp.trace(...).")
    for measure in measures:
        lookup(measure, MEASURES, "measure")
    truth = regions.cpu().numpy() if isinstance(regions, Tensor) else np.asarray(regions)
    if truth.dtype != bool or truth.ndim != 2:  # noqa: PLR2004 - prompt, patch
        raise BadInput(
            f"localisation: regions of {truth.dtype} {list(truth.shape)}; expected True and False [prompt, patch], "
            "patches counted row by row."
        )
    values: dict[str, dict[str, np.ndarray]] = {}
    usable = np.ones(truth.shape, dtype=bool)
    picked = {name: _patches(name, trace, truth, columns, target) for name, trace in traces.items()}
    for numbers in picked.values():
        usable &= np.isfinite(numbers)
    for name, numbers in picked.items():
        found = np.abs(numbers) if absolute else numbers
        values[name] = {measure: _each(_FUNCTIONS[measure], found, truth, usable) for measure in measures}
    chance = {measure: _each(_CHANCES[measure], truth.astype(float), truth, usable) for measure in measures}
    return Localisation(values, chance, {"absolute": absolute, "patches": truth.shape[1]})


def pointing_game(
    traces: Mapping[str, Trace], regions: Bool[np.ndarray, "prompt patch"] | Bool[Tensor, "prompt patch"], **how: Any
) -> Localisation:
    """Whether each trace's largest number lies in the true region; see :func:`localisation`.

    Args:
        traces: name -> trace.
        regions: True at the patches of the region.
        **how: ``columns``, ``absolute``, ``target``.

    Raises:
        BadInput: regions of another shape, or columns that are not there.

    Zhang et al., 2018 (Top-down neural attention by excitation backprop).

    Example:
        >>> import interp
        >>> from interp.zoo.digits import digit_images, pixel_values
        >>> model = interp.load("digits-vit")
        >>> images = digit_images(2).images
        >>> batch = interp.encode(model, inputs={"pixel_values": pixel_values(images)})
        >>> found = interp.trace(model, batch, "blank-out")
        >>> columns = interp.patch_columns(model, batch)
        >>> pointing_game({"blank-out": found}, images.flatten(1) > 0, columns=columns).values["blank-out"].keys()
        dict_keys(['pointing'])
    """
    return localisation(traces, regions, measures=("pointing",), **how)


def region_iou(
    traces: Mapping[str, Trace], regions: Bool[np.ndarray, "prompt patch"] | Bool[Tensor, "prompt patch"], **how: Any
) -> Localisation:
    """Intersection over union of true regions with as many patches of largest numbers; see :func:`localisation`.

    Args:
        traces: name -> trace.
        regions: True at the patches of the region.
        **how: ``columns``, ``absolute``, ``target``.

    Raises:
        BadInput: regions of another shape, or columns that are not there.

    ``|top_k & region| / |top_k | region|`` with k the size of the region (Jaccard, 1901); where equal numbers stand at
    the edge of the top, the mean over their orders.

    Example:
        >>> iou(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False]))
        0.3333333333333333
    """
    return localisation(traces, regions, measures=("iou",), **how)


def pointing(numbers: Float[np.ndarray, " patch"], region: Bool[np.ndarray, " patch"]) -> float:
    """1 where the largest number lies in the region, 0 where it does not; the share of equally large ones that does."""
    largest = numbers == numbers.max()
    return float((largest & region).sum() / largest.sum())


def mass(numbers: Float[np.ndarray, " patch"], region: Bool[np.ndarray, " patch"]) -> float:
    """The share of the sum of positive numbers that lies in the region; NaN where none is positive."""
    positive = numbers.clip(min=0)
    return float(positive[region].sum() / positive.sum()) if positive.sum() > 0 else float("nan")


def auroc(numbers: Float[np.ndarray, " patch"], region: Bool[np.ndarray, " patch"]) -> float:
    """How often a patch of the region has a larger number than one outside, ties counted half."""
    inside = int(region.sum())
    ranks = stats.rankdata(numbers)
    return float((ranks[region].sum() - inside * (inside + 1) / 2) / (inside * (len(region) - inside)))


def iou(numbers: Float[np.ndarray, " patch"], region: Bool[np.ndarray, " patch"]) -> float:
    """``|top_k & region| / |top_k | region|`` with k the size of the region; its mean over orders of equal numbers."""
    size = int(region.sum())
    edge = np.sort(numbers)[-size]
    above, at = numbers > edge, numbers == edge
    return _mean_iou(
        int((above & region).sum()), int(at.sum()), int((at & region).sum()), size - int(above.sum()), size
    )


def _iou_chance(numbers: np.ndarray, region: np.ndarray) -> float:
    size = int(region.sum())
    return _mean_iou(0, len(region), size, size, size)


def _mean_iou(sure: int, tied: int, tied_inside: int, open_places: int, size: int) -> float:
    """The mean of c / (2 size - c), where c is ``sure`` and what ``open_places`` draws among the tied have inside."""
    drawn: Any = stats.hypergeom(tied, tied_inside, open_places)
    common = np.arange(open_places + 1)
    return float(drawn.pmf(common) @ ((sure + common) / (2 * size - sure - common)))


def _share(numbers: np.ndarray, region: np.ndarray) -> float:
    return float(region.mean())


def _half(numbers: np.ndarray, region: np.ndarray) -> float:
    return 0.5


_FUNCTIONS = {"pointing": pointing, "mass": mass, "auroc": auroc, "iou": iou}
_CHANCES = {"pointing": _share, "mass": _share, "auroc": _half, "iou": _iou_chance}


def _each(measure: Any, numbers: np.ndarray, truth: np.ndarray, usable: np.ndarray) -> np.ndarray:
    made = np.full(len(truth), np.nan)
    for prompt, (one, region, here) in enumerate(zip(numbers, truth, usable, strict=True)):
        if here.any() and region[here].any() and not region[here].all():
            made[prompt] = measure(one[here], region[here])
    return made


def _patches(name: str, trace: Trace, truth: np.ndarray, columns: Any, target: int) -> np.ndarray:
    numbers = one_target(name, trace.values, target)
    if columns is not None:
        given = columns.cpu().numpy() if isinstance(columns, Tensor) else np.asarray(columns)
        shaped = given.ndim == 1 or (given.ndim == 2 and len(given) == len(numbers))  # noqa: PLR2004 - prompt, patch
        if (
            not shaped
            or given.dtype.kind not in "iu"
            or given.size == 0
            or given.min() < 0
            or given.max() >= numbers.shape[1]
        ):
            raise BadInput(
                f"localisation: columns={columns!r}; expected the source columns of the patches, [patch] or [prompt, "
                f"patch] of {len(numbers)} prompts, whole numbers from 0 to {numbers.shape[1] - 1}."
            )
        numbers = np.take_along_axis(numbers, np.broadcast_to(given, (len(numbers), given.shape[-1])), axis=1)
    if numbers.shape != truth.shape:
        raise BadInput(
            f"localisation: {name!r} has numbers for {list(numbers.shape)} [prompt, patch], the regions have "
            f"{list(truth.shape)}; name the sources that are patches with columns= (see patch_columns)."
        )
    return numbers
