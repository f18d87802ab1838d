"""``Scores``: the tables of one scoring, with the plan it followed and its null tables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.files import write_whole
from interp.names import unknown
from interp.results import HeadScores
from interp.scores.planning import ScorePlan

_INDEX = "scores.json"
_TAIL = 0.95  # of the null, which a value is set against in the table


class Scores(dict[str, HeadScores]):
    """Label -> :class:`interp.HeadScores`, a dict.

    Args:
        tables: label -> table.
        plan: what was run, None where it is not known any more.
        nulls: label -> the same score on null prompts, one sample per draw.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4, 5]]))
        >>> interp.score(model, batch, ["induction", "previous_token"]).table().columns.tolist()
        ['head', 'induction', 'previous_token']
    """

    def __init__(
        self,
        tables: Mapping[str, HeadScores],
        plan: ScorePlan | None = None,
        nulls: Mapping[str, HeadScores] | None = None,
    ) -> None:
        super().__init__(tables)
        self.plan = plan
        self.nulls: dict[str, HeadScores] = dict(nulls or {})

    def table(self) -> pd.DataFrame:
        """One row per head, one column per score that is one number; beside it, where there are nulls, three more.

        ``<score> null`` is the mean over null draws, ``<score> null 95%`` their 95th percentile, and ``<score> p`` is
        ``(1 + #{null >= value}) / (1 + draws)`` over the draws that have a value (random prompts may have no repeats,
        and then no induction score). Heads of key/value units and scores with several numbers per head are
        left out: look at their own tables.
        """
        columns: dict[str, pd.Series] = {}
        for label, scores in self.items():
            if scores.positions is not None or scores.unit != "query":
                continue
            columns[label] = _by_head(scores, scores.values)
            if label in self.nulls:
                draws = self.nulls[label].samples
                columns[f"{label} null"] = _by_head(scores, self.nulls[label].values)
                columns[f"{label} null 95%"] = _by_head(scores, _quantile(draws, _TAIL))
                columns[f"{label} p"] = _by_head(scores, _p_values(scores.values, draws))
        if not columns:
            raise BadInput(
                f"No score here is one number per query head ({', '.join(self)}); look at each by its own .table()."
            )
        return pd.DataFrame(columns).rename_axis("head").reset_index()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """The folder that now holds every table, and every null table, as one file each."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        index: dict[str, dict[str, str]] = {"tables": {}, "nulls": {}}
        for kind, tables in (("tables", self), ("nulls", self.nulls)):
            for number, (label, scores) in enumerate(tables.items()):
                name = f"{kind}-{number:03d}.safetensors"
                scores.save(place / name)
                index[kind][label] = name
        write_whole(place / _INDEX, json.dumps(index, indent=1))
        return place

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Scores:
        """What ``save`` wrote.

        Raises:
            BadInput: the folder holds none.
        """
        place = Path(folder)
        if not (place / _INDEX).is_file():
            raise BadInput(f"{folder} has no {_INDEX}; expected a folder that Scores.save wrote.")
        index = json.loads((place / _INDEX).read_text())
        tables = {kind: {label: HeadScores.open(place / name) for label, name in index[kind].items()} for kind in index}
        return cls(tables["tables"], None, tables["nulls"])

    def __missing__(self, label: str) -> HeadScores:
        raise KeyError(unknown(label, self, "score of this scoring"))


def _by_head(scores: HeadScores, values: np.ndarray) -> pd.Series:
    stack = scores.stacks[0]
    prefix = "" if stack == scores.default_stack else f"{stack}."
    cells = np.argwhere(scores.exists[stack])
    labels = [f"{prefix}L{layer}.H{head}" for layer, head in cells]
    return pd.Series(values[tuple(cells.T)], index=labels)


def _quantile(draws: np.ndarray, share: float) -> np.ndarray:
    """``[layer, head]`` the quantile over the draws that have a value, NaN where none has."""
    there = np.isfinite(draws).any(0)
    return np.where(there, np.nanquantile(np.where(there, draws, 0.0), share, axis=0), np.nan)


def _p_values(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """``[layer, head]`` ``(1 + #{draw >= value}) / (1 + n)`` over the n draws that have a value, NaN without any."""
    number = np.isfinite(draws).sum(0)
    with np.errstate(invalid="ignore"):
        p = (1 + (draws >= values).sum(0)) / (1 + number)
    return np.where((number > 0) & np.isfinite(values), p, np.nan)
