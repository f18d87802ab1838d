"""``Gates``: what a fit of gates found, and what it says about each head."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.address import Head
from interp.attribution.gating.history import History
from interp.errors import BadInput
from interp.names import lookup
from interp.results import HeadScores
from interp.samples import read_only
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KIND = "gates"
SENSES: Mapping[str, int] = {"facilitation": 1, "interference": -1, "irrelevance": 0, "anomaly": 0}
ROLES = ("facilitation", "interference", "irrelevance")


@dataclass(frozen=True, eq=False, repr=False)
class Gates:
    """Gates of every head, one set per seed, each in [0, 1]; NaN where no head is. Made by :func:`interp.fit_gates`.

    Attributes:
        retain: ``[seed, layer, head]`` ``G+``, fitted with a pull towards 1: low only where the head interferes.
        remove: ``[seed, layer, head]`` ``G-``, fitted with a pull towards 0: high only where the head is needed.
        warm: ``[seed, layer, head]`` ``G0``, fitted without a pull, from which the two others start.
        seeds: the seed of each.
        history: losses and gates along the fits.
        stack: whose heads.
        default_stack: the stack whose heads print without a prefix.
        metadata: how they were made: anything JSON can hold.
        prompt_keys: a number for each prompt that they were fitted on (``Batch.content_keys``).
    """

    retain: np.ndarray
    remove: np.ndarray
    warm: np.ndarray
    seeds: tuple[int, ...]
    history: History
    stack: str = "text"
    default_stack: str = "text"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    prompt_keys: Int[np.ndarray, " prompt"] | None = None

    def __post_init__(self) -> None:
        arrays = {"retain": self.retain, "remove": self.remove, "warm": self.warm}
        for name, array in read_only(arrays).items():
            if array.ndim != 3 or array.shape != self.retain.shape or len(array) != len(self.seeds):  # noqa: PLR2004
                raise BadInput(
                    f"Gates: {name} is {array.shape} for {len(self.seeds)} seeds; expected [seed, layer, head] "
                    f"{self.retain.shape} for all three."
                )
            object.__setattr__(self, name, array)
        object.__setattr__(self, "metadata", plain_json(self.metadata))

    @property
    def facilitation(self) -> HeadScores:
        """``G-``: near 1 where the head is needed for the targets. Table 1 of Nam et al. 2025."""
        return self.score("facilitation")

    @property
    def interference(self) -> HeadScores:
        """``1 - G+``: near 1 where the targets are better off without the head."""
        return self.score("interference")

    @property
    def irrelevance(self) -> HeadScores:
        """``G+ (1 - G-)``: near 1 where the head makes no difference either way.

        The paper's text has ``G- (1 - G-)`` in this place; its Table 1, which is followed here, is the one with a
        meaning.
        """
        return self.score("irrelevance")

    @property
    def anomaly(self) -> HeadScores:
        """``G- (1 - G+)``: near 1 where the two fits contradict each other; a head to be left without a role.

        Facilitation, interference and irrelevance sum to 1 plus the anomaly.
        """
        return self.score("anomaly")

    def score(self, name: str) -> HeadScores:
        """One of ``facilitation``, ``interference``, ``irrelevance`` and ``anomaly``, with one sample per seed.

        Raises:
            UnknownName: another name.
        """
        sense = lookup(name, SENSES, "score of gates")
        kept, removed = self.retain.astype(float), self.remove.astype(float)
        values = {
            "facilitation": removed,
            "interference": 1 - kept,
            "irrelevance": kept * (1 - removed),
            "anomaly": removed * (1 - kept),
        }[name]
        return self._table(name, values, sense, "seed")

    def strongest(self, name: str = "facilitation") -> HeadScores:
        """The largest value over seeds of a score, one number per head: twins share no seed, but each wins one."""
        sense = lookup(name, SENSES, "score of gates")
        return self._table(f"largest {name} over seeds", self.score(name).samples.max(axis=0), sense, None)

    def _table(self, name: str, values: np.ndarray, sense: int, axis: str | None) -> HeadScores:
        return HeadScores.from_array(
            values,
            name=name,
            quantity="gate",
            sense=sense,
            sample_axis=axis,
            stack=self.stack,
            default_stack=self.default_stack,
            exists=np.asarray(np.isfinite(self.retain).all(axis=0)),
            metadata={**self.metadata, "seeds": list(self.seeds)},
        )

    def taxonomy(self, threshold: float = 0.5) -> pd.DataFrame:
        """One row per head: how often it has each role, and the role that it has in most seeds.

        A seed gives a head a role where that score is at least ``threshold``. Columns: ``stack layer head label``; for
        each of facilitation, interference and irrelevance ``_share`` (of the seeds), ``_always`` and ``_any``;
        ``facilitation_max`` over seeds; ``anomaly_share``; ``role``: the one that more than half of the seeds give, and
        ``unassigned`` where there is none or where the fits contradict each other in as many.

        Args:
            threshold: in (0, 1).

        Raises:
            BadInput: another threshold.
        """
        if not 0 < threshold < 1:
            raise BadInput(f"taxonomy: threshold={threshold!r}; expected a number between 0 and 1.")
        cells = np.argwhere(np.isfinite(self.retain).all(axis=0))
        prefix = None if self.stack == self.default_stack else self.stack
        held = {name: self.score(name).samples[:, cells[:, 0], cells[:, 1]] >= threshold for name in SENSES}
        columns: dict[str, Any] = {"stack": self.stack, "layer": cells[:, 0], "head": cells[:, 1]}
        columns["label"] = [str(Head(int(layer), int(head), prefix)) for layer, head in cells]
        for name in ROLES:
            columns |= {f"{name}_share": held[name].mean(0), f"{name}_always": held[name].all(0)}
            columns[f"{name}_any"] = held[name].any(0)
        columns["facilitation_max"] = self.remove[:, cells[:, 0], cells[:, 1]].max(0).astype(float)
        columns["anomaly_share"] = held["anomaly"].mean(0)
        shares = np.stack([held[name].mean(0) for name in ROLES])
        best = shares.argmax(0)
        settled = (shares.max(0) > 0.5) & (held["anomaly"].mean(0) <= 0.5)  # noqa: PLR2004 - more than half
        columns["role"] = np.where(settled, np.array(ROLES, dtype=object)[best], "unassigned")
        return pd.DataFrame(columns)

    def plot(self, what: str = "history", *, title: str = "", heads: int = 8) -> go.Figure:
        """A plotly figure.

        Args:
            what: ``"history"`` (loss, mean gate and entropy along each fit, with the range over seeds), ``"gates"``
                (mean over seeds of the gates along the fits, of the heads that moved furthest apart), or the name of
                a score for its heatmap.
            title: heading inside the figure.
            heads: how many heads ``"gates"`` shows.

        Raises:
            UnknownName: nothing of that name.
        """
        from interp.attribution.gating.figures import gate_curves, history_curves

        if what == "history":
            return history_curves(self.history, title=title)
        if what == "gates":
            return gate_curves(self, heads=heads, title=title)
        lookup(what, {**SENSES, "history": 0, "gates": 0}, "figure of gates")
        return self.score(what).plot(title=title)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds the gates and their history; see ``open``."""
        arrays = {name: getattr(self, name) for name in ("retain", "remove", "warm")}
        arrays |= {f"history.{name}": array for name, array in self.history.arrays().items()}
        if self.prompt_keys is not None:
            arrays["prompt_keys"] = self.prompt_keys
        about = {name: getattr(self, name) for name in ("seeds", "stack", "default_stack", "metadata")}
        return write_arrays(path, arrays, kind=_KIND, metadata={**about, "fits": self.history.fits})

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Gates:
        """The gates that ``save`` wrote to ``path``.

        Raises:
            BadInput: the file is not there, is damaged, or is something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        history = {name.removeprefix("history."): arrays.pop(name) for name in list(arrays) if "." in name}
        made = History(tuple(about.pop("fits")), **history)
        return cls(**arrays, seeds=tuple(about.pop("seeds")), history=made, **about)

    def __repr__(self) -> str:
        roles = self.taxonomy()["role"].value_counts()
        counted = ", ".join(f"{roles[name]} {name}" for name in [*ROLES, "unassigned"] if name in roles)
        layers, heads = self.retain.shape[1:]
        return f"Gates({self.stack} {layers}x{heads} heads, {len(self.seeds)} seeds: {counted})"
