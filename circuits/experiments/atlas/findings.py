"""What an atlas holds: tables with their null bands, labels, and a few patterns; knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.results import HeadScores
from interp.scores import SCORES
from interp.scores.labels.head_labels import HeadLabels

BAND = 0.95  # of the null's draws
MANY_BINS = 12  # numbers of a profile that are written out, the largest first


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the page is made of.

    Attributes:
        model: its name.
        stack: whose heads.
        exists: ``[layer, head]`` which cells are heads.
        tables: score -> its table.
        nulls: score -> its table on null prompts.
        refused: score -> why it has no meaning here.
        labels: labels and their evidence; None where none were looked for.
        patterns: ``[pattern, query, key]``, of the heads in ``shown``, over ``tokens``.
        shown: heads whose pattern is kept.
        tokens: the tokens of the prompt that they are of.
        words: what the prompts are.
        null: what the null prompts are.
        confidence: of every interval.
    """

    model: str
    stack: str
    exists: Bool[np.ndarray, "layer head"]
    tables: Mapping[str, HeadScores]
    nulls: Mapping[str, HeadScores]
    refused: Mapping[str, str]
    labels: HeadLabels | None
    patterns: Float[np.ndarray, "pattern query key"] | None
    shown: Sequence[str]
    tokens: Sequence[str]
    words: str
    null: str
    confidence: float

    @property
    def n_heads(self) -> int:
        """Heads of the stack."""
        return int(self.exists.sum())

    @property
    def earned(self) -> Mapping[str, tuple[str, ...]]:
        """Head -> its labels."""
        return {} if self.labels is None else self.labels.labels

    def single(self) -> list[str]:
        """Scores of one number per query head of this stack, in their order."""
        return [name for name, table in self.tables.items() if table.positions is None and self._fits(table)]

    def profiles(self) -> list[str]:
        """Scores of several numbers per query head of this stack."""
        return [name for name, table in self.tables.items() if table.positions is not None and self._fits(table)]

    def _fits(self, table: HeadScores) -> bool:
        return table.unit == "query" and table.stacks == (self.stack,)

    def band(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """``[layer, head]`` ends of the central 95 % of the null's draws, None without a null."""
        null = self.nulls.get(name)
        return None if null is None else central(null.samples)

    def beyond(self, name: str) -> int | None:
        """How many heads lie outside their own null band; None without a null."""
        band = self.band(name)
        if band is None:
            return None
        values = self.tables[name].values
        with np.errstate(invalid="ignore"):
            return int(((values > band[1]) | (values < band[0])).sum())

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and score (and bin), with interval, null band and the head's labels."""
        parts = []
        for name, scores in self.tables.items():
            rows = scores.table()
            rows.insert(0, "quantity", name)
            rows["pos"] = rows["pos"].astype(str) if "pos" in rows else ""
            rows["unit"] = scores.unit
            rows["null_low"], rows["null_high"] = self._band_of(name, rows)
            parts.append(rows)
        found = pd.concat(parts, ignore_index=True)
        heads = [f"L{layer}.H{head}" for layer, head in zip(found["layer"], found["head"], strict=True)]
        return found.assign(labels=[", ".join(self.earned.get(head, ())) for head in heads])

    def _band_of(self, name: str, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        band = self.band(name)
        if band is None:
            return np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        cells = [rows["layer"].to_numpy(dtype=int), rows["head"].to_numpy(dtype=int)]
        positions = self.tables[name].positions
        if positions is not None:
            places = {label: number for number, label in enumerate(positions)}
            cells.append(np.array([places[label] for label in rows["pos"]]))
        low, high = band
        return low[tuple(cells)], high[tuple(cells)]

    def overview(self) -> pd.DataFrame:
        """One row per score of one number per head: its top head, and how many heads lie beyond their null band."""
        rows = []
        for name in self.single():
            top = self.tables[name].top(1, by="value")
            rows.append(
                {
                    "score": name,
                    "what it is": SCORES[name].summary,
                    "top head": top["label"].iloc[0] if len(top) else "",
                    "its value": float(top["value"].iloc[0]) if len(top) else np.nan,
                    "heads beyond null": "" if (found := self.beyond(name)) is None else f"{found} of {self.n_heads}",
                    "source": SCORES[name].source,
                }
            )
        return pd.DataFrame(rows)

    def written_out(self, layer: int, head: int) -> list[tuple[str, str]]:
        """(score, its numbers as text) of a head, for scores of several numbers; the largest 12 of many."""
        from interp.numerals import numeral

        said = []
        for name in self.profiles():
            values = self.tables[name].values[layer, head]
            positions = self.tables[name].positions or ()
            order = [
                place
                for place in np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")
                if np.isfinite(values[place])
            ]
            kept = sorted(order[:MANY_BINS])
            if kept:
                numbers = ", ".join(f"{positions[place]}: {numeral(float(values[place]))}" for place in kept)
                more = f" (the largest {MANY_BINS} of {len(order)})" if len(order) > MANY_BINS else ""
                said.append((name, numbers + more))
        return said


def central(draws: Float[np.ndarray, "draw ..."]) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the central 95 % of the draws; NaN where there is none."""
    there = np.isfinite(draws).any(0)
    filled = np.where(np.isfinite(draws), draws, np.nan)
    low, high = np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    if there.any():
        low[there], high[there] = np.nanquantile(filled[:, there], [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
    return low, high


def foremost(
    exists: Bool[np.ndarray, "layer head"],
    earned: Sequence[tuple[int, int]],
    tables: Mapping[str, Float[np.ndarray, "layer head"]],
    most: int,
) -> list[tuple[int, int]]:
    """At most ``most`` heads, by layer and index: all where they are few, else labelled heads, then the top of scores.

    Args:
        exists: which cells are heads.
        earned: heads with labels.
        tables: score -> values; each in turn adds its foremost head that is not in yet.
        most: how many.
    """
    every = [(int(layer), int(head)) for layer, head in np.argwhere(exists)]
    if len(every) <= most:
        return every
    chosen = list(dict.fromkeys(earned))[:most]
    orders = [
        [
            every[place]
            for place in np.argsort([-np.nan_to_num(values[cell], nan=-np.inf) for cell in every], kind="stable")
        ]
        for values in tables.values()
    ] or [every]
    rank = 0
    while len(chosen) < most:
        for order in orders:
            if order[rank] not in chosen and len(chosen) < most:
                chosen.append(order[rank])
        rank += 1
    return sorted(chosen)
