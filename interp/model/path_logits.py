"""Logits of single paths through the heads of a model, or of all paths of one length, with maps and norms held still.

With the maps, the scales of norms and the MLPs' outputs of a run held, a pre-norm model is linear in what embeddings
and MLPs write, and its output is a sum over paths: from a writer through some heads to the logits. Several copies of
the batch run at once; each copy's heads read the values of another, so that copy k holds what came through k heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import At, Site
from interp.edits.activations import custom
from interp.edits.base import Context, Edit
from interp.errors import Unsupported
from interp.model.batch import Batch
from interp.model.direct_paths import SOFT_CAPS
from interp.model.handle import Model
from interp.model.norms import holding_norms, record_norms
from interp.model.run import Logits, Run, run
from interp.model.stacks import Stack

SOURCES = ("embeddings", "mlps", "constants")
_ROUNDING, _COARSE = 2e-4, 6e-2


class Hop(NamedTuple):
    """In one layer, the heads of copy ``to`` read copy ``source``; only ``head``, or all for None."""

    to: int
    source: int
    head: int | None = None


@dataclass(frozen=True, eq=False)
class PathLogits:
    """The logits of each copy.

    Attributes:
        parts: ``[copy, batch, ...]`` what each copy adds.
        constant: ``[batch, ...]`` what the final norm and the unembedding give for nothing.
        whole: ``[batch, ...]`` the model's own.
    """

    parts: Float[Tensor, "copy batch ..."]
    constant: Float[Tensor, "batch ..."]
    whole: Float[Tensor, "batch ..."]

    def gap(self) -> float:
        """How far parts and constant are from the whole, relative to the largest logit."""
        return float((self.parts.sum(0) + self.constant - self.whole).abs().max() / self.whole.abs().max())


def path_logits(
    model: Model,
    batch: Batch,
    copies: int,
    hops: Callable[[int], Sequence[Hop]],
    *,
    sources: Collection[str] = SOURCES,
    logits: Logits = "answers",
) -> PathLogits:
    """The logits of ``copies`` copies of the stream, of which copy 0 is written by the sources.

    Args:
        model: the handle; its default stack is taken.
        batch: the prompts.
        copies: how many.
        hops: block index -> whose values the heads of which copy read there; heads of other copies write nothing.
        sources: what writes to copy 0: ``embeddings``, ``mlps`` (each MLP's output in this run) and ``constants`` (what
            each attention writes for nothing: biases).
        logits: which positions.

    Raises:
        Unsupported: post-norm blocks, capped logits, or parts of the model that are not linear with maps held.
    """
    stack = model.stack()
    _refuse(model, stack)
    layers = list(range(stack.n_layers))
    reads = [At(site, layer=layer) for site in (Site.PATTERN, Site.MLP_OUT) for layer in layers]
    first = run(model, batch, reads, logits=logits)
    scales = record_norms(model, batch)
    many = batch.select(list(range(len(batch))) * (copies + 2))
    with holding_norms(model, scales):
        made = run(model, many, edits=_edits(first, layers, copies, hops, sources), logits=logits)
    assert made.logits is not None and first.logits is not None
    whole, found = first.logits.double(), made.logits.double().unflatten(0, (copies + 2, len(batch)))
    constant = found[copies]
    return PathLogits(found[:copies] - constant, constant, whole)


def length_logits(
    model: Model, batch: Batch, *, sources: Collection[str] = SOURCES, logits: Logits = "answers"
) -> PathLogits:
    """The logits of all paths through 0, 1, ... heads, one copy per length.

    With all sources the parts and the constant sum to the model's logits, which is checked.

    Args:
        model, batch, sources, logits: as for :func:`path_logits`.

    Raises:
        Unsupported: as :func:`path_logits`, or the sum does not hold.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> found = length_logits(model, interp.encode(model, torch.tensor([[0, 3, 4, 3]])))
        >>> found.parts.shape[0], found.gap() < 1e-5
        (3, True)
    """
    n_layers = model.stack().n_layers
    found = path_logits(
        model,
        batch,
        n_layers + 1,
        lambda layer: [Hop(length, length - 1) for length in range(1, layer + 2)],
        sources=sources,
        logits=logits,
    )
    if set(sources) == set(SOURCES):
        exact = model.dtype in (torch.float32, torch.float64)
        if found.gap() > (_ROUNDING if exact else _COARSE):
            raise Unsupported(
                f"paths: on this model ({model.stack().model_type}) the paths miss the logits by {found.gap():.2g} of "
                "the largest: something besides maps, norms and MLPs is not linear (a norm of the values or latents, a "
                "gate, a classifier's activation)."
            )
    return found


def _refuse(model: Model, stack: Stack) -> None:
    why = None
    if stack.family.norm == "post":
        why = "its blocks normalise after adding, so that the stream is no sum of what is written"
    elif stack.family.packed or any(layer is None for layer in stack.layers):
        why = "some of its blocks mix tokens without attention, or its rows have no batch axis"
    elif stack.name == "decoder" and "cross" in model.stacks:
        why = "its decoder reads an encoder as well"
    elif any(getattr(config, name, None) for config in (model.hf.config, stack.config) for name in SOFT_CAPS):
        why = "its logits are capped after the unembedding"
    if why is not None:
        raise Unsupported(f"paths: on this model ({stack.model_type}) {why}, and logits are no sum over paths.")
    stack.require(Site.PATTERN, edit=True)
    stack.require(Site.MLP_OUT, edit=True)


def _edits(
    first: Run,
    layers: Sequence[int],
    copies: int,
    hops: Callable[[int], Sequence[Hop]],
    sources: Collection[str],
) -> list[Edit]:
    """One edit per place. Two copies more hold what attention makes of nothing: with its z, and with z 0."""
    empty, nothing = copies, copies + 1

    def start(x: Tensor, ctx: Context) -> Tensor:
        made = torch.zeros_like(x).unflatten(0, (copies + 2, -1))
        if "embeddings" in sources:
            made[0] = x.unflatten(0, (copies + 2, -1))[0]
        return made.flatten(0, 1)

    def held(pattern: Tensor) -> Callable[[Tensor, Context], Tensor]:
        return lambda x, ctx: pattern.to(x).repeat(copies + 2, 1, 1, 1)

    def routed(layer: int) -> Callable[[Tensor, Context], Tensor]:
        def apply(x: Tensor, ctx: Context) -> Tensor:
            z = x.unflatten(0, (copies + 2, -1))
            made = torch.zeros_like(z)
            made[empty] = z[empty]
            for hop in hops(layer):
                chosen = slice(None) if hop.head is None else slice(hop.head, hop.head + 1)
                made[hop.to, :, :, chosen] = (z[hop.source] - z[empty])[:, :, chosen]
            return made.flatten(0, 1)

        return apply

    def written(x: Tensor, ctx: Context) -> Tensor:
        out = x.unflatten(0, (copies + 2, -1))
        made = out - out[nothing]
        if "constants" in sources:
            made[0] = made[0] + out[empty]
        made[empty:] = 0
        return made.flatten(0, 1)

    def mlp(own: Tensor) -> Callable[[Tensor, Context], Tensor]:
        def apply(x: Tensor, ctx: Context) -> Tensor:
            made = torch.zeros_like(x).unflatten(0, (copies + 2, -1))
            if "mlps" in sources:
                made[0] = own.to(x)
            return made.flatten(0, 1)

        return apply

    edits = [custom(At(Site.RESID_PRE, layer=0), start, name="paths start")]
    for layer in layers:
        edits.append(custom(At(Site.PATTERN, layer=layer), held(first[At(Site.PATTERN, layer=layer)]), name="held map"))
        edits.append(custom(At(Site.Z, layer=layer), routed(layer), name="paths through heads"))
        edits.append(custom(At(Site.ATTN_OUT, layer=layer), written, name="paths written"))
        edits.append(custom(At(Site.MLP_OUT, layer=layer), mlp(first[At(Site.MLP_OUT, layer=layer)]), name="held MLP"))
    return edits
