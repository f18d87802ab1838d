"""The direct paths from every writer of the residual stream to a metric, in a model whose norms are held still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.address import At, Site
from interp.edits.activations import custom, zero
from interp.edits.base import Context, Edit
from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import output_embeddings
from interp.model.norms import NormScales, holding_norms, record_norms
from interp.model.run import Metric, Run, run
from interp.model.scopes import hooked_output
from interp.model.stacks import Stack
from interp.model.sweep import logits_for, metric_values

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # of configs, after the unembedding


@dataclass(frozen=True, eq=False)
class DirectPaths:
    """What each writer of the residual stream adds to a metric by its direct path; the parts sum to the metric.

    Attributes:
        heads: stack -> layer -> ``[batch, head, pos]``; cross-attention is a stack of its own.
        mlps: ``[batch, layer]``, the MLPs' output biases counted in.
        embeddings: ``[batch]`` what enters the first block.
        biases: ``[batch]`` of output projections, norms and unembedding, computed by themselves.
        metric: ``[batch]`` its values in the unedited run.
        soft_capped: whether the logits are soft-capped, so that the cap's ratio was held as well.
    """

    heads: Mapping[str, Mapping[int, Float[Tensor, "batch head pos"]]]
    mlps: Float[Tensor, "batch layer"]
    embeddings: Float[Tensor, " batch"]
    biases: Float[Tensor, " batch"]
    metric: Float[Tensor, " batch"]
    soft_capped: bool

    @property
    def nonlinear(self) -> Float[Tensor, " batch"]:
        """``[batch]`` what the parts leave over: 0 to rounding unless something between writers and logits bends."""
        return self.metric - self._parts().sum(1)

    @property
    def size(self) -> Float[Tensor, " batch"]:
        """``[batch]`` the sum of the parts' absolute values, against which rounding is measured."""
        return self._parts().abs().sum(1)

    def _parts(self) -> Float[Tensor, "batch part"]:
        heads = [cells.sum(2) for layers in self.heads.values() for cells in layers.values()]
        return torch.cat([*heads, self.mlps, self.embeddings[:, None], self.biases[:, None]], dim=1)


def direct_paths(model: Model, batch: Batch, metric: Metric) -> DirectPaths:
    """What heads, MLPs, embeddings and biases add to ``metric`` directly, per prompt, in float64.

    Every norm is replaced by the linear map that it is at this run (its scale held), and nothing passes through a
    later attention or MLP. The metric is then linear in what is written: a head's share is ``<z, dm/dz>``, an MLP's
    ``<mlp, dm/dmlp>``, that of the embeddings ``<x0, dm/dx0>``. The biases' share is the metric of a second forward of
    the same linear map in which all of these are 0. Where logits are soft-capped, ``cap(u) / u`` is held too.

    Args:
        model: the handle.
        batch: the prompts.
        metric: linear in the logits: ``<dm/dlogits, logits> = m`` (Euler's identity) is checked.

    Raises:
        BadInput: a metric that is not linear in the logits.
        Unsupported: blocks with a token mixer that is not attention, or rows packed without a batch axis.
    """
    stacks = _writers(model)
    logits = logits_for(metric, model)
    scales = _norms_of(model, batch)
    first, seen = _linear_run(model, batch, metric, stacks, scales)
    alone = _LinearMetric(metric, first.soft_capped, weight=first.weight)
    with holding_norms(model, scales), alone.watching(model):
        blank = run(model, batch, edits=_blanks(stacks), logits=logits)
        assert blank.logits is not None
        biases = alone.weighted(blank.logits)
    return _collected(seen, stacks, first.values, biases, soft_capped=first.soft_capped)


