"""``HeadScores``: one number per head and sample, with what it means and how it was made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.address import Head
from interp.errors import BadInput
from interp.names import unknown
from interp.numerals import numeral
from interp.samples import as_samples, join_samples, mean_of_samples, read_only
from interp.stats import Agreement, bootstrap_means, rank_agreement
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Group

Quantity = Literal["effect", "contribution", "gate", "score"]
SampleAxis = Literal["prompt", "seed", "permutation"]
Unit = Literal["query", "kv"]
By = Literal["abs", "helps", "hurts", "value"]

CONFIDENCE = 0.95  # of intervals, where none is named
FEWEST_SAMPLES = 2  # one has no spread
_N_AXES = 3  # sample, layer, head
_KIND = "head scores"
_SAVED = (
    *("name", "quantity", "sense", "unit", "sample_axis", "default_stack"),
    *("positions", "cluster", "weights", "metadata"),
)


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """A table of heads: one number per (stack, layer, head, sample), NaN where it is undefined. Made by ``from_array``.

    Attributes:
        name: what was measured, such as ``"induction"`` or ``"zero"``.
        data: stack -> samples ``[sample, layer, head]`` (``[sample, layer, head, pos]`` with ``positions``).
        exists: stack -> ``[layer, head]``, which cells are heads of the model.
        quantity: ``effect`` (change of a metric by an edit, edited minus unedited), ``contribution``, ``gate`` (in
            [0, 1]) or ``score`` (a property of the head's pattern or output).
        sense: +1 a larger value means that the head helps the metric, -1 that it hurts, 0 unsigned.
        unit: ``query`` heads or ``kv`` heads.
        sample_axis: what the samples are; None for a single number per head, which has no interval.
        default_stack: the stack whose heads print without a prefix.
        positions: labels of the position axis, or None.
        cluster: one label per sample; samples with the same label are resampled together.
        weights: one weight per sample, where the mean is weighted: of ratios weighted by their denominators it is the
            ratio of the means.
        metadata: how the numbers were made (method, kernels, source, versions ...): anything JSON can hold.
    """

    name: str
    data: Mapping[str, np.ndarray]
    exists: Mapping[str, np.ndarray]
    quantity: str
    sense: int
    unit: str
    sample_axis: str | None
    default_stack: str
    positions: tuple[str, ...] | None = None
    cluster: tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_array(
        cls,
        values: Any,
        *,
        name: str,
        quantity: Quantity | str = "score",
        sense: int = 0,
        sample_axis: SampleAxis | str | None = None,
        stack: str = "text",
        default_stack: str | None = None,
        unit: Unit | str = "query",
        exists: Bool[np.ndarray, "layer head"] | None = None,
        positions: Sequence[object] | None = None,
        cluster: Sequence[object] | np.ndarray | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> HeadScores:
        """The table made of an array.

        Args:
            values: an array, nested lists or a tensor: ``[layer, head]``, or ``[sample, layer, head]`` with
                ``sample_axis``; one more axis at the end with ``positions``. NaN where no head is, and where a
                sample has no value.
            name, quantity, sense, sample_axis, unit, metadata: see the class.
            stack: the stack that the layers belong to.
            default_stack: the stack whose heads print without a prefix; ``stack`` itself if None.
            exists: which cells are heads; by default those with a value in any sample.
            positions: labels of the last axis, where there is one per position.
            cluster: one label per sample.
            weights: one weight per sample, for a weighted mean.

        Raises:
            BadInput: a shape, quantity, sense, unit or number of labels that does not fit.

        Example:
            >>> scores = HeadScores.from_array(np.array([[0.1, 0.9]]), name="induction")
            >>> scores.values.shape, scores.top(1).label.tolist()
            ((1, 2), ['L0.H1'])
        """
        for word, allowed, kind in (
            (quantity, get_args(Quantity), "quantity"),
            (unit, get_args(Unit), "unit"),
            (sample_axis or "prompt", get_args(SampleAxis), "sample axis"),
        ):
            if word not in allowed:
                raise BadInput(unknown(word, allowed, kind))
        if sense not in (-1, 0, 1):
            raise BadInput(
                f"sense={sense!r}: expected +1 (larger helps the metric), -1 (larger hurts) or 0 (unsigned)."
            )
        samples = as_samples(values, name=name, sample_axis=sample_axis, positions=positions)
        there = np.isfinite(samples).any(axis=(0, *range(_N_AXES, samples.ndim))) if exists is None else exists
        there = np.array(there, dtype=bool)
        if there.shape != samples.shape[1:_N_AXES]:
            raise BadInput(f"exists came as {there.shape}; expected [layer, head] = {samples.shape[1:_N_AXES]}.")
        if cluster is not None and len(cluster) != len(samples):
            raise BadInput(f"cluster: {len(cluster)} labels for {len(samples)} samples; give one label per sample.")
        if weights is not None and (len(weights) != len(samples) or not np.isfinite(weights).all()):
            raise BadInput(f"weights: {len(weights)} for {len(samples)} samples; give one finite number per sample.")
        return cls(
            name=name,
            data=read_only({stack: samples}),
            exists=read_only({stack: there}),
            quantity=quantity,
            sense=int(sense),
            unit=unit,
            sample_axis=sample_axis,
            default_stack=default_stack or stack,
            positions=None if positions is None else tuple(str(label) for label in positions),
            cluster=None if cluster is None else tuple(str(label) for label in cluster),
            weights=None if weights is None else tuple(float(weight) for weight in weights),
            metadata=plain_json(metadata or {}),
        )

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks in the table."""
        return tuple(self.data)

    def of(self, stack: str) -> HeadScores:
        """The part of the table that belongs to one stack."""
        if stack not in self.data:
            raise BadInput(unknown(stack, self.stacks, "stack"))
        return replace(self, data=read_only({stack: self.data[stack]}), exists=read_only({stack: self.exists[stack]}))

    @property
    def samples(self) -> Float[np.ndarray, "sample layer head ..."]:
        """Every value ``[sample, layer, head]``; one sample where there is no sample axis. Of a single stack."""
        return self.data[self._only_stack()]

    @property
    def per_prompt(self) -> Float[np.ndarray, "sample layer head ..."]:
        """``samples``, where the samples are prompts.

        Raises:
            BadInput: the samples are something else.
        """
        if self.sample_axis != "prompt":
            raise BadInput(
                f"{self.name!r} has no value per prompt: its sample axis is {self.sample_axis!r}. Use .samples."
            )
        return self.samples

    @property
    def values(self) -> Float[np.ndarray, "layer head ..."]:
        """Mean over samples without NaN, ``[layer, head]``; NaN where no head is. Of a single stack."""
        return mean_of_samples(self.samples, self.weights)

    def importance(self) -> Float[np.ndarray, "layer head ..."]:
        """``sense * values``: positive where a head helps the metric, negative where it hurts.

        Zero everywhere for an unsigned quantity, which claims neither.
        """
        return self.sense * self.values

    def agreement(self, other: HeadScores, *, top: int = 10) -> Agreement:
        """Rank agreement of the importance of the same heads in two tables (of the values, where both are unsigned).

        Raises:
            BadInput: one is signed and the other is not, or the heads differ.
        """
        if bool(self.sense) != bool(other.sense):
            signed, unsigned = (self, other) if self.sense else (other, self)
            raise BadInput(
                f"agreement: {signed.name!r} says whether a head helps or hurts and {unsigned.name!r} does not; "
                "compare two signed or two unsigned tables."
            )
        if (self.unit, self.positions) != (other.unit, other.positions):
            raise BadInput(
                f"agreement: {self.name!r} and {other.name!r} are not of the same heads and positions ({self.unit} and "
                f"{other.unit} heads); compare tables of the same cells."
            )
        first, second = (each.importance() if each.sense else each.values for each in (self, other))
        return rank_agreement(first, second, top=top)

    def long(self) -> pd.DataFrame:
        """One row per value: stack, layer, head, unit, pos where there is one, sample, value."""
        parts = []
        for stack, samples in self.data.items():
            cells = np.argwhere(self.exists[stack])
            grid = samples[:, cells[:, 0], cells[:, 1]]
            index = np.indices(grid.shape)
            columns: dict[str, Any] = {
                "stack": stack,
                "layer": cells[index[1].ravel(), 0],
                "head": cells[index[1].ravel(), 1],
                "unit": self.unit,
            }
            if self.positions is not None:
                columns["pos"] = np.array(self.positions, dtype=object)[index[2].ravel()]
            parts.append(pd.DataFrame({**columns, "sample": index[0].ravel(), "value": grid.ravel()}))
        return pd.concat(parts, ignore_index=True)

    def table(self, *, confidence: float | None = None) -> pd.DataFrame:
        """One row per head: stack, layer, head, pos where there is one, value, low, high.

        ``low`` and ``high`` are the ends of the percentile bootstrap interval over the samples; NaN without a sample
        axis, and with a single sample or cluster.

        Args:
            confidence: of the interval; 0.95 by default. Named here, it asks for an interval.

        Raises:
            BadInput: a confidence is asked for and the samples are fewer than two (or all in one cluster).
        """
        if confidence is not None:
            self._require_interval()
        parts = []
        for stack, samples in self.data.items():
            low, high = self._ends(stack, confidence)
            cells = np.argwhere(np.broadcast_to(self._spread(self.exists[stack]), low.shape))
            place = tuple(cells.T)
            columns: dict[str, Any] = {"stack": stack, "layer": cells[:, 0], "head": cells[:, 1]}
            if self.positions is not None:
                columns["pos"] = np.array(self.positions, dtype=object)[cells[:, 2]]
            parts.append(
                pd.DataFrame(
                    {
                        **columns,
                        "value": mean_of_samples(samples, self.weights)[place],
                        "low": low[place],
                        "high": high[place],
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def top(self, k: int = 10, *, by: By | str = "abs", confidence: float | None = None) -> pd.DataFrame:
        """The rows of ``table`` for the ``k`` foremost heads, with the head's ``label`` in front.

        Args:
            k: how many rows at most.
            by: ``"abs"`` largest absolute value; ``"value"`` largest value; ``"helps"`` those that help the metric,
                most first; ``"hurts"`` those that hurt it, most first.
            confidence: of the interval, as in ``table``.

        Raises:
            BadInput: ``helps`` or ``hurts`` of an unsigned quantity, or an unknown ``by``.
        """
        if by not in get_args(By):
            raise BadInput(unknown(by, get_args(By), "order"))
        if by in ("helps", "hurts") and not self.sense:
            raise BadInput(
                f"top(by={by!r}): {self.name!r} is unsigned, it does not say whether a head helps or hurts. "
                "Use by='abs' or by='value'."
            )
        rows = self.table(confidence=confidence)
        rows.insert(0, "label", self._labels(rows))
        direction = {"helps": self.sense, "hurts": -self.sense}.get(by, 1)
        key = rows["value"].abs() if by == "abs" else direction * rows["value"]
        rows = rows[key > 0] if by in ("helps", "hurts") else rows[key.notna()]
        order = key.loc[rows.index].sort_values(ascending=False, kind="stable").index[:k]
        return rows.loc[order].reset_index(drop=True)

    def top_heads(self, k: int = 10, *, by: By | str = "abs") -> list[Head]:
        """The ``k`` foremost heads as ``Head`` values, ready for an edit; see ``top``."""
        rows = self.top(sum(samples[0].size for samples in self.data.values()), by=by)
        cells = zip(rows["stack"], rows["layer"], rows["head"], strict=True)
        return list(dict.fromkeys(self._head(*cell) for cell in cells))[:k]  # a head counts by its foremost position

    def _labels(self, rows: pd.DataFrame) -> list[str]:
        """Label of the head of each row of a table: ``L5.H3``, with a prefix off the default stack."""
        return [str(self._head(*cells)) for cells in zip(rows["stack"], rows["layer"], rows["head"], strict=True)]

    def plot(
        self, *, title: str = "", marked: Iterable[Head | tuple[int, int]] = (), confidence: float | None = None
    ) -> go.Figure:
        """A plotly heatmap, layer by head, with value and interval on hovering; head by position with ``positions``.

        Args:
            title: heading inside the figure; the name by default.
            marked: heads to outline.
            confidence: of the interval.
        """
        from interp.show.scores import scores_figure

        stack = self._only_stack()
        low, high = self._ends(stack, confidence)
        return scores_figure(
            self.values,
            low,
            high,
            self.exists[stack],
            name=self.name,
            signed=True if self.sense else None,
            prefix=self._prefix(stack),
            title=title,
            note=f"{100 * (confidence or CONFIDENCE):g} % interval",
            marked=[(head[0], head[1]) for head in marked],
            positions=self.positions,
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{stack} {there.shape[0]}x{there.shape[1]}" for stack, there in self.exists.items())
        n_samples, n_units = self._counts()
        over = f", {n_samples} {self.sample_axis}{'s' * (n_samples != 1)}" if self.sample_axis else ""
        over += " (too few for an interval)" if self.sample_axis and n_units < FEWEST_SAMPLES else ""
        tables = [mean_of_samples(samples, self.weights) for samples in self.data.values()]
        finite = np.concatenate([table[np.isfinite(table)] for table in tables])
        kind = "KV heads" if self.unit == "kv" else "heads"
        spread = f", {numeral(float(finite.min()))} to {numeral(float(finite.max()))}" if finite.size else ", no value"
        return f"HeadScores({self.name!r}, {self.quantity}, {shapes} {kind}{over}{spread})"

    def __rich__(self) -> Group:
        from interp.show.scores import scores_text

        return scores_text(repr(self), self.top(10))

    def _repr_html_(self) -> str:
        from interp.show.scores import scores_html

        maps = {self._prefix(stack): mean_of_samples(samples, self.weights) for stack, samples in self.data.items()}
        signed = True if self.sense else None
        return scores_html(repr(self), self.top(10), {} if self.positions else maps, name=self.name, signed=signed)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds the table, written whole or not at all; see ``open``."""
        arrays = {f"samples.{stack}": samples for stack, samples in self.data.items()}
        arrays |= {f"exists.{stack}": there for stack, there in self.exists.items()}
        about = {name: getattr(self, name) for name in _SAVED}
        return write_arrays(path, arrays, kind=_KIND, metadata={**about, "stacks": self.stacks})

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> HeadScores:
        """The table that ``save`` wrote to ``path``.

        Raises:
            BadInput: the file is not there, is damaged, or is something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        stacks = about.pop("stacks")
        for name in ("positions", "cluster", "weights"):
            about[name] = None if about.get(name) is None else tuple(about[name])
        return cls(
            data=read_only({stack: arrays[f"samples.{stack}"] for stack in stacks}),
            exists=read_only({stack: arrays[f"exists.{stack}"] for stack in stacks}),
            **about,
        )

    @classmethod
    def concat(cls, parts: Iterable[HeadScores]) -> HeadScores:
        """One table of several: other stacks side by side, or further samples of the same stacks one after the other.

        The first part names the default stack and the metadata; entries that differ become lists, one item per part.

        Raises:
            BadInput: nothing to join, or parts that measure different things or have other shapes.
        """
        tables = list(parts)
        for name in ("name", "quantity", "sense", "unit", "sample_axis", "positions"):
            found = list(dict.fromkeys(getattr(table, name) for table in tables))
            if len(found) != 1:
                raise BadInput(f"HeadScores.concat: expected tables of one {name}, got {found or 'no table'}.")
        first, clusters = tables[0], [table.cluster for table in tables]
        data = join_samples([table.data for table in tables], clusters, sample_axis=first.sample_axis)
        exists = {stack: np.any([t.exists[stack] for t in tables if stack in t.exists], axis=0) for stack in data}
        metadata = dict(first.metadata)
        for key in {key: None for table in tables for key in table.metadata}:
            entries = [table.metadata.get(key) for table in tables]
            metadata[key] = entries[0] if all(entry == entries[0] for entry in entries) else entries
        further_samples = first.cluster is not None and len(data) == len(first.data)
        labels = tuple(label for each in clusters for label in each or ()) if further_samples else first.cluster
        weights = _joined_weights(tables, further=len(data) == len(first.data))
        return replace(first, data=data, exists=read_only(exists), cluster=labels, weights=weights, metadata=metadata)

    def _only_stack(self) -> str:
        if len(self.data) != 1:
            raise BadInput(
                f"{self.name!r} holds the stacks {', '.join(self.stacks)}; choose one, such as "
                f".of({self.stacks[0]!r}).values."
            )
        return self.stacks[0]

    def _counts(self) -> tuple[int, int]:
        """How many samples there are, and how many that are resampled apart."""
        n_samples = len(next(iter(self.data.values())))
        return n_samples, n_samples if self.cluster is None else len(set(self.cluster))

    def _require_interval(self) -> None:
        n_samples, n_units = self._counts()
        if self.sample_axis is not None and n_units < FEWEST_SAMPLES:
            within = "" if self.cluster is None else f" in {n_units} cluster"
            raise BadInput(
                f"{self.name!r} has {n_samples} {self.sample_axis}{'s' * (n_samples != 1)}{within}; an interval needs "
                "two at least. Leave confidence= out for the values alone."
            )

    def _ends(self, stack: str, confidence: float | None) -> tuple[np.ndarray, np.ndarray]:
        samples = self.data[stack]
        if self.sample_axis is None:
            nothing = np.full(samples.shape[1:], np.nan)
            return nothing, nothing.copy()
        wanted = CONFIDENCE if confidence is None else confidence
        return bootstrap_means(samples, confidence=wanted, cluster=self.cluster, sample_weights=self.weights)

    def _spread(self, exists: np.ndarray) -> np.ndarray:
        return exists if self.positions is None else exists[..., None]

    def _prefix(self, stack: str) -> str:
        return "" if stack == self.default_stack else f"{stack}."

    def _head(self, stack: str, layer: int, head: int) -> Head:
        return Head(int(layer), int(head), None if stack == self.default_stack else stack)


def _joined_weights(tables: Sequence[HeadScores], *, further: bool) -> tuple[float, ...] | None:
    """The weights of a joined table: one after the other for further samples, else those that all parts share."""
    found = [table.weights for table in tables]
    if all(weights is None for weights in found):
        return None
    if any(weights is None for weights in found) or (not further and len(set(found)) > 1):
        raise BadInput("HeadScores.concat: the tables have different weights per sample; join tables weighted alike.")
    return tuple(weight for weights in found for weight in weights or ()) if further else found[0]
