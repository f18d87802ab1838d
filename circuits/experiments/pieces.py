"""The pieces of a long experiment: arrays and tables of heads that are read where they are finished, else computed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.units import Arrays, Unit, UnitStore
from interp.results import HeadScores

ABOUT = tuple(field.name for field in dataclasses.fields(HeadScores) if field.name not in ("data", "exists"))


@dataclass(frozen=True)
class Pieces:
    """The finished pieces of one experiment on one model.

    Attributes:
        store: where they lie.
        experiment: the kind and the version of its arithmetic, ``"attribution/1"``.
        model: fingerprint of the weights.
        batch_size: prompts in one forward.
        seed: of the experiment.
    """

    store: UnitStore
    experiment: str
    model: str
    batch_size: int
    seed: int

    def unit(self, key: str, prompts: str) -> Unit:
        """The piece called ``key`` on the prompts of that fingerprint."""
        return Unit(self.experiment, key, self.model, prompts, self.batch_size, self.seed)

    def arrays(self, key: str, prompts: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """The arrays of a piece.

        Args:
            key: which piece; it names whatever changes its numbers.
            prompts: fingerprint of what it is computed on.
            compute: gives them.
        """
        return self.store.get(self.unit(key, prompts), compute)

    def table(self, key: str, prompts: str, compute: Callable[[], HeadScores]) -> HeadScores:
        """The table of heads that a piece is; the same arguments as :meth:`arrays`."""
        return table_of(self.arrays(key, prompts, lambda: arrays_of(compute())))


def arrays_of(table: HeadScores) -> Arrays:
    """A table of heads of one stack as arrays; :func:`table_of` gives it back."""
    about = {name: getattr(table, name) for name in ABOUT}
    about["stack"] = table.stacks[0]
    text = json.dumps(about, sort_keys=True).encode()
    return {
        "samples": np.asarray(table.samples),
        "exists": np.asarray(table.exists[table.stacks[0]]),
        "about": np.frombuffer(text, dtype=np.uint8),
    }


def table_of(arrays: Mapping[str, np.ndarray]) -> HeadScores:
    """The table of heads that :func:`arrays_of` made into arrays."""
    about: dict[str, Any] = json.loads(arrays["about"].tobytes())
    samples = arrays["samples"] if about["sample_axis"] else arrays["samples"][0]
    return HeadScores.from_array(samples, exists=arrays["exists"], **about)


def beside(tables: Iterable[HeadScores]) -> HeadScores:
    """One table of tables over the same samples, each of which has the values of other heads (NaN elsewhere).

    Raises:
        ValueError: a head that has values in two of them.
    """
    first, *others = tables
    samples = np.array(first.samples)
    for other in others:
        theirs = np.asarray(other.samples)
        if (np.isfinite(samples) & np.isfinite(theirs)).any():
            raise ValueError("a head has values in two tables")
        samples = np.where(np.isfinite(theirs), theirs, samples)
    stack = first.stacks[0]
    exists = np.any([table.exists[stack] for table in (first, *others)], axis=0)
    about = {name: getattr(first, name) for name in ABOUT}
    return HeadScores.from_array(samples if first.sample_axis else samples[0], stack=stack, exists=exists, **about)
