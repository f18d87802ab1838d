"""``trace_heads``: how much of a trace passes through each head."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.stacks import Stack
from interp.names import lookup, unknown
from interp.results import HeadScores
from interp.scores.dropping import Sinks, dropped_columns
from interp.tracing.ask import TraceAsk
from interp.tracing.heads import HEAD_FORMS
from interp.tracing.heads.sources import Sources
from interp.tracing.heads.traced import HeadsTraced
from interp.tracing.trace import target_columns


def trace_heads(
    model: Model,
    batch: Batch,
    method: str = "rollout",
    *,
    targets: Group = None,
    sources: Group = None,
    source_stack: str | None = None,
    stack: str | None = None,
    metric: Metric | None = None,
    exclude_sinks: Sinks = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> HeadScores:
    """What each head brings to a trace: with the head, minus with the head's map set to the identity.

    With ``sources`` the number is what the head adds to the targets' share of these tokens, ``sum_j (T - T')[t, j]``
    over them: a signed contribution (``sense`` +1: more of it means that the head leads the target to these sources),
    which :func:`interp.agreement` compares with effects, facilitation and other signed tables. Without, it is how far
    the head moves the target's whole row, ``1/2 sum_j |T - T'|[t, j]``: an unsigned score, 0 for a head that attends
    to the token itself alone, which is compared with other unsigned tables, and with signed ones by
    ``agreement(by="abs")``. Several targets are averaged.

    Args:
        model: the handle.
        batch: the prompts.
        method: a way of tracing that has a form per head: see :data:`interp.tracing.heads.HEAD_FORMS`.
        targets: rows of the stack, as in :func:`interp.trace`.
        sources: the tokens that count, as a group of positions; None for all, and the unsigned form.
        source_stack: whose tokens ``sources`` are: by default the encoder's where the stack reads one, else its own.
        stack: whose tokens; the default stack for None. A decoder's table has its cross-attention and its encoder too.
        metric: what is explained, for methods that explain a number per prompt.
        exclude_sinks: key columns that are left out of every map; see :func:`interp.score`.
        seed: of what is drawn.
        progress: called with the number of forwards just finished.
        **options: the method's own options.

    Returns:
        One number per head and prompt.

    Raises:
        UnknownName: a method without a form per head.
        BadInput: an option that the method does not have, targets or sources that cannot be placed.
        Unsupported: maps that the model does not offer.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]))
        >>> trace_heads(model, batch).values.shape == trace_heads(model, batch, sources=0).values.shape
        True
    """
    form = lookup(method, HEAD_FORMS, "way of tracing with a form per head")
    module, name = form.function.split(":")
    function: Callable[..., HeadsTraced] = getattr(importlib.import_module(module), name)
    taken = list(inspect.signature(function).parameters)[2:]
    for option in options:
        if option not in taken:
            raise BadInput(unknown(option, taken, f"option of {method!r}"))
    if not isinstance(batch, Batch):
        raise BadInput(
            f"trace_heads: the batch is a {type(batch).__name__}; expected what interp.encode(model, ...) returns."
        )
    place = model.stack(stack)
    columns, real = target_columns(batch, place, targets)
    if not bool(real.all()):
        raise BadInput("trace_heads: the prompts have different numbers of targets; give as many for each.")
    dropped = dropped_columns(exclude_sinks, batch, place)
    ask = TraceAsk(method, model, batch, place, columns, metric, False, dropped, seed, progress)
    found = function(ask, None if sources is None else Sources(ask, sources, source_stack), **options)
    signed = sources is not None
    tables = [
        HeadScores.from_array(
            _array(model.stack(part), of_layer),
            name=f"{method} heads",
            quantity="contribution" if signed else "score",
            sense=int(signed),
            sample_axis="prompt",
            stack=part,
            default_stack=model.default_stack,
            metadata={**found.metadata, "method": method, "sources": str(sources), "summary": form.summary},
        )
        for part, of_layer in found.values.items()
    ]
    return tables[0] if len(tables) == 1 else HeadScores.concat(tables)


def _array(stack: Stack, of_layer: Any) -> np.ndarray:
    """``[batch, layer, head]``, NaN where no head is."""
    heads = [stack.n_heads(layer) for layer in range(stack.n_layers)]
    count = len(next(iter(of_layer.values())))
    made = np.full((count, stack.n_layers, max(heads)), np.nan)
    for layer, values in of_layer.items():
        made[:, layer, : heads[layer]] = values.detach().cpu().double().numpy()
    return made
