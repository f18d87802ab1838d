"""``Setup``: what a pattern test is given, and ``PatternReading``: what it says of every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.scores.ask import Ask, Measured
from interp.scores.labels.drawn import Drawer
from interp.scores.reducer import Reducer


@dataclass(frozen=True)
class Setup:
    """What a pattern test is given.

    Attributes:
        name: the type, for messages.
        model: the handle.
        given: the half of the prompts given that patterns are read on; None without.
        labels: one cluster label per prompt of ``given``; None without.
        drawer: draws random prompts; None where the model cannot say them.
        n_prompts: how many to draw.
        draws: of the null.
        seed: of the null.
        batch_size: most prompts in one forward.
    """

    name: str
    model: Model
    given: Batch | None
    labels: tuple[str, ...] | None
    drawer: Drawer | None
    n_prompts: int
    draws: int
    seed: int
    batch_size: int

    @property
    def prompts(self) -> Batch:
        """The prompts given.

        Raises:
            BadInput: there are none.
        """
        if self.given is None:
            raise BadInput(f"{self.name}: it is told on prompts with answers; give batch=.")
        return self.given

    @property
    def random(self) -> Drawer:
        """What draws prompts.

        Raises:
            BadInput: the model's tokens cannot be drawn.
        """
        if self.drawer is None:
            raise BadInput(f"{self.name}: it is told on random tokens, which this model cannot be given.")
        return self.drawer

    def generator(self) -> torch.Generator:
        """Of the null's draws."""
        return torch.Generator().manual_seed(self.seed)

    def read(self, batch: Batch, make: Any) -> Float[np.ndarray, "prompt layer head bin"]:
        """What a reducer finds on ``batch``, ``batch_size`` prompts at a time.

        Args:
            batch: the prompts.
            make: ``(ask, places) -> Reducer``, where ``places`` are the prompts of ``batch`` in the part.
        """
        parts = []
        for begin in range(0, len(batch), self.batch_size):
            places = list(range(begin, min(begin + self.batch_size, len(batch))))
            stack = self.model.stack(None)
            ask = Ask(self.name, self.model, batch.select(places), stack)
            reducer: Reducer = make(ask, places)
            ask.stream([reducer])
            parts.append(grid_of(reducer.measured(), self.model))
        return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class PatternReading:
    """A pattern score of every head and its null.

    Attributes:
        own: ``[prompt, layer, head]``, NaN where there is no head or nothing to look at.
        null: ``[draw, layer, head]`` means over prompts under the null.
        clusters: one label per prompt; None for drawn prompts.
        about: what else the reader should know: the place that was found, what was left out.
        places: ``[layer, head]`` a word per head (the place it attends to); None without.
        eligible: ``[layer, head]`` heads that the type can be about; None for all.
    """

    own: Float[np.ndarray, "prompt layer head"]
    null: Float[np.ndarray, "draw layer head"]
    clusters: tuple[str, ...] | None = None
    about: str = ""
    places: np.ndarray | None = None
    eligible: np.ndarray | None = None


def grid_of(found: Measured, model: Model) -> Float[np.ndarray, "prompt layer head bin"]:
    """``[prompt, layer, head, bin]``, NaN where there is no head."""
    stack = model.stack(None)
    widest = max(stack.n_heads(layer) for layer in range(stack.n_layers))
    first: Tensor = next(iter(found.by_layer.values()))
    made = np.full((first.shape[0], stack.n_layers, widest, first.shape[-1]), np.nan)
    for layer, values in found.by_layer.items():
        made[:, layer, : values.shape[1]] = values.double().cpu().numpy()
    return made


def mean_over_prompts(values: Float[np.ndarray, "prompt ..."]) -> Float[np.ndarray, "*cell"]:
    """The mean over the prompts that have a value, NaN where none has."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(0) / there.sum(0)


def names_of(batch: Batch, prefix: str) -> Sequence[str]:
    """The spans ``"<prefix> 0"``, ``"<prefix> 1"`` ... of a batch, in the order of their numbers."""
    found = [name for name in batch.spans if name.rpartition(" ")[0] == prefix and name.rpartition(" ")[2].isdigit()]
    return sorted(found, key=lambda name: int(name.rpartition(" ")[2]))
