"""What composition scores are by chance: where what one head writes has nothing to do with what the other reads."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput


def chance_score(d_model: int) -> float:
    """``1 / sqrt(d_model)``: the root mean square composition score under a random rotation of the residual stream.

    For R drawn evenly from the rotations, ``E ||A R B||_F^2 = ||A||_F^2 ||B||_F^2 / d_model`` whatever A and B are.

    Args:
        d_model: width of the residual.

    Example:
        >>> chance_score(64)
        0.125
    """
    return 1 / math.sqrt(d_model)


def chance_spread(writer: np.ndarray, reader: np.ndarray, d_model: int) -> np.ndarray:
    """The standard deviation of the squared score under a random rotation of the residual stream.

    ``sqrt(2 (d a - 1) (d b - 1) / (d^2 (d - 1) (d + 2)))`` with ``a = ||A^T A||_F^2 / ||A||_F^4`` and the same of B:
    the second moment of ``tr(M R N R^T)`` over rotations R.

    Args:
        writer: ``a`` of the writing matrices, between ``1 / d_model`` and 1; see :func:`concentration`.
        reader: ``b`` of the reading ones; the two are broadcast.
        d_model: width of the residual.
    """
    d = d_model
    spread = np.clip(d * writer - 1, 0, None) * np.clip(d * reader - 1, 0, None)
    return np.sqrt(2 * spread / (d**2 * max(d - 1, 1) * (d + 2)))


def concentration(small: Float[Tensor, "*head rank rank"]) -> Float[Tensor, "*head"]:
    """``||G||_F^2 / tr(G)^2`` of a Gram matrix: the sum of squared shares of its eigenvalues, 1 at rank one.

    Example:
        >>> concentration(torch.eye(4))
        tensor(0.2500)
    """
    trace = small.diagonal(dim1=-2, dim2=-1).sum(-1)
    return small.square().sum((-1, -2)) / torch.where(trace > 0, trace, torch.full_like(trace, torch.nan)).square()


def random_scores(d_model: int, d_head: int, *, draws: int = 100, seed: int = 0) -> Float[np.ndarray, " draw"]:
    """``[draw]`` composition scores of pairs of random heads, all entries normal: the baseline by drawing.

    Args:
        d_model: width of the residual.
        d_head: of both heads.
        draws: how many pairs.
        seed: of what is drawn.

    Raises:
        BadInput: a number below 1.

    Example:
        >>> found = random_scores(64, 8, draws=200)
        >>> bool(abs((found**2).mean() ** 0.5 - chance_score(64)) < 0.01)
        True
    """
    for name, value in (("d_model", d_model), ("d_head", d_head), ("draws", draws)):
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"random_scores: {name}={value!r}; expected a whole number of at least 1.")
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    found = []
    for _ in range(draws):
        first = torch.linalg.qr(drawn(d_model, d_head), mode="r").R @ drawn(d_head, d_model)
        second = drawn(d_model, d_head) @ torch.linalg.qr(drawn(d_model, d_head), mode="r").R.T
        found.append(float((first @ second).norm() / (first.norm() * second.norm())))
    return np.array(found)
