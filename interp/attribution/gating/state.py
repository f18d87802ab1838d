"""The state of a fit between updates, kept somewhere so that a fit that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from interp.attribution.gating.descent import Descent, Trace
from interp.errors import BadInput

_LISTS = ("loss", "nll", "mean", "entropy", "kept")


@runtime_checkable
class Store(Protocol):
    """Where arrays are kept under a key; a later ``put`` of the same key replaces the earlier one."""

    def get(self, key: str) -> Mapping[str, np.ndarray] | None:
        """The arrays of ``key``, ``None`` where there are none."""
        ...

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep ``arrays`` under ``key``, whole or not at all."""
        ...


def fingerprint(*parts: Any) -> str:
    """Hexadecimal digits that differ whenever what a fit is made from does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def keep(store: Store, key: str, made_from: str, descent: Descent, trace: Trace) -> None:
    """Put a fit's state into ``store``."""
    arrays = {
        "made_from": np.frombuffer(made_from.encode(), dtype=np.uint8),
        "updates": np.array(descent.updates),
        "kept_at": np.array(trace.kept_at, dtype=np.int64),
    }
    arrays |= {name: _array(getattr(descent, name)) for name in ("theta", "first", "second")}
    arrays |= {name: _array(torch.stack(getattr(trace, name))) for name in _LISTS}
    store.put(key, arrays)


def resume(store: Store | None, key: str, made_from: str, theta: Tensor) -> tuple[Descent, Trace]:
    """The state kept under ``key``, a fresh one at ``theta`` without.

    Raises:
        BadInput: what is kept there belongs to another fit.
    """
    found = store.get(key) if store is not None else None
    if found is None:
        return Descent.start(theta), Trace()
    if bytes(found["made_from"]).decode() != made_from:
        raise BadInput(
            f"The store holds the state of another fit under {key!r} (other prompts, seeds or settings); give a store "
            "of its own to each fit, or empty this one."
        )
    tensors = {name: torch.from_numpy(np.array(found[name])) for name in ("theta", "first", "second")}
    lists = {name: list(torch.from_numpy(np.array(found[name]))) for name in _LISTS}
    return Descent(**tensors, updates=int(found["updates"])), Trace(**lists, kept_at=found["kept_at"].tolist())


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
