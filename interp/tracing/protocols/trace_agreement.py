"""``trace_agreement``: how far traces rank the sources as references do, prompt by prompt."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from interp.errors import BadInput
from interp.names import lookup
from interp.numerals import numeral
from interp.scores.audits.agreement import AGREEMENTS
from interp.stats import Interval, mean_interval
from interp.tracing.result import Trace

Excluded = Any  # None | "first" | "last" | "ends" | columns | BoolTensor [prompt, source]
_ROUNDING = 1e-12  # of the largest number, below which a difference is none
_FEWEST = 2  # sources, of which a correlation says something
_UNDEFINED = {"zero": "counted as 0", "drop": "left out of the mean"}
_FOLDS = ("max", "mean")


@dataclass(frozen=True, eq=False, repr=False)
class TraceAgreement:
    """How far traces rank sources as references do.

    Attributes:
        how: the correlation.
        values: (trace, reference) -> ``[row, prompt]``; NaN where a correlation is not defined (and ``undefined`` is
            ``"drop"``).
        layers: (trace) -> what each row is: numbers of layers with attention from the bottom, and None for the whole
            trace, last.
        undefined_counts: (trace, reference) -> ``[row]`` prompts in which one side did not vary.
        undefined: what was done with those.
        about: how it was made.
    """

    how: str
    values: Mapping[tuple[str, str], Float[np.ndarray, "row prompt"]]
    layers: Mapping[str, tuple[int | None, ...]]
    undefined_counts: Mapping[tuple[str, str], np.ndarray]
    undefined: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def interval(
        self, trace: str, reference: str, layer: int | None = None, *, confidence: float = 0.95, seed: int = 0
    ) -> Interval:
        """The mean over prompts with its bootstrap interval; of the whole trace for ``layer=None``."""
        values = lookup((trace, reference), self.values, "pair (trace, reference)")  # pyright: ignore[reportArgumentType]
        rows = self.layers[trace]
        if layer not in rows:
            raise BadInput(f"Trace {trace!r} holds no layer {layer}; it has {[x for x in rows if x is not None]}.")
        return mean_interval(
            values[rows.index(layer)], confidence=confidence, seed=seed, cluster=self.about.get("cluster")
        )

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per trace, reference and layer: mean, sd (n - 1), low, high, prompts, undefined.

        ``layer`` is missing for the whole trace.
        """
        rows = []
        for (trace, reference), values in self.values.items():
            for place, layer in enumerate(self.layers[trace]):
                found = self.interval(trace, reference, layer, confidence=confidence, seed=seed)
                finite = values[place][np.isfinite(values[place])]
                rows.append(
                    {
                        "trace": trace,
                        "reference": reference,
                        "layer": pd.NA if layer is None else layer,
                        "mean": found.mean,
                        "sd": float(finite.std(ddof=1)) if len(finite) > 1 else math.nan,
                        "low": found.low,
                        "high": found.high,
                        "prompts": found.n,
                        "undefined": int(self.undefined_counts[trace, reference][place]),
                    }
                )
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    def __repr__(self) -> str:
        means = {pair: values[-1][np.isfinite(values[-1])] for pair, values in self.values.items()}
        whole = [
            f"{trace} with {reference} {numeral(float(found.mean()) if len(found) else None)}"
            for (trace, reference), found in means.items()
        ]
        return f"TraceAgreement({self.how}: {', '.join(whole)})"


