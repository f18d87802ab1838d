"""Spectra of a head's QK and OV forms: stable and effective rank, nuclear norm, singular values. Weights alone.

``W_QK = W_Q W_K^T`` and ``W_OV = W_V W_O`` are ``[d_model, d_model]`` and of rank ``d_head`` at most. They are never
built: with the triangles R of two thin QR decompositions, ``R_Q R_K^T`` has the same singular values. Float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.head_weights import Fold, HeadWeights, check_fold, head_weights, triangle
from interp.names import unknown
from interp.scores.ask import Ask, Measured

Average = Literal["scores", "forms"]
Statistic = Callable[[Tensor], Tensor]  # [..., singular value], largest first -> [...]


def singular_values(
    left: Float[Tensor, "*head row rank"], right: Float[Tensor, "*head rank column"]
) -> Float[Tensor, "*head rank"]:
    """``[..., rank]`` the singular values of ``left @ right``, largest first, without the product.

    ``left = Q_1 R_1`` and ``right^T = Q_2 R_2`` give ``left right = Q_1 (R_1 R_2^T) Q_2^T``.

    Example:
        >>> singular_values(torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0, 2.0, 0.0]]))
        tensor([10.])
    """
    first, second = triangle(left), triangle(right.transpose(-1, -2))
    return torch.linalg.svdvals(first @ second.transpose(-1, -2))


def stable_rank(values: Float[Tensor, "*head rank"]) -> Float[Tensor, "*head"]:
    """``||W||_F^2 / ||W||_2^2 = sum s_i^2 / s_1^2``, from singular values; NaN for a matrix of zeros.

    Example:
        >>> stable_rank(torch.tensor([2.0, 2.0, 0.0])), stable_rank(torch.tensor([5.0, 0.0, 0.0]))
        (tensor(2.), tensor(1.))
    """
    shares = values / _first(values)
    return shares.square().sum(-1)


def effective_rank(values: Float[Tensor, "*head rank"]) -> Float[Tensor, "*head"]:
    """``exp(-sum p_i ln p_i)`` with ``p_i = s_i / sum s`` (Roy and Vetterli, 2007); NaN for a matrix of zeros.

    Example:
        >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
        tensor(2.)
    """
    shares = values / _first(values)
    shares = shares / shares.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def nuclear_norm(values: Float[Tensor, "*head rank"]) -> Float[Tensor, "*head"]:
    """``||W||_* / ||W||_F = sum s / sqrt(sum s^2)``, between 1 and the root of the rank; NaN for a matrix of zeros.

    Example:
        >>> nuclear_norm(torch.tensor([3.0, 3.0, 3.0, 3.0])), nuclear_norm(torch.tensor([3.0, 0.0, 0.0, 0.0]))
        (tensor(2.), tensor(1.))
    """
    shares = values / _first(values)
    return shares.sum(-1) / shares.square().sum(-1).sqrt()


def _first(values: Tensor) -> Tensor:
    """The largest singular value, NaN where it is 0, so that nothing over it is a number."""
    first = values[..., :1]
    return torch.where(first > 0, first, torch.full_like(first, torch.nan))


# ---- heads ----------------------------------------------------------------------------------------------------------


def qk_stable_rank(
    ask: Ask, distances: Sequence[int] = (0,), average: Average | str = "scores", fold: Fold | str = "gain"
) -> Measured:
    """``||W_QK||_F^2 / ||W_QK||_2^2`` of every head, from 1 to d_head (On the Benefits of Rank, 2024).

    Args:
        ask: which model and stack; no prompt is read.
        distances: how many positions before the query the key stands, where a rotary embedding makes the form depend on
            it: ``W_Q R^distance W_K^T``.
        average: over several distances: ``"scores"`` the mean of each form's score, ``"forms"`` the mean form's score.
        fold: what of the norms is folded in; see :func:`interp.model.head_weights.head_weights`.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> interp.score(model, batch, "qk_stable_rank")["qk_stable_rank"].values.round(1).tolist()[1][1]
        nan
    """
    return _qk(ask, stable_rank, distances, average, fold)


def qk_effective_rank(
    ask: Ask, distances: Sequence[int] = (0,), average: Average | str = "scores", fold: Fold | str = "gain"
) -> Measured:
    """``exp H(s / sum s)`` of the singular values of every head's W_QK; range and options as ``qk_stable_rank``."""
    return _qk(ask, effective_rank, distances, average, fold)


