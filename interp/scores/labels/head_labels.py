"""``HeadLabels``: which heads earned which label, on what evidence, and which earned none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.address import Head
from interp.errors import BadInput
from interp.names import unknown
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KIND = "head labels"
NUMBERS = (
    *("score", "low", "high", "null", "threshold", "rival", "weight"),
    *("effect", "effect_low", "effect_high", "p", "p_largest"),
)
TRUTHS = ("pattern", "causal", "labelled")
WORDS = ("head", "label", "stage", "place")


@dataclass(frozen=True, eq=False, repr=False)
class HeadLabels:
    """Labels of heads with their evidence. Made by :func:`interp.label_heads`; prints as sentences.

    Attributes:
        rows: one row per head and type that was tested; the columns are those of ``table``, and ``pattern``, ``causal``
            and ``labelled``: whether each test was passed, and both.
        heads: every head of the stack, by layer and index.
        untested: type -> why it was not tested.
        notes: what the reader has to know, in sentences.
        metadata: model, method, metric, level, margin, seed, prompts.
    """

    rows: pd.DataFrame
    heads: tuple[Head, ...]
    untested: Mapping[str, str]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Head -> its labels, for the heads that earned any, by layer and index."""
        earned = self.rows[self.rows["labelled"].astype(bool)]
        found: dict[str, tuple[str, ...]] = {}
        for head, label in zip(earned["head"], earned["label"], strict=True):
            found[head] = (*found.get(head, ()), label)
        return {name: found[name] for name in map(str, self.heads) if name in found}

    @property
    def unlabelled(self) -> list[Head]:
        """The heads that earned no label."""
        return [head for head in self.heads if str(head) not in self.labels]

    @property
    def tested(self) -> tuple[str, ...]:
        """The types that were tested."""
        return tuple(dict.fromkeys(self.rows["label"]))

    def table(self, *, every: bool = False) -> pd.DataFrame:
        """One row per label earned, by layer and index; with ``every`` one per head and type tested.

        Columns: head, label, stage, place (where it looks, for types of place), score (of the pattern) with low and
        high (95 % bootstrap over prompts), null (its mean), threshold (its upper quantile), rival (what other heads of
        the layer reach), weight (the score of weights, NaN without), effect (of the removal on the metric, edited minus
        unedited) with effect_low and effect_high, p (Benjamini-Hochberg), p_largest (Westfall-Young).
        """
        chosen = self.rows if every else self.rows[self.rows["labelled"].astype(bool)]
        shown = chosen if every else chosen.drop(columns=list(TRUTHS))
        return pd.DataFrame(shown).reset_index(drop=True)

    def evidence(self, head: Head | str | tuple[int, int]) -> pd.DataFrame:
        """Every test of one head, with a sentence on why each label was earned or not.

        Raises:
            BadInput: a head that the stack does not have.
        """
        name = str(Head.parse(head))
        if name not in map(str, self.heads):
            raise BadInput(unknown(name, map(str, self.heads), "head"))
        found = pd.DataFrame(self.rows[self.rows["head"] == name]).reset_index(drop=True)
        return found.assign(why=[_why(row) for row in found.to_dict(orient="records")])

    def plot(self, *, title: str = "") -> go.Figure:
        """A plotly map of all heads, layer by head, coloured by stage, with the labels on the cells."""
        from interp.show.labels import label_map

        stages = dict(zip(self.rows["label"], self.rows["stage"], strict=True))
        cells = {str(head): (head.layer, head.index) for head in self.heads}
        return label_map(cells, self.labels, stages, title=title or str(self))

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """``(arrays, everything else as JSON can hold it)``; ``from_arrays`` takes both."""
        arrays = {name: self.rows[name].to_numpy(dtype=float) for name in NUMBERS}
        arrays |= {name: self.rows[name].to_numpy(dtype=bool) for name in TRUTHS}
        about = {
            "words": {name: [str(word) for word in self.rows[name]] for name in WORDS},
            "heads": [str(head) for head in self.heads],
            "untested": dict(self.untested),
            "notes": list(self.notes),
            "metadata": plain_json(self.metadata),
        }
        return arrays, about

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> HeadLabels:
        """What ``arrays`` took apart."""
        columns = {**about["words"], **arrays}
        rows = pd.DataFrame({name: columns[name] for name in (*WORDS, *NUMBERS, *TRUTHS)})
        heads = tuple(map(Head.parse, about["heads"]))
        return cls(rows, heads, about["untested"], tuple(about["notes"]), about["metadata"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds everything; ``open`` reads it."""
        arrays, about = self.arrays()
        return write_arrays(path, arrays, kind=_KIND, metadata=about)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> HeadLabels:
        """What ``save`` wrote.

        Raises:
            BadInput: no such file, or one of something else.
        """
        return cls.from_arrays(*read_arrays(path, kind=_KIND))

    def __str__(self) -> str:
        said = [f"{name} {' and '.join(labels)}" for name, labels in self.labels.items()]
        earned = f"{len(self.labels)} of {len(self.heads)} heads earned a label"
        return f"{earned}: {', '.join(said)}." if said else f"{earned}."

    def __repr__(self) -> str:
        return f"HeadLabels({len(self.tested)} types tested, {len(self.untested)} not; {self})"

    def _repr_html_(self) -> str:
        from interp.show.scores import rows_html

        shown = ["head", "label", "stage", "score", "threshold", "rival", "effect", "effect_low", "effect_high", "p"]
        left = f"Not tested: {', '.join(self.untested)}." if self.untested else ""
        return rows_html(str(self), pd.DataFrame(self.table()[shown]), " ".join([*self.notes, left]))


def _why(row: Mapping[Any, Any]) -> str:
    """Why a head earned a label or not, from its row."""
    from interp.numerals import numeral

    if not np.isfinite(row["score"]):
        return "No row of the prompts asks for this pattern."
    beside = f"null up to {numeral(row['threshold'])}"
    if np.isfinite(row["rival"]):
        beside += f", other heads {numeral(row['rival'])}"
    stands = "stands out" if row["pattern"] else "does not stand out"
    said = f"The pattern {stands} ({numeral(row['score'])}; {beside})"
    if not np.isfinite(row["effect"]):
        return f"{said}; there is no effect to judge."
    stands = "stands out" if row["causal"] else "does not, or not in the sense of the type"
    return f"{said}; the effect ({numeral(row['effect'])}) {stands}: {'label' if row['labelled'] else 'no label'}."
