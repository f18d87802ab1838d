"""Entropy of attention rows: how widely a head looks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.shape.distribution import DistributionMean, Queries, mass_of

_ONE_KEY = 1


def row_entropy(pattern: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows"]:
    """``[..., row]`` entropy of each row in nats; NaN for a row without mass.

    ``H = - sum_j p_j log p_j`` with ``p = A / sum A`` and ``0 log 0 = 0``, in ``[0, log n]`` for n visible keys (Zhai
    et al., 2023).

    Args:
        pattern: rows of attention; a row that does not sum to 1 is rescaled.

    Example:
        >>> row_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    return _entropy(pattern, pattern.sum(-1))


def _entropy(pattern: Tensor, mass: Tensor) -> Tensor:
    logarithms = pattern.clamp(min=torch.finfo(pattern.dtype).tiny).log_()  # 0 times it is 0
    total = -logarithms.mul_(pattern).sum(-1)
    return (total / mass + mass.log()).clamp(min=0)


class Entropy(DistributionMean):
    """The mean entropy of rows, in nats or as a share of ``log n``.

    Args:
        ask: what is scored.
        normalised: divide by the logarithm of the number of visible keys; rows with one key are left out.
        queries: rows that count, or classes of rows.
    """

    def __init__(self, ask: Ask, *, normalised: bool, queries: Queries = None) -> None:
        super().__init__(ask, queries, fewest=_ONE_KEY + 1 if normalised else _ONE_KEY)
        self.normalised = normalised

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """Entropy of each row."""
        found = _entropy(block.pattern, mass_of(block))
        if not self.normalised:
            return found
        return (found / block.n_open.clamp(min=_ONE_KEY + 1).to(found.dtype).log()).clamp(max=1)


def entropy(ask: Ask, normalised: bool = False, queries: Queries = None) -> Entropy:
    """The mean entropy of a head's rows in nats (Zhai et al., 2023), or of each class of rows.

    Args:
        ask: what is scored.
        normalised: divide each row's entropy by the logarithm of the number of keys it sees, and leave rows with one
            key out; without it such rows count as 0.
        queries: the rows that count: None all, a group, or name -> group for one number per class of rows.

    Raises:
        BadInput: a class without rows.
    """
    return Entropy(ask, normalised=normalised, queries=queries)


def normalised_entropy(ask: Ask, queries: Queries = None) -> Entropy:
    """The mean over rows with two keys or more of ``H / log n``, in [0, 1]; comparable between early and late rows."""
    return Entropy(ask, normalised=True, queries=queries)
