"""``score``: every head score asked for, from as few forwards as possible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.stacks import Stack
from interp.names import lookup
from interp.results import HeadScores
from interp.scores.ask import Measured
from interp.scores.dropping import Sinks
from interp.scores.measuring import Settings, joined, measure, part_of
from interp.scores.null_prompts import KINDS, null_prompts
from interp.scores.planning import Names, ScorePlan, Wanted, plan_of, wanted_scores
from interp.scores.scored import Scores

_DRAWS = 20


def score(
    model: Model,
    batch: Batch,
    names: Names,
    *,
    stack: str | None = None,
    exclude_sinks: Sinks = None,
    null: Literal["shuffled", "random"] | None = None,
    draws: int = _DRAWS,
    batch_size: int | None = None,
    seed: int = 0,
    block: int | None = None,
    progress: Callable[[int], Any] | None = None,
    tell: Callable[[str], Any] | None = None,
) -> Scores:
    """Label -> score of every head, per prompt; a dict with ``.plan``, ``.nulls`` and ``.table()``.

    Scores that reduce attention maps share one forward per kind of prompts and stack. The model's own fast attention
    makes the output; maps are computed beside it by blocks of query rows and forgotten, so that memory grows with the
    prompts' length and not with its square. Where a layer makes whole maps of its own accord (a model loaded with eager
    attention, a family that bypasses the attention interface, an edited layer, a packed vision tower) those are looked
    at.

    Args:
        model: the handle.
        batch: the prompts.
        names: one name or several of ``interp.scores.SCORES`` (``circuits list scores``); or a mapping label ->
            options, where the score is the label itself or the option ``"score"``:
            ``{"entropy": {}, "to image": {"score": "group_mass", "keys": "image"}}``.
        stack: whose heads; the default stack (the vision stack for scores of image grids) for None.
        exclude_sinks: key columns to leave out, after which rows sum to 1 again: ``"first"`` (each prompt's first
            token), the number of first tokens, a span's name, a BoolTensor ``[batch, key]``, or ``"detected"`` (what
            :func:`interp.sink_columns` finds in one more forward). Nothing by default.
        null: also score null prompts: ``"shuffled"`` (each prompt's ordinary tokens in another order) or ``"random"``
            (other ordinary tokens). Off by default.
        draws: of null prompts.
        batch_size: prompts in one forward, all for None. Scores of all prompts together never take them apart.
        seed: of what scores and nulls draw.
        block: entries of maps (prompts x heads x rows x keys) held at once; chosen for None.
        progress: called with the number of forwards just finished.
        tell: called with the plan as text, before the first forward; it is logged as well.

    Raises:
        UnknownName: a score, with near matches.
        BadInput: an option that a score does not have, or prompts that it cannot use; before any forward.
        Unsupported: the model's patterns cannot be read.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4, 5]]))
        >>> interp.score(model, batch, "induction")["induction"].values.shape
        (2, 2)
    """
    if not isinstance(batch, Batch):
        raise BadInput(f"score: the batch is a {type(batch).__name__}; expected what interp.encode(...) returns.")
    numbers = (("batch_size", batch_size, 1), ("draws", draws, 1), ("block", block, 1), ("seed", seed, 0))
    for name, value, least in numbers:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise BadInput(f"score: {name}={value!r}; expected a whole number of at least {least}.")
    if null is not None:
        lookup(null, KINDS, "null")
    wanted = wanted_scores(model, names, stack)
    size = len(batch) if batch_size is None else batch_size
    parts = -(-len(batch) // size)
    plan = plan_of(wanted, parts=parts, draws=draws if null else 0, detecting=_detects(exclude_sinks))
    logging.getLogger("interp.scores").info("%s", plan)
    if tell is not None:
        tell(str(plan))
    settings = Settings(exclude_sinks, seed, block, progress)
    found = _measured(model, batch, wanted, settings, size)
    tables = {one.label: _table(one, found[one.label], model, exclude_sinks) for one in wanted}
    nulls = _nulls(model, batch, wanted, settings, size, null, draws) if null else {}
    return Scores(tables, plan, nulls)


def plan_scores(
    model: Model,
    batch: Batch,
    names: Names,
    *,
    stack: str | None = None,
    exclude_sinks: Sinks = None,
    batch_size: int | None = None,
) -> ScorePlan:
    """What :func:`score` would run: ``.forwards``, and which scores share one; printing it shows all.

    Args:
        model, batch, names, stack, exclude_sinks, batch_size: as for :func:`score`.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5]]))
        >>> plan_scores(model, batch, ["induction", "previous_token"]).forwards
        1
    """
    parts = 1 if batch_size is None else -(-len(batch) // batch_size)
    return plan_of(wanted_scores(model, names, stack), parts=parts, detecting=_detects(exclude_sinks))


def _detects(sinks: Sinks) -> bool:
    return isinstance(sinks, str) and sinks == "detected"


def _measured(
    model: Model, batch: Batch, wanted: Sequence[Wanted], settings: Settings, size: int
) -> Mapping[str, Measured]:
    if size >= len(batch):
        return measure(model, batch, wanted, settings)
    whole = [one for one in wanted if one.entry.whole or one.entry.needs == "weights"]
    apart = [one for one in wanted if one not in whole]
    parts: list[Mapping[str, Measured]] = []
    for first in range(0, len(batch), size) if apart else ():
        index = torch.arange(first, min(first + size, len(batch)))
        smaller, some = part_of(settings, apart, index, len(batch))
        parts.append(measure(model, batch.select(index), some, smaller))
    return {**(joined(parts) if parts else {}), **(measure(model, batch, whole, settings) if whole else {})}


def _nulls(
    model: Model,
    batch: Batch,
    wanted: Sequence[Wanted],
    settings: Settings,
    size: int,
    kind: str,
    draws: int,
) -> dict[str, HeadScores]:
    judged = [one for one in wanted if one.entry.needs != "weights"]
    grids: dict[str, list[np.ndarray]] = {one.label: [] for one in judged}
    about: dict[str, Measured] = {}
    for draw in range(draws if judged else 0):
        seed = settings.seed * draws + draw
        changed = replace(settings, change=lambda own, seed=seed: null_prompts(model, own, kind, seed))
        about = dict(_measured(model, batch, judged, changed, size))
        for one in judged:
            table = _table(one, about[one.label], model, settings.exclude_sinks)
            grids[one.label].append(table.values)
    return {
        one.label: HeadScores.from_array(
            np.stack(grids[one.label]),
            name=f"{one.label}, {kind} prompts",
            sample_axis="permutation",
            stack=one.stack.name,
            default_stack=model.default_stack,
            unit=about[one.label].unit,
            exists=_exists(one.stack, about[one.label].unit),
            positions=about[one.label].bins,
            metadata={"model": model.name, "null": kind, "draws": draws, "seed": settings.seed},
        )
        for one in judged
    }


def _table(one: Wanted, found: Measured, model: Model, sinks: Sinks) -> HeadScores:
    about = {
        "model": model.name,
        "score": one.name,
        "source": one.entry.source,
        "prompts": one.entry.prompts,
        "options": {name: repr(value) for name, value in one.options.items()},
        "exclude_sinks": sinks if isinstance(sinks, str | int | None) else "columns given",
    }
    return HeadScores.from_array(
        _grid(found, one.stack),
        name=one.label,
        quantity="score",
        sense=one.entry.sense,
        sample_axis=found.sample_axis,
        stack=one.stack.name,
        default_stack=model.default_stack,
        unit=found.unit,
        exists=_exists(one.stack, found.unit),
        positions=found.bins,
        metadata={**about, **found.metadata, **found.totals},
    )


def _exists(stack: Stack, unit: str) -> np.ndarray:
    counts = [(stack.n_kv_heads if unit == "kv" else stack.n_heads)(layer) for layer in range(stack.n_layers)]
    return np.arange(max(counts))[None, :] < np.array(counts)[:, None]


def _grid(found: Measured, stack: Stack) -> np.ndarray:
    """``[sample, layer, head]`` (with ``bin``), NaN where there is no head or the score has no value."""
    exists = _exists(stack, found.unit)
    first = next(iter(found.by_layer.values()))
    grid = np.full((first.shape[0], *exists.shape, *first.shape[2:]), np.nan)
    for layer, values in found.by_layer.items():
        grid[:, layer, : values.shape[1]] = values.double().cpu().numpy()
    return grid if found.sample_axis is not None else grid[0]
