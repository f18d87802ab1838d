"""The run-time checker of `make check`: tensor shapes and dtypes in signatures, by beartype.

Only annotations that name a shape are checked. The others are the type checker's, and many tests pass a wrong type on
purpose, to see it refused in our own words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_SHAPED = re.compile(r"\b(?:Float|Int|Integer|Bool|Shaped|Num|Real|UInt|Inexact|Complex)\[")
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def names_a_shape(annotation: Any) -> bool:
    """Whether an annotation (or its text) is a jaxtyping one, alone or inside another."""
    return bool(_SHAPED.search(annotation if isinstance(annotation, str) else repr(annotation)))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its tensor arguments and its tensor result checked."""
    if isinstance(function, type):
        return function
    every = dict(getattr(function, "__annotations__", {}))
    shaped = {name: annotation for name, annotation in every.items() if names_a_shape(annotation)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    try:
        checked = _beartype(function)
    finally:
        function.__annotations__ = every
    checked.__annotations__ = every
    return checked