def direct_slopes(
    model: Model, batch: Batch, metric: Metric
) -> Mapping[str, Mapping[int, Float[Tensor, "batch pos _ _"]]]:
    """Stack -> layer -> the slope of ``metric`` along each head's z by its direct path; see :func:`direct_paths`.

    ``<z, slope>`` summed over channels and positions is what the head adds to the metric.

    Args:
        model, batch, metric: as for :func:`direct_paths`.

    Raises:
        BadInput: a metric that is not linear in the logits.
        Unsupported: as :func:`direct_paths`.
    """
    stacks = _writers(model)
    _, seen = _linear_run(model, batch, metric, stacks, _norms_of(model, batch))
    assert seen.grad is not None
    slopes: dict[str, dict[int, Tensor]] = {stack.name: {} for stack in stacks}
    for at in _heads_at(stacks):
        assert isinstance(at.layer, int) and at.stack is not None
        slopes[at.stack][at.layer] = seen.grad[at]
    return slopes


def _linear_run(
    model: Model, batch: Batch, metric: Metric, stacks: Sequence[Stack], scales: NormScales
) -> tuple[_LinearMetric, Run]:
    first = _LinearMetric(metric, _soft_capped(model))
    with holding_norms(model, scales), first.watching(model):
        seen = run(model, batch, _reads(stacks), _cuts(stacks), logits=logits_for(metric, model), grad=first)
    return first, seen


def _norms_of(model: Model, batch: Batch) -> NormScales:
    try:
        return record_norms(model, batch)
    except Unsupported as error:
        raise Unsupported(f"direct paths need every norm held at its scale, and that cannot be done: {error}") from None


def _writers(model: Model) -> list[Stack]:
    """The default stack, then the cross-attentions that stand in its blocks.

    Raises:
        Unsupported: where what a block writes cannot be told apart.
    """
    default = model.stack()
    default.require(Site.MLP_OUT, edit=True)
    bare = [index for index, layer in enumerate(default.layers) if layer is None]
    if bare:
        raise Unsupported(
            f"direct paths: the blocks {bare} of stack {default.name!r} mix tokens without attention (convolution, "
            "recurrence), and what they write cannot be told apart from the rest. Use method='zero'."
        )
    if default.family.packed:
        raise Unsupported(
            f"direct paths: stack {default.name!r} packs the rows of all prompts without a batch axis, so that no "
            "number per prompt can be given."
        )
    same = [stack for stack in model.stacks.values() if stack.cross and stack.blocks[0] is default.blocks[0]]
    return [default, *same]


def _heads_at(stacks: Sequence[Stack]) -> Iterator[At]:
    for stack in stacks:
        for layer in range(stack.n_layers):
            yield At(Site.Z, layer, stack=stack.name)


def _reads(stacks: Sequence[Stack]) -> list[At]:
    name = stacks[0].name
    return [At(Site.RESID_PRE, 0, stack=name), *_heads_at(stacks), At(Site.MLP_OUT, stack=name)]


def _cuts(stacks: Sequence[Stack]) -> list[Edit]:
    """Edits that keep every value and start the gradient's way anew at each writer."""

    def cut(x: Tensor, ctx: Context) -> Tensor:
        return x.detach().requires_grad_().clone()  # a copy: some blocks add onto the MLP's output in place

    places = [At(Site.Z, stack=stack.name) for stack in stacks] + [At(Site.MLP_OUT, stack=stacks[0].name)]
    return [custom(at, cut, name="cut") for at in places]


def _blanks(stacks: Sequence[Stack]) -> list[Edit]:
    name = stacks[0].name
    places = [At(Site.RESID_PRE, 0, stack=name), At(Site.MLP_OUT, stack=name)]
    return [zero(at) for at in (*places, *(At(Site.Z, stack=stack.name) for stack in stacks))]


