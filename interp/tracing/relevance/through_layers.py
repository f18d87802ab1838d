"""Traces of attention weighted by gradients, from the top layer down: Chefer's 2021b rule and gradient rollout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.relevance.answer_logit import metric_or_logit, named
from interp.tracing.relevance.encoder_decoder import crossed, has_cross
from interp.tracing.relevance.slopes import MapSlopes, map_slopes
from interp.tracing.relevance.steps import RULES, Step, distinct, rows_through
from interp.tracing.transitions import check_options, discarded


def chefer2021b(ask: TraceAsk, start: int = 0) -> Traced:
    """Relevance of each source to each target: ``R <- R + mean_h relu(dm/dA * A) R`` from the identity on.

    Rows of the result are taken from the top layer down as row vectors, ``O(L T^2)`` in time, and the maps and their
    gradients are made in blocks of rows from one forward and one backward; see
    :class:`interp.tracing.relevance.slopes.MapSlopes`. A target keeps a 1 of its own. Of a decoder with
    cross-attention the sources are the encoder's tokens and then the decoder's (``R_qs``, ``R_qq``);
    see :class:`interp.SequenceRelevance` for the rules between sequences.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        start: the first layer with attention that counts.

    Raises:
        BadInput: a start beyond the last layer.
        Unsupported: maps or gradients that the model does not offer.

    Source: Chefer, Gur and Wolf, 2021 (Generic attention-model explainability; arXiv 2103.15679).
    """
    check_start(ask, start)
    metric = metric_or_logit(ask.metric)
    if has_cross(ask):
        return crossed(ask, metric, start)
    slopes = map_slopes(ask, metric)
    rule = RULES["chefer2021b"]

    def steps(layer: int, rows: Int[Tensor, "batch row"] | None) -> Iterator[Step]:
        for block in slopes.blocks(layer, rows=rows):
            yield rule.step(rule.fuse(block.weighted), block.rows)

    return traced(ask, slopes, steps, start, {"metric": named(metric), "start": start})


def gradient_rollout(ask: TraceAsk, start: int = 0, discard: float = 0.0) -> Traced:
    """Rollout of gradient-weighted maps: ``R <- N(I + relu(mean_h dm/dA * A)) R``, ``N`` dividing rows by their sums.

    Each layer's gradients stand beside that layer's maps, rows are normalised over their own sum, and what is discarded
    is counted in each prompt by itself.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        start: the first layer with attention that counts.
        discard: share of the lowest entries of each layer's fused map that are set to 0 first; needs the fused map of
            one layer whole. The source's own default is 0.9.

    Raises:
        BadInput: a start beyond the last layer, a share outside [0, 1), or cross-attention.
        Unsupported: maps or gradients that the model does not offer.

    Source: the vit-explain package (Gildenblat, 2020).
    """
    check_start(ask, start)
    check_options(discard=discard)
    refuse_cross(ask)
    metric = metric_or_logit(ask.metric)
    slopes = map_slopes(ask, metric)
    rule = RULES["vit-explain-gradient"]

    def steps(layer: int, rows: Int[Tensor, "batch row"] | None) -> Iterator[Step]:
        if not discard:
            for block in slopes.blocks(layer, rows=rows):
                yield rule.step(rule.fuse(block.weighted), block.rows)
            return
        fused = whole_fused(slopes, layer, rule.fuse)
        fused = discarded(fused, discard, keep_first=False, rows=ask.mask, keys=ask.key_mask)
        every = torch.arange(fused.shape[1], device=fused.device).expand(len(fused), -1)
        chosen = every if rows is None else rows.to(fused.device)
        yield rule.step(fused.gather(1, chosen.unsqueeze(-1).expand(-1, -1, fused.shape[2])), chosen)

    about = {"metric": named(metric), "start": start, "discard": discard}
    return traced(ask, slopes, steps, start, about)


def gradient_attention(ask: TraceAsk, layer: int | None = None) -> Traced:
    """Gradient times attention, ``sum_l mean_h dm/dA_l[h, i, j] A_l[h, i, j]``, signed: the row of each target.

    To first order what the metric loses as the target's attention to the source fades out in all layers, divided by
    the number of heads. No products of layers: what other tokens carry to the target is not followed.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        layer: this block alone; the sum over layers for None.

    Raises:
        BadInput: a layer without attention.
        Unsupported: maps or gradients that the model does not offer.
    """
    if layer is not None and layer not in ask.layers:
        raise BadInput(f"{ask.method}: layer={layer!r}; the layers with attention are {list(ask.layers)}.")
    metric = metric_or_logit(ask.metric)
    slopes = map_slopes(ask, metric)
    size = (len(ask.batch), ask.targets.shape[1])
    each = torch.zeros(len(ask.layers), *size, slopes.held.shape(ask.layers[0])[3], device=slopes.metric.device)
    index = ask.targets.to(each.device)
    for number, block_index in enumerate(ask.layers):
        if layer is not None and block_index != layer:
            continue
        for block in slopes.blocks(block_index, rows=distinct(index)):
            same = (index[:, :, None] == block.rows.to(index.device)[:, None, :]).to(each)  # [batch, target, row]
            own = block.weighted.mean(1)
            each[number, ..., : own.shape[-1]] += same @ own
    summed = each.cumsum(0)
    about = {**slopes.metadata, "metric": named(metric), "layer": layer}
    return Traced(summed[-1], summed if ask.each_layer else None, metadata=about)


def whole_fused(slopes: MapSlopes, layer: int, fuse: Any) -> Float[Tensor, "batch query key"]:
    """The fused map of one layer, whole."""
    batch, _, queries, keys = slopes.held.shape(layer)
    made = torch.zeros(batch, queries, keys, device=slopes.metric.device)
    for block in slopes.blocks(layer):
        own = fuse(block.weighted)
        index = block.rows.to(made.device).unsqueeze(-1).expand(-1, -1, own.shape[-1])
        made[..., : own.shape[-1]].scatter_(1, index, own)
    return made


def traced(ask: TraceAsk, slopes: MapSlopes, steps: Any, start: int, about: dict[str, Any]) -> Traced:
    """The rows of the targets through all layers from ``start`` on.

    Args:
        ask: what is traced.
        slopes: of the maps.
        steps: of :func:`interp.tracing.relevance.steps.rows_through`.
        start: the first layer that counts; the trace at the top of earlier ones is the identity.
        about: what is said of the method's own settings.
    """
    width = slopes.held.shape(ask.layers[0])[3]
    targets = ask.targets.to(slopes.metric.device)
    used = ask.layers[start:]
    values, layers = rows_through(used, steps, targets, width, each_layer=ask.each_layer)
    if layers is not None and start:
        blank = torch.nn.functional.one_hot(targets, width).to(layers).expand(start, -1, -1, -1)
        layers = torch.cat([blank, layers])
    return Traced(values, layers, metadata={**slopes.metadata, **about})


def check_start(ask: TraceAsk, start: int) -> None:
    """Refuse a first layer that is not there.

    Raises:
        BadInput: with what was expected.
    """
    check_options(start=start)
    if start >= len(ask.layers):
        raise BadInput(f"{ask.method}: start={start}; the stack has {len(ask.layers)} layers with attention.")


def refuse_cross(ask: TraceAsk) -> None:
    """Refuse attention to another sequence.

    Raises:
        BadInput: with what to do instead.
    """
    if ask.stack.cross:
        raise BadInput(
            f"{ask.method}: stack {ask.stack.name!r} attends to another sequence, for which this rule is not defined; "
            "use method='chefer2021b', or the stacks 'encoder' and 'decoder' each by itself."
        )
