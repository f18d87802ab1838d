"""``GreedySearch``: what a greedy search for heads found, round by round."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.address import Head
from interp.attribution.curve import with_intervals
from interp.errors import BadInput
from interp.numerals import numeral
from interp.results import HeadScores
from interp.tensor_file import read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KIND = "a greedy search"


@dataclass(frozen=True, eq=False, repr=False)
class GreedySearch:
    """Heads added round by round; prints a sentence. Made by ``interp.greedy_heads``.

    Attributes:
        metric: the metric's name.
        maximise: whether it was to become large.
        candidates: the heads that were chosen from.
        added: the heads of each round, the best first.
        table_samples: ``[round, head, prompt]`` change of the metric with the earlier rounds' heads and this one
            edited; NaN where the head was chosen already, or screened out.
        samples: ``[round, prompt]`` change of the metric with every head chosen up to the round edited.
        held_out_samples: ``[round, prompt]`` the same on the held-out prompts, or None.
        cluster: one label per prompt, or None.
        metadata: how the numbers were made.
    """

    metric: str
    maximise: bool
    candidates: tuple[Head, ...]
    added: tuple[tuple[Head, ...], ...]
    table_samples: Float[np.ndarray, "round head prompt"]
    samples: Float[np.ndarray, "round prompt"]
    held_out_samples: Float[np.ndarray, "round held_out_prompt"] | None = None
    cluster: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every head chosen, in order."""
        return tuple(head for each in self.added for head in each)

    @property
    def objective(self) -> Float[np.ndarray, " round"]:
        """Mean change of the metric after each round, on the prompts of the search."""
        return self.samples.mean(1)

    @property
    def held_out(self) -> Float[np.ndarray, " round"] | None:
        """Mean change of the metric after each round, on the held-out prompts; None without."""
        return None if self.held_out_samples is None else self.held_out_samples.mean(1)

    @property
    def rounds(self) -> Float[np.ndarray, "round head"]:
        """The full table: mean change of the metric with each candidate added in each round, NaN where not run."""
        return self.table_samples.mean(2)

    @property
    def best(self) -> tuple[Head, ...]:
        """The heads up to the round of the best objective, on held-out prompts where there are any.

        None of them where no round is better than editing nothing.
        """
        curve = self.objective if self.held_out is None else self.held_out
        signed = curve if self.maximise else -curve
        last = int(signed.argmax())
        return () if signed[last] <= 0 else tuple(head for each in self.added[: last + 1] for head in each)

    def of_round(self, number: int = 0) -> HeadScores:
        """The table of one round as head scores, counted from 0: effects of adding each candidate to the earlier ones.

        Round 0 holds the effects of single heads, the same as ``interp.attribute(model, batch, "zero")`` for that edit.

        Raises:
            BadInput: no such round, or candidates in several stacks.
        """
        if not 0 <= number < len(self.added):
            raise BadInput(f"Round {number} of {len(self.added)}; they are 0 to {len(self.added) - 1}.")
        stacks = {head.stack for head in self.candidates}
        if len(stacks) != 1:
            raise BadInput(f"The candidates lie in the stacks {sorted(map(str, stacks))}; a table is of one.")
        shape = [1 + max(getattr(head, name) for head in self.candidates) for name in ("layer", "index")]
        values = np.full((self.samples.shape[1], *shape), np.nan)
        for place, head in enumerate(self.candidates):
            values[:, head.layer, head.index] = self.table_samples[number, place]
        default = self.metadata.get("default_stack", "text")
        return HeadScores.from_array(
            values,
            name=f"greedy round {number}",
            quantity="effect",
            sense=self.metadata.get("sense", 0),
            sample_axis="prompt",
            stack=next(iter(stacks)) or default,
            default_stack=default,
            exists=np.isfinite(values).any(0) | self._is_candidate(shape),
            cluster=self.cluster,
        )

    def _is_candidate(self, shape: Sequence[int]) -> np.ndarray:
        there = np.zeros(shape, dtype=bool)
        for head in self.candidates:
            there[head.layer, head.index] = True
        return there

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per round: heads added, how many in all, and the objective with its interval, held-out beside it."""
        rows = {
            "round": np.arange(len(self.added)),
            "heads": [" ".join(map(str, each)) for each in self.added],
            "size": np.cumsum([len(each) for each in self.added]),
            **with_intervals(self.samples, self.cluster, confidence=confidence),
        }
        if self.held_out_samples is not None:
            found = with_intervals(self.held_out_samples, None, confidence=confidence)
            rows |= {"held_out": found["value"], "held_out_low": found["low"], "held_out_high": found["high"]}
        return pd.DataFrame(rows)

    def plot(self, *, title: str = "", confidence: float = 0.95) -> go.Figure:
        """A plotly chart of the objective against the number of heads, on the search's and on the held-out prompts."""
        from interp.show.orders import greedy_figure

        return greedy_figure(self.table(confidence=confidence), metric=self.metric, title=title, confidence=confidence)

    def __str__(self) -> str:
        heads = ", ".join(map(str, self.heads))
        held = "" if self.held_out is None else f", {numeral(float(self.held_out[-1]))} on held-out prompts"
        change = numeral(float(self.objective[-1]))
        return f"{heads}: {self.metric} changes by {change}{held} (in {len(self.added)} rounds)."

    def __repr__(self) -> str:
        return f"GreedySearch({len(self.heads)} of {len(self.candidates)} heads in {len(self.added)} rounds)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds the search; see ``open``."""
        arrays = {"table_samples": self.table_samples, "samples": self.samples}
        if self.held_out_samples is not None:
            arrays["held_out_samples"] = self.held_out_samples
        about = {
            **{name: getattr(self, name) for name in ("metric", "maximise", "cluster", "metadata")},
            "candidates": [list(head) for head in self.candidates],
            "added": [[list(head) for head in each] for each in self.added],
        }
        return write_arrays(path, arrays, kind=_KIND, metadata=about)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GreedySearch:
        """The search that ``save`` wrote to ``path``.

        Raises:
            BadInput: the file is not there, is damaged, or is something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        about["candidates"] = tuple(Head(*head) for head in about["candidates"])
        about["added"] = tuple(tuple(Head(*head) for head in each) for each in about["added"])
        about["cluster"] = None if about["cluster"] is None else tuple(about["cluster"])
        return cls(**arrays, **about)
