"""One layer's step of a relevance: rows of maps weighted by their gradients, and row vectors taken through them.

A step says where a token's state at the top of a layer comes from: ``own_i`` of it from the token itself, and
``fused_ij`` from what its heads attend to. Row vectors go through the layers from the top one down, so that no layer's
matrix is multiplied by another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """Some rows of one layer's step. Rows that are not among them stay as they are.

    Attributes:
        rows: ``[batch, row]`` columns of the rows, each once.
        fused: ``[batch, row, key]`` what comes from other tokens; keys beyond the last one stand for 0.
        own: ``[batch, row]`` what stays.
    """

    rows: Int[Tensor, "batch row"]
    fused: Float[Tensor, "batch row key"]
    own: Float[Tensor, "batch row"]

    def dense(self, width: int) -> Float[Tensor, "batch row key"]:
        """The rows of ``diag(own) + fused`` themselves."""
        made = torch.nn.functional.pad(self.fused, (0, width - self.fused.shape[-1]))
        return made.scatter_add(-1, self.rows.unsqueeze(-1), self.own.unsqueeze(-1))


def positive_mean(weighted: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch row key"]:
    """``mean_h max(0, x_h)``: what speaks for the answer in each head, averaged.

    Example:
        >>> positive_mean(torch.tensor([[[[2.0, -4.0]], [[-1.0, 3.0]]]])).tolist()
        [[[1.0, 1.5]]]
    """
    return weighted.clamp(min=0).mean(1)


def mean_positive(weighted: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch row key"]:
    """``max(0, mean_h x_h)``: what speaks for the answer after heads have been averaged.

    Example:
        >>> mean_positive(torch.tensor([[[[2.0, -4.0]], [[-1.0, 3.0]]]])).tolist()
        [[[0.5, 0.0]]]
    """
    return weighted.mean(1).clamp(min=0)


def added(fused: Float[Tensor, "batch row key"], rows: Int[Tensor, "batch row"]) -> Step:
    """``I + F``: nothing is normalised (Chefer et al., 2021b)."""
    return Step(rows, fused, torch.ones_like(fused[..., 0]))


def shared(fused: Float[Tensor, "batch row key"], rows: Int[Tensor, "batch row"]) -> Step:
    """``(I + F)`` with each row divided by its sum (Chefer et al., 2021a; gradient rollout)."""
    whole = 1 + fused.sum(-1)
    return Step(rows, fused / whole.unsqueeze(-1), 1 / whole)


@dataclass(frozen=True)
class Rule:
    """How weighted maps become a step.

    Attributes:
        fuse: heads, from ``gradient * map`` (or gradient * relevance) to one map.
        step: from the fused map to the step.
        summary: the formula.
    """

    fuse: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Tensor], Step]
    summary: str


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "chefer2021b": Rule(positive_mean, added, "(I + mean_h relu(grad A * A)) R"),
        "chefer2021a": Rule(positive_mean, shared, "N(I + mean_h relu(grad A * C)) R, N normalising rows"),
        "vit-explain-gradient": Rule(
            mean_positive, shared, "R <- rows of (I + relu(mean_h grad A * A)), normalised, R"
        ),
    }
)


def taken(vectors: Float[Tensor, "batch vector pos"], steps: Iterable[Step]) -> Float[Tensor, "batch vector pos"]:
    """``v (diag(own) + fused)`` for row vectors ``v``.

    Example:
        >>> step = Step(torch.tensor([[1]]), torch.tensor([[[0.5]]]), torch.tensor([[0.25]]))
        >>> taken(torch.tensor([[[0.0, 2.0, 3.0]]]), [step]).tolist()
        [[[1.0, 0.5, 3.0]]]
    """
    return vectors + changed(vectors, steps)


def changed(vectors: Float[Tensor, "batch vector pos"], steps: Iterable[Step]) -> Float[Tensor, "batch vector pos"]:
    """``v (diag(own) + fused - I)`` for row vectors ``v``: what a step changes of them."""
    made = torch.zeros_like(vectors)
    for step in steps:
        index = step.rows.unsqueeze(1).expand(-1, vectors.shape[1], -1)
        here = vectors.gather(2, index)
        made.scatter_add_(2, index, here * (step.own - 1).unsqueeze(1))
        made[..., : step.fused.shape[-1]] += here @ step.fused
    return made


def lifted(vectors: Float[Tensor, "batch vector pos"], steps: Iterable[Step]) -> Float[Tensor, "batch vector pos"]:
    """``(diag(own) + fused - I) v`` for column vectors ``v``, which are given and returned as rows.

    Example:
        >>> step = Step(torch.tensor([[1]]), torch.tensor([[[0.5]]]), torch.tensor([[0.25]]))
        >>> lifted(torch.tensor([[[4.0, 2.0, 3.0]]]), [step]).tolist()
        [[[0.0, 0.5, 0.0]]]
    """
    made = torch.zeros_like(vectors)
    for step in steps:
        index = step.rows.unsqueeze(1).expand(-1, vectors.shape[1], -1)
        here = vectors.gather(2, index) * (step.own - 1).unsqueeze(1)
        made.scatter_add_(2, index, here + vectors[..., : step.fused.shape[-1]] @ step.fused.mT)
    return made


def unit_rows(targets: Int[Tensor, "batch k"], width: int) -> Float[Tensor, "batch k pos"]:
    """Row vectors that are 1 at each target and 0 elsewhere."""
    return torch.nn.functional.one_hot(targets, width).float()


def rows_through(
    layers: Iterable[int],
    steps: Callable[[int, Int[Tensor, "batch row"] | None], Iterable[Step]],
    targets: Int[Tensor, "batch k"],
    width: int,
    *,
    each_layer: bool = False,
) -> tuple[Float[Tensor, "batch k pos"], Float[Tensor, "layer batch k pos"] | None]:
    """Rows of the product of the layers' steps: of all layers, and of those up to each one.

    Args:
        layers: from the first on.
        steps: ``(layer, rows)`` to the layer's step at these rows, or at all of them for None.
        targets: columns of the rows, which may repeat.
        width: how many tokens.
        each_layer: keep the product up to each layer besides.
    """
    order = list(layers)
    count = targets.shape[1]
    vectors = unit_rows(targets, width)
    for number in reversed(range(len(order))):
        top = number == len(order) - 1
        if each_layer and not top:
            vectors = torch.cat([vectors, unit_rows(targets, width).to(vectors)], dim=1)
        parts = iter(steps(order[number], distinct(targets) if top else None))
        started = next(parts, None)
        if started is None:
            continue
        vectors = vectors.to(started.fused)
        vectors = taken(vectors, _again(started, parts))
    if not each_layer:
        return vectors, None
    # the vectors of the whole product stand first, those of the first layer alone last
    each = vectors.unflatten(1, (max(1, len(order)), count)).flip(1).transpose(0, 1)
    return vectors[:, :count], each


def _again(first: Step, rest: Iterable[Step]) -> Iterable[Step]:
    yield first
    yield from rest


def distinct(targets: Int[Tensor, "batch k"]) -> Int[Tensor, "batch row"] | None:
    """The rows that targets name, each once; None where prompts name different ones in different numbers."""
    ordered = targets.sort(dim=1).values
    if targets.shape[1] > 1 and bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return None
    return ordered
