"""What was read of a model's weights, shared while several scores of one scoring ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from torch import Tensor

from interp.model.handle import Model

MOST_BYTES = 1 << 30  # of what is kept; the rest is read anew each time
Found = TypeVar("Found")


@dataclass(eq=False)
class SharedReads:
    """What was read so far.

    Attributes:
        kept: key -> (what it was made from, what was read).
        size: bytes of it.
    """

    kept: dict[Hashable, tuple[object, Any]] = field(default_factory=dict)
    size: int = 0

    def get(self, key: Hashable, made_from: object, read: Callable[[], Found]) -> Found:
        """What ``read`` gives, read once for ``key`` as long as ``made_from`` is the same object."""
        if key in self.kept and self.kept[key][0] is made_from:
            return self.kept[key][1]
        found = read()
        if key not in self.kept and self.size + _bytes(found) <= MOST_BYTES:
            self.kept[key] = made_from, found
            self.size += _bytes(found)
        return found


@contextmanager
def sharing_reads(model: Model) -> Iterator[None]:
    """Inside, weights that were read once are not read again; nothing may change them, and nothing is kept after it."""
    model.reads.append(SharedReads())
    try:
        yield
    finally:
        model.reads.pop()


def shared(model: Model, key: Hashable, made_from: object, read: Callable[[], Found]) -> Found:
    """What ``read`` gives: read anew, or shared inside :func:`sharing_reads`.

    Args:
        model: the handle.
        key: what is read.
        made_from: a value of another object is never given.
        read: how it is read.
    """
    return model.reads[-1].get(key, made_from, read) if model.reads else read()


def _bytes(found: Any) -> int:
    parts = found if isinstance(found, tuple) else [getattr(found, each.name) for each in fields(found)]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))