def trace_agreement(
    traces: Mapping[str, Trace],
    references: Mapping[str, Trace],
    *,
    how: Literal["spearman", "kendall", "pearson", "topk"] = "spearman",
    absolute: bool = True,
    exclude: Excluded = None,
    undefined: Literal["zero", "drop"] = "drop",
    target: int | Literal["max", "mean"] = -1,
    reference_target: int | Literal["max", "mean"] = -1,
    top: int = 5,
    cluster: Sequence[object] | None = None,
) -> TraceAgreement:
    """The correlation over sources of each trace with each reference, prompt by prompt, and layer by layer.

    Args:
        traces: name -> trace; where one holds layers (``each_layer=True``), each of them is compared as well.
        references: name -> trace that it is held against: blank-out, gradients. None of them is the truth: use several.
        how: ``"spearman"`` (ties at their mean rank), ``"kendall"`` (tau-b), ``"pearson"``, or ``"topk"``, the share of
            the ``top`` largest in common.
        absolute: compare sizes. False compares the numbers as they are, signs and all.
        exclude: sources that are compared in neither: ``"first"``, ``"last"`` or ``"ends"`` of each prompt's own
            tokens, a list of columns, or a mask ``[prompt, source]`` True at what is left out. Sources without a number
            in one of the two are left out always.
        undefined: what a prompt counts in which one side does not vary: ``"drop"`` nothing, ``"zero"`` 0 (as in Abnar
            and Zuidema, 2020).
        target: which target of the traces: its place, or ``"max"``/``"mean"`` over all targets (the paper's Table 3
            takes the maximum over rows).
        reference_target: the same of the references.
        top: for ``"topk"``.
        cluster: one label per prompt; prompts of one label are resampled together.

    Every prompt counts once at every layer: the released script of the paper pools layers below with each layer, and
    ranks ties densely, which is not Spearman's rho; neither is done here.

    Raises:
        BadInput: no traces, or traces of other prompts or sources.
        UnknownName: another correlation or rule.

    Abnar and Zuidema, 2020, section 4; Jain and Wallace, 2019 (``how="kendall"``).

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
        >>> raw = interp.trace(model, batch, "raw", each_layer=True)
        >>> gone = interp.trace(model, batch, "occlusion")
        >>> trace_agreement({"raw": raw}, {"occlusion": gone}).table()[["layer", "prompts"]].values.tolist()
        [[0, 1], [1, 1], [<NA>, 1]]
    """
    lookup(how, AGREEMENTS, "agreement (how=)")
    lookup(undefined, _UNDEFINED, "rule for what does not vary (undefined=)")
    check_top("trace_agreement", top)
    first = _checked(traces, references)
    if cluster is not None and len(cluster) != len(first):
        raise BadInput(f"trace_agreement: {len(cluster)} cluster labels for {len(first)} prompts; give one each.")
    kept = first.mask & ~excluded_sources(exclude, first.mask)
    values, counts, layers = {}, {}, {}
    for name, trace in traces.items():
        rows = list(_rows(name, trace, target))
        layers[name] = tuple(layer for layer, _ in rows)
        for other, reference in references.items():
            (_, against), *_ = reversed(list(_rows(other, reference, reference_target)))
            made = np.stack([correlations(row, against, kept, how=how, absolute=absolute, top=top) for _, row in rows])
            counts[name, other] = (~np.isfinite(made)).sum(1)
            values[name, other] = np.nan_to_num(made, nan=0.0) if undefined == "zero" else made
    about = {"absolute": absolute, "top": top if how == "topk" else None, "cluster": cluster}
    return TraceAgreement(how, values, layers, counts, undefined, about)


