"""The plan of a scoring: which scores share a forward, and how many forwards there are, known before the first."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.address import Site
from interp.errors import BadInput
from interp.model.handle import Model
from interp.model.stacks import Stack
from interp.names import lookup, unknown
from interp.scores import SCORES
from interp.scores.kinds import Score

Names = str | Iterable[str] | Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Wanted:
    """One score that is asked for.

    Attributes:
        label: the name of its table.
        name: its name in the registry.
        entry: what the registry says of it.
        options: its own options, as given.
        stack: whose heads.
    """

    label: str
    name: str
    entry: Score
    options: Mapping[str, Any]
    stack: Stack

    @property
    def shares(self) -> bool:
        """Whether it is gathered in a pass that others share."""
        return self.entry.needs == "pass"


@dataclass(frozen=True, eq=False)
class ScorePlan:
    """What a scoring will run.

    Attributes:
        passes: (prompts, stack) -> the labels that one forward of them gives.
        own: label -> the forwards that it runs by itself.
        weights: labels that need no forward.
        parts: how many parts the prompts are taken in.
        draws: how many null draws repeat the passes.
        detecting: forwards that find sinks first, one for each (prompts, stack).
    """

    passes: Mapping[tuple[str, str], tuple[str, ...]]
    own: Mapping[str, str]
    weights: tuple[str, ...]
    parts: int = 1
    draws: int = 0
    detecting: int = 0

    @property
    def forwards(self) -> int:
        """Shared forwards and those that find sinks; those of ``own`` come on top."""
        return (len(self.passes) + self.detecting) * self.parts * (1 + self.draws)

    def __str__(self) -> str:
        lines = []
        times = f" x {self.parts} parts" if self.parts > 1 else ""
        times += f" x (1 + {self.draws} null draws)" if self.draws else ""
        for (prompts, stack), labels in self.passes.items():
            what = "the prompts" if prompts == "given" else f"prompts drawn by {prompts.split(':')[1]}"
            lines.append(f"1 forward{times} of {what} (stack {stack}): {', '.join(labels)}")
        lines += [f"{label}: {text}{times}" for label, text in self.own.items()]
        if self.detecting:
            lines.insert(0, f"{self.detecting} forward{'s' if self.detecting > 1 else ''}{times} to find sinks")
        if self.weights:
            lines.append(f"no forward: {', '.join(self.weights)}")
        return "\n".join(lines)


def wanted_scores(model: Model, names: Names, stack: str | None) -> list[Wanted]:
    """What is asked for, resolved and checked as far as can be without the prompts.

    Args:
        model: the handle.
        names: a name, names, or a mapping label -> options (with ``"score"`` where the label is no score's name).
        stack: whose heads; for None the default stack, or ``vision`` for scores of image grids.

    Raises:
        UnknownName: a score or an option that is not there, with near matches.
        BadInput: no name at all, or options that are no mapping.
        Unsupported: a score that has no meaning on the stack.
    """
    if isinstance(names, str):
        given: Mapping[str, Mapping[str, Any]] = {names: {}}
    elif isinstance(names, Mapping):
        given = names
    else:
        given = {name: {} for name in names}
    if not given:
        raise BadInput(f"score: no names were given; known: {', '.join(SCORES)}.")
    return [_wanted(model, label, options, stack) for label, options in given.items()]


def _wanted(model: Model, label: str, options: Any, stack: str | None) -> Wanted:
    if not isinstance(options, Mapping):
        raise BadInput(
            f"score: {label!r} came with {options!r}; expected a mapping of options, such as {{'score': 'entropy'}}."
        )
    own = dict(options)
    name = own.pop("score", label)
    entry = lookup(name, SCORES, "score")
    parameters = list(inspect.signature(function_of(entry.function)).parameters)[1:]
    for option in own:
        if option not in parameters:
            raise BadInput(unknown(option, parameters, f"option of score {name!r}"))
    return Wanted(label, name, entry, own, _stack(model, name, entry, stack))


def _stack(model: Model, name: str, entry: Score, stack: str | None) -> Stack:
    vision = "vision" in model.stacks and not model.default_stack.startswith("vision")
    found = model.stack("vision" if stack is None and entry.where == "vision" and vision else stack)
    pictures = found.name.startswith("vision")
    if entry.where == "vision" and not pictures:
        raise BadInput(
            f"{name}: it is a score of image grids, and stack {found.name!r} of {model.name} sees none; score a vision "
            f"stack (there are {', '.join(model.stacks)})."
        )
    if entry.where in ("text", "causal") and (pictures or found.name.startswith("audio")):
        raise BadInput(f"{name}: it compares tokens, and stack {found.name!r} has none; score a stack of tokens.")
    if entry.where == "causal" and not found.causal:
        raise BadInput(f"{name}: it needs a stack whose queries see no later key; {found.name!r} is not one.")
    if entry.needs == "pass" and entry.cost != "none":
        found.require(Site.PATTERN, edit=False)
    return found


def plan_of(wanted: Iterable[Wanted], *, parts: int = 1, draws: int = 0, detecting: bool = False) -> ScorePlan:
    """The plan of what is asked for.

    Args:
        wanted: from :func:`wanted_scores`.
        parts: how many parts the prompts are taken in.
        draws: how many null draws repeat the passes.
        detecting: whether forwards of their own find sinks first.
    """
    wanted = list(wanted)
    passes: dict[tuple[str, str], tuple[str, ...]] = {}
    own: dict[str, str] = {}
    weights: list[str] = []
    for one in wanted:
        if one.shares:
            key = (one.entry.prompts, one.stack.name)
            passes[key] = (*passes.get(key, ()), one.label)
        elif one.entry.needs == "weights":
            weights.append(one.label)
        else:
            own[one.label] = one.entry.forwards or "its own forwards"
    places = {(one.entry.prompts, one.stack.name) for one in wanted if one.entry.needs != "weights"}
    return ScorePlan(passes, own, tuple(weights), parts, draws, len(places) if detecting else 0)


def function_of(path: str) -> Callable[..., Any]:
    """The function that a registry's ``module:function`` names."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
