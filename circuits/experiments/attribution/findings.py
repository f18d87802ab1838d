"""What the methods say and how far they agree, computed from finished tables; knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.experiments.attribution.sets import TopHeads
from interp.address import Head
from interp.attribution.claim_table import Claims
from interp.comparison import AgreementMatrix, agreement
from interp.results import HeadScores

COMPARED = 3  # tables are the least that make a matrix


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of.

    Attributes:
        model: its name.
        tables: method -> table on the evaluation prompts.
        claims: which heads matter, by two nulls.
        tops: the top heads of the methods, taken away together.
        signed: agreement of the signed methods on which heads help; None with fewer than three.
        sizes: agreement of all methods on the size of what heads do; None with fewer than three.
        baseline: mean metric of the unedited model on the evaluation prompts.
        n_prompts: how many those are.
        confidence: of every interval.
        ablation: what takes the place of a head's output.
    """

    model: str
    tables: Mapping[str, HeadScores]
    claims: Claims
    tops: Sequence[TopHeads]
    signed: AgreementMatrix | None
    sizes: AgreementMatrix | None
    baseline: float
    n_prompts: int
    confidence: float
    ablation: str

    def share(self, method: str) -> np.ndarray:
        """``[layer, head]`` importance as a share of the method's largest, size for an unsigned method."""
        table = self.tables[method]
        values = table.importance() if table.sense else table.values
        largest = float(np.nanmax(np.abs(values)))
        return values / largest if largest > 0 else values

    def foremost(self, method: str, k: int) -> list[Head]:
        """The heads that help most, of an unsigned method those with the largest values."""
        table = self.tables[method]
        return table.top_heads(k, by="helps" if table.sense else "abs")

    def signs_apart(self) -> dict[Head, list[str]]:
        """Claimed head -> the signed methods that say the opposite of the claim, at least a tenth of their largest."""
        found = {}
        effects = self.claims.effects
        for head in self.claims.claimed:
            sign = np.sign(effects.importance()[head.layer, head.index])
            apart = [
                method
                for method, table in self.tables.items()
                if table.sense and sign * self.share(method)[head.layer, head.index] < -0.1  # noqa: PLR2004
            ]
            if apart:
                found[head] = apart
        return found

    def table(self) -> pd.DataFrame:
        """The long table: one row per method and head, with its interval; the p-values stand beside the ablation."""
        parts = []
        for method, scores in self.tables.items():
            rows = scores.table(confidence=self.confidence)
            rows.insert(0, "quantity", method)
            rows["importance"] = scores.sense * rows["value"]
            rows["p_adjusted"] = np.nan
            if method == self.claims.method:
                rows["p_adjusted"] = self.claims.adjusted[rows["layer"], rows["head"]]
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)

    def wide(self) -> pd.DataFrame:
        """One row per head, those with the largest effect first: the effect with its interval and p, and whether it is
        claimed."""
        rows = self.claims.table(confidence=self.confidence)
        frame = pd.DataFrame({"head": rows["label"], "effect": rows["value"], "low": rows["low"], "high": rows["high"]})
        if bool(np.isfinite(self.claims.adjusted).any()):
            frame["p"] = rows["p_adjusted"]
        frame["claimed"] = ["yes" if claimed else "" for claimed in rows["claimed"]]
        return frame

    def by_method(self, most: int) -> pd.DataFrame:
        """One row per method, one column for each of the ``most`` heads with the largest effects: the values."""
        rows = self.claims.table(confidence=self.confidence).head(most)
        cells = list(zip(rows["label"], rows["layer"].astype(int), rows["head"].astype(int), strict=True))
        return pd.DataFrame(
            [
                {"method": method, **{label: float(scores.values[layer, head]) for label, layer, head in cells}}
                for method, scores in self.tables.items()
            ]
        )

    def sets(self) -> pd.DataFrame:
        """One row per set of top heads: who chose it, its effect with its interval, and the random sets."""
        rows = []
        for top in self.tops:
            row = {
                "heads": ", ".join(map(str, top.heads)),
                "chosen by": ", ".join(top.methods),
                "effect": top.effect.mean,
                "low": top.effect.low,
                "high": top.effect.high,
                "random sets": top.null.n,
                "their mean": top.null.null_mean,
            }
            rows.append({**row, "p": top.adjusted} if top.adjusted is not None else row)
        return pd.DataFrame(rows)


def compared(
    tables: Mapping[str, HeadScores], *, top: int, confidence: float, seed: int, by: str
) -> AgreementMatrix | None:
    """Agreement of every table with every other; None with fewer than three.

    Args:
        tables: method -> table.
        top: how many of the foremost heads are compared.
        confidence: of the intervals.
        seed: of the resampling.
        by: ``"importance"``, of the signed tables alone, or ``"abs"``.
    """
    kept = {name: table for name, table in tables.items() if table.sense or by == "abs"}
    if len(kept) < COMPARED:
        return None
    made = agreement(*kept.values(), top=top, by=by, names=list(kept), confidence=confidence, seed=seed)
    return made if isinstance(made, AgreementMatrix) else None
