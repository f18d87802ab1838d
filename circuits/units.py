"""Units of work: the pieces of a long job, each kept in its own file, so that a stopped job goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interp.files import write_whole

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Unit:
    """What one piece of work is made from; equal units give equal numbers.

    Args:
        experiment: the kind of experiment and the version of its arithmetic, ``"induction/1"``.
        key: which piece, ``"ablation/mean/L0.H1/0"``.
        model: fingerprint of the weights, with the number format they were run in.
        prompts: fingerprint of the token ids, see :func:`fingerprint_of`.
        batch_size: prompts per forward pass; it changes the last bits of a sum.
        seed: the experiment's seed.
    """

    experiment: str
    key: str
    model: str
    prompts: str
    batch_size: int
    seed: int

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that differ whenever any field does."""
        return _digest(json.dumps(asdict(self), sort_keys=True).encode())[:16]

    @property
    def random_seed(self) -> int:
        """Seed for whatever is drawn inside this unit: a function of the unit alone, never a running stream."""
        return int(self.hash, 16) % 2**63

    @property
    def file_name(self) -> str:
        """Name of the unit's file: readable first, unmistakable at the end."""
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.key).strip('-')[:80]}-{self.hash}.safetensors"


@dataclass
class UnitStore:
    """A folder of finished units; ``computed`` and ``reused`` count what this process did."""

    folder: Path
    computed: int = field(default=0, init=False)
    reused: int = field(default=0, init=False)

    def read(self, unit: Unit) -> Arrays | None:
        """The arrays of ``unit``, or ``None`` where it is missing, partial, damaged or made from something else."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / unit.file_name
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError):
            return None
        whole = about.get("unit") == _described(unit) and about.get("content") == _content(arrays)
        return arrays if whole else None

    def write(self, unit: Unit, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps ``arrays`` as the result of ``unit``, by an atomic rename.

        Raises:
            OSError: the disk is full or the folder may not be written; nothing partial is left.
        """
        from safetensors.numpy import save

        kept = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # 0-d stays 0-d
        about = {"unit": _described(unit), "content": _content(kept)}
        write_whole(self.folder / unit.file_name, save(kept, metadata=about))

    def get(self, unit: Unit, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """The arrays of ``unit``: read if it is finished, else computed and kept.

        Args:
            unit: which piece of work.
            compute: gives the arrays; it must draw any randomness from ``unit.random_seed``.
        """
        found = self.read(unit)
        if found is not None:
            self.reused += 1
            return found
        arrays = {name: np.asarray(array) for name, array in compute().items()}
        self.write(unit, arrays)
        self.computed += 1
        return arrays


def fingerprint_of(*parts: Any) -> str:
    """A short hash of arrays, texts, lists of heads or anything that JSON can hold; arrays count with type and shape.

    Example:
        >>> fingerprint_of([1, 2]) == fingerprint_of([1, 2]), fingerprint_of([1, 2]) == fingerprint_of([2, 1])
        (True, False)
    """
    plain = [_content({"": part}) if isinstance(part, np.ndarray) else part for part in parts]
    return _digest(json.dumps(plain, sort_keys=True, default=str).encode())[:16]


def _described(unit: Unit) -> str:
    return json.dumps(asdict(unit), sort_keys=True)


def _content(arrays: Mapping[str, np.ndarray]) -> str:
    """Checksum of values, names, types and shapes: a flipped bit makes the unit count as missing."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
