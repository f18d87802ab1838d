"""Everything that the experiment on traces of texts found, and the tables made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from circuits.experiments.trace_text.measuring import HeadTables, Spreads
from circuits.experiments.trace_text.prompts import Prompts
from circuits.experiments.tracing.predicting import Prediction, Verdict, agreement_grid, layer_rows, verdict_of
from circuits.experiments.tracing.rows import Traced
from interp.tracing import METHODS


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found.

    Attributes:
        model: name of the model.
        prompts: what was traced.
        tokens: per prompt the text of its tokens.
        counted: ``[prompt, source]`` the tokens that are compared.
        traced: the traces, and the methods that the model cannot do.
        predictions: reference -> how well each method predicts it.
        beside: the same with special tokens counted the other way.
        signed: reference -> the same with signs, of the methods that have them.
        spreads: how much traces depend on their target.
        heads: heads by several roads; None where they were not asked for.
        maps: ``[layer, query, key]`` attention of the first prompt, heads averaged; None where it cannot be read.
        metric: what is explained, in words.
        special: whether special tokens are compared.
        confidence: of every interval.
    """

    model: str
    prompts: Prompts
    tokens: tuple[tuple[str, ...], ...]
    counted: Bool[np.ndarray, "prompt source"]
    traced: Traced
    predictions: Mapping[str, Prediction]
    beside: Mapping[str, Prediction]
    signed: Mapping[str, Prediction]
    spreads: Spreads
    heads: HeadTables | None
    maps: Float[np.ndarray, "layer query key"] | None
    metric: str
    special: bool
    confidence: float

    @property
    def main(self) -> Prediction:
        """How well the first reference is predicted."""
        return next(iter(self.predictions.values()))

    @cached_property
    def verdicts(self) -> dict[str, Verdict | None]:
        """Reference -> which method predicts it best."""
        return {name: verdict_of(one) for name, one in self.predictions.items()}

    def table(self) -> pd.DataFrame:
        """One row per method, the best predictor of the first reference first."""
        first, *others = self.predictions
        rows = self.main.table().rename(columns={"correlation": f"with {first}"})
        for name in others:
            prediction = self.predictions[name]
            found = {method: prediction.interval(method) for method in prediction.values}
            for column, part in (("", "mean"), (" low", "low"), (" high", "high")):
                rows[f"with {name}{column}"] = [
                    getattr(found[method], part) if method in found else np.nan for method in rows["method"]
                ]
        beside = self.beside.get(first)
        if beside is not None:
            words = "without special tokens" if self.special else "with special tokens"
            rows[words] = [beside.interval(method).mean for method in rows["method"]]
        if self.prompts.where is not None:
            rows["answer first"] = [float(self.answer_first(method).mean()) for method in rows["method"]]
        signed = self.signed.get(first)
        rows["with signs"] = [
            signed.interval(method).mean if signed is not None and method in signed.values else np.nan
            for method in rows["method"]
        ]
        return rows

    def answer_first(self, method: str) -> Float[np.ndarray, " prompt"]:
        """``[prompt]`` 1 where the largest number (by size) is that of the token that holds the answer; ties shared."""
        assert self.prompts.where is not None
        rows, found = np.abs(self.traced.rows[method].values), []
        for row, here, where in zip(rows, self.counted, self.prompts.where, strict=True):
            known = np.where(here & np.isfinite(row), row, -1.0)
            largest = known == known.max()
            found.append(float(largest[where] and known.max() > 0) / max(int(largest.sum()), 1))
        return np.array(found)

    def short_rows(self) -> pd.DataFrame:
        """The few columns that are printed at the end."""
        rows = self.table()
        first = next(iter(self.predictions))
        return rows.filter(["method", "needs", f"with {first}", "low", "high", "over random", "first in"]).head(8)

    def layers(self) -> pd.DataFrame:
        """The paper's table: one row per method, reference and layer."""
        return layer_rows(self.predictions)

    def traces(self) -> pd.DataFrame:
        """One row per method, prompt and source."""
        parts = []
        for name, rows in self.traced.rows.items():
            prompt, source = np.nonzero(np.isfinite(rows.values))
            parts.append(
                pd.DataFrame(
                    {
                        "method": name,
                        "prompt": prompt,
                        "source": source,
                        "token": [
                            self.tokens[p][s] if s < len(self.tokens[p]) else ""
                            for p, s in zip(prompt, source, strict=True)
                        ],
                        "value": rows.values[prompt, source],
                        "compared": self.counted[prompt, source],
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def refused(self) -> pd.DataFrame:
        """One row per method that the model cannot do, with its reason."""
        return pd.DataFrame([{"method": name, "reason": why} for name, why in self.traced.refused.items()])

    @cached_property
    def grid(self) -> tuple[list[str], Float[np.ndarray, "method method"]]:
        """How every method agrees with every other: names and mean correlations over prompts."""
        rows = {name: self.traced.rows[name] for name in METHODS if name in self.traced.rows}
        return list(rows), agreement_grid(rows, self.counted, self.main.how)

    def head_rows(self) -> pd.DataFrame:
        """One row per head and quantity."""
        if self.heads is None or not self.heads.tables:
            return pd.DataFrame(columns=["quantity", "stack", "layer", "head", "value", "low", "high"])
        parts = []
        for name, table in self.heads.tables.items():
            several = table.sample_axis is not None and len(table.samples) > 1
            rows = table.table(confidence=self.confidence) if several else table.table()
            parts.append(rows.assign(quantity=name)[["quantity", *[c for c in rows.columns if c != "quantity"]]])
        return pd.concat(parts, ignore_index=True)
