"""``randomisation_check``: does a trace change when the model's layers are drawn anew?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.randomised import DRAWS, LOGITS, Draw, RandomisedCopy, randomised_copy
from interp.model.run import Metric
from interp.names import lookup
from interp.numerals import numeral
from interp.scores.audits.agreement import AGREEMENTS
from interp.scores.dropping import Sinks
from interp.stats import mean_interval
from interp.tracing import METHODS
from interp.tracing.occlusion.explained import explained
from interp.tracing.protocols.trace_agreement import (
    Excluded,
    check_top,
    correlations,
    excluded_sources,
    one_target,
)
from interp.tracing.result import Trace
from interp.tracing.trace import target_columns, trace

Mode = Literal["cascading", "independent"]
MODES: Mapping[str, str] = {
    "cascading": "from the top down: the layer and all above it are random",
    "independent": "the layer alone is random",
}
_ROUNDING = 1e-6  # of a prompt's largest number, up to which a trace has not changed


@dataclass(frozen=True, eq=False, repr=False)
class RandomisationCheck:
    """How alike traces are before and after layers were drawn anew.

    Attributes:
        method: the way of tracing.
        layers: the parts that were drawn anew, from the top: ``"logits"`` (what makes them of the last stream), then
            layers.
        similarity: mode -> ``[part, prompt]`` correlation with the trace of the model as it is; NaN where one of the
            two does not vary.
        change: mode -> ``[part, prompt]`` the largest difference of a source's number, by the largest number of the
            trace.
        about: how it was made.
    """

    method: str
    layers: tuple[str, ...]
    similarity: Mapping[str, Float[np.ndarray, "part prompt"]]
    change: Mapping[str, Float[np.ndarray, "part prompt"]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flagged(self) -> tuple[tuple[str, str], ...]:
        """(mode, part) at which the trace did not change in any prompt: it does not see what was drawn anew."""
        return tuple(
            (mode, self.layers[part])
            for mode, found in self.change.items()
            for part in range(len(self.layers))
            if bool((found[part] <= _ROUNDING).all())
        )

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per mode and part: mean similarity with its interval, prompts, mean change, unchanged."""
        unchanged = set(self.flagged)
        rows = []
        for mode, found in self.similarity.items():
            for part, layer in enumerate(self.layers):
                mean = mean_interval(found[part], confidence=confidence, seed=seed)
                rows.append(
                    {
                        "mode": mode,
                        "part": layer,
                        "similarity": mean.mean,
                        "low": mean.low,
                        "high": mean.high,
                        "prompts": mean.n,
                        "change": float(self.change[mode][part].mean()),
                        "unchanged": (mode, layer) in unchanged,
                    }
                )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        ends = []
        for mode, found in self.similarity.items():
            last = found[-1][np.isfinite(found[-1])]
            ends.append(f"{mode} down to {self.layers[-1]} {numeral(float(last.mean()) if len(last) else None)}")
        seen = f"; unchanged by {', '.join(f'{part} ({mode})' for mode, part in self.flagged)}" if self.flagged else ""
        return f"RandomisationCheck({self.method}: {self.about.get('how', '')} {'; '.join(ends)}{seen})"


