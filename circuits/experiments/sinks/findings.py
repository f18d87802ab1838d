"""What the sinks experiment found, and the numbers that sentences and figures take from it; knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.experiments.sinks.measuring import Masked, uniform_share
from interp.address import Head
from interp.results import HeadScores
from interp.scores.sinks.sinks import sink_rate
from interp.stats import Interval, mean_interval


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of.

    Attributes:
        model: its name.
        tables: label -> scores; ``"<score> without"`` leaves the first token out.
        compared: the scores measured with and without it.
        secondary: tokens that become sinks for some layers, summed up; None where that could not be read.
        masking: what the first token is for; None where it was not asked for or cannot be.
        eps: a head is a sink head where its score exceeds this.
        tokens: how long the prompts are, from and to.
        words: what the prompts are.
        confidence: of every interval.
        notes: what was left out and why.
    """

    model: str
    tables: Mapping[str, HeadScores]
    compared: Sequence[str]
    secondary: pd.DataFrame | None
    masking: Masked | None
    eps: float
    tokens: tuple[int, int]
    words: str
    confidence: float
    notes: Sequence[str] = ()

    @property
    def alpha(self) -> np.ndarray:
        """``[layer, head]`` the sink score."""
        return self.tables["sink"].values

    @property
    def sink_heads(self) -> list[Head]:
        """Heads whose mean sink score exceeds eps, the highest first."""
        return heads_above(self.tables["sink"], self.eps)

    @property
    def n_heads(self) -> int:
        """Heads of the model."""
        return int(np.isfinite(self.alpha).sum())

    @property
    def rate(self) -> float:
        """The share of heads and prompts whose score exceeds eps: the published metric."""
        return float(np.asarray(sink_rate(self.tables["sink"], self.eps)))

    @property
    def rates(self) -> np.ndarray:
        """The same for each of the first tokens."""
        return np.asarray(sink_rate(self.tables["sink_profile"], self.eps))

    @property
    def uniform(self) -> float:
        """What uniform causal rows give the first token, at the shortest prompt's length."""
        return uniform_share(self.tokens[0])

    @property
    def parts(self) -> tuple[str, ...]:
        """What the anatomy has; nothing where it could not be read."""
        anatomy = self.tables.get("sink_anatomy")
        return () if anatomy is None else anatomy.positions or ()

    @property
    def born(self) -> int | None:
        """The first layer with a sink head; None without any."""
        return min((head.layer for head in self.sink_heads), default=None)

    def layers(self) -> pd.DataFrame:
        """One row per layer: sink heads, sink scores, and the anatomy of the first token there."""
        anatomy = self.tables.get("sink_anatomy")
        rows = []
        for layer in np.flatnonzero(np.isfinite(self.alpha).any(1)):
            parts = dict(zip(self.parts, np.nanmean(anatomy.values[layer], 0), strict=True)) if anatomy else {}
            over = self.alpha[layer] > self.eps
            rows.append(
                {
                    "layer": int(layer),
                    "sink heads": int(over.sum()),
                    "mean sink score": float(np.nanmean(self.alpha[layer])),
                    "largest": float(np.nanmax(self.alpha[layer])),
                    **{name: float(value) for name, value in parts.items()},
                }
            )
        return pd.DataFrame(rows)

    def heads(self) -> pd.DataFrame:
        """One row per head, the highest sink score first: attention to the first token beside what it writes."""
        rows = self.tables["sink"].top(self.n_heads, by="value", confidence=self.confidence)
        cells = (rows["layer"].to_numpy(dtype=int), rows["head"].to_numpy(dtype=int))
        shown = {"value-weighted": "value_weighted_sink", "result norm": "result_norm"}
        columns = {name: self.tables[score].values[cells] for name, score in shown.items() if score in self.tables}
        anatomy = self.tables.get("sink_anatomy")
        columns |= {name: anatomy.values[(*cells, place)] for place, name in enumerate(self.parts) if anatomy}
        if self.masking is not None:
            columns["loss without it"] = self.masking.alone.mean(0)[cells]
        named = {"head": "label", "sink score": "value", "low": "low", "high": "high"}
        return pd.DataFrame({**{name: rows[column] for name, column in named.items()}, **columns})

    def without(self) -> pd.DataFrame:
        """One row per compared score: means over heads with and without the first token, and how the ranks agree."""
        rows = []
        for name in self.compared:
            whole, left = self.tables[name], self.tables[f"{name} without"]
            agreement = whole.agreement(left)
            difference = np.abs(left.values - whole.values)
            largest = np.unravel_index(int(np.nanargmax(np.nan_to_num(difference, nan=-1.0))), difference.shape)
            rows.append(
                {
                    "score": name,
                    "mean": float(np.nanmean(whole.values)),
                    "without first token": float(np.nanmean(left.values)),
                    "rank agreement": agreement.spearman,
                    "changed most": str(Head(int(largest[0]), int(largest[1]))),
                    "from": float(whole.values[largest]),
                    "to": float(left.values[largest]),
                }
            )
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and score (and bin), with its interval."""
        parts = []
        for name, scores in self.tables.items():
            rows = scores.table()
            rows.insert(0, "quantity", name)
            rows["pos"] = rows["pos"].astype(str) if "pos" in rows else ""
            parts.append(rows)
        if self.masking is not None:
            stack = self.tables["sink"].stacks[0]
            change = HeadScores.from_array(
                self.masking.alone, name="loss", quantity="effect", sense=1, sample_axis="prompt", stack=stack
            )
            parts.append(change.table().assign(quantity="loss without sight of the first token", pos=""))
        return pd.concat(parts, ignore_index=True)

    def together(self) -> Interval | None:
        """Change of the loss when all sink heads are forbidden the first token."""
        if self.masking is None or not self.masking.heads:
            return None
        return mean_interval(self.masking.together, confidence=self.confidence)

    def elsewhere(self) -> np.ndarray:
        """``[place]`` the same with other places."""
        return np.array([]) if self.masking is None else self.masking.elsewhere.mean(1)


def heads_above(scores: HeadScores, eps: float) -> list[Head]:
    """Heads whose mean score exceeds ``eps``, the highest first."""
    values = scores.values
    cells = [tuple(cell) for cell in np.argwhere(np.nan_to_num(values, nan=-1.0) > eps).tolist()]
    return [Head(layer, head) for layer, head in sorted(cells, key=lambda cell: -values[cell])]
