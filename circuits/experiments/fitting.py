"""Where a fit of gates keeps its state between updates: in the units of the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from circuits.experiments.pieces import Pieces
from circuits.units import Arrays


@dataclass
class FitStore:
    """The state of one fit, under keys of its own; what ``interp.fit_gates`` takes as its ``store``.

    Args:
        pieces: what is finished.
        name: of the fit.
        made_of: fingerprint of everything that the fit depends on.
    """

    pieces: Pieces
    name: str
    made_of: str
    _seen: set[str] = field(default_factory=set, init=False)

    def get(self, key: str) -> Arrays | None:
        """The arrays of ``key``, ``None`` where there are none, or damaged ones."""
        found = self.pieces.store.read(self.pieces.unit(f"{self.name}/{key}", self.made_of))
        if found is not None:
            self._seen.add(key)
            self.pieces.store.reused += 1
        return found

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep ``arrays`` under ``key``, whole or not at all."""
        self.pieces.store.write(self.pieces.unit(f"{self.name}/{key}", self.made_of), arrays)
        if key not in self._seen:
            self._seen.add(key)
            self.pieces.store.computed += 1
