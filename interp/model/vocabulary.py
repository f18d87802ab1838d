"""The embedding and the unembedding as one ``[d_model, d_model]`` product, which is all that a head's circuits need."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.handle import Model
from interp.model.head_weights import check_fold
from interp.model.inputs import input_embeddings, output_embeddings
from interp.model.linear_parts import Affine, Gain, affine_map, nearness, norm_gain
from interp.model.norms import find_norms
from interp.model.probe import probe_batch, probe_inputs
from interp.model.scopes import evaluating, removing
from interp.model.session import Session
from interp.model.shared_reads import shared
from interp.model.stacks import Stack
from interp.model.suspension import suspended

_TOKENS = 8192  # of the vocabulary at once
_ROWS = 2  # prompts, whose embeddings differ while everything added to them is the same


@dataclass(frozen=True, eq=False)
class Ends:
    """What stands between the embedding and the first block, and between the last block and the unembedding.

    Attributes:
        embedding: the module that embeds tokens.
        unembedding: the module that makes the logits.
        after_embedding: a norm, None where the residual begins with the embedding (times a number).
        before_unembedding: a norm, None where the unembedding reads the residual (times a number).
    """

    embedding: nn.Module
    unembedding: nn.Module
    after_embedding: Gain | None
    before_unembedding: Gain | None


@dataclass(eq=False)
class _Seen:
    embedded: list[Tensor] = field(default_factory=list)
    norms: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)
    unembedded: Tensor | None = None


def token_products(
    model: Model, stack: Stack, *, fold: str = "gain"
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model d_model"]]:
    """``(W_U W_E, W_E^T W_E)`` in float64: the sums over the vocabulary of ``u_t e_t^T`` and ``e_t e_t^T``.

    With these every non-zero eigenvalue of a ``[vocab, vocab]`` circuit is one of a ``[d_head, d_head]`` product.

    Args:
        model: the handle.
        stack: the one that the tokens enter and the logits leave.
        fold: as for :func:`interp.model.head_weights.head_weights`: the gain (and the mean) of a norm between the
            embedding and the first block, and of the final norm.

    Raises:
        Unsupported: tokens do not enter this stack, or what stands at an end is no norm.
    """
    check_fold(fold)
    return shared(model, ("tokens", stack.name, fold), model.hf, lambda: _products(model, stack, fold))


def _products(model: Model, stack: Stack, fold: str) -> tuple[Tensor, Tensor]:
    ends = _ends(model, stack)
    embedding = _rows_of_embedding(ends.embedding)
    unembedding = _columns_of_unembedding(ends.unembedding)
    width = embedding.shape[1]
    if unembedding.shape[0] != width:
        raise Unsupported(
            f"Embeddings are {width} wide and the unembedding reads {unembedding.shape[0]}; circuits over the "
            "vocabulary need both in the residual."
        )
    across = torch.zeros(width, width, dtype=torch.float64, device=embedding.device)
    within = torch.zeros_like(across)
    for first in range(0, min(len(embedding), unembedding.shape[1]), _TOKENS):
        tokens = slice(first, min(first + _TOKENS, len(embedding), unembedding.shape[1]))
        e, u = embedding[tokens].double(), unembedding[:, tokens].double()
        if fold != "none":
            e, u = _embedded(e, ends.after_embedding, fold), _read(u, ends.before_unembedding, fold)
        across += u @ e
        within += e.T @ e
    return across, within


def _embedded(e: Tensor, gain: Gain | None, fold: str) -> Tensor:
    if gain is None:
        return e
    e = e - e.mean(1, keepdim=True) if fold == "norm" and gain.centred else e
    return e * _flat(gain)


def _read(u: Tensor, gain: Gain | None, fold: str) -> Tensor:
    if gain is None:
        return u
    u = u * _flat(gain)[:, None]
    return u - u.mean(0, keepdim=True) if fold == "norm" and gain.centred else u


def _flat(gain: Gain) -> Tensor:
    return gain.factor.reshape(-1, gain.factor.shape[-1])[0].double()


def _rows_of_embedding(module: nn.Module) -> Float[Tensor, "vocab d_model"]:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.is_meta:  # noqa: PLR2004 - a matrix
        raise Unsupported(f"The embedding ({type(module).__name__}) is no table with a row per token.")
    return weight.detach()


def _columns_of_unembedding(module: nn.Module) -> Float[Tensor, "d_model vocab"]:
    weight = getattr(module, "weight", None)
    if type(module) is nn.Linear and isinstance(weight, Tensor) and not weight.is_meta:
        return weight.detach().T
    width = getattr(module, "in_features", None)
    made: Affine | None = None
    if isinstance(width, int):
        parameter = next((each for each in module.parameters() if each.is_floating_point()), torch.empty(0))
        made = affine_map(module, width, parameter.detach().flatten()[:0])
    if made is None:
        raise Unsupported(f"The unembedding ({type(module).__name__}) does not answer like a matrix.")
    return made.weight


def _ends(model: Model, stack: Stack) -> Ends:
    """Found in one forward in which two equal prompts are embedded by different random numbers."""
    embedding, unembedding = input_embeddings(model), output_embeddings(model)
    where = f"stack {stack.name!r} ({stack.model_type})"
    if embedding is None or unembedding is None or stack.name != model.default_stack:
        raise Unsupported(
            f"Circuits over the vocabulary need a stack that tokens enter and logits leave; {where} has "
            f"{'no embedding of tokens' if embedding is None else 'no unembedding of its own'}."
        )
    if stack.family.norm == "post":
        raise Unsupported(
            f"Circuits over the vocabulary: the residual of {where} is itself normalised after every block, so that no "
            "linear path leads from the tokens to its heads and on to the logits."
        )
    last = stack.n_layers - 1
    ats = [At(Site.RESID_PRE, 0, stack=stack.name), At(Site.RESID_POST, last, stack=stack.name)]
    for inputs in probe_inputs(model, _ROWS)[::-1]:  # without an image, where that will do
        seen = _Seen()
        session = Session(model, probe_batch(model, inputs), [], ats)
        with (
            torch.no_grad(),
            evaluating(model.hf),
            suspended(model.hf),
            session,
            _watching(model, embedding, unembedding, seen),
        ):
            try:
                model.hf(**inputs)
            except Exception:  # a family's own complaint about inputs made up here
                continue
        read = {reading.at.site: reading.values for reading in session.readings}
        if 0 in read.get(Site.RESID_PRE, {}) and last in read.get(Site.RESID_POST, {}):
            return Ends(
                embedding,
                unembedding,
                _after_embedding(seen, read[Site.RESID_PRE][0], where),
                _before_unembedding(seen, read[Site.RESID_POST][last], where),
            )
    raise Unsupported(f"Circuits over the vocabulary: the probe's inputs do not reach {where}.")


def _watching(model: Model, embedding: nn.Module, unembedding: nn.Module, seen: _Seen) -> ExitStack:
    draw = torch.Generator().manual_seed(0)

    def embedded(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        made = torch.randn(output.shape, generator=draw).to(output.device, output.dtype)
        seen.embedded.append(made)
        return made.clone()

    def normed(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and len(args) == 1 and isinstance(args[0], Tensor):
            seen.norms.append((module, args[0].detach().clone(), output.detach().clone()))

    def unembeds(module: nn.Module, args: Any) -> None:
        seen.unembedded = args[0].detach().clone()

    guard = ExitStack()
    for module in model.hf.modules():  # decoders may have a module of their own around the shared table
        if module is embedding or (getattr(module, "weight", None) is embedding.weight and module is not unembedding):
            guard.enter_context(removing(module.register_forward_hook(embedded)))
    for module in find_norms(model).values():
        guard.enter_context(removing(module.register_forward_hook(normed)))
    guard.enter_context(removing(unembedding.register_forward_pre_hook(unembeds)))
    return guard


def _after_embedding(seen: _Seen, residual: Tensor, where: str) -> Gain | None:
    """What stands before the first block: found at the first position, where two prompts differ by their dyes alone."""
    for dye in seen.embedded:
        if dye.shape == residual.shape and _multiple(_contrast(residual), _contrast(dye)):
            return None
        for module, before, after in seen.norms:
            if dye.shape == before.shape == residual.shape and torch.equal(after, residual):
                gain = norm_gain(module, before)
                if gain is not None and _multiple(_contrast(before), _contrast(dye)):
                    return gain
    raise Unsupported(
        f"Circuits over the vocabulary: what stands between the embedding and the first block of {where} is no norm "
        "and no number, so that a token's vector in the residual is not known."
    )


def _before_unembedding(seen: _Seen, residual: Tensor, where: str) -> Gain | None:
    final = seen.unembedded
    if final is not None and residual.shape[-1] == final.shape[-1]:
        if residual.shape == final.shape and _multiple(final, residual):
            return None
        for module, before, after in seen.norms[::-1]:
            if before.shape == residual.shape and torch.equal(before, residual):
                gain = norm_gain(module, before)
                if gain is not None and final.shape == after.shape and _multiple(final, after):
                    return gain
    raise Unsupported(
        f"Circuits over the vocabulary: what stands between the last block of {where} and the unembedding is no norm, "
        "so that what a direction of the residual adds to the logits is not known."
    )


def _contrast(x: Tensor) -> Tensor:
    return x[0, 0].double() - x[1, 0].double()


def _multiple(first: Tensor, second: Tensor) -> bool:
    """Whether ``first`` is ``second`` times a positive number."""
    a, b = first.double().flatten(), second.double().flatten()
    factor = (a @ b) / (b @ b).clamp(min=1e-30)
    near = nearness(first.dtype) if first.dtype is not torch.float64 else 1e-4
    return bool(factor > 0) and float((a - factor * b).abs().max()) <= near * float(a.abs().max())
