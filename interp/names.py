"""Lookup of a name in a registry, with an answer that helps when the name is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from interp.errors import UnknownName

T = TypeVar("T")


def lookup(name: str, registry: Mapping[str, T], kind: str) -> T:
    """The entry of ``registry`` called ``name``.

    Args:
        name: the name asked for.
        registry: name -> entry.
        kind: what the entries are, for the message ("score", "experiment", ...).

    Raises:
        UnknownName: the name is not there; the message gives near matches and the whole list.

    Example:
        >>> lookup("b", {"a": 1, "b": 2}, "letter")
        2
    """
    if name in registry:
        return registry[name]
    raise UnknownName(unknown(name, registry, kind))


def unknown(name: object, known: Iterable[str], kind: str) -> str:
    """The sentence that says ``name`` is not known, with near matches and the full list."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."
