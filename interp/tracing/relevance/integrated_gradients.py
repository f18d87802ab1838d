"""Integrated gradients from a baseline to the inputs, with how far they are from complete."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import At
from interp.attribution.quadrature import quadrature
from interp.edits.activations import custom
from interp.edits.base import Context, Edit
from interp.errors import BadInput, Unsupported
from interp.metrics import answer_logits, declared
from interp.model.batch import Batch
from interp.model.image_tokens import image_token_ids
from interp.model.inputs import fewest_logits, pad_id
from interp.model.run import Metric, run
from interp.model.sweep import logits_for
from interp.names import unknown
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.relevance.answer_logit import metric_or_logit, named
from interp.tracing.relevance.input_gradients import input_place, summed

Baseline = Literal["zero", "pad", "mask"]


def integrated_gradients(
    ask: TraceAsk, steps: int = 32, rule: str = "gauss-legendre", baseline: str = "zero"
) -> Traced:
    """``sum_d (x_jd - b_jd) int_0^1 dm/dx_jd (b + a (x - b)) da``, signed.

    Gradients averaged on the straight way from a baseline to the inputs, times the way.

    The values of a prompt sum to ``m(x) - m(b)`` up to the quadrature's error (completeness); the metadata holds both
    and the largest gap, per prompt. The metric is one function throughout: where prompts have no answers, the logit of
    what the unedited model says.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        steps: points on the way, each a forward and a backward.
        rule: of quadrature: ``gauss-legendre``, ``midpoint``, ``trapezoid``, ``left`` or ``right``.
        baseline: what x, which enters the first block, starts from: ``zero`` vectors (where positions are added to the
            embeddings, those go as well); or what enters when every token is ``pad`` or ``mask`` (positions stay).

    Raises:
        BadInput: too few steps, another rule or baseline, a tokenizer without a mask token, images with a token
            baseline, or ``exclude_sinks``.
        Unsupported: inputs packed without a batch axis.

    Source: Sundararajan, Taly and Yan, 2017 (arXiv 1703.01365).
    """
    points, weights = quadrature(rule, steps)
    if baseline not in get_args(Baseline):
        raise BadInput(unknown(baseline, get_args(Baseline), "baseline"))
    at = input_place(ask)
    replaced = None if baseline == "zero" else _without_words(ask, baseline, at)
    metric = _fixed(ask)
    logits = logits_for(metric, ask.model)
    plain = run(ask.model, ask.batch, [at], logits=logits)
    inputs = plain[at]
    if replaced is None:
        start = torch.zeros_like(inputs)
    else:
        start = run(ask.model, replaced, [at], logits=fewest_logits(ask.model))[at]
        ask.did(1)
    ask.did(1)
    total = torch.zeros_like(inputs, dtype=torch.float64)
    for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
        made = run(ask.model, ask.batch, [at], edits=[_at_point(at, start, point)], grad=metric, logits=logits)
        assert made.grad is not None
        total += weight * made.grad[at].double()
        ask.did(1)
    values = summed((inputs - start).double() * total)
    assert plain.logits is not None
    first = run(ask.model, ask.batch, edits=[_at_point(at, start, 0.0)], logits=logits).logits
    ask.did(1)
    assert first is not None
    ends = metric(plain.logits, ask.batch) - metric(first, ask.batch)
    about = {"steps": steps, "rule": rule, "baseline": baseline, "metric": named(ask.metric or metric)}
    return Traced(values, metadata={**about, "completeness": completeness(values, ends, ask.batch.row_mask(at.stack))})


def completeness(
    values: Float[Tensor, "batch one pos"], ends: Float[Tensor, " batch"], real: Tensor | None
) -> dict[str, object]:
    """What the values of each prompt sum to, what they should, and the largest gap.

    Args:
        values: of every input.
        ends: the metric at the inputs less that at the baseline.
        real: ``[batch, pos]`` real inputs, None for all.
    """
    sums = (values[:, 0] if real is None else values[:, 0].masked_fill(~real, 0.0)).sum(-1).cpu()
    wanted = ends.detach().double().cpu()
    return {
        "sum": [round(one, 6) for one in sums.tolist()],
        "difference": [round(one, 6) for one in wanted.tolist()],
        "largest_gap": float((sums - wanted).abs().max()),
    }


def _at_point(at: At, start: Tensor, point: float) -> Edit:
    def move(x: Tensor, ctx: Context) -> Tensor:
        there = start + point * (x.detach() - start)
        return there + (x - x.detach())  # adds 0, and lets the gradient at the point through to x

    return custom(at, move, name="on the way from the baseline")


def _fixed(ask: TraceAsk) -> Metric:
    """The metric; without one and without answers, the logit of what the unedited model says, wherever inputs go."""
    metric = metric_or_logit(ask.metric)
    if ask.metric is not None or ask.batch.answers is not None:
        return metric
    made = run(ask.model, ask.batch, logits=logits_for(metric, ask.model)).logits
    ask.did(1)
    if made is None:
        raise BadInput(f"{ask.method}: the model gives no logits; load it with its head.")
    said = answer_logits(made, ask.batch).argmax(-1, keepdim=True)

    @declared(positions="answers")
    def said_logit(logits: Tensor, batch: Batch) -> Tensor:
        return answer_logits(logits, batch).gather(1, said)[:, 0]

    return said_logit


def _without_words(ask: TraceAsk, baseline: str, at: At) -> Batch:
    """The batch with every token replaced by padding or mask tokens."""
    ids_name = "decoder_input_ids" if at.stack == "decoder" else "input_ids"
    ids = ask.batch.inputs.get(ids_name)
    if not isinstance(ids, Tensor):
        raise BadInput(f"{ask.method}: baseline={baseline!r} replaces tokens, and the inputs have none; use 'zero'.")
    images = torch.tensor(image_token_ids(ask.model), dtype=ids.dtype, device=ids.device)
    if bool(torch.isin(ids, images).any()):
        raise Unsupported(
            f"{ask.method}: baseline={baseline!r} replaces tokens, and the prompts hold images; use baseline='zero'."
        )
    if baseline == "pad":
        token = pad_id(ask.model)
    else:
        token = getattr(ask.model.tokenizer, "mask_token_id", None)
        if not isinstance(token, int):
            raise BadInput(f"{ask.method}: baseline='mask' needs a tokenizer with a mask token; use 'pad' or 'zero'.")
    return dataclasses.replace(ask.batch, inputs={**ask.batch.inputs, ids_name: torch.full_like(ids, token)})
