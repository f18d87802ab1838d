"""``trace``: what target tokens owe to source tokens in a run of a model, by any of the methods."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.stacks import Stack
from interp.names import lookup, unknown
from interp.scores.dropping import Sinks, dropped_columns
from interp.tracing import METHODS
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.kinds import TraceMethod
from interp.tracing.result import Trace


def trace(
    model: Model,
    batch: Batch,
    method: str = "rollout",
    *,
    targets: Group = None,
    stack: str | None = None,
    metric: Metric | None = None,
    each_layer: bool = False,
    exclude_sinks: Sinks = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Trace:
    """What each target token owes to each source token, ``[prompt, target, source]``.

    Args:
        model: the handle.
        batch: the prompts.
        method: a name; ``circuits list methods`` shows them with what one number means.
        targets: rows of the stack: None for where the answer is read (of an image its first token, CLS), ``"all"``, or
            what an address takes: an int, a slice, a span name, a tensor of columns ``[batch, k]``.
        stack: whose tokens; the default stack for None.
        metric: what is explained, for methods that explain a number per prompt.
        each_layer: keep the trace at the top of every layer besides, where the method has one.
        exclude_sinks: key columns that are left out of every map (rows rescaled); see :func:`interp.score`.
        seed: of what is drawn.
        progress: called with the number of forwards just finished.
        **options: the method's own options.

    Raises:
        UnknownName: an unknown method.
        BadInput: an option that the method does not have, targets that it cannot explain, or layers that it lacks.
        Unsupported: maps or values that the model does not offer.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]))
        >>> interp.trace(model, batch, "raw").values.shape
        (1, 1, 5)
    """
    entry = lookup(method, METHODS, "way of tracing")
    function = _function(entry)
    _check_options(method, entry, function, options)
    if not isinstance(batch, Batch):
        raise BadInput(
            f"trace: the batch is a {type(batch).__name__}; expected what interp.encode(model, ...) returns."
        )
    if each_layer and not entry.layered:
        raise BadInput(f"trace: {method!r} has no value at single layers; leave each_layer out.")
    place = model.stack(stack)
    columns, real = target_columns(batch, place, targets)
    ask = TraceAsk(
        method,
        model,
        batch,
        place,
        columns,
        metric,
        each_layer,
        dropped_columns(exclude_sinks, batch, place),
        seed,
        progress,
    )
    if entry.targets == "answer":
        ask.only_answer()
    return finished(ask, entry, function(ask, **options), real, options)


def target_columns(
    batch: Batch, stack: Stack, targets: Group
) -> tuple[Int[Tensor, "batch k"], Bool[Tensor, "batch k"]]:
    """Columns of the targets, and which of them each prompt has (a shorter prompt's are filled up with its first).

    Raises:
        BadInput: positions that cannot be placed.
        BadAddress: positions outside a prompt.
    """
    mask = batch.row_mask(stack.name)
    if targets is None:
        known = mask is not None and stack.name in (batch.default_stack, "cross")
        made = batch.read_at[:, None] if known else torch.zeros(len(batch), 1, dtype=torch.long)
        return made, torch.ones_like(made, dtype=torch.bool)
    if isinstance(targets, str) and targets == "all":
        if mask is None:
            raise BadInput(
                f"trace: how many positions stack {stack.name!r} has is not known before it runs; give targets= as a "
                "tensor of columns [batch, k]."
            )
        counts = mask.sum(-1)
        order = (~mask).long().argsort(dim=-1, stable=True)[:, : int(counts.max())]
        real = torch.arange(order.shape[1], device=order.device) < counts[:, None]
        return torch.where(real, order, order[:, :1]), real
    made = batch.columns(targets, stack.name)
    return made, torch.ones_like(made, dtype=torch.bool)


def finished(
    ask: TraceAsk, entry: TraceMethod, found: Traced, real: Bool[Tensor, "batch k"], options: Mapping[str, Any]
) -> Trace:
    """The result of what a method found: padding blanked, words put beside it.

    Args:
        ask: what was asked.
        entry: the method.
        found: its answer.
        real: which targets each prompt has.
        options: the method's own options, for the metadata.
    """
    values = found.values.detach().cpu().double()
    mask = _source_mask(ask, found, values.shape[-1])
    here = mask[:, None, :] & real.cpu()[:, :, None]
    blank = torch.tensor(torch.nan, dtype=values.dtype)
    layers = None
    if found.layers is not None:
        layers = torch.where(here, found.layers.detach().cpu().double(), blank).numpy()
    words = _words(ask, found, mask)
    own = _own_words(ask)
    columns = ask.targets.cpu().numpy()
    said = {name: value for name, value in options.items() if isinstance(value, str | int | float | bool | type(None))}
    return Trace(
        method=ask.method,
        values=torch.where(here, values, blank).numpy(),
        targets=columns,
        mask=mask.numpy(),
        sources=words,
        target_words=tuple(
            tuple(own[prompt][column] if own and column < len(own[prompt]) else str(column) for column in row)
            for prompt, row in enumerate(columns.tolist())
        ),
        stack=ask.stack.name,
        signed=entry.signed,
        layers=layers,
        source_stacks=found.source_stacks or (),
        metadata={**said, **found.metadata, "value": entry.value, "source": entry.source},
    )


def _function(entry: TraceMethod) -> Callable[..., Traced]:
    module, name = entry.function.split(":")
    return getattr(importlib.import_module(module), name)


def _check_options(
    method: str, entry: TraceMethod, function: Callable[..., Traced], options: Mapping[str, Any]
) -> None:
    taken = list(inspect.signature(function).parameters)[1:]
    for name in options:
        if name not in taken:
            raise BadInput(unknown(name, taken, f"option of {method!r}"))


def _source_mask(ask: TraceAsk, found: Traced, width: int) -> Tensor:
    if found.source_stacks is None:
        mask = ask.key_mask
        made = torch.ones(len(ask.batch), width, dtype=torch.bool) if mask is None else mask.cpu()
    else:
        parts = []
        for name, number in found.source_stacks:
            mask = ask.batch.row_mask(name)
            parts.append(torch.ones(len(ask.batch), number, dtype=torch.bool) if mask is None else mask.cpu())
        made = torch.cat(parts, dim=1)
    if made.shape[1] != width:
        raise AssertionError(f"{ask.method} gave {width} sources; the stack has {made.shape[1]}")
    return made


def _words_of(ask: TraceAsk, stack: str, width: int) -> list[list[str]]:
    """The text of each column of a stack, its number where there is none."""
    mask = ask.batch.row_mask(stack)
    words = ask.batch.tokens if stack == ask.batch.default_stack else ()
    if mask is None or not words:
        return [[str(column) for column in range(width)] for _ in range(len(ask.batch))]
    made = []
    for row, own in zip(mask.cpu(), words, strict=True):
        filled = iter(own)
        made.append([next(filled, "") if real else "" for real in row.tolist()])
    return made


def _own_words(ask: TraceAsk) -> list[list[str]]:
    mask = ask.mask
    return [] if mask is None else _words_of(ask, ask.stack.name, mask.shape[1])


def _words(ask: TraceAsk, found: Traced, mask: Tensor) -> tuple[tuple[str, ...], ...]:
    stacks = found.source_stacks
    if stacks is None:
        name = "encoder" if ask.stack.cross else ask.stack.name
        stacks = ((name, mask.shape[1]),)
    columns = [_words_of(ask, name, number) for name, number in stacks]
    made = []
    for prompt, here in enumerate(np.asarray(mask)):
        words = [word for part in columns for word in part[prompt]]
        made.append(tuple(word if real else "" for word, real in zip(words, here, strict=True)))
    return tuple(made)
