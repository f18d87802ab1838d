"""``compare_traces``: several traces of the same prompts side by side, and how far they rank the tokens alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import BadInput
from interp.names import unknown
from interp.numerals import numeral
from interp.show.heatmap import grid_heatmap
from interp.show.inline import inline_table
from interp.show.trace_plot import real_tokens, trace_tokens, with_named_axes
from interp.show.trace_prediction import agreement_bars
from interp.show.trace_text import TokenHeatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.tracing.result import Trace

_CELL = 46  # pixels of a cell of the matrix, which holds a printed number
_FEWEST = 2  # tokens of which a correlation says something
_ROUNDING = 1e-12  # of the largest number, below which a difference is none


@dataclass(frozen=True, eq=False, repr=False)
class TraceComparison:
    """Traces of the same prompts side by side; shows the first prompt's text and the matrix of methods in a notebook.

    Made by :func:`compare_traces`.

    Attributes:
        traces: name -> trace.
        spearman: ``[trace, trace, prompt]`` Spearman's rank correlation over the tokens of a prompt, ties at their mean
            rank; NaN where one of the two does not vary.
        mean, low, high: ``[trace, trace]`` over prompts without NaN, and the interval of the mean (NaN for one prompt).
        sizes: whether sizes were ranked and not signed numbers.
        target: which target.
        confidence: of the interval.
    """

    traces: Mapping[str, Trace]
    spearman: Float[np.ndarray, "trace trace prompt"]
    mean: Float[np.ndarray, "trace trace"]
    low: Float[np.ndarray, "trace trace"]
    high: Float[np.ndarray, "trace trace"]
    sizes: bool
    target: int = -1
    confidence: float = 0.95

    @property
    def names(self) -> tuple[str, ...]:
        """Of the traces."""
        return tuple(self.traces)

    def tokens(self, prompt: int = 0) -> TokenHeatmap:
        """The text of one prompt, once per method; the target is outlined."""
        return trace_tokens(self.traces, prompt=prompt, target=self.target)

    def plot(self, *, title: str = "") -> go.Figure:
        """A heatmap, method by method: mean Spearman correlation, its interval on hovering."""
        figure = grid_heatmap(
            self.mean,
            rows=self.names,
            columns=self.names,
            low=self.low,
            high=self.high,
            signed=True,
            limits=(-1.0, 1.0),
            name="Spearman's rho",
            title=title or f"rank correlation{' of sizes' if self.sizes else ''}",
            note=f"{100 * self.confidence:g} % interval over prompts",
        )
        return with_named_axes(figure, self.names, self.names, least_cell=_CELL)

    def bars(self, reference: str, *, title: str = "") -> go.Figure:
        """A bar chart: how well each other method's ranking predicts the reference's, best first, with intervals.

        Raises:
            UnknownName: a reference that is none of the traces.
        """
        place = self._place(reference)
        others = [n for n in range(len(self.names)) if n != place]
        rows = pd.DataFrame(
            {
                "trace": [self.names[n] for n in others],
                "mean": self.mean[others, place],
                "low": self.low[others, place],
                "high": self.high[others, place],
            }
        )
        dots = {self.names[n]: self.spearman[n, place] for n in others}
        return agreement_bars(rows, reference=reference, points=dots, confidence=self.confidence, title=title)

    def table(self) -> pd.DataFrame:
        """One row per pair of traces: first, second, spearman, low, high, prompts."""
        rows = []
        for i, first in enumerate(self.names):
            for j in range(i + 1, len(self.names)):
                ends = {"spearman": self.mean[i, j], "low": self.low[i, j], "high": self.high[i, j]}
                known = int(np.isfinite(self.spearman[i, j]).sum())
                rows.append({"first": first, "second": self.names[j], **ends, "prompts": known})
        return pd.DataFrame(rows, columns=["first", "second", "spearman", "low", "high", "prompts"])

    def __repr__(self) -> str:
        pairs = self.mean[np.triu_indices(len(self.names), 1)]
        finite = pairs[np.isfinite(pairs)]
        spread = f"{numeral(float(finite.min()))} to {numeral(float(finite.max()))}" if finite.size else "undefined"
        return f"TraceComparison({', '.join(self.names)}; {self.spearman.shape[-1]} prompts, Spearman {spread})"

    def _repr_html_(self) -> str:
        heading = f"<p>{len(self.names)} methods, the first of {self.spearman.shape[-1]} prompts.</p>"
        return heading + str(self.tokens().markup() + inline_table(self.table()))

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise BadInput(unknown(name, self.names, "trace"))
        return self.names.index(name)


def compare_traces(
    traces: Mapping[str, Trace] | Sequence[Trace],
    *,
    target: int = -1,
    sizes: bool | None = None,
    exclude: Sequence[int] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> TraceComparison:
    """Traces of the same prompts side by side, with the rank correlation of every two of them over the tokens.

    Args:
        traces: name -> trace, or traces of different methods.
        target: which target, by its place.
        sizes: True ranks absolute numbers, False signed ones; None takes sizes if some traces are signed and others
            are not, since a size cannot speak against the answer.
        exclude: columns that are left out of the correlations, such as a first token that everything rests on.
        confidence: of the intervals over prompts.
        seed: of their resampling.

    Raises:
        BadInput: fewer than two traces, or traces of other prompts, tokens or targets.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]))
        >>> first, last = (interp.trace(model, batch, "raw", layer=n) for n in (0, 1))
        >>> compare_traces({"first": first, "last": last}).spearman.shape
        (2, 2, 1)
    """
    named = traces if isinstance(traces, Mapping) else {trace.method: trace for trace in traces}
    if len(named) < 2 or len(named) < len(traces):  # noqa: PLR2004 - two of them can be compared
        raise BadInput(
            f"compare_traces: traces named {list(named)} came; expected two at least, each with its own name."
        )
    _check_same(named)
    signs = {trace.signed for trace in named.values()}
    by_size = len(signs) > 1 if sizes is None else sizes
    rows = np.stack([trace.values[:, target] for trace in named.values()])
    if exclude:
        rows = rows.copy()
        rows[:, :, list(exclude)] = np.nan
    found = rank_correlations(np.abs(rows) if by_size else rows)
    finite = np.isfinite(found)
    mean = np.where(finite.any(-1), np.where(finite, found, 0).sum(-1) / np.maximum(finite.sum(-1), 1), np.nan)
    from interp.stats import bootstrap_means

    low, high = bootstrap_means(np.moveaxis(found, -1, 0), confidence=confidence, seed=seed)
    return TraceComparison(dict(named), found, mean, low, high, by_size, target, confidence)


def rank_correlations(rows: Float[np.ndarray, "trace prompt source"]) -> Float[np.ndarray, "trace trace prompt"]:
    """``[trace, trace, prompt]`` Spearman's rho over the sources that all traces of a prompt have (Spearman, 1904).

    Ties stand at their mean rank; NaN where a row does not vary or fewer than two sources are left.

    Example:
        >>> rows = np.array([[[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]])
        >>> rank_correlations(rows)[0, 1].round(6).tolist()
        [-1.0]
    """
    from scipy.stats import rankdata

    traces, prompts = rows.shape[:2]
    made = np.full((traces, traces, prompts), np.nan)
    for prompt in range(prompts):
        kept = np.isfinite(rows[:, prompt]).all(0)
        if kept.sum() < _FEWEST:
            continue
        here = rows[:, prompt, kept]
        centred = rankdata(here, axis=1)
        centred -= centred.mean(1, keepdims=True)
        length = np.sqrt((centred**2).sum(1))
        length[np.ptp(here, axis=1) <= _ROUNDING * np.abs(here).max(1)] = np.nan
        length[length == 0] = np.nan
        made[:, :, prompt] = np.clip((centred @ centred.T) / np.outer(length, length), -1.0, 1.0)
    return made


def _check_same(traces: Mapping[str, Trace]) -> None:
    first_name, first = next(iter(traces.items()))
    for name, trace in traces.items():
        same = trace.values.shape == first.values.shape and trace.sources == first.sources
        if not (same and np.array_equal(trace.mask, first.mask) and np.array_equal(trace.targets, first.targets)):
            raise BadInput(
                f"compare_traces: {name!r} {list(trace.values.shape)} and {first_name!r} {list(first.values.shape)} "
                "are not of the same prompts, tokens and targets; trace the same batch with the same targets=."
            )
    real_tokens(first, 0)
