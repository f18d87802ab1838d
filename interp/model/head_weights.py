"""The Q, K, V and O matrices of every head, as the model uses them: the only way from modules to matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput, Unsupported
from interp.model.handle import Model
from interp.model.linear_parts import Affine, Gain, affine_map
from interp.model.shared_reads import shared
from interp.model.stacks import Layer, Stack
from interp.model.wiring import LayerWiring, StackWiring, Traced, wiring_of
from interp.names import unknown

Fold = Literal["gain", "norm", "none"]


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """One layer's matrices, in float64: ``q = x Q + q_bias`` and so on, with x what attention reads (see ``fold``).

    Attributes:
        layer: block index.
        q: ``[head, d_model, d_qk]``, before a rotation by the position.
        k: ``[kv head, d_memory, d_qk]``; d_memory is d_model but for cross-attention.
        v: ``[kv head, d_memory, d_head]``.
        o: ``[head, d_head, d_model]``.
        q_bias, k_bias, v_bias: ``[head, width]``.
        turn: ``[d_qk, d_qk]`` what q and k are multiplied by from the right per position; None where it is not known.
        mixes: why z is no mixture of v; None where it is.
    """

    layer: int
    q: Float[Tensor, "head d_model d_qk"]
    k: Float[Tensor, "kv d_memory d_qk"]
    v: Float[Tensor, "kv d_memory d_head"]
    o: Float[Tensor, "head d_head d_model"]
    q_bias: Float[Tensor, "head d_qk"]
    k_bias: Float[Tensor, "kv d_qk"]
    v_bias: Float[Tensor, "kv d_head"]
    turn: Float[Tensor, "d_qk d_qk"] | None
    mixes: str | None

    def per_query_head(self, matrix: Float[Tensor, "kv ..."]) -> Float[Tensor, "head ..."]:
        """A KV head's matrix for each query head that uses it."""
        return matrix.repeat_interleave(self.q.shape[0] // matrix.shape[0], dim=0)

    def turned(self, distance: int) -> Float[Tensor, "head d_model d_qk"]:
        """``q`` for keys that stand ``distance`` positions before the query.

        Raises:
            Unsupported: what the position does to a query is not known.
        """
        turn = self.power(distance)
        return self.q if turn is None else self.q @ turn

    def power(self, distance: int) -> Float[Tensor, "d_qk d_qk"] | None:
        """What a query is multiplied by from the right for keys ``distance`` positions before; None at distance 0.

        Raises:
            Unsupported: what the position does to a query is not known.
        """
        if distance == 0:
            return None
        if self.turn is None:
            raise Unsupported(
                f"Layer {self.layer}: what the position does to its queries and keys is no power of one rotation (or "
                "could not be seen), so that only distances=(0,) is offered."
            )
        return torch.linalg.matrix_power(self.turn, distance).to(self.q.device)

    @cached_property
    def triangles(self) -> Triangles:
        """The triangles of q, k, v and the transpose of o, worked out once."""
        return Triangles(*(triangle(each) for each in (self.q, self.k, self.v, self.o.transpose(-1, -2))))


class Triangles(NamedTuple):
    """``R`` with ``R^T R = W^T W`` of a layer's matrices, for products of which only the singular values matter.

    Attributes:
        q: ``[head, rank, d_qk]``.
        k: ``[kv head, rank, d_qk]``.
        v: ``[kv head, rank, d_head]``.
        o: ``[head, rank, d_head]`` of the transpose.
    """

    q: Float[Tensor, "head rank_q d_qk"]
    k: Float[Tensor, "kv rank_k d_qk"]
    v: Float[Tensor, "kv rank_v d_head"]
    o: Float[Tensor, "head rank_o d_head"]


def triangle(tall: Float[Tensor, "*head row rank"]) -> Float[Tensor, "*head rank column"]:
    """``R`` of the thin QR decomposition: ``R^T R = tall^T tall``."""
    return torch.linalg.qr(tall, mode="r").R


def head_weights(model: Model, stack: Stack, layer: int, *, fold: Fold | str = "gain") -> HeadWeights:
    """The matrices of every head of one layer, on the model's device.

    Which entries of which projection belong to a head is found by behaviour, on this very checkpoint: one forward of a
    few tokens (and another once parameters changed) in which every projection's output is replaced by random numbers,
    which are then looked for in q, k and v. Quantised and adapted projections are shown an identity matrix in place of
    reading a weight. Edits in force (``interp.edited``) change no weight.

    Args:
        model: the handle.
        stack: whose heads.
        layer: block index.
        fold: what of the norms is folded in. ``"gain"``: the factors by which the norm that attention reads through,
            norms of q and k and of latents, and a norm or layer scale after the output projection multiply, and a
            residual multiplier. ``"norm"``: the mean that a LayerNorm takes off as well. ``"none"``: the matrices of
            the projections themselves. What a norm divides by differs from token to token and is left out.

    Raises:
        BadInput: an unknown ``fold``.
        BadAddress: there is no such layer.
        Unsupported: entries of q, k or v that are no entries of a projection, or a norm that is not understood.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> found = head_weights(model, model.stack(), 0)
        >>> found.q.shape, found.o.shape
        (torch.Size([2, 98, 49]), torch.Size([2, 49, 98]))
    """
    check_fold(fold)
    stack.layer(layer)
    wirings = wiring_of(model, stack)
    return shared(model, ("heads", stack.name, layer, fold), wirings, lambda: _read(stack, layer, wirings, fold))


def _read(stack: Stack, layer: int, wirings: StackWiring, fold: str) -> HeadWeights:
    wanted, wiring = stack.layer(layer), wirings.layers[layer]
    if fold != "none":
        for trouble in (wiring.read_trouble, wiring.write_trouble):
            if trouble:
                raise Unsupported(
                    f"fold={fold!r}: layer {layer} of stack {stack.name!r} ({stack.model_type}): {trouble}. Use "
                    "fold='none'."
                )
    maps = _Maps(wiring, fold, stack, layer)
    q, q_bias = maps.read(wiring.q, 0)
    k, k_bias = maps.read(wiring.k, 1 if stack.cross else 0)
    v, v_bias = maps.read(wiring.v, 1 if stack.cross else 0)
    o = _written(stack, wanted, wiring, fold)
    return HeadWeights(layer, q, k, v, o, q_bias, k_bias, v_bias, wiring.turn, wiring.mixes)


def check_fold(fold: str) -> None:
    """Refuse what is no way of folding.

    Raises:
        BadInput: with the ways there are.
    """
    if fold not in get_args(Fold):
        raise BadInput(unknown(fold, get_args(Fold), "fold"))


class _Maps:
    """The projections of one layer as matrices, each made once."""

    def __init__(self, wiring: LayerWiring, fold: str, stack: Stack, layer: int) -> None:
        self.wiring, self.fold = wiring, fold
        self.where = f"layer {layer} of stack {stack.name!r} ({stack.model_type})"
        self.made: dict[int, tuple[Affine, int]] = {}

    def read(self, traced: Traced, root: int) -> tuple[Tensor, Tensor]:
        """``[head, d_model, width]`` and ``[head, width]`` of q, k or v, with the norm before attention folded in."""
        weight, bias, found = self.entries(traced)
        if (found > 0) != (root > 0):
            raise Unsupported(f"The projections of {self.where} read another input than was expected of them.")
        gain = self.wiring.read if self.fold != "none" and root == 0 else None
        if gain is not None:
            bias = bias + gain.bias.reshape(-1, gain.bias.shape[-1])[0] @ weight
            weight = folded(weight, gain, centre=self.fold == "norm")
        shape = traced.strand.shape
        return weight.T.reshape(*shape, -1).transpose(1, 2), bias.reshape(shape)

    def entries(self, traced: Traced) -> tuple[Tensor, Tensor, int]:
        """``[d_model, entry]``, ``[entry]`` and which input of the attention they read."""
        if self.fold == "norm" and traced.centred:
            raise Unsupported(
                f"fold='norm': a norm inside the attention of {self.where} takes off a mean, which mixes its entries. "
                "Use fold='gain'."
            )
        strand, column = traced.strand.flatten(), traced.column.flatten()
        factor = (traced.factor * traced.gain if self.fold != "none" else traced.factor).flatten()
        weight, bias, roots = None, None, set()
        for index in strand.unique().tolist():
            affine, root = self.matrix(index)
            roots.add(root)
            mine = (strand == index).nonzero().flatten().to(affine.weight.device)
            if weight is None or bias is None:
                weight = affine.weight.new_zeros(affine.weight.shape[0], len(strand))
                bias = affine.weight.new_zeros(len(strand))
            picked, times = column.to(mine.device)[mine], factor.to(mine.device)[mine]
            if weight.shape[0] != affine.weight.shape[0]:
                roots.add(-1)
                break
            weight[:, mine] = affine.weight[:, picked] * times
            bias[mine] = affine.bias[picked] * times
        if weight is None or bias is None or len(roots) != 1 or -1 in roots:
            raise Unsupported(
                f"The projections of {self.where} read several inputs, so that no one matrix stands for them."
            )
        return weight, bias, roots.pop()

    def matrix(self, index: int) -> tuple[Affine, int]:
        """The map from the attention's input to the output of a projection, and which input that is."""
        if index not in self.made:
            strand = self.wiring.strands[index]
            own = affine_map(strand.module, strand.width, strand.like)
            if own is None:
                raise Unsupported(
                    f"A projection of {self.where} ({type(strand.module).__name__}) does not answer like a matrix."
                )
            if isinstance(strand.source, int):
                self.made[index] = own, strand.source
            else:
                weight, bias, root = self.entries(strand.source)
                self.made[index] = Affine(weight @ own.weight, bias @ own.weight + own.bias), root
        return self.made[index]


def _written(stack: Stack, layer: Layer, wiring: LayerWiring, fold: str) -> Tensor:
    """``[head, d_head, d_model]`` the output projection, with what stands between it and the residual."""
    own = affine_map(layer.out, layer.n_heads * layer.d_head, wiring.like)
    if own is None:
        raise Unsupported(
            f"The output projection of layer {layer.index} of stack {stack.name!r} ({type(layer.out).__name__}) does "
            "not answer like a matrix."
        )
    weight = own.weight
    if fold != "none":
        gain = wiring.write
        if gain is not None:
            if fold == "norm" and gain.centred:
                weight = weight - weight.mean(1, keepdim=True)
            weight = weight * gain.factor.reshape(-1, gain.factor.shape[-1])[0].double()
        weight = weight * stack.multiplier(Site.ATTN_OUT)
    return weight.view(layer.n_heads, layer.d_head, -1)


def folded(weight: Float[Tensor, "d_model column"], gain: Gain, *, centre: bool) -> Float[Tensor, "d_model column"]:
    """``diag(gain) W``, with the mean over d_model taken off where the norm takes off that of its input.

    Args:
        weight: what reads the norm's output.
        gain: of the norm.
        centre: whether to fold the mean as well.
    """
    made = weight * gain.factor.reshape(-1, gain.factor.shape[-1])[0].double()[:, None]
    return made - made.mean(0, keepdim=True) if centre and gain.centred else made
