"""Paths through attention layers with the maps held still: what all paths of one length bring, without listing them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput


@dataclass(frozen=True, eq=False)
class PathSums:
    """What paths bring to the top of a stack of attention layers, by how many heads they pass.

    Attributes:
        by_length: ``[length, token, d_model]`` the sum over all paths through that many heads, from 0 on.
        counts: how many paths each length has.
    """

    by_length: Float[Tensor, "length token d_model"]
    counts: tuple[int, ...]

    @property
    def total(self) -> Float[Tensor, "token d_model"]:
        """The layers' output, all lengths together."""
        return self.by_length.sum(0)

    def up_to(self, length: int) -> Float[Tensor, "token d_model"]:
        """What paths through at most ``length`` heads bring.

        Raises:
            BadInput: a length below 0.
        """
        if length < 0:
            raise BadInput(f"up_to: length={length}; expected 0 or more.")
        return self.by_length[: length + 1].sum(0)


def path_sums(
    x: Float[Tensor, "token d_model"],
    patterns: Float[Tensor, "layer head query key"],
    weights: Float[Tensor, "layer head d_model d_model_out"],
    *,
    skip: bool = True,
) -> PathSums:
    """What all paths of each length bring to the output of attention layers whose maps are held.

    A path through head ``h_l`` of each layer l brings ``(A^L_{h_L} ... A^1_{h_1}) x (W^1_{h_1} ... W^L_{h_L})``.
    Where a path passes a layer by its skip connection, that layer's factor is the identity. All ``C(L, k) H^k`` paths
    of a length are summed at once, one layer after the other: ``s_k <- s_k + sum_h A_h s_{k-1} W_h``. Exact for layers
    of attention alone whose maps are held; biases add one vector to every row and are left out (Dong et al., 2021).

    Args:
        x: the input, one row per token.
        patterns: the maps.
        weights: ``W_V W_O`` of each head, applied from the right.
        skip: whether layers have skip connections; without, only paths through a head of each layer are left.

    Raises:
        BadInput: shapes that do not go together.

    Example:
        >>> one = torch.eye(2)
        >>> found = path_sums(one, one.expand(2, 3, 2, 2), one.expand(2, 3, 2, 2))
        >>> found.counts, found.by_length[:, 0, 0].tolist(), found.total[0].tolist()
        ((1, 6, 9), [1.0, 6.0, 9.0], [16.0, 0.0])
    """
    _check_shapes(x, patterns, weights)
    layers, heads = patterns.shape[:2]
    sums = [x, *(torch.zeros_like(x) for _ in range(layers))]
    for layer in range(layers):
        for length in range(layer + 1, -1, -1):
            passed = _through(sums[length - 1], patterns[layer], weights[layer]) if length else torch.zeros_like(x)
            sums[length] = sums[length] + passed if skip else passed
    counts = [path_count(layers, heads, length) if skip or length == layers else 0 for length in range(layers + 1)]
    return PathSums(torch.stack(sums), tuple(counts))


def path_output(
    x: Float[Tensor, "token d_model"],
    patterns: Float[Tensor, "layer head query key"],
    weights: Float[Tensor, "layer head d_model d_model_out"],
    path: Sequence[int | None],
) -> Float[Tensor, "token d_model"]:
    """What one path brings: the head that it passes in each layer, None for the skip connection.

    Args:
        x, patterns, weights: as for :func:`path_sums`.
        path: one entry per layer.

    Raises:
        BadInput: a path of another length, or a head that is not there.

    Example:
        >>> one = torch.eye(2)
        >>> path_output(one, 0.5 * one.expand(2, 1, 2, 2), one.expand(2, 1, 2, 2), [0, None])[0].tolist()
        [0.5, 0.0]
    """
    _check_shapes(x, patterns, weights)
    layers, heads = patterns.shape[:2]
    if len(path) != layers or any(head is not None and not 0 <= head < heads for head in path):
        raise BadInput(
            f"path={list(path)}: expected one entry for each of {layers} layers, a head from 0 to {heads - 1} or None "
            "for the skip connection."
        )
    for layer, head in enumerate(path):
        if head is not None:
            x = patterns[layer, head] @ x @ weights[layer, head]
    return x


def path_count(layers: int, heads: int, length: int | None = None) -> int:
    """How many paths there are: ``C(L, k) H^k`` through k heads, ``(H + 1)^L`` in all.

    Args:
        layers: L.
        heads: H, in each layer.
        length: k; all paths for None.

    Example:
        >>> path_count(12, 12, 1), path_count(2, 3), [path_count(2, 3, length) for length in range(3)]
        (144, 16, [1, 6, 9])
    """
    return (heads + 1) ** layers if length is None else math.comb(layers, length) * heads**length


def sampled_paths(
    layers: int, heads: int, length: int, count: int, *, seed: int = 0
) -> Iterator[tuple[int | None, ...]]:
    """``count`` paths through ``length`` heads, drawn uniformly with replacement.

    The mean of :func:`path_output` over them times :func:`path_count` estimates that length's sum without bias.

    Args:
        layers, heads: of the model.
        length: heads on each path.
        count: how many paths.
        seed: of the draw.

    Raises:
        BadInput: a length that no path has.

    Example:
        >>> list(sampled_paths(2, 1, 2, 2))
        [(0, 0), (0, 0)]
    """
    if not 0 <= length <= layers:
        raise BadInput(f"length={length}: paths through {layers} layers pass 0 to {layers} heads.")
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        passed = set(torch.randperm(layers, generator=draw)[:length].tolist())
        chosen = torch.randint(heads, (layers,), generator=draw).tolist()
        yield tuple(chosen[layer] if layer in passed else None for layer in range(layers))


def _through(x: Tensor, patterns: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("hqk,km,hmn->qn", patterns, x, weights)


def _check_shapes(x: Tensor, patterns: Tensor, weights: Tensor) -> None:
    good = (
        x.ndim == 2  # noqa: PLR2004 - [token, d_model]
        and patterns.ndim == weights.ndim == 4  # noqa: PLR2004 - [layer, head, ., .]
        and patterns.shape[:2] == weights.shape[:2]
        and patterns.shape[2:] == (x.shape[0], x.shape[0])
        and weights.shape[2:] == (x.shape[1], x.shape[1])
    )
    if not good:
        raise BadInput(
            f"paths: x is {list(x.shape)}, patterns {list(patterns.shape)}, weights {list(weights.shape)}; expected "
            "[token, d_model], [layer, head, token, token] and [layer, head, d_model, d_model]."
        )
