"""Chefer's 2021a rule: gradients of maps times the relevance that reaches them by layer-wise propagation."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Int
from torch import Tensor

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.relevance_pass import relevance_run
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.relevance.answer_logit import metric_or_logit, named
from interp.tracing.relevance.slopes import map_slopes
from interp.tracing.relevance.steps import RULES, Step
from interp.tracing.relevance.through_layers import check_start, refuse_cross, traced

_MOST_LOST = 0.05  # of the relevance, before the method is refused


def chefer2021a(ask: TraceAsk, start: int = 0) -> Traced:
    """Relevance of each source to each target: rows of ``I + mean_h relu(dm/dA * C)``, normalised, multiplied.

    ``C[h, i, j]`` is the relevance of a map's entry. The logits are given dm/dlogits (1 at the logit explained), which
    passes down by layer-wise relevance propagation: the alpha-beta rule with alpha = 1 at every matrix product with
    weights, as the source says. The rules elsewhere are ours (see :func:`interp.model.relevance_pass.relevance_run`):
    what z carries is split among what each value adds to it, and half of each part is the map's,
    ``C_ij = 1/2 A_ij <R(z_i) / z_i, v_j>``; a released implementation of the source treats products and norms in much
    the same way, but passes the map's half on to queries and keys, which here it is not. Sums over the model are kept
    (the metadata says what share was lost on the way), or the method is refused.

    One forward and one backward for the gradients, one of each for the relevance; no map is kept.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        start: the first layer with attention that counts.

    Raises:
        BadInput: a start beyond the last layer, or cross-attention.
        Unsupported: values out of reach, or a model in which more than a twentieth of the relevance is lost.

    Source: Chefer, Gur and Wolf, 2021 (Transformer interpretability beyond attention visualization; arXiv 2012.09838).
    """
    check_start(ask, start)
    refuse_cross(ask)
    metric = metric_or_logit(ask.metric)
    slopes = map_slopes(ask, metric)
    if slopes.whole_layers:
        raise Unsupported(
            f"{ask.method}: the values of stack {ask.stack.name!r} ({ask.stack.model_type}) are out of reach, or "
            "something stands between its maps and the output projection, so that no relevance of the maps can be had. "
            "Use method='chefer2021b'."
        )
    name = ask.stack.name
    passed = relevance_run(ask.model, ask.batch, metric, [At(Site.Z, stack=name)])
    ask.did(1)
    if passed.lost > _MOST_LOST:
        raise Unsupported(
            f"{ask.method}: {passed.lost:.0%} of the relevance is lost in {type(ask.model.hf).__name__}: it has "
            "operations whose rule is not known here, or whose constants take a share. Use method='chefer2021b'."
        )
    rule = RULES["chefer2021a"]

    def steps(layer: int, rows: Int[Tensor, "batch row"] | None) -> Iterator[Step]:
        share = passed.slope(At(Site.Z, layer, stack=name))
        for block in slopes.blocks(layer, rows=rows):
            relevance = slopes.carried(block, layer, share) / 2
            yield rule.step(rule.fuse(block.slopes * relevance), block.rows)

    about = {"metric": named(metric), "start": start, "relevance_lost": passed.lost}
    return traced(ask, slopes, steps, start, about)