def randomisation_check(
    model: Model,
    batch: Batch,
    method: str,
    *,
    modes: Sequence[Mode] = ("cascading", "independent"),
    draw: Draw = "initialise",
    stack: str | None = None,
    targets: Group = None,
    target: int | Literal["max", "mean"] = -1,
    metric: Metric | None = None,
    how: Literal["spearman", "kendall", "pearson", "topk"] = "spearman",
    absolute: bool = True,
    exclude: Excluded = None,
    exclude_sinks: Sinks = None,
    top: int = 5,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> RandomisationCheck:
    """How alike a method's traces of ``model`` are to those of copies whose layers were drawn anew.

    An explanation of what a model has learnt must change with what it has learnt: where it does not, it shows the
    input. The model itself stays as found; copies take its place one after the other.

    Args:
        model: the handle.
        batch: the prompts. Where they have no answers, what the model as it is says is explained in every copy.
        method: a way of tracing.
        modes: ``"cascading"`` from the top down, ``"independent"`` one by one.
        draw: ``"initialise"`` as untrained models of the family are, ``"shuffle"`` each tensor's numbers in another
            order, or ``"normal"`` with each tensor's mean and deviation.
        stack: whose layers are drawn anew and whose tokens are traced.
        targets, metric, exclude_sinks: as in :func:`interp.trace`.
        target: which of the targets is compared, or ``"max"``/``"mean"`` over them.
        how, absolute, exclude, top: as in :func:`interp.trace_agreement`.
        seed: of the numbers drawn.
        progress: called with the number of traces just finished.
        **options: the method's own.

    Raises:
        UnknownName: an unknown method, mode or draw.
        BadInput: no mode.
        Unsupported: a model that cannot be copied.

    Adebayo et al., 2018 (Sanity Checks for Saliency Maps). Attention of the first layer does not change when layers
    above are drawn anew, which the check says.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3], [0, 4, 3, 6, 4]]))
        >>> randomisation_check(model, batch, "raw", layer=0, modes=["cascading"]).flagged
        (('cascading', 'logits'), ('cascading', '1'))
    """
    lookup(method, METHODS, "way of tracing")
    lookup(how, AGREEMENTS, "agreement (how=)")
    lookup(draw, DRAWS, "way to draw layers anew (draw=)")
    if isinstance(modes, str) or not modes:
        raise BadInput(f"randomisation_check: modes={modes!r}; expected a list of {', '.join(map(repr, MODES))}.")
    for mode in modes:
        lookup(mode, MODES, "mode")
    check_top("randomisation_check", top)
    place = model.stack(stack)
    columns, _ = target_columns(batch, place, targets)
    one_target(method, np.empty((0, columns.shape[1], 0)), target)  # refuses what is none before anything runs
    if isinstance(exclude, str):
        excluded_sources(exclude, np.ones((1, 1), dtype=bool))
    copied = randomised_copy(model, place, draw=draw, seed=seed)
    about = explained(model, batch, metric) if METHODS[method].needs != "pass" else None
    prompts = batch if about is None else about.batch

    def traced(of: Model) -> Trace:
        made = trace(
            of,
            prompts,
            method,
            targets=targets,
            stack=place.name,
            metric=metric,
            exclude_sinks=exclude_sinks,
            seed=seed,
            **options,
        )
        if progress is not None:
            progress(1)
        return made

    whole = traced(model)
    own = one_target(method, whole.values, target)
    kept = whole.mask & ~excluded_sources(exclude, whole.mask)
    parts = _parts(copied)
    similarity, change = {}, {}
    for mode in modes:
        found = [
            one_target(
                method, traced(copied.with_random(parts[: n + 1] if mode == "cascading" else [part])).values, target
            )
            for n, part in enumerate(parts)
        ]
        similarity[mode] = np.stack(
            [correlations(own, other, kept, how=how, absolute=absolute, top=top) for other in found]
        )
        change[mode] = np.stack([_changes(own, other, kept) for other in found])
    said = {"how": how, "draw": draw, "absolute": absolute, "seed": seed, "metric": whole.metadata.get("metric")}
    said["answers"] = "given" if batch.answers is not None else "what the model as it is says"
    names = tuple("logits" if part == LOGITS else str(part) for part in parts)
    return RandomisationCheck(method, names, similarity, change, said)


def _parts(copied: RandomisedCopy) -> list[int]:
    """What is drawn anew, from the top: the logits where the model has weights of its own for them, then layers."""
    layers = sorted((part for part in copied.parts if part != LOGITS), reverse=True)
    return ([LOGITS] if copied.parts[LOGITS] else []) + layers


def _changes(own: np.ndarray, other: np.ndarray, kept: np.ndarray) -> Float[np.ndarray, " prompt"]:
    """``[prompt]`` the largest difference, by the largest number of the first; infinite where a number is none now."""
    made = np.full(len(own), math.nan)
    for prompt, (a, b, here) in enumerate(zip(own, other, kept, strict=True)):
        both = here & np.isfinite(a) & np.isfinite(b)
        largest = np.abs(a[both]).max(initial=0.0)
        difference = np.abs(a[both] - b[both]).max(initial=0.0)
        if (here & (np.isfinite(a) != np.isfinite(b))).any():
            difference = math.inf
        made[prompt] = 0.0 if difference == 0 else difference / largest if largest > 0 else math.inf
    return made
