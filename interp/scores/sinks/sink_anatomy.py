"""What a sink is made of: norms of a prompt's first token beside those of the others, and where queries point."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer
from interp.scores.sinks.sinks import first_columns

_BINS = (
    "residual norm ratio",
    "key norm ratio",
    "value norm ratio",
    "cosine to first key",
    "cosine to other keys",
)


class SinkAnatomy(Reducer):
    """Ratios of norms, first token to the mean of the others, and mean cosines of queries with keys."""

    maps = False

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        if ask.stack.cross:
            raise BadInput(
                f"{ask.name}: stack {ask.stack.name!r} is cross-attention, whose keys have no residual here; choose a "
                "self-attention stack."
            )
        self.sites = frozenset({Site.RESID_PRE, Site.Q, Site.K, Site.V})
        for site in self.sites:
            ask.stack.require(site, edit=False)
        self.first = first_columns(ask, 1)[:, 0]
        self.found: dict[int, Tensor] = {}

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer's five numbers per head."""
        stack = self.ask.stack
        group = stack.n_heads(layer) // stack.n_kv_heads(layer)
        q, k, v = (seen[site].float() for site in (Site.Q, Site.K, Site.V))
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        real = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device) if self.ask.mask is None else self.ask.mask
        first = torch.zeros_like(real).scatter(1, self.first.to(real.device).expand(len(real))[:, None], True)
        others = (real & ~first).unsqueeze(-1)  # [batch, pos, 1]
        x = seen[Site.RESID_PRE].float().unsqueeze(2).expand(-1, -1, q.shape[2], -1)
        made = [_ratio(torch.linalg.vector_norm(each, dim=-1), first, others) for each in (x, k, v)]
        unit_q, unit_k = (torch.nn.functional.normalize(each, dim=-1) for each in (q, k))
        key = (unit_k * first[:, :, None, None]).sum(1)
        mean_key = torch.where(others.unsqueeze(-1), unit_k, torch.zeros_like(unit_k)).sum(1) / others.sum(1).unsqueeze(
            -1
        )
        for direction in (key, mean_key):
            cosine = torch.einsum("bphd,bhd->bph", unit_q, direction)
            made.append(torch.where(others, cosine, torch.zeros_like(cosine)).sum(1) / others.sum(1))
        self.found[layer] = torch.stack(made, dim=-1)

    def measured(self) -> Measured:
        """A bin per quantity."""
        return Measured(self.found, bins=_BINS)


def _ratio(norms: Tensor, first: Tensor, others: Tensor) -> Tensor:
    """``[batch, head]`` the first token's norm over the mean of the others', NaN for a prompt of one token."""
    own = (norms * first.unsqueeze(-1)).sum(1)
    return own / (torch.where(others, norms, torch.zeros_like(norms)).sum(1) / others.sum(1))


def sink_anatomy(ask: Ask) -> SinkAnatomy:
    """Five numbers per head that tell a sink from other tokens (Gu et al., 2025).

    The norm of the residual, the key and the value of a prompt's first token, each over the mean of the other tokens
    (at sinks: large, small, small), and the mean cosine of the other tokens' queries with the first key and with
    the other keys (at sinks: large, small).

    Raises:
        BadInput: cross-attention.
    """
    return SinkAnatomy(ask)
