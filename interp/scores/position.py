"""Scores of where a head looks relative to repeats: previous-token, duplicate-token, induction.

All are means over query rows of attention mass, in float32, per prompt and head; NaN where a prompt has no row that
counts. Padded rows and keys never count. BOS is an ordinary key: it takes mass away from the others, and nothing is
renormalised. A BOS that is not repeated is nobody's earlier copy.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def previous_token(
    pattern: Float[Tensor, "batch head query key"],
    ids: Int[Tensor, "batch query"],
    mask: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """``[batch, head]`` mean of ``A[i, i - 1]`` over the rows from a prompt's second token on.

    Args:
        pattern: attention patterns.
        ids: token ids; not used, so that all scores are called alike.
        mask: real tokens; padding on either side.

    Example:
        >>> shift = torch.eye(4).roll(1, 0)[None, None]
        >>> previous_token(shift, torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))
        tensor([[1.]])
    """
    rows = mask[:, 1:] & mask[:, :-1]
    diagonal = torch.diagonal(pattern, offset=-1, dim1=-2, dim2=-1).float()  # [batch, head, query - 1]
    return _row_mean(diagonal, rows)


def duplicate_token(
    pattern: Float[Tensor, "batch head query key"],
    ids: Int[Tensor, "batch query"],
    mask: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """``[batch, head]`` mean over tokens that stood before: the mass on their earlier occurrences.

    Args:
        pattern: attention patterns.
        ids: token ids.
        mask: real tokens.
    """
    earlier = earlier_copies(ids, mask)
    return _mass_mean(pattern, earlier, earlier.any(-1))


def induction(
    pattern: Float[Tensor, "batch head query key"],
    ids: Int[Tensor, "batch query"],
    mask: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """``[batch, head]`` mean over tokens that stood before: the mass on the tokens that followed.

    ``mean_i sum_{j < i - 1, t_j = t_i} A[i, j + 1]`` over the rows i that have such a j. On BOS and S distinct tokens
    said twice this is the mean of the diagonal at offset 1 - S over the second copy's rows; the entry before them is no
    induction event, its query being the last token of the first copy.

    Args:
        pattern: attention patterns.
        ids: token ids.
        mask: real tokens.
    """
    earlier = earlier_copies(ids, mask)
    followers = torch.zeros_like(earlier)
    followers[..., 1:] = earlier[..., :-1]
    followers &= ~torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)  # a token does not follow into itself
    return _mass_mean(pattern, followers, followers.any(-1))


def earlier_copies(ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos pos"]:
    """``[batch, query, key]`` True where the key is an earlier copy of the query's token; padding never counts."""
    same = ids[:, :, None] == ids[:, None, :]
    before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(-1)
    return same & before & mask[:, :, None] & mask[:, None, :]


def _mass_mean(pattern: Tensor, wanted: Tensor, rows: Tensor) -> Tensor:
    mass = torch.einsum("bhqk,bqk->bhq", pattern.float(), wanted.float())
    return _row_mean(mass, rows)


def _row_mean(per_row: Tensor, rows: Tensor) -> Tensor:
    counted = (per_row * rows[:, None, :]).sum(-1)
    number = rows.sum(-1)[:, None].to(counted.dtype)
    return torch.where(number > 0, counted / number.clamp(min=1), torch.full_like(counted, torch.nan))
