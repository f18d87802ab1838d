"""A layer's step from given maps in one pass over them: sums, checks and products of rows that are still in cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.tracing.transitions import TOLERANCE

ENTRIES = 1 << 18  # of the rows that are summed, checked and multiplied before the next ones are read


def one_pass(
    maps: Float[Tensor, "head query key"],
    vectors: Float[Tensor, "vector query"],
    shares: Float[Tensor, " head"],
    residual: Float[Tensor, " query"],
) -> tuple[Float[Tensor, "vector key"], Float[Tensor, "vector query"], bool]:
    """What vectors at the top of a layer put on its keys, what stays on the tokens, and whether all rows sum to 1.

    ``u diag(a) F`` and ``u diag(o)`` of :mod:`interp.tracing.transitions` with a weighted mean over heads and nothing
    missing. Every row is read, so that the last answer is of the whole map: no entry below 0 or NaN, each head's row
    sums to 1.

    Args:
        maps: the heads' maps.
        vectors: weights of the tokens at the top.
        shares: of the heads; they sum to 1.
        residual: the residual stream's share of each row, below 1.
    """
    heads, _, keys = maps.shape
    beside = residual / (1 - residual)  # a = 1 / (sum + r / (1 - r)), o = a r / (1 - r)
    attended = vectors.new_zeros(len(vectors), keys)
    step = max(1, ENTRIES // (heads * keys))
    signs = torch.int64 if maps.dtype == torch.float64 else torch.int32  # below 0 as the number is, and faster
    least: list[Tensor] = []
    sums: list[Tensor] = []
    factors: list[Tensor] = []
    pieces: Sequence[Tensor] = maps.split(step, dim=1)
    for some, weights, more in zip(pieces, vectors.split(step, dim=1), beside.split(step), strict=True):
        least.append(some.view(signs).amin(1))
        own = some.sum(-1)
        whole = shares @ own + more
        factor = torch.where(whole > 0, 1 / whole, torch.zeros_like(whole))  # a row of nothing stays nothing
        if heads == 1:
            attended.addmm_(weights * factor, some[0])
        else:
            attended += torch.matmul(weights * factor * shares[:, None, None], some).sum(0)
        sums.append(own)
        factors.append(factor)
    total = torch.cat(sums, dim=1)
    stays = vectors * (torch.cat(factors) * beside) * (total != 0).any(0)
    good = int(torch.stack(least).amin()) >= 0  # NaN shows in the sums
    return attended, stays, good and 1 - TOLERANCE <= float(total.amin()) <= float(total.amax()) <= 1 + TOLERANCE
