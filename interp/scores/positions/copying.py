"""The copying score: does a head raise the logit of what it attends to?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput
from interp.model.inputs import output_embeddings
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.positions.position import ids_and_mask
from interp.scores.prompts import start_token
from interp.scores.reducer import Reducer

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


class Copying(Reducer):
    """``4 min(r, 1/2) - 1`` of :func:`copying_ratio`, from whole rows of a short drawn prompt."""

    sites = frozenset({Site.RESULT})

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        ids_and_mask(ask)
        head = output_embeddings(ask.model)
        if head is None:
            raise BadInput(
                f"copying: {type(ask.model.hf).__name__} has no unembedding; load it with its language head."
            )
        self.head = head
        self.maps_of: dict[int, list[Tensor]] = {}
        self.found: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Keep the rows: a drawn prompt is 26 tokens."""
        missing = self.ask.batch.width - block.n_keys
        self.maps_of.setdefault(block.layer, []).append(torch.nn.functional.pad(block.pattern, (0, missing)))

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The ratio of this layer."""
        batch = self.ask.batch
        assert batch.ids is not None
        sample = batch.mask.clone()
        if start_token(self.ask.model) is not None:
            sample[:, 0] = False
        result = seen[Site.RESULT]
        zero = self.head.forward(torch.zeros_like(result[:1, :1, 0]))
        pattern = torch.cat(self.maps_of.pop(layer), dim=2)
        ratio = copying_ratio(pattern, result, batch.ids, sample, lambda x: self.head.forward(x) - zero)
        self.found[layer] = bounded_copying(ratio)

    def measured(self) -> Measured:
        """By layer."""
        return Measured(self.found)


def bounded_copying(ratio: Float[Tensor, "batch head"]) -> Float[Tensor, "batch head"]:
    """``4 min(r, 1/2) - 1`` in [-1, 1]: the paper's map, which states r up to 1/2; r itself can reach 1."""
    return 4 * ratio.clamp(max=0.5) - 1


def copying(ask: Ask) -> Copying:
    """How much a head raises the logit of what it attends to (Olsson et al., 2022), on 25 random tokens said once.

    Raises:
        BadInput: the model has no unembedding, or the prompts have no token ids.
    """
    return Copying(ask)
