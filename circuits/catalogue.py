"""Everything that has a name, with one line each; read from data, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from circuits.config import config_files, load_config
from circuits.methods import METHODS
from circuits.tasks import TASKS
from interp.errors import BadInput


def experiments() -> dict[str, str]:
    """Named experiment -> its line; a config that cannot be read says so in its line."""
    lines = {}
    for name in config_files():
        try:
            lines[name] = load_config(name).config.about
        except BadInput as error:
            lines[name] = f"(cannot be read: {error})"
    return lines


def scores() -> dict[str, str]:
    """Score -> its line."""
    from interp.scores import SCORES

    return {name: entry.summary for name, entry in SCORES.items()}


def edits() -> dict[str, str]:
    """Edit -> its line."""
    from interp.edits.catalogue import EDITS

    return dict(EDITS)


def models() -> dict[str, str]:
    """Zoo model -> its line."""
    from interp.zoo import ZOO

    return {name: entry.description for name, entry in ZOO.items()}


KINDS: Mapping[str, Callable[[], dict[str, str]]] = MappingProxyType(
    {
        "experiment": experiments,
        "task": lambda: dict(TASKS),
        "method": lambda: dict(METHODS),
        "score": scores,
        "edit": edits,
        "model": models,
    }
)
