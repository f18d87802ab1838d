"""Everything that the report of a gating experiment is made of, and the table of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

import interp
from circuits.experiments.gating.checking import Checked
from circuits.experiments.gating.validating import Validation
from interp.attribution.gating.gates import ROLES
from interp.results import HeadScores
from interp.stats import Agreement


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found.

    Attributes:
        model: its name.
        gates: of the fit.
        effects: rise of the loss on held-out prompts when a head is set to zero.
        checks: every head by its gates and by exact ablation, those with the largest effects first.
        ranks: agreement of the largest facilitation over seeds with the exact effects.
        validations: heads taken away in the order of each score.
        losses: of the first and of the second copy with every head in place, in nats.
        threshold: from where on a score gives a head a role.
        confidence: of every interval.
    """

    model: str
    gates: interp.Gates
    effects: HeadScores
    checks: Sequence[Checked]
    ranks: Agreement
    validations: Sequence[Validation]
    losses: tuple[float, float]
    threshold: float
    confidence: float

    @property
    def outside(self) -> list[Checked]:
        """Heads whose exact effect lies outside the random-head band."""
        return [one for one in self.checks if one.outside]

    def roles(self) -> pd.DataFrame:
        """One row per head: the role it has in most seeds, in how many seeds each, and the largest facilitation."""
        rows = self.gates.taxonomy(self.threshold)
        frame = pd.DataFrame({"head": rows["label"], "role": rows["role"]})
        for name in ROLES:
            frame[name] = rows[f"{name}_share"]
        frame["largest"] = rows["facilitation_max"]
        frame["contradicting"] = rows["anomaly_share"]
        effects = self.effects.values[rows["layer"], rows["head"]]
        return frame.assign(order=-np.abs(effects)).sort_values("order", kind="stable").drop(columns="order")

    def top(self) -> pd.DataFrame:
        """One row per head for the terminal: role, the scores over seeds, and the exact effect."""
        roles = self.gates.taxonomy(self.threshold).set_index("label")["role"]
        cells = [(one.head.layer, one.head.index) for one in self.checks]
        scores = {name: self.gates.score(name).values for name in ROLES}
        return pd.DataFrame(
            {
                "head": [str(one.head) for one in self.checks],
                "role": [roles[str(one.head)] for one in self.checks],
                **{name: [float(values[cell]) for cell in cells] for name, values in scores.items()},
                "zeroed": [one.effect for one in self.checks],
            }
        )

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and quantity, with its interval over seeds (prompts for the effect)."""
        parts = []
        tables = {name: self.gates.score(name) for name in (*ROLES, "anomaly")} | {"effect_of_zero": self.effects}
        for quantity, scores in tables.items():
            rows = scores.table(confidence=self.confidence)
            rows.insert(0, "quantity", quantity)
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)
