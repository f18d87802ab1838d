"""Rollouts the slow way, in NumPy: every step a whole matrix, every product made. Independent of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FUSE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda maps: maps.mean(0),
    "max": lambda maps: maps.max(0),
    "min": lambda maps: maps.min(0),
}


def random_maps(
    layers: int, heads: int, tokens: int, *, causal: bool = False, seed: int = 0, keys: int | None = None
) -> np.ndarray:
    """``[layer, head, query, key]`` softmax of Gaussian logits."""
    logits = 2 * np.random.default_rng(seed).standard_normal((layers, heads, tokens, keys or tokens))
    if causal:
        logits = np.where(np.tri(tokens, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def fused(maps: np.ndarray, heads: Any) -> np.ndarray:
    """The map of one layer, of ``[head, query, key]``."""
    if isinstance(heads, str):
        return FUSE[heads](maps)
    weights = np.asarray(heads, dtype=float)
    return np.tensordot(weights / weights.sum(), maps, axes=1)


def dropped(square: np.ndarray, share: float, *, keep_first: bool = True) -> np.ndarray:
    """The lowest entries set to 0: sorted by (value, row, column), one by one."""
    count = math.floor(share * square.size + 1e-9)
    order = sorted((square[i, j], i, j) for i in range(square.shape[0]) for j in range(square.shape[1]))
    made = square.copy()
    for _, i, j in order[:count]:
        if not (keep_first and i == j == 0):
            made[i, j] = 0
    return made


def step(square: np.ndarray, residual: Any = 0.5) -> np.ndarray:
    """``((1 - r) A + r I) / rowsum`` with ``r`` a number or one per row."""
    share = np.broadcast_to(np.asarray(residual, dtype=float), (len(square),))[:, None]
    mixed = (1 - share) * square + share * np.eye(len(square))
    return mixed / mixed.sum(-1, keepdims=True)


def dense(steps: Sequence[np.ndarray]) -> np.ndarray:
    """The product of steps, the first layer first."""
    made = np.eye(len(steps[0]))
    for one in steps:
        made = one @ made
    return made


def dense_rollout(maps: np.ndarray, *, heads: Any = "mean", residual: Any = 0.5, discard: float = 0.0) -> np.ndarray:
    """The rollout of ``[layer, head, query, key]``."""
    return dense([step(dropped(fused(layer, heads), discard), residual) for layer in maps])


def block_rollout(
    maps: np.ndarray, cross: np.ndarray, encoder: np.ndarray | None = None, *, residual: float = 0.5
) -> np.ndarray:
    """A decoder's rollout ``[decoder token, encoder then decoder token]``, by products of (E + D) x (E + D) matrices.

    The state holds both stacks' tokens: the encoder's layers move its rows alone, a self-attention the decoder's, and a
    cross-attention mixes each decoder row with encoder rows.
    """
    n_encoder, n_decoder = cross.shape[3], maps.shape[2]
    width = n_encoder + n_decoder
    state = np.eye(width)
    for layer in () if encoder is None else encoder:
        whole = np.eye(width)
        whole[:n_encoder, :n_encoder] = (1 - residual) * layer.mean(0) + residual * np.eye(n_encoder)
        state = whole @ state
    for mine, crossed in zip(maps, cross, strict=True):
        whole = np.eye(width)
        whole[n_encoder:, n_encoder:] = (1 - residual) * mine.mean(0) + residual * np.eye(n_decoder)
        state = whole @ state
        whole = np.eye(width)
        whole[n_encoder:, :n_encoder] = (1 - residual) * crossed.mean(0)
        whole[n_encoder:, n_encoder:] *= residual
        state = whole @ state
    return state[n_encoder:]
