"""Copying by the circuits over the vocabulary: does a head raise the token it looks at, does it look at equal tokens.

The circuits are ``[vocab, vocab]`` and of rank ``d_head`` at most. Their non-zero eigenvalues are those of a
``[d_head, d_head]`` product, because ``A B`` and ``B A`` share theirs. Weights alone, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.head_weights import Fold, check_fold, head_weights
from interp.model.vocabulary import token_products
from interp.names import unknown
from interp.scores.ask import Ask, Measured
from interp.scores.weights.spectra import check_distances, layers_that_mix

Eigen = Literal["trace", "positive"]

_NOTHING = 1e-12  # of the largest product of norms: an eigenvalue that is rounding alone


def circuit_eigenvalues(
    entering: Float[Tensor, "*head d_model rank"],
    leaving: Float[Tensor, "*head rank d_model"],
    tokens: Float[Tensor, "d_model d_model"],
) -> Complex[Tensor, "*head rank"]:
    """``[..., rank]`` the non-zero eigenvalues of ``W_E entering leaving W_U``, given ``tokens = W_U W_E``.

    Args:
        entering: W_V (or W_Q).
        leaving: W_O (or W_K^T).
        tokens: ``W_U W_E`` (or ``W_E^T W_E``), the sum over the vocabulary.

    Example:
        >>> circuit_eigenvalues(torch.tensor([[2.0], [0.0]]), torch.tensor([[3.0, 0.0]]), torch.eye(2))
        tensor([6.+0.j])
    """
    return torch.linalg.eigvals(leaving @ tokens @ entering)


def eigen_score(
    values: Complex[Tensor, "*head rank"], statistic: Eigen | str = "trace", floor: Tensor | float = 0.0
) -> Float[Tensor, "*head"]:
    """In [-1, 1]: ``sum Re l / sum |l|`` of eigenvalues, or with ``"positive"`` the share with ``Re l > 0`` in [0, 1].

    Args:
        values: eigenvalues; those up to ``floor`` in size are not there.
        statistic: ``"trace"`` (Elhage et al., 2021) or ``"positive"``.
        floor: sizes that are rounding.

    NaN where no eigenvalue is left.

    Example:
        >>> eigen_score(torch.tensor([3.0 + 0j, -1.0 + 0j])), eigen_score(torch.tensor([1j, -1j]))
        (tensor(0.5000), tensor(0.))
    """
    there = values.abs() > floor
    real = torch.where(there, values.real, torch.zeros_like(values.real))
    if statistic == "positive":
        return (real > 0).sum(-1) / torch.where(there.any(-1), there.sum(-1), torch.nan)
    size = torch.where(there, values.abs(), torch.zeros_like(real)).sum(-1)
    return (real.sum(-1) / torch.where(there.any(-1), size, torch.full_like(size, torch.nan))).clamp(-1, 1)


def ov_copying(ask: Ask, statistic: Eigen | str = "trace", fold: Fold | str = "gain") -> Measured:
    """How far ``W_E W_V W_O W_U`` raises the logit of the token looked at, in [-1, 1] (Elhage et al., 2021).

    ``sum Re l_i / sum |l_i|`` over the eigenvalues of the circuit from token to logit: 1 where every direction of token
    space is mapped onto itself with a positive factor, -1 with a negative one, about 0 for a random head.

    Args:
        ask: which model and stack; no prompt is read.
        statistic: ``"trace"`` as above, or ``"positive"`` the share of eigenvalues with a positive real part.
        fold: as for :func:`interp.model.head_weights.head_weights`; the gain of the final norm (and of one after the
            embedding) is folded in along with those of the layer.

    Raises:
        Unsupported: tokens do not enter this stack by a table, or its logits do not leave by a norm and a matrix.
    """
    _check(statistic, fold)
    tokens = token_products(ask.model, ask.stack, fold=fold)[0]
    found = {}
    for layer, weights in layers_that_mix(ask, fold):
        if weights is None:
            found[layer] = Measured.nowhere(ask.stack, layer, 1)
        else:
            found[layer] = _scored(weights.per_query_head(weights.v), weights.o, tokens, statistic)
    return Measured(found, sample_axis=None, metadata={"statistic": statistic, "fold": fold})


def qk_copying(
    ask: Ask, distances: Sequence[int] = (0,), statistic: Eigen | str = "trace", fold: Fold | str = "gain"
) -> Measured:
    """How far a head's queries look for keys of their own token, in [-1, 1] (Elhage et al., 2021).

    ``sum Re l_i / sum |l_i|`` over the eigenvalues of ``W_E W_Q R^distance W_K^T W_E^T``, the circuit from token to
    token, averaged over ``distances``; at distance 0 a rotary embedding turns nothing.

    Args:
        ask: which model and stack; no prompt is read.
        distances: how many positions before the query the key stands.
        statistic: as in ``ov_copying``.
        fold: as in ``ov_copying``.

    Raises:
        Unsupported: tokens do not enter this stack by a table, or the rotation is not known and a distance is not 0.
    """
    _check(statistic, fold)
    wanted = check_distances(ask, distances)
    tokens = token_products(ask.model, ask.stack, fold=fold)[1]
    found = {}
    for layer in ask.layers:
        weights = head_weights(ask.model, ask.stack, layer, fold=fold)
        keys = weights.per_query_head(weights.k).transpose(-1, -2)
        each = [_scored(weights.turned(distance), keys, tokens, statistic) for distance in wanted]
        found[layer] = torch.stack(each).mean(0)
    return Measured(found, sample_axis=None, metadata={"statistic": statistic, "fold": fold, "distances": list(wanted)})


def _check(statistic: str, fold: str) -> None:
    check_fold(fold)
    if statistic not in get_args(Eigen):
        raise BadInput(unknown(statistic, get_args(Eigen), "statistic"))


def _scored(entering: Tensor, leaving: Tensor, tokens: Tensor, statistic: str) -> Float[Tensor, "1 head"]:
    values = circuit_eigenvalues(entering, leaving, tokens)
    size = entering.flatten(-2).norm(dim=-1) * leaving.flatten(-2).norm(dim=-1) * tokens.norm()
    return eigen_score(values, statistic, floor=_NOTHING * size.unsqueeze(-1)).unsqueeze(0)