def check_top(name: str, top: object) -> None:
    """Refuse a number of the largest that is none.

    Raises:
        BadInput: no whole number of at least 1.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise BadInput(f"{name}: top={top!r}; expected how many of the largest are compared, at least 1.")


def correlations(
    first: Float[np.ndarray, "prompt source"],
    second: Float[np.ndarray, "prompt source"],
    kept: Bool[np.ndarray, "prompt source"],
    *,
    how: str = "spearman",
    absolute: bool = True,
    top: int = 5,
) -> Float[np.ndarray, " prompt"]:
    """``[prompt]`` the correlation of two traces over the sources that are kept; NaN where one does not vary.

    Example:
        >>> a = np.array([[0.1, 0.2, 0.7]])
        >>> correlations(a, -a, np.ones((1, 3), dtype=bool)), correlations(a, -a, a > 0, absolute=False)
        (array([1.]), array([-1.]))
    """
    measure = lookup(how, AGREEMENTS, "agreement (how=)")
    made = np.full(len(first), np.nan)
    for prompt, (one, other, here) in enumerate(zip(first, second, kept, strict=True)):
        both = here & np.isfinite(one) & np.isfinite(other)
        a, b = (np.abs(x[both]) if absolute else x[both] for x in (one, other))
        if len(a) >= _FEWEST and varies(a) and varies(b):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", stats.ConstantInputWarning)
                made[prompt] = measure(a, b, top)
    return made


def varies(values: Float[np.ndarray, " source"]) -> bool:
    """Whether numbers differ by more than rounding.

    Example:
        >>> varies(np.array([0.1, 0.1 + 1e-17])), varies(np.array([0.1, 0.2]))
        (False, True)
    """
    return bool(np.ptp(values) > _ROUNDING * np.abs(values).max())


def excluded_sources(exclude: Excluded, mask: Bool[np.ndarray, "prompt source"]) -> Bool[np.ndarray, "prompt source"]:
    """``[prompt, source]`` True at the sources that ``exclude`` names.

    Args:
        exclude: None nothing; ``"first"``, ``"last"`` or ``"ends"`` of each prompt's own sources; columns; or a mask.
        mask: True at real sources.

    Raises:
        BadInput: something else.

    Example:
        >>> excluded_sources("first", np.array([[False, True, True]])).tolist()
        [[False, True, False]]
    """
    made = np.zeros(mask.shape, dtype=bool)
    if exclude is None:
        return made
    if isinstance(exclude, str):
        lookup(exclude, {"first": 0, "last": 0, "ends": 0}, "sources to leave out (exclude=)")
        rows = np.arange(len(mask))
        if exclude in ("first", "ends"):
            made[rows, mask.argmax(1)] = True
        if exclude in ("last", "ends"):
            made[rows, mask.shape[1] - 1 - mask[:, ::-1].argmax(1)] = True
        return made
    given = exclude.cpu().numpy() if isinstance(exclude, Tensor) else np.asarray(exclude)
    if given.dtype == bool and given.shape == mask.shape:
        return given
    columns = given.astype(int) if given.dtype.kind in "iu" and given.ndim == 1 else None
    if columns is None or (np.abs(columns + 0.5) > mask.shape[1]).any():
        raise BadInput(
            f"exclude={exclude!r}; expected None, 'first', 'last', 'ends', a list of columns of the {mask.shape[1]} "
            f"sources, or a mask {list(mask.shape)} [prompt, source] True at what is left out."
        )
    made[:, columns] = True
    return made


def _rows(name: str, trace: Trace, target: int | str) -> Iterator[tuple[int | None, np.ndarray]]:
    """Layer and ``[prompt, source]``, the whole trace (None) last."""
    parts: list[tuple[int | None, np.ndarray]] = [] if trace.layers is None else list(enumerate(trace.layers))
    for layer, values in (*parts, (None, trace.values)):
        yield layer, one_target(name, values, target)


def one_target(name: str, values: Float[np.ndarray, "prompt target source"], target: int | str) -> np.ndarray:
    """``[prompt, source]`` the numbers of one target, or the largest or mean over targets.

    Raises:
        BadInput: a target that is not there.
    """
    if target in _FOLDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # padded sources have no number in any row
            return np.nanmax(values, axis=1) if target == "max" else np.nanmean(values, axis=1)
    number = values.shape[1]
    if isinstance(target, str | bool) or not -number <= target < number:
        raise BadInput(f"Trace {name!r}: target={target!r}; expected 'max', 'mean', or one of its {number} targets.")
    return values[:, target]


def _checked(traces: Mapping[str, Trace], references: Mapping[str, Trace]) -> Trace:
    if not traces or not references:
        raise BadInput("trace_agreement: give at least one trace and one reference, as name -> interp.trace(...).")
    first = next(iter(traces.values()))
    for name, trace in (*traces.items(), *references.items()):
        if not isinstance(trace, Trace):
            raise BadInput(
                f"trace_agreement: {name!r} is a {type(trace).__name__}; expected what interp.trace returns."
            )
        if trace.mask.shape != first.mask.shape or (trace.mask != first.mask).any() or trace.sources != first.sources:
            raise BadInput(
                f"trace_agreement: {name!r} is over {trace.mask.shape[1]} sources of {len(trace)} prompts of stack "
                f"{trace.stack!r}, the first over {first.mask.shape[1]} sources of {len(first)} prompts of stack "
                f"{first.stack!r}; compare traces of the same prompts over the same sources."
            )
    return first
