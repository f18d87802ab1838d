"""Items of a named task, made from a seed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from circuits.tasks.draw import Draw
from circuits.tasks.families import FAMILIES
from circuits.tasks.item import Item
from circuits.tasks.task import Task
from interp.errors import BadInput, UnknownName
from interp.names import lookup, unknown

_ATTEMPTS = 400


def make_task(name: str, *, n: int = 100, seed: int = 0, **options: Any) -> Task:
    """A task of ``n`` different items.

    Args:
        name: one of ``circuits list tasks`` that has options (``circuits show NAME``).
        n: number of items.
        seed: the same seed gives the same items, and item k is the same whatever ``n`` is.
        **options: of this task, such as ``corruption=``.

    Raises:
        UnknownName: another name, option or value than those known; with near matches.
        BadInput: ``n`` below 1, or more different items than the task has.

    Example:
        >>> task = make_task("ioi", n=2, seed=0, order="ABBA", corruption="flip")
        >>> item = task[0]
        >>> item.marked("S2") == item.marked("S1"), item.right == (" " + item.marked("IO"),)
        (True, True)
        >>> item.marked("S2", "corrupted") == item.marked("IO")
        True
    """
    family = lookup(name, FAMILIES, "task that makes items")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise BadInput(f"n={n!r}: expected a number of items, 1 or more.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise BadInput(f"seed={seed!r}: expected a whole number.")
    maker = maker_of(name)
    known = {key: entry.default for key, entry in inspect.signature(maker).parameters.items()}
    for option in options:
        if option not in known:
            raise UnknownName(unknown(option, known, f"option of {name}"))
    recipe = maker(**options)
    items: dict[Any, Item] = {}
    for index in range(n):
        item = _new_item(recipe, name, seed, index, items)
        items[item.clean] = item
    told = {key: _plain(options.get(key, default)) for key, default in known.items()}
    return Task(name, tuple(items.values()), seed, told, family.summary)


def maker_of(name: str) -> Callable[..., Callable[[Draw], Item]]:
    """The function behind a task's name: options -> (draw -> item)."""
    module, _, function = lookup(name, FAMILIES, "task that makes items").maker.partition(":")
    return getattr(importlib.import_module(module), function)


def _new_item(recipe: Callable[[Draw], Item], name: str, seed: int, index: int, made: Mapping[Any, Item]) -> Item:
    for attempt in range(_ATTEMPTS):
        item = recipe(Draw(name, seed, index, attempt))
        if item.clean not in made:
            return item
    raise BadInput(
        f"{name}: after {index} items {_ATTEMPTS} draws gave no prompt that was not there before. With these options "
        f"there are hardly more; ask for n={index} or fewer, or widen the options."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, range):
        return list(value)
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
