"""What every stage of the experiment shares: the model, the settings, the prompts and the finished units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import interp
from circuits.experiments.induction.config import InductionConfig
from circuits.experiments.repeated import Repeated
from circuits.progress import Progress
from circuits.units import Arrays, Unit, UnitStore, fingerprint_of
from interp.address import Head

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.load import Model

VERSION = "induction/1"  # raised whenever the arithmetic changes, so that old units are not taken for new ones


@dataclass(frozen=True)
class Job:
    """One run of the experiment on one model.

    Attributes:
        model: the loaded model.
        config: the settings.
        units: finished pieces of work.
        progress: told about every stage.
        fingerprint: of the weights and their number format.
        selection: prompts that heads are chosen on.
        evaluation: prompts that they are judged on, independent of the former.
        reference: prompts that replaced outputs are taken from, independent of both.
    """

    model: Model
    config: InductionConfig
    units: UnitStore
    progress: Progress
    fingerprint: str
    selection: Repeated
    evaluation: Repeated
    reference: Repeated

    @property
    def n_layers(self) -> int:
        """Layers of the stack that makes the logits."""
        return self.model.stacks[self.model.default_stack].n_layers

    @property
    def widths(self) -> list[int]:
        """Heads of each layer; 0 where a layer has no attention."""
        stack = self.model.stacks[self.model.default_stack]
        return [stack.n_heads(layer) for layer in range(stack.n_layers)]

    def batch(self, prompts: Repeated) -> Batch:
        """The prompts as the model takes them."""
        return interp.encode(self.model, torch.from_numpy(prompts.ids))

    def get(
        self, key: str, prompts: Repeated, compute: Callable[[], Mapping[str, Any]], *, also: Sequence[Any] = ()
    ) -> Arrays:
        """The arrays of one piece of work, read if it is finished, else computed and kept.

        Args:
            key: which piece.
            prompts: what it is computed on.
            compute: gives the arrays.
            also: anything else that its numbers depend on.
        """
        unit = Unit(
            experiment=VERSION,
            key=key,
            model=self.fingerprint,
            prompts=fingerprint_of(prompts.ids, prompts.start, prompts.segment, *also),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
        )
        return self.units.get(unit, compute)


def head_grid(values: Mapping[Head, np.ndarray], widths: Sequence[int]) -> np.ndarray:
    """``[sample, layer, head]`` from one array ``[sample]`` for each head; NaN where no head is."""
    n = len(next(iter(values.values())))
    grid = np.full((n, len(widths), max(widths)), np.nan)
    for head, samples in values.items():
        grid[:, head.layer, head.index] = samples
    return grid
