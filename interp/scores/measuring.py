"""Measuring: what is asked of one batch, every shared pass once, and the parts of a batch put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.shared_reads import sharing_reads
from interp.scores.ask import Ask, Measured
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.planning import Wanted, function_of
from interp.scores.reducer import Reducer
from interp.scores.sinks.sink_columns import sink_columns

_SQUARE = frozenset({"adjacency", "distances", "relation"})  # [token, token] where they hold for every prompt


@dataclass(frozen=True, eq=False)
class Settings:
    """What holds for every score of a scoring.

    Attributes:
        exclude_sinks: key columns to leave out.
        seed: of what is drawn.
        block: entries of maps held at once, None for the default.
        progress: called with the number of forwards just finished.
        change: what is done to every batch before it runs; None for nothing.
    """

    exclude_sinks: Sinks = None
    seed: int = 0
    block: int | None = None
    progress: Callable[[int], Any] | None = None
    change: Callable[[Batch], Batch] | None = None


def measure(model: Model, batch: Batch, wanted: Sequence[Wanted], settings: Settings) -> dict[str, Measured]:
    """Label -> what was found on ``batch``.

    Every reducer is made, and so checked, before the first forward; then each (prompts, stack) runs once.

    Args:
        model: the handle.
        batch: the prompts.
        wanted: the scores.
        settings: what holds for all of them.
    """
    drawn: dict[str, Batch] = {}
    detected: dict[tuple[str, str], Tensor] = {}
    passes: dict[tuple[str, str], tuple[Ask, dict[str, Reducer]]] = {}
    later: list[tuple[Wanted, Ask]] = []
    for one in wanted:
        ask = _ask(model, batch, one, settings, drawn, detected)
        if one.shares:
            made = function_of(one.entry.function)(ask, **one.options)
            passes.setdefault((one.entry.prompts, one.stack.name), (ask, {}))[1][one.label] = made
        else:
            later.append((one, ask))
    found: dict[str, Measured] = {}
    for ask, reducers in passes.values():
        ask.stream(list(reducers.values()))
        found |= {label: reducer.measured() for label, reducer in reducers.items()}
    with sharing_reads(model):  # scores of weights, which nothing changes meanwhile
        found |= {one.label: _by_itself(one, ask) for one, ask in later if one.entry.needs == "weights"}
    found |= {one.label: _by_itself(one, ask) for one, ask in later if one.entry.needs != "weights"}
    return {one.label: found[one.label] for one in wanted}


def _by_itself(one: Wanted, ask: Ask) -> Measured:
    made = function_of(one.entry.function)(ask, **one.options)
    if not isinstance(made, Reducer):
        return made
    ask.stream([made])
    return made.measured()


def _ask(
    model: Model,
    batch: Batch,
    one: Wanted,
    settings: Settings,
    drawn: dict[str, Batch],
    detected: dict[tuple[str, str], Tensor],
) -> Ask:
    ask = Ask(one.label, model, batch, one.stack, None, settings.seed, settings.block, settings.progress)
    if one.entry.needs == "weights":
        return ask
    prompts = one.entry.prompts
    if prompts not in drawn:
        own = batch if prompts == "given" else function_of(prompts)(ask)
        drawn[prompts] = own if settings.change is None else settings.change(own)
    sinks = settings.exclude_sinks
    if isinstance(sinks, Tensor) and prompts != "given":
        raise BadInput(
            f"exclude_sinks: columns of the prompts given mean nothing to {one.name}, which draws its own prompts; use "
            "'first' or a number of first tokens, or ask for it by itself."
        )
    ask = replace(ask, batch=drawn[prompts])
    if isinstance(sinks, str) and sinks == "detected":
        key = (prompts, one.stack.name)
        if key not in detected:
            detected[key] = sink_columns(model, ask.batch, stack=one.stack.name)
            if settings.progress is not None:
                settings.progress(1)
        sinks = detected[key]
    return replace(ask, dropped=dropped_columns(sinks, ask.batch, one.stack))


def part_of(settings: Settings, wanted: Sequence[Wanted], index: Tensor, size: int) -> tuple[Settings, list[Wanted]]:
    """Settings and options for the prompts ``index`` of ``size``: masks over prompts are cut with them.

    Args:
        settings: of the whole batch.
        wanted: the scores.
        index: which prompts.
        size: prompts of the whole batch.
    """

    def cut(value: Any, axes: int = 2) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(part, axes) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(cut(part, axes) for part in value)
        of_prompts = isinstance(value, Tensor) and value.ndim >= axes and value.shape[0] == size
        return value[index.to(value.device)] if of_prompts else value

    def option(name: str, value: Any) -> Any:
        if name == "labels" and isinstance(value, list | tuple) and len(value) == size:
            return [value[place] for place in index.tolist()]
        return cut(value, 3 if name in _SQUARE else 2)

    smaller = [
        replace(one, options={name: option(name, value) for name, value in one.options.items()}) for one in wanted
    ]
    return replace(settings, exclude_sinks=cut(settings.exclude_sinks)), smaller


def joined(parts: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    """Label -> what was found on all parts, one after the other."""
    if len(parts) == 1:
        return dict(parts[0])
    return {label: _joined([part[label] for part in parts]) for label in parts[0]}


def _joined(parts: Sequence[Measured]) -> Measured:
    first = parts[0]
    layers = {layer: torch.cat([part.by_layer[layer] for part in parts]) for layer in first.by_layer}
    about: dict[str, Any] = {}
    for name, value in first.metadata.items():
        values = [part.metadata.get(name) for part in parts]
        if name == "tokens" and all(isinstance(one, list) for one in values):
            about[name] = [length for one in values for length in one or ()]
        else:
            about[name] = value if all(one == value for one in values) else {"by part": values}
    totals = first.totals
    for part in parts[1:]:
        totals = _added(totals, part.totals)
    return replace(first, by_layer=layers, metadata=about, totals=totals)


def _added(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        return {name: _added(value, other[name]) for name, value in one.items()}
    return one + other