def _collected(seen: Run, stacks: Sequence[Stack], values: Tensor, biases: Tensor, *, soft_capped: bool) -> DirectPaths:
    assert seen.grad is not None
    gradients = seen.grad

    def share(at: At) -> Tensor:
        return (seen[at].double() * gradients[at].double()).sum(-1)

    name = stacks[0].name
    heads: dict[str, dict[int, Tensor]] = {stack.name: {} for stack in stacks}
    for at in _heads_at(stacks):
        assert isinstance(at.layer, int) and at.stack is not None
        heads[at.stack][at.layer] = share(at).transpose(1, 2)
    mlps = [share(At(Site.MLP_OUT, layer, stack=name)).sum(1) for layer in range(stacks[0].n_layers)]
    return DirectPaths(
        heads=heads,
        mlps=torch.stack(mlps, dim=1),
        embeddings=share(At(Site.RESID_PRE, 0, stack=name)).sum(1),
        biases=biases,
        metric=values.double(),
        soft_capped=soft_capped,
    )


def _soft_capped(model: Model) -> bool:
    configs = [model.hf.config, model.stack().config]
    return any(getattr(config, name, None) for config in configs for name in SOFT_CAPS)


class _LinearMetric:
    """The linear function of the logits that a metric is at one run, as a metric.

    Args:
        metric: the caller's.
        soft_capped: the logits are capped after the unembedding, so that the function is put on what it gives.
        weight: of an earlier run, to be used again.

    Attributes:
        weight: ``[batch, pos, vocab]`` by which the logits (before a soft-cap) are weighted.
        values: ``[batch]`` the metric's own.
    """

    def __init__(self, metric: Metric, soft_capped: bool, weight: Tensor | None = None) -> None:
        self.metric, self.soft_capped = metric, soft_capped
        self.positions = getattr(metric, "positions", None)
        self.__name__ = getattr(metric, "__name__", repr(metric))
        self._weight, self._values = weight, weight
        self._given: list[Tensor] = []

    @property
    def weight(self) -> Tensor:
        assert self._weight is not None
        return self._weight

    @property
    def values(self) -> Tensor:
        assert self._values is not None
        return self._values

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Inside, what the unembedding gives is seen."""

        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._given.append(output)

        with ExitStack() as guard:
            head = output_embeddings(model)
            if head is not None:
                guard.enter_context(hooked_output(head, see))
            yield

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            self._values = metric_values(self.metric, leaf, batch)
            if self._values.ndim != 1:
                raise BadInput(
                    f"metric {self.__name__}: it gave {list(self._values.shape)}, expected one number per prompt "
                    f"[{len(batch)}]."
                )
            values = self.metric(leaf, batch)
            if not values.requires_grad:
                raise BadInput(f"metric {self.__name__}: it has no gradient with respect to the logits.")
            (slope,) = torch.autograd.grad(values.sum(), [leaf])
        self._refuse_bent(slope, leaf.detach(), torch.finfo(values.dtype).eps)
        self._weight = slope
        if self.soft_capped:
            given = self._given[-1].detach().to(leaf.dtype)
            ratio = torch.where(given == 0, torch.ones_like(given), leaf.detach() / given)
            self._weight = slope * ratio
        return self.weighted(logits)

    def weighted(self, logits: Tensor) -> Tensor:
        """``[batch]`` the function of ``logits`` (of what the unembedding gave, where they are capped), in float64."""
        carrier = self._given[-1] if self.soft_capped else logits
        return (carrier.double() * self.weight.double()).flatten(1).sum(1)

    def _refuse_bent(self, slope: Tensor, logits: Tensor, rounding: float) -> None:
        products = slope.double() * logits.double()
        gap = (products.flatten(1).sum(1) - self.values.double()).abs()
        # a metric calculated in 16 bits is that exact
        near = 1e-9 if logits.dtype is torch.float64 else max(1e-4, 2 * rounding)
        allowed = products.flatten(1).abs().sum(1).clamp(min=1e-6) * near
        if bool((gap > allowed).any()):
            worst = int((gap - allowed).argmax())
            raise BadInput(
                f"metric {self.__name__}: direct attribution splits a metric that is linear in the logits, and this "
                f"one is not: <dm/dlogits, logits> misses m by {float(gap[worst]):.3g} at prompt {worst}. Use "
                "interp.logit_difference or another linear function of the logits, or method='integrated_gradients'."
            )