def ov_stable_rank(ask: Ask, fold: Fold | str = "gain") -> Measured:
    """``||W_OV||_F^2 / ||W_OV||_2^2`` of every head, from 1 to d_head."""
    return _ov(ask, stable_rank, fold)


def ov_effective_rank(ask: Ask, fold: Fold | str = "gain") -> Measured:
    """``exp H(s / sum s)`` of the singular values of every head's W_OV, from 1 to d_head."""
    return _ov(ask, effective_rank, fold)


def ov_nuclear_norm(ask: Ask, fold: Fold | str = "gain") -> Measured:
    """``||W_OV||_* / ||W_OV||_F`` of every head, from 1 (rank one) to the root of d_head (a rotation)."""
    return _ov(ask, nuclear_norm, fold)


def qk_spectrum(
    ask: Ask,
    k: int = 16,
    normalise: bool = False,
    distances: Sequence[int] = (0,),
    average: Average | str = "scores",
    fold: Fold | str = "gain",
) -> Measured:
    """The ``k`` largest singular values of every head's W_QK, a bin each; NaN beyond d_head.

    Args:
        ask: which model and stack.
        k: how many.
        normalise: divide by the sum of all of them.
        distances, average, fold: as in ``qk_stable_rank``.
    """
    count = _count(ask, k)
    return _qk(ask, lambda values: _top(values, count, normalise), distances, average, fold, bins=count)


def ov_spectrum(ask: Ask, k: int = 16, normalise: bool = False, fold: Fold | str = "gain") -> Measured:
    """The ``k`` largest singular values of every head's W_OV, a bin each; options as ``qk_spectrum``."""
    count = _count(ask, k)
    return _ov(ask, lambda values: _top(values, count, normalise), fold, bins=count)


def qk_distance_share(ask: Ask, distances: Sequence[int] = tuple(range(64)), fold: Fold | str = "gain") -> Measured:
    """The share of W_QK that changes with the distance between query and key, in [0, 1]; 0 without rotary embeddings.

    ``1 - ||mean_D W_D||_F^2 / mean_D ||W_D||_F^2`` with ``W_D = W_Q R^D W_K^T`` over ``distances`` (this library's
    definition, on the rotation of Su et al., 2021).

    Args:
        ask: which model and stack.
        distances: at least two.
        fold: as in ``qk_stable_rank``.
    """
    wanted = check_distances(ask, distances)
    if len(set(wanted)) < 2:  # noqa: PLR2004 - one form does not vary
        raise BadInput(f"{ask.name}: distances={tuple(wanted)} has no two different ones; give at least two.")
    check_fold(fold)

    def share(weights: HeadWeights) -> Tensor:
        right = weights.per_query_head(weights.triangles.k).transpose(-1, -2)
        forms = torch.stack([triangle_of_queries(weights, distance) @ right for distance in wanted])
        whole = forms.square().sum((-1, -2)).mean(0)
        kept = forms.mean(0).square().sum((-1, -2))
        return (1 - kept / torch.where(whole > 0, whole, torch.full_like(whole, torch.nan))).clamp(0, 1)

    return _by_layer(ask, share, fold, {"distances": list(wanted)})


def triangle_of_queries(weights: HeadWeights, distance: int) -> Float[Tensor, "head rank d_qk"]:
    """``R_Q`` turned for keys ``distance`` positions before: ``R_Q R^distance``; its ``R_Q^T R_Q`` is that of W_Q."""
    base, turn = weights.triangles.q, weights.power(distance)
    return base if turn is None else base @ turn


