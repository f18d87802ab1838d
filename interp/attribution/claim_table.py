"""``Claims``: heads with their effects, p-values and what may be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.address import Head
from interp.numerals import numeral
from interp.results import HeadScores
from interp.stats import NullComparison

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_NAMED = 12


@dataclass(frozen=True, eq=False, repr=False)
class Claims:
    """Which heads matter, and against what that was tested; prints as sentences. Made by :func:`interp.claims`.

    Attributes:
        effects: per prompt, edited minus unedited.
        p: ``[layer, head]`` share of reassignments in which the head's effect is as large; NaN without a null.
        adjusted: ``p`` after Benjamini-Hochberg over heads.
        largest: share of reassignments in which the largest effect of *any* head is as large (Westfall and Young).
        matched: the effect size that matched random heads reach.
        passed: heads that exceed the reassigned answers.
        claimed_cells: ``[layer, head]`` heads that exceed both nulls.
        together: the heads that passed, edited together, beside matched random sets; None where none passed.
        level: of every test.
        null: what was reassigned, and in how many ways.
        method, metric: what was measured.
        notes: what the reader has to know, in sentences.
    """

    effects: HeadScores
    p: Float[np.ndarray, "layer head"]
    adjusted: Float[np.ndarray, "layer head"]
    largest: Float[np.ndarray, "layer head"]
    matched: Float[np.ndarray, "layer head"]
    passed: Bool[np.ndarray, "layer head"]
    claimed_cells: Bool[np.ndarray, "layer head"]
    together: NullComparison | None
    level: float
    null: str
    method: str
    metric: str
    notes: tuple[str, ...] = ()

    @property
    def claimed(self) -> list[Head]:
        """The heads that may be said to matter, by layer and index."""
        (stack,) = self.effects.stacks
        prefix = None if stack == self.effects.default_stack else stack
        return [Head(layer, index, prefix) for layer, index in np.argwhere(self.claimed_cells).tolist()]

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per head, strongest effect first.

        Columns: label, stack, layer, head, value, low, high (bootstrap over prompts), p, p_adjusted, p_largest,
        matched, claimed; see the class.
        """
        rows = self.effects.top(self.effects.values.size, by="abs", confidence=confidence)
        cells = (rows["layer"].to_numpy(dtype=int), rows["head"].to_numpy(dtype=int))
        columns = {
            "p": self.p,
            "p_adjusted": self.adjusted,
            "p_largest": self.largest,
            "matched": self.matched,
            "claimed": self.claimed_cells,
        }
        return rows.assign(**{name: grid[cells] for name, grid in columns.items()})

    def plot(self, *, title: str = "", confidence: float = 0.95) -> go.Figure:
        """A heatmap of the effects, layer by head, with the claimed heads outlined."""
        return self.effects.plot(title=title or self._heading(), marked=self.claimed, confidence=confidence)

    def __str__(self) -> str:
        said = [self._heading() + ".", f"Null: {self.null}."]
        if self.together is not None:
            said.append(f"Together, the {int(self.passed.sum())} that passed it: {self.together}")
        return " ".join([*said, *self.notes])

    def __repr__(self) -> str:
        return f"Claims({self._heading()})"

    def _repr_html_(self) -> str:
        from interp.show.scores import rows_html

        shown = ["label", "value", "low", "high", "p_adjusted", "p_largest", "matched", "claimed"]
        rows = self.table()[shown]
        rows = rows.assign(claimed=["yes" if claimed else "" for claimed in rows["claimed"]])
        return rows_html(self._heading(), pd.DataFrame(rows), str(self))

    def _heading(self) -> str:
        heads = self.claimed
        tested = int(np.isfinite(self.effects.values).sum())
        named = ", ".join(map(str, heads[:MOST_NAMED])) + (" and others" if len(heads) > MOST_NAMED else "")
        verb = "is" if len(heads) == 1 else "are"
        what = f"{len(heads) or 'none'} of {tested} heads {verb} claimed to matter for {self.metric} ({self.method})"
        return f"{what}: {named}" if heads else f"{what} at {numeral(100 * self.level, 0)} %"
