"""The norm of what a head writes into the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.address import Site
from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.head_norms import HeadNorms
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer


class ResultNorm(Reducer):
    """Mean over rows of ``||z W_O||``, or of its share of the residual stream's norm.

    Args:
        ask: what is scored.
        rows: ``[batch, row]`` True at the rows that count; None for all real ones.
        relative: divide by the norm of the residual stream that enters the block.
    """

    maps = False

    def __init__(self, ask: Ask, rows: Bool[Tensor, "batch row"] | None, *, relative: bool) -> None:
        super().__init__(ask)
        self.chosen, self.relative = rows, relative
        self.sites = frozenset({Site.Z, Site.RESID_PRE} if relative else {Site.Z})
        self.found: dict[int, Tensor] = {}

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The mean of this layer."""
        z = seen[Site.Z]
        norms = HeadNorms(self.ask.stack.layer(layer), z).of(z).double()  # [batch, head, row]
        if self.relative:
            norms = norms / seen[Site.RESID_PRE].double().norm(dim=-1)[:, None]
        real = self.ask.mask if self.chosen is None else self.chosen
        if real is None:
            self.found[layer] = norms.mean(-1)
            return
        weight = real.to(norms.device)[:, None]
        self.found[layer] = torch.where(weight, norms, torch.zeros_like(norms)).sum(-1) / weight.sum(-1)

    def measured(self) -> Measured:
        """By layer."""
        return Measured(self.found)


def result_norm(ask: Ask, *, queries: Group = None, relative: bool = False) -> ResultNorm:
    """``mean_i ||z_i W_O||_2`` of each head, before post-norms and multipliers, and without the projection's bias.

    Args:
        ask: what is scored.
        queries: the rows that count, all real ones for None.
        relative: ``||z_i W_O|| / ||x_i||`` with x the residual stream that enters the block: a large stream (massive
            activations at the first token) hides what is written there.

    Raises:
        BadInput: ``relative`` is no bool, or rows that are not there.
        Unsupported: ``relative`` on cross-attention, at which no residual stream is read.
    """
    if not isinstance(relative, bool):
        raise BadInput(f"{ask.name}: relative={relative!r}; expected True or False.")
    if relative:
        ask.stack.require(Site.RESID_PRE, edit=False)
    rows = None if queries is None else ask.columns(queries, "queries")
    return ResultNorm(ask, rows, relative=relative)
