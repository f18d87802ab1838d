"""The copying score: does a head raise the logit of what it attends to?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Unembed = Callable[[Tensor], Tensor]  # [..., d_model] -> [..., vocab], without the bias


def copying_ratio(
    pattern: Float[Tensor, "batch head query key"],
    result: Float[Tensor, "batch query head d_model"],
    ids: Int[Tensor, "batch query"],
    sample: Bool[Tensor, "batch query"],
    unembed: Unembed,
) -> Float[Tensor, "batch head"]:
    """``[batch, head]`` raw ratio r in [0, 1], averaged over positions.

    At each position the head's result goes straight through the unembedding (no final norm), the mean over the
    vocabulary is taken off, negative numbers are set to 0: what remains is how much each token's logit is raised. Then
    ``r = sum_j a_j raised(t_j) / sum_t raised(t)`` over the tokens of the sample, where ``a_j`` is the share of the
    head's attention on token j among the sample's tokens (Olsson et al., 2022; the share is this library's reading of
    "the attended tokens"). Where nothing is raised r is 0; a position that attends to no token of the sample is left
    out.

    Args:
        pattern: attention patterns.
        result: what each head writes, in residual space.
        ids: token ids, distinct within the sample.
        sample: True at the tokens of the sample (the start token left out).
        unembed: the unembedding without its bias.
    """
    attended = pattern.float() * sample[:, None, None, :]
    mass = attended.sum(-1)  # [batch, head, query]
    share = attended / mass.clamp(min=1e-9).unsqueeze(-1)
    raised = torch.stack([_raised(result[:, :, h], ids, sample, unembed) for h in range(result.shape[2])], dim=1)
    total = raised.sum(-1)
    ratio = (share * raised).sum(-1) / total.clamp(min=1e-9)
    counted = sample[:, None, :] & (mass > 1e-6)  # noqa: PLR2004 - nothing but rounding
    number = counted.sum(-1)
    mean = torch.where(counted, ratio, torch.zeros_like(ratio)).sum(-1) / number.clamp(min=1)
    return torch.where(number > 0, mean, torch.full_like(mean, torch.nan))


def _raised(result: Tensor, ids: Tensor, sample: Tensor, unembed: Unembed) -> Tensor:
    """``[batch, query, key]`` how much one head's result at a query raises the logit of each token of the sample."""
    logits = unembed(result).float()  # [batch, query, vocab]: one head at a time, since vocabularies are large
    logits = logits - logits.mean(-1, keepdim=True)
    index = ids[:, None, :].expand(-1, logits.shape[1], -1)
    return logits.gather(-1, index).clamp(min=0) * sample[:, None, :]


def copying(ratio: Float[Tensor, "batch head"]) -> Float[Tensor, "batch head"]:
    """``4 min(r, 1/2) - 1`` in [-1, 1]: the paper's map, which states r up to 1/2; r itself can reach 1."""
    return 4 * ratio.clamp(max=0.5) - 1
