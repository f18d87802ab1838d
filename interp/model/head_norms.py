"""The norm of what a head writes, from its z alone: no tensor ``[.., head, d_model]`` is made."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.model.linear_parts import affine_map
from interp.model.stacks import Layer, project_out

_ENTRIES = 1 << 24  # of z that are multiplied at once


class HeadNorms:
    """``||z W_O||`` of one layer's heads.

    ``||z W||^2 = z (W W^T) z^T = ||z R||^2`` with R the symmetric root of the small Gram matrix ``W W^T [d_head,
    d_head]`` of each head, found in float64, so that ``T d_head^2`` products do what took ``T d_head d_model``. Where
    the projection is no matrix (an adapter that bends), each head's z goes through the module itself, a few positions
    at a time.

    Args:
        layer: whose output projection.
        like: a tensor of its dtype and device.
    """

    def __init__(self, layer: Layer, like: Tensor) -> None:
        self.layer = layer
        affine = affine_map(layer.out, layer.n_heads * layer.d_head, like)
        self.roots: Tensor | None = None
        if affine is not None:
            weight = affine.weight.view(layer.n_heads, layer.d_head, -1)  # [head, d_head, d_model]
            values, vectors = torch.linalg.eigh(weight @ weight.mT)
            root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2) @ vectors.mT
            self.roots = root.to(like.device, torch.float32)  # [head, d_head, d_head]

    def of(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch head pos"]:
        """The norm of what each head writes at each position.

        Args:
            z: the input of the output projection, or values that might be: anything with the head's width.
        """
        parts = [self._part(part) for part in self._split(z)]
        return torch.cat(parts, dim=1).transpose(1, 2)

    def of_values(self, v: Float[Tensor, "batch pos kv d_head"]) -> Float[Tensor, "batch head pos"]:
        """``||v_j W_O||`` for each query head: its KV head's value through its own part of the projection."""
        group = self.layer.n_heads // v.shape[2]
        parts = [self._part(part.repeat_interleave(group, dim=2)) for part in self._split(v)]
        return torch.cat(parts, dim=1).transpose(1, 2)

    def _split(self, z: Tensor) -> Iterator[Tensor]:
        wide = self.layer.d_head if self.roots is not None else self._width(z)
        step = max(1, _ENTRIES // (z.shape[0] * self.layer.n_heads * wide))
        yield from z.split(step, dim=1)

    def _part(self, z: Tensor) -> Tensor:
        if self.roots is not None:
            return torch.einsum("bphd,hde->bphe", z.float(), self.roots).norm(dim=-1)
        each = [project_out(self.layer, z, (head,))[:, :, 0].float().norm(dim=-1) for head in range(z.shape[2])]
        return torch.stack(each, dim=2)

    def _width(self, z: Tensor) -> int:
        return project_out(self.layer, z[:1, :1], (0,)).shape[-1] * self.layer.n_heads
