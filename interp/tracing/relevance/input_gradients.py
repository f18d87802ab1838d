"""Gradients of a metric at the inputs: their size, and gradient times input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput, Unsupported
from interp.model.run import Metric, Run, run
from interp.model.sweep import logits_for
from interp.names import lookup
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.relevance.answer_logit import metric_or_logit, named

NORMS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "l2": lambda slope: slope.square().sum(-1).sqrt(),
        "l1": lambda slope: slope.abs().sum(-1),
        "sum": lambda slope: slope.sum(-1).abs(),
    }
)
"""Name -> ``[..., d_model]`` to one number: l2, l1, and the absolute value of the sum."""


def gradient(ask: TraceAsk, norm: str = "l2") -> Traced:
    """The size of the metric's gradient at each input, ``||dm/dx_j||``.

    The input is what enters the first block (position embeddings and embedding norms counted in); of cross-attention
    it is the encoder's.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        norm: ``l2``, ``l1``, or ``sum`` for ``|sum_d dm/dx_jd|`` (Abnar and Zuidema, 2020).

    Raises:
        UnknownName: another norm.
        BadInput: ``exclude_sinks``, which goes with maps.
        Unsupported: inputs packed without a batch axis.
    """
    size = lookup(norm, NORMS, "norm")
    made, at, metric = gradient_run(ask)
    assert made.grad is not None
    return Traced(size(made.grad[at].double()).unsqueeze(1), metadata={"metric": named(metric), "norm": norm})


def gradient_input(ask: TraceAsk, absolute: bool = False) -> Traced:
    """Gradient times input, ``sum_d x_jd dm/dx_jd``, signed.

    Args:
        ask: what is traced; the metric is the logit of the answer (of what the model says, without answers) by default.
        absolute: give the absolute value, as in the comparison of Abnar and Zuidema (2020).

    Raises:
        BadInput: ``exclude_sinks``, which goes with maps.
        Unsupported: inputs packed without a batch axis.

    Source: Shrikumar et al., 2016; the input is what enters the first block, as for the gradient.
    """
    made, at, metric = gradient_run(ask)
    assert made.grad is not None
    values = (made[at].double() * made.grad[at].double()).sum(-1)
    about = {"metric": named(metric), "absolute": absolute}
    return Traced((values.abs() if absolute else values).unsqueeze(1), metadata=about)


def input_place(ask: TraceAsk) -> At:
    """What enters the first block of the stack whose tokens are the sources.

    Raises:
        BadInput: key columns to leave out: no map is read.
        Unsupported: inputs that are not there, or packed without a batch axis.
    """
    refuse_dropped(ask)
    stack = ask.stack
    if stack.cross:
        if "encoder" not in ask.model.stacks:
            raise Unsupported(f"{ask.method}: the keys of stack {stack.name!r} come from outside of the model.")
        stack = ask.model.stack("encoder")
    if stack.family.packed:
        raise Unsupported(
            f"{ask.method}: stack {stack.name!r} packs the rows of all prompts without a batch axis, so that its "
            "inputs cannot be told apart by prompt."
        )
    return At(Site.RESID_PRE, 0, stack=stack.name)


def refuse_dropped(ask: TraceAsk) -> None:
    """Refuse ``exclude_sinks`` where no map is multiplied in that it could be left out of.

    Raises:
        BadInput: with what to do instead.
    """
    if ask.dropped is not None:
        raise BadInput(
            f"{ask.method} multiplies no attention maps, so that exclude_sinks has nothing to leave out; leave it out "
            "here, and the sinks' columns where traces are compared."
        )


def gradient_run(ask: TraceAsk) -> tuple[Run, At, Metric]:
    """``(a run with the gradient at the inputs, their address, the metric)``."""
    at = input_place(ask)
    metric = metric_or_logit(ask.metric)
    made = run(ask.model, ask.batch, [at], grad=metric, logits=logits_for(metric, ask.model))
    ask.did(1)
    return made, at, metric


def summed(products: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch one pos"]:
    """Products summed over channels, as the row of the one target."""
    return products.sum(-1).unsqueeze(1)