def check_distances(ask: Ask, distances: Any) -> tuple[int, ...]:
    """``distances`` as a tuple.

    Raises:
        BadInput: no whole numbers from 0 on.
    """
    given = (distances,) if isinstance(distances, int) else tuple(distances)
    if not given or not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in given):
        raise BadInput(
            f"{ask.name}: distances={distances!r}; expected whole numbers of positions from 0 on, such as (0, 1, 8)."
        )
    return given


def layers_that_mix(ask: Ask, fold: Fold | str) -> Iterator[tuple[int, HeadWeights | None]]:
    """Every layer with its matrices; None at layers whose z is no mixture of v, where W_OV has no meaning.

    Raises:
        Unsupported: there is no other layer.
    """
    reasons: list[str] = []
    met = False
    for layer in ask.layers:
        weights = head_weights(ask.model, ask.stack, layer, fold=fold)
        if weights.mixes is not None:
            reasons.append(weights.mixes)
        met |= weights.mixes is None
        yield layer, weights if weights.mixes is None else None
    if not met:
        raise Unsupported(
            f"{ask.name}: no layer of stack {ask.stack.name!r} ({ask.stack.model_type}) has an OV matrix: "
            f"{reasons[0] if reasons else 'it has no attention'}. Scores of QK still work."
        )


def _qk(ask: Ask, statistic: Statistic, distances: Any, average: str, fold: str, bins: int | None = None) -> Measured:
    wanted = check_distances(ask, distances)
    check_fold(fold)
    if average not in get_args(Average):
        raise BadInput(unknown(average, get_args(Average), "average"))

    def of_layer(weights: HeadWeights) -> Tensor:
        right = weights.per_query_head(weights.triangles.k).transpose(-1, -2)
        forms = [triangle_of_queries(weights, distance) @ right for distance in wanted]
        forms = [torch.stack(forms).mean(0)] if average == "forms" else forms
        return torch.stack([statistic(torch.linalg.svdvals(form)) for form in forms]).mean(0)

    return _by_layer(ask, of_layer, fold, {"distances": list(wanted), "average": average}, bins)


def _by_layer(
    ask: Ask, of_layer: Callable[[HeadWeights], Tensor], fold: str, about: dict[str, Any], bins: int | None = None
) -> Measured:
    found = {layer: of_layer(head_weights(ask.model, ask.stack, layer, fold=fold)).unsqueeze(0) for layer in ask.layers}
    return Measured(found, bins=_labels(bins), sample_axis=None, metadata={**about, "fold": fold})


def _ov(ask: Ask, statistic: Statistic, fold: str, bins: int | None = None) -> Measured:
    check_fold(fold)
    found = {}
    for layer, weights in layers_that_mix(ask, fold):
        if weights is None:
            shape = (1, ask.stack.n_heads(layer)) if bins is None else (1, ask.stack.n_heads(layer), bins)
            found[layer] = torch.full(shape, torch.nan, dtype=torch.float64)
        else:
            found[layer] = statistic(torch.linalg.svdvals(_ov_form(weights))).unsqueeze(0)
    return Measured(found, bins=_labels(bins), sample_axis=None, metadata={"fold": fold})


def _ov_form(weights: HeadWeights) -> Float[Tensor, "head rank_v rank_o"]:
    """What has the singular values of W_OV."""
    return weights.per_query_head(weights.triangles.v) @ weights.triangles.o.transpose(-1, -2)


def _labels(bins: int | None) -> list[str] | None:
    return None if bins is None else [str(place) for place in range(1, bins + 1)]


def _count(ask: Ask, k: Any) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise BadInput(f"{ask.name}: k={k!r}; expected how many singular values are wanted, at least 1.")
    return k


def _top(values: Tensor, count: int, normalise: bool) -> Tensor:
    if normalise:
        values = values / (_first(values) / _first(values) * values.sum(-1, keepdim=True))
    return torch.nn.functional.pad(values[..., :count], (0, max(0, count - values.shape[-1])), value=torch.nan)
