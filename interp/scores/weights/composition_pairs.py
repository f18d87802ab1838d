"""The arithmetic of composition scores: all pairs of heads by products of ``[d_head, d_model]`` matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.model.head_weights import HeadWeights
from interp.scores.weights.composition_chance import concentration

KINDS = ("q", "k", "v")
_LARGEST = 2**25  # entries of one block of products


def composition_score(
    first: Float[Tensor, "d_model d_model"], second: Float[Tensor, "d_model d_model"]
) -> Float[Tensor, ""]:
    """``||A B||_F / (||A||_F ||B||_F)`` of two whole matrices: the definition, which nothing here computes by.

    Args:
        first: what the earlier head writes, ``W_OV`` for row vectors ``x W_OV``.
        second: what the later head reads it by: ``W_QK`` (queries), ``W_QK^T`` (keys) or ``W_OV`` (values).

    Example:
        >>> composition_score(torch.eye(4), torch.eye(4))
        tensor(0.5000)
    """
    return (first @ second).norm() / (first.norm() * second.norm())


@dataclass(eq=False)
class LayerForms:
    """One layer's heads as writers and readers, with everything that a Frobenius norm does not see left out.

    ``W_V = Q R`` with an orthonormal Q gives ``||W_V W_O B|| = ||R W_O B||``; on the reading side ``W_K = Q R`` gives
    ``||A W_Q W_K^T|| = ||A W_Q R^T||``.

    Attributes:
        heads: their indices in the layer.
        writes: ``[head, d_head, d_model]`` for W_OV.
        reads: kind -> ``[head, d_model, rank]``.
        write_norm, write_concentration: ``[head]`` of W_OV.
        read_norm, read_concentration: kind -> ``[head]``.
    """

    heads: tuple[int, ...]
    writes: Tensor
    reads: dict[str, Tensor]
    write_norm: Tensor = field(init=False)
    write_concentration: Tensor = field(init=False)
    read_norm: dict[str, Tensor] = field(init=False)
    read_concentration: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.write_norm = self.writes.flatten(1).norm(dim=1)
        self.write_concentration = concentration(self.writes @ self.writes.transpose(1, 2))
        self.read_norm = {kind: made.flatten(1).norm(dim=1) for kind, made in self.reads.items()}
        self.read_concentration = {
            kind: concentration(made.transpose(1, 2) @ made) for kind, made in self.reads.items()
        }


def forms_of(
    weights: HeadWeights, heads: Sequence[int], kinds: Sequence[str], dtype: torch.dtype = torch.float64
) -> LayerForms:
    """The writers and readers of some heads of a layer, their norms in float64 and their entries in ``dtype``."""
    chosen = list(heads)
    q, o = weights.q[chosen], weights.o[chosen]
    k, v = (weights.per_query_head(each)[chosen] for each in (weights.k, weights.v))
    reads = {}
    if "q" in kinds:
        reads["q"] = q @ root(k).transpose(1, 2)
    if "k" in kinds:
        reads["k"] = k @ root(q).transpose(1, 2)
    if "v" in kinds:
        reads["v"] = v @ root(o.transpose(1, 2)).transpose(1, 2)
    made = LayerForms(tuple(chosen), root(v) @ o, reads)
    made.writes = made.writes.to(dtype)
    made.reads = {kind: side.to(dtype) for kind, side in made.reads.items()}
    return made


def root(tall: Float[Tensor, "head row rank"]) -> Float[Tensor, "head rank rank"]:
    """R with ``R^T R = tall^T tall``, from the small Gram matrix; norms of products with R are those with ``tall``."""
    gram = tall.transpose(1, 2) @ tall
    made, failed = torch.linalg.cholesky_ex(gram, upper=True)
    if not bool(failed.any()):
        return made
    values, vectors = torch.linalg.eigh(gram)  # a head of lower rank
    return values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.transpose(1, 2)


def all_pairs(
    forms: dict[int, LayerForms], kinds: Sequence[str], n_layers: int, n_heads: int
) -> Float[np.ndarray, "kind layer head layer head"]:
    """``[kind, earlier layer, its head, later layer, its head]`` scores; NaN where the first is not earlier.

    Args:
        forms: layer -> writers and readers.
        kinds: which of ``"q"``, ``"k"``, ``"v"``.
        n_layers, n_heads: of the grid.
    """
    values = np.full((len(kinds), n_layers, n_heads, n_layers, n_heads), np.nan)
    for later in sorted(forms):
        reader = forms[later]
        sides = [reader.reads[kind] for kind in kinds]
        widths = [side.shape[2] for side in sides]
        columns = torch.cat([side.transpose(0, 1).flatten(1) for side in sides], dim=1)  # [d_model, kind head rank]
        for earlier in (layer for layer in sorted(forms) if layer < later):
            writer = forms[earlier]
            found = _squares(writer.writes, columns, widths, len(reader.heads))
            for place, (kind, squares) in enumerate(zip(kinds, found, strict=True)):
                norms = writer.write_norm[:, None] * reader.read_norm[kind]
                scores = squares.sqrt() / torch.where(norms > 0, norms, torch.full_like(norms, torch.nan))
                cells = np.ix_([place], [earlier], writer.heads, [later], reader.heads)
                values[cells] = scores.clamp(max=1).cpu().numpy()[None, None, :, None, :]
    return values


def _squares(writes: Tensor, columns: Tensor, widths: Sequence[int], heads: int) -> list[Tensor]:
    """``[writer, reader]`` squared norms of all products, kind by kind."""
    rank = writes.shape[1]
    step = max(1, _LARGEST // (rank * columns.shape[1]))
    parts = []
    for some in writes.split(step):
        product = some.flatten(0, 1) @ columns
        sums = product.square_().view(len(some), rank, -1).sum(1, dtype=torch.float64)  # [writer, kind head rank]
        sides = sums.split([width * heads for width in widths], dim=1)
        parts.append([side.reshape(len(some), heads, -1).sum(2) for side in sides])
    return [torch.cat(each) for each in zip(*parts, strict=True)]
