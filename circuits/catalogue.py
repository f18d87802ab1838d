"""Everything that has a name, with one line each; read from data, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

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


def labels() -> dict[str, str]:
    """Head label -> its line."""
    from interp.scores.labels import HEAD_TYPES

    return {name: kind.summary for name, kind in HEAD_TYPES.items()}


def score_facts(name: str) -> dict[str, str]:
    """What the list says of a score below its line."""
    from circuits.score_card import score_facts as facts

    return facts(name)


def score_card(name: str) -> dict[str, Any]:
    """Everything that is known of a score."""
    from circuits.score_card import score_card as card

    return card(name)


def label_facts(name: str) -> dict[str, str]:
    """What the list says of a head label below its line."""
    from interp.scores.labels import HEAD_TYPES

    kind = HEAD_TYPES[name]
    tested = kind.test.words if kind.test else f"no test here: {kind.missing}"
    return {"stage": kind.stage, "test": tested, "source": kind.source}


def label_card(name: str) -> dict[str, Any]:
    """Everything that is known of a head label."""
    from interp.scores.labels import HEAD_TYPES

    return {"kind": "label", "name": name, "line": HEAD_TYPES[name].summary, **HEAD_TYPES[name].card()}


def traces() -> dict[str, str]:
    """Way of tracing -> its line."""
    from interp.tracing import METHODS as TRACES

    return {name: entry.summary for name, entry in TRACES.items()}


def trace_facts(name: str) -> dict[str, str]:
    """What the list says of a way of tracing below its line."""
    from circuits.method_card import trace_facts as facts

    return facts(name)


def trace_card(name: str) -> dict[str, Any]:
    """Everything that is known of a way of tracing."""
    from circuits.method_card import trace_card as card

    return card(name)


def method_facts(name: str) -> dict[str, str]:
    """What the list says of an attribution method below its line."""
    from circuits.method_card import method_facts as facts

    return facts(name)


def method_card(name: str) -> dict[str, Any]:
    """Everything that is known of an attribution method."""
    from circuits.method_card import method_card as card

    return card(name)


def task_facts(name: str) -> dict[str, str]:
    """What the list says of a task below its line."""
    from circuits.task_card import task_facts as facts

    return facts(name)


def task_card(name: str) -> dict[str, Any]:
    """Everything that is known of a task, with an item."""
    from circuits.task_card import task_card as card

    return card(name)


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
        "trace": traces,
        "score": scores,
        "label": labels,
        "edit": edits,
        "model": models,
    }
)

# of one kind, what else is shown: ways of tracing are methods too, and share some names with those of attribution
BESIDE: Mapping[str, tuple[str, ...]] = MappingProxyType({"method": ("trace",)})

# kinds with more to say than a line: below each name in `circuits list KIND`, and in `circuits show NAME`
FACTS: Mapping[str, Callable[[str], dict[str, str]]] = MappingProxyType(
    {"score": score_facts, "label": label_facts, "method": method_facts, "trace": trace_facts, "task": task_facts}
)
CARDS: Mapping[str, Callable[[str], dict[str, Any]]] = MappingProxyType(
    {"score": score_card, "label": label_card, "method": method_card, "trace": trace_card, "task": task_card}
)
