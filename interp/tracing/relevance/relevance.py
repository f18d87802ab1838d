"""``relevance``: attention weighted by the gradient of what is explained, followed through the layers. Pure tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.names import lookup
from interp.tracing.given_maps import ROUNDED, map_tensor, target_columns
from interp.tracing.relevance.steps import RULES, Rule, Step, mean_positive, rows_through
from interp.tracing.transitions import check_options, discarded

RelevanceRule = Literal["chefer2021b", "chefer2021a", "gradient-attention", "vit-explain-gradient"]
Maps = Float[Tensor, "layer head query key"] | Float[np.ndarray, "layer head query key"] | Sequence[Any]
_SUMMED = "gradient-attention"
_MAP_AXES = 3  # of one layer: head, query, key


def relevance(
    patterns: Maps,
    gradients: Maps,
    *,
    rule: RelevanceRule = "chefer2021b",
    targets: Sequence[int] | Int[Tensor, " k"] | None = None,
    start: int = 0,
    relevances: Maps | None = None,
    discard: float = 0.0,
    each_layer: bool = False,
) -> Float[Tensor, "query key"] | Float[Tensor, "layer query key"]:
    """``[query, key]`` what each token at the top owes to each token at the bottom, by the gradients of an answer.

    With ``A_l`` the maps, ``G_l = dm / dA_l`` and ``C_l`` relevances of their entries, from the first layer on and
    starting with the identity:

    - ``chefer2021b``: ``R <- R + mean_h relu(G_l * A_l) R``; nothing is normalised (Chefer, Gur and Wolf, 2021,
      "Generic attention-model explainability").
    - ``chefer2021a``: ``R <- N(I + mean_h relu(G_l * C_l)) R``, ``N`` dividing each row by its sum (Chefer, Gur and
      Wolf, 2021, "Transformer interpretability beyond attention visualization"). Needs ``relevances``.
    - ``vit-explain-gradient``: ``R <- N(I + relu(mean_h G_l * A_l)) R`` (the vit-explain package's gradient rollout;
      its default ``discard`` is 0.9, here 0). Gradients belong to the layer they were taken at, from the first on.
    - ``gradient-attention``: ``sum_l mean_h G_l * A_l``, signed, without an identity and without products: to first
      order what is lost as all the attention from i to j fades out, divided by the number of heads.

    Rows asked for are taken from the top layer down as row vectors: ``O(L T^2)`` for each, and no layer is multiplied
    by another. Where every gradient is 0 the result is the identity (0 for ``gradient-attention``).

    Args:
        patterns: ``[layer, head, query, key]`` attention, or one ``[head, query, key]`` per layer; at least 0.
            Tensors, arrays or nested lists, here and below.
        gradients: of what is explained with respect to each entry, in the same shape.
        rule: one of those above.
        targets: query rows wanted, negative ones from the end; all for None.
        start: the first layer that counts.
        relevances: ``C`` for ``chefer2021a``, in the same shape.
        discard: share of the lowest entries of each layer's fused map that are set to 0, for ``vit-explain-gradient``.
        each_layer: give ``[layer, query, key]`` up to each layer from ``start`` on instead.

    Raises:
        UnknownName: another rule.
        BadInput: shapes that differ, maps that are not square, NaN or negative attention, rows that sum to more than
            1, or options that the rule does not have.

    Example:
        >>> pattern = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
        >>> relevance(pattern, torch.tensor([[[[0.0, 0.0], [2.0, -1.0]]]]))
        tensor([[1., 0.],
                [1., 1.]])
    """
    if rule != _SUMMED:
        lookup(rule, {**RULES, _SUMMED: None}, "rule of relevance")
    check_options(discard=discard, start=start)
    if discard and rule != "vit-explain-gradient":
        raise BadInput(f"discard={discard} goes with rule='vit-explain-gradient', not with {rule!r}.")
    if (relevances is not None) != (rule == "chefer2021a"):
        raise BadInput(
            f"rule={rule!r} {'needs' if relevances is None else 'takes no'} relevances=; they are what chefer2021a "
            "weighs the gradients by."
        )
    maps, slopes = _layers(patterns, "patterns"), _layers(gradients, "gradients")
    carried = maps if relevances is None else _layers(relevances, "relevances")
    _check(maps, slopes, carried)
    if start >= len(maps):
        raise BadInput(f"start={start}: there are {len(maps)} layers (0 to {len(maps) - 1}).")
    weighted = [(slope * one).unsqueeze(0) for slope, one in zip(slopes, carried, strict=True)][start:]
    rows = target_columns(targets, maps[0].shape[1])
    if rule == _SUMMED:
        sums = torch.stack([one[0].mean(0) for one in weighted]).cumsum(0)[:, rows]
        return sums if each_layer else sums[-1]
    return _product(weighted, RULES[rule], rows, discard, each_layer=each_layer)


def _product(weighted: list[Tensor], rule: Rule, rows: Tensor, discard: float, *, each_layer: bool) -> Tensor:
    def steps(layer: int, wanted: Tensor | None) -> Iterator[Step]:
        fused = rule.fuse(weighted[layer])
        if rule.fuse is mean_positive:
            fused = discarded(fused, discard, keep_first=False)
        chosen = torch.arange(fused.shape[1], device=fused.device)[None] if wanted is None else wanted
        yield rule.step(fused[:, chosen[0]], chosen)

    width = weighted[0].shape[-1]
    found, layers = rows_through(range(len(weighted)), steps, rows[None], width, each_layer=each_layer)
    return found[0].to(weighted[0].dtype) if layers is None else layers[:, 0].to(weighted[0].dtype)


def _layers(maps: Maps, what: str) -> list[Tensor]:
    if isinstance(maps, str) or not isinstance(maps, Sequence | Tensor | np.ndarray):
        raise BadInput(f"{what}: a {type(maps).__name__}; expected [layer, head, query, key], or one map per layer.")
    made = [map_tensor(one, f"{what}[{layer}]") for layer, one in enumerate(maps)]
    wrong = [list(one.shape) for one in made if one.ndim != _MAP_AXES]
    if wrong or not made:
        raise BadInput(f"{what}: layers of shapes {wrong or 'none'}; expected [head, query, key] of every layer.")
    dtype = torch.float64 if any(one.dtype == torch.float64 for one in made) else torch.float32
    return [one.to(made[0].device, dtype) for one in made]


def _check(maps: list[Tensor], slopes: list[Tensor], carried: list[Tensor]) -> None:
    shapes = [[list(one.shape) for one in each] for each in (maps, slopes, carried)]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise BadInput(f"Attention {shapes[0]}, gradients {shapes[1]} and relevances {shapes[2]} differ in shape.")
    if any(one.shape[1] != one.shape[2] or one.shape[1:] != maps[0].shape[1:] for one in maps):
        raise BadInput(
            f"The maps have shapes {shapes[0]}; expected the same number of queries and keys everywhere. For maps "
            "between two sequences use interp.SequenceRelevance."
        )
    for layer, (pattern, slope, one) in enumerate(zip(maps, slopes, carried, strict=True)):
        if not bool(torch.isfinite(pattern).all() & torch.isfinite(slope).all() & torch.isfinite(one).all()):
            raise BadInput(f"Layer {layer} has entries that are NaN or infinite (attention, gradients or relevances).")
        if bool((pattern < 0).any()):
            raise BadInput(
                f"Layer {layer} has negative attention (the least is {float(pattern.min()):.3g}); expected "
                "probabilities. Were scores before the softmax given?"
            )
        if bool((pattern.sum(-1) > 1 + ROUNDED).any()):
            raise BadInput(
                f"Layer {layer} has rows of attention that sum to {float(pattern.sum(-1).max()):.4f}, more than 1; "
                "expected probabilities."
            )
