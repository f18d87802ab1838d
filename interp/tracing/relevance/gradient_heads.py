"""What each head brings to gradient times attention."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.names import unknown
from interp.tracing.ask import TraceAsk
from interp.tracing.heads.sources import Sources
from interp.tracing.heads.traced import HeadsTraced
from interp.tracing.relevance.answer_logit import metric_or_logit, named
from interp.tracing.relevance.slopes import map_slopes
from interp.tracing.relevance.steps import distinct

Rows = Literal["all", "targets"]


def gradient_attention_heads(ask: TraceAsk, sources: Sources | None, rows: str = "all") -> HeadsTraced:
    """Gradient times attention of each head, ``sum_ij dm/dA[h, i, j] A[h, i, j]`` over sources j, signed.

    To first order what the metric loses as the head's attention to the sources fades. Over all sources and rows that is
    ``<z_h, dm/dz_h>``, minus the ``gradient`` effect of :func:`interp.attribute`. Without ``sources`` the absolute
    values of the entries are summed: how much the head's map matters, in either direction.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        sources: the tokens that count, None for all.
        rows: ``all`` query rows, or those of the ``targets`` alone (averaged), as the trace of that name has them.

    Raises:
        UnknownName: other rows.
        BadInput: sources of another stack than the one attended to.
        Unsupported: maps or gradients that the model does not offer.
    """
    if rows not in get_args(Rows):
        raise BadInput(unknown(rows, get_args(Rows), "choice of rows"))
    name = ask.stack.name
    if sources is not None and (ask.stack.cross or sources.stack != name):
        raise BadInput(
            f"{ask.method}: the heads of stack {name!r} are asked for what they take from {sources.stack!r}; sources "
            f"must be tokens that these heads attend to in their own stack: source_stack={name!r}, or another stack=."
        )
    metric = metric_or_logit(ask.metric)
    slopes = map_slopes(ask, metric)
    targets = None if rows == "all" else ask.targets.to(slopes.metric.device)
    values: dict[int, Tensor] = {}
    for layer in ask.layers:
        batch, heads, _, width = slopes.held.shape(layer)
        total = torch.zeros(batch, heads, dtype=torch.float64, device=slopes.metric.device)
        member = None if sources is None else sources.among(((name, width),)).to(total.device)
        for block in slopes.blocks(layer, rows=None if targets is None else distinct(targets)):
            entries = block.weighted.double()
            if member is None:
                each = entries.abs().sum(-1)
            else:
                each = (entries * member[:, None, None, : entries.shape[-1]]).sum(-1)
            if targets is not None:
                same = targets[:, :, None] == block.rows.to(targets.device)[:, None, :]
                each = each * same.to(each).mean(1).unsqueeze(1)
            total += each.sum(-1)
        values[layer] = total
    return HeadsTraced({name: values}, {**slopes.metadata, "metric": named(metric), "rows": rows})
