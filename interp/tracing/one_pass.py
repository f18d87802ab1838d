"""A layer's step from given maps in one pass over them: sums, checks and products of rows that are still in cache."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.tracing.transitions import TOLERANCE

ENTRIES = 1 << 19  # of the rows that are summed, checked and multiplied before the next ones are read


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
    heads, n_rows, keys = maps.shape
    beside = residual / (1 - residual)  # a = 1 / (sum + r / (1 - r)), o = a r / (1 - r)
    step = max(1, ENTRIES // (heads * keys))
    sums, factors = maps.new_empty(heads, n_rows), maps.new_empty(n_rows)
    ones, spare = maps.new_ones(keys), bool((beside == 0).any())
    pieces = torch.get_num_threads() if maps.device.type == "cpu" and len(vectors) == 1 else 1
    attended = vectors.new_zeros(pieces, len(vectors), keys)
    bits = maps.view(torch.int64 if maps.dtype == torch.float64 else torch.int32)  # below 0 as numbers are, and faster
    least: list[Tensor] = []
    for first in range(0, n_rows, step):
        last = min(first + step, n_rows)
        for head in range(heads):
            torch.mv(maps[head, first:last], ones, out=sums[head, first:last])
        own = sums[0, first:last] if heads == 1 else shares @ sums[:, first:last]
        factor = torch.add(own, beside[first:last], out=factors[first:last]).reciprocal_()
        if spare:  # a row of nothing stays nothing
            factor.masked_fill_(factor.isinf(), 0)
        weights = vectors[:, first:last] * factor
        for head, some in enumerate(maps[:, first:last]):
            scaled = weights if heads == 1 else weights * shares[head]
            if (last - first) % pieces:
                attended[0].addmm_(scaled, some)
            else:  # each thread the rows that it has just summed
                attended.baddbmm_(scaled.view(len(vectors), pieces, -1).transpose(0, 1), some.view(pieces, -1, keys))
        least.append(bits[:, first:last].amin())
    stays = vectors * (factors * beside) * (sums != 0).any(0)
    good = int(torch.stack(least).amin()) >= 0  # NaN shows in the sums
    good = good and 1 - TOLERANCE <= float(sums.amin()) <= float(sums.amax()) <= 1 + TOLERANCE
    return attended.sum(0), stays, good
