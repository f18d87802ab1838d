"""Checks of a task's options that several tasks share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from interp.errors import BadInput, UnknownName
from interp.names import unknown


def one_of(value: object, known: Iterable[str], option: str) -> str:
    """The value, which is one of those known.

    Raises:
        UnknownName: it is none; the message gives near matches and all.
    """
    names = tuple(known)
    if isinstance(value, str) and value in names:
        return value
    raise UnknownName(unknown(value, names, option))


def word_list(given: Sequence[str] | None, own: Sequence[str], least: int, option: str) -> tuple[str, ...]:
    """The words given, or our own where none are.

    Raises:
        BadInput: not texts, twice the same, or fewer than are needed.
    """
    if given is None:
        return tuple(own)
    words = tuple(given) if not isinstance(given, str) else ()
    if not all(isinstance(word, str) and word.strip() for word in words) or len(set(words)) != len(words):
        raise BadInput(f"{option}={given!r}: expected different words.")
    if len(words) < least:
        raise BadInput(f"{option}: {len(words)} words; one item needs {least} different ones, give more.")
    return words


def whole_number(value: object, low: int, high: int, option: str) -> int:
    """The value, a whole number from ``low`` to ``high``.

    Raises:
        BadInput: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"{option}={value!r}: expected a whole number from {low} to {high}.")
    return value


def whole_range(value: object, low: int, high: int, option: str) -> tuple[int, int]:
    """``(smallest, largest)``, both included.

    Raises:
        BadInput: not two whole numbers in order, or outside ``low`` to ``high``.
    """
    pair = tuple(value) if isinstance(value, tuple | list) else ()
    if (
        len(pair) != 2  # noqa: PLR2004 - its two ends
        or any(isinstance(one, bool) or not isinstance(one, int) for one in pair)
        or not low <= pair[0] <= pair[1] <= high
    ):
        raise BadInput(f"{option}={value!r}: expected (smallest, largest), whole numbers from {low} to {high}.")
    return pair[0], pair[1]
