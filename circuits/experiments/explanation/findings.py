"""Everything that the experiment on attention as an explanation found, and the tables made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.experiments.explanation.comparing import Comparison
from circuits.experiments.explanation.measuring import MATTER, RANDOM, Hidden, Other
from circuits.experiments.trace_text.prompts import Prompts
from interp.results import HeadScores
from interp.stats import Interval, mean_interval, rank_agreement
from interp.tracing.protocols.removal_curves import RemovalCurves

LN2 = float(np.log(2))


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found.

    Attributes:
        model: name of the model.
        prompts: what was read.
        comparison: attention against explanations.
        refused: what the model cannot do, with its reason.
        heads: label -> measure of every head's row against an explanation.
        hidden: the audit of the tokens that matter, and of random ones; None where it was left out or cannot be done.
        other: the answer under other weights; None likewise.
        curves: the metric as tokens are hidden; None likewise.
        metric: what is explained.
        top: how many tokens are the foremost.
        important: what says which tokens matter.
        confidence: of every interval.
    """

    model: str
    prompts: Prompts
    comparison: Comparison
    refused: Mapping[str, str]
    heads: Mapping[str, HeadScores]
    hidden: Mapping[str, Hidden] | None
    other: Other | None
    curves: RemovalCurves | None
    metric: str
    top: int
    important: str
    confidence: float

    def mean(self, values: np.ndarray) -> Interval:
        """A mean over prompts; infinities are left out."""
        return mean_interval(np.where(np.isfinite(values), values, np.nan), confidence=self.confidence)

    def gap(self, measure: str = "kendall") -> Interval | None:
        """How much better explanations agree with each other than the best row of attention with them, by prompt."""
        themselves = self.comparison.themselves(measure)
        return None if themselves is None else self.mean(themselves - self.comparison.of(self.best_row(), measure))

    def best_row(self) -> str:
        """The row of attention that agrees best with the explanations."""
        names = list(self.comparison.attention)
        return max(names, key=lambda name: np.nan_to_num(self.mean(self.comparison.of(name)).mean, nan=-2.0))

    def mass_and_effect(self) -> tuple[float, int] | None:
        """Spearman's rho over prompts and both sets between attention on tokens and what hiding them changes."""
        if self.hidden is None:
            return None
        mass = np.concatenate([one.share for one in self.hidden.values()])
        effect = np.concatenate([one.effect for one in self.hidden.values()])
        return rank_agreement(mass, effect).spearman, len(mass)

    def rows_table(self) -> pd.DataFrame:
        """One row per row of attention: its mean agreement with the explanations."""
        made = []
        for name in self.comparison.attention:
            row: dict[str, object] = {"attention": name}
            for measure in ("kendall", "spearman", "overlap"):
                found = self.mean(self.comparison.of(name, measure))
                row |= {measure: found.mean, f"{measure} low": found.low, f"{measure} high": found.high}
            signs = [own for (first, _), own in self.comparison.values["signs"].items() if first == name]
            row["signs"] = float(np.nanmean(np.stack(signs))) if signs else np.nan
            made.append(row)
        return pd.DataFrame(made).sort_values("kendall", ascending=False, ignore_index=True)

    def hidden_table(self) -> pd.DataFrame:
        """One row per set of tokens and quantity of the audit."""
        if self.hidden is None:
            return pd.DataFrame()
        made = []
        for name, one in self.hidden.items():
            for quantity, values in (
                ("largest attention of a head", one.mass),
                ("mean attention of all heads", one.share),
                ("effect of hiding them", one.effect),
                ("effect of their values set to 0", one.value_effect),
                ("effect of taking them out", one.delete_effect),
                ("deception index", one.index),
                ("flagged", one.flagged.astype(float)),
            ):
                found = self.mean(values)
                made.append(
                    {
                        "tokens": name,
                        "quantity": quantity,
                        "mean": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "prompts": found.n,
                    }
                )
        return pd.DataFrame(made)

    def other_table(self) -> pd.DataFrame:
        """One row per test of the battery, all heads together."""
        if self.other is None:
            return pd.DataFrame()
        own = {
            "largest weight of a row": self.other.largest,
            "change of the answer, weights permuted (median)": self.other.permuted,
            "change of the answer, even weights": self.other.uniform,
            "divergence of weights that leave the answer (of ln 2)": self.other.adversarial / LN2,
        }
        rows = [(name, self.mean(values)) for name, values in own.items()]
        return pd.DataFrame(
            [{"test": name, "mean": one.mean, "low": one.low, "high": one.high, "prompts": one.n} for name, one in rows]
        )

    def head_rows(self) -> pd.DataFrame:
        """One row per head and quantity."""
        tables = dict(self.heads)
        if self.other is not None:
            tables["permutation"] = self.other.single
        parts = []
        for name, table in tables.items():
            rows = table.table()
            parts.append(rows.assign(quantity=name)[["quantity", *[c for c in rows.columns if c != "quantity"]]])
        if not parts:
            return pd.DataFrame(columns=["quantity", "stack", "layer", "head", "value"])
        return pd.concat(parts, ignore_index=True)

    def matter_and_random(self) -> tuple[Hidden, Hidden] | None:
        """The audit of the tokens that matter and of random ones."""
        return None if self.hidden is None else (self.hidden[MATTER], self.hidden[RANDOM])
