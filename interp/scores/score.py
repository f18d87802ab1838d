"""``score``: every head score asked for, from as few forwards as possible."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.stacks import Stack
from interp.names import lookup, unknown
from interp.results import HeadScores
from interp.scores import SCORES
from interp.scores.ask import Ask, Measured
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.kinds import Score
from interp.scores.reducer import Reducer

Names = str | Iterable[str] | Mapping[str, Mapping[str, Any]]


def score(
    model: Model,
    batch: Batch,
    names: Names,
    *,
    stack: str | None = None,
    exclude_sinks: Sinks = None,
    seed: int = 0,
    block: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, HeadScores]:
    """Name -> score of every head, per prompt.

    Args:
        model: the handle.
        batch: the prompts.
        names: one name or several of ``interp.scores.SCORES``; or a mapping label -> options, where the score is the
            label itself or the option ``"score"``: ``{"entropy": {}, "to image": {"score": "group_mass", ...}}``.
        stack: whose heads; the default stack (the vision stack for scores of image grids) for None.
        exclude_sinks: key columns to leave out before rows are renormalised; see
            :func:`interp.scores.dropping.dropped_columns`.
        seed: of what scores draw.
        block: entries of maps held at once.
        progress: called with the number of forwards just finished.

    Raises:
        UnknownName: with near matches.
        BadInput: an option that a score does not have, or prompts that it cannot use.
        Unsupported: the model's patterns cannot be read.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4, 5]]))
        >>> interp.score(model, batch, "induction")["induction"].values.shape
        (2, 2)
    """
    wanted = _wanted(names)
    made: dict[str, Measured] = {}
    stacks: dict[str, Stack] = {}
    passes: dict[tuple[str, str], tuple[Ask, dict[str, Reducer]]] = {}
    for label, (entry, options) in wanted.items():
        place = _stack(model, entry, stack)
        stacks[label] = place
        ask = Ask(label, model, batch, place, None, seed, block, progress)
        key = (entry.prompts, place.name)
        if entry.prompts != "given":
            ask = replace(ask, batch=_function(entry.prompts)(ask) if key not in passes else passes[key][0].batch)
        ask = replace(ask, dropped=dropped_columns(exclude_sinks, ask.batch, place))
        found = _function(entry.function)(ask, **options)
        if isinstance(found, Reducer):
            passes.setdefault(key, (ask, {}))[1][label] = found
        else:
            made[label] = found
    for ask, reducers in passes.values():
        ask.stream(list(reducers.values()))
        made |= {label: reducer.measured() for label, reducer in reducers.items()}
    return {label: _table(label, *wanted[label], made[label], model, stacks[label], exclude_sinks) for label in wanted}


def _wanted(names: Names) -> dict[str, tuple[Score, dict[str, Any]]]:
    if isinstance(names, str):
        given: Mapping[str, Mapping[str, Any]] = {names: {}}
    elif isinstance(names, Mapping):
        given = names
    else:
        given = {name: {} for name in names}
    if not given:
        raise BadInput(f"score: no names were given; known: {', '.join(SCORES)}.")
    wanted = {}
    for label, options in given.items():
        own = dict(options)
        name = own.pop("score", label)
        entry = lookup(name, SCORES, "score")
        known = list(inspect.signature(_function(entry.function)).parameters)[1:]
        for option in own:
            if option not in known:
                raise BadInput(unknown(option, known, f"option of score {name!r}"))
        wanted[label] = (entry, own)
    return wanted


def _function(path: str) -> Callable[..., Any]:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _stack(model: Model, entry: Score, stack: str | None) -> Stack:
    if stack is None and entry.where == "vision" and not model.default_stack.startswith("vision"):
        stack = "vision"
    return model.stack(stack)


def _table(
    label: str,
    entry: Score,
    options: Mapping[str, Any],
    found: Measured,
    model: Model,
    stack: Stack,
    sinks: Sinks,
) -> HeadScores:
    about = {
        "model": model.name,
        "source": entry.source,
        "prompts": entry.prompts,
        "options": {name: repr(value) for name, value in options.items()},
        "exclude_sinks": sinks if isinstance(sinks, str | int | None) else "columns given",
    }
    return HeadScores.from_array(
        _grid(found, stack),
        name=label,
        quantity="score",
        sense=entry.sense,
        sample_axis=found.sample_axis,
        stack=stack.name,
        default_stack=model.default_stack,
        unit=found.unit,
        exists=_exists(stack, found.unit),
        positions=found.bins,
        metadata={**about, **found.metadata},
    )


def _exists(stack: Stack, unit: str) -> np.ndarray:
    counts = [(stack.n_kv_heads if unit == "kv" else stack.n_heads)(layer) for layer in range(stack.n_layers)]
    return np.arange(max(counts))[None, :] < np.array(counts)[:, None]


def _grid(found: Measured, stack: Stack) -> np.ndarray:
    """``[sample, layer, head]`` (with ``bin``), NaN where there is no head or the score has no value."""
    exists = _exists(stack, found.unit)
    first: Tensor = next(iter(found.by_layer.values()))
    grid = np.full((first.shape[0], *exists.shape, *first.shape[2:]), np.nan)
    for layer, values in found.by_layer.items():
        grid[:, layer, : values.shape[1]] = values.double().cpu().numpy()
    return grid if found.sample_axis is not None else grid[0]
