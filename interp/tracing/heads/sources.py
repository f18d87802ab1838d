"""``Sources``: the tokens that count where heads are traced, placed before any forward."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.edits.groups import Group, columns_of, refuse_foreign_span
from interp.errors import BadInput
from interp.names import unknown
from interp.tracing.ask import TraceAsk


class Sources:
    """The tokens that count, known to be placeable before any forward.

    Args:
        ask: what is traced.
        group: of positions.
        stack: whose; the encoder's where the stack reads one, else its own, for None.

    Raises:
        BadInput: a stack whose tokens are no sources.
        BadAddress: positions outside a prompt.
    """

    def __init__(self, ask: TraceAsk, group: Group, stack: str | None) -> None:
        reads = ask.stack.name == "decoder" and "cross" in ask.model.stacks
        known = ("encoder", ask.stack.name) if reads else (ask.stack.name,)
        self.stack = known[0] if stack is None else stack
        if self.stack not in known:
            raise BadInput(unknown(self.stack, known, f"stack of sources of stack {ask.stack.name!r}"))
        self._ask, self._group = ask, group
        mask = ask.batch.row_mask(self.stack)
        if mask is not None:
            columns_of(group, ask.batch, mask.shape[1], mask.device, mask=mask)
        elif isinstance(group, str):
            refuse_foreign_span(group, ask.batch, mask)

    def member(self, width: int) -> Bool[Tensor, "batch source"]:
        """``[batch, width]`` True at the tokens that count, among the ``width`` columns of their stack."""
        batch = self._ask.batch
        mask = batch.row_mask(self.stack)
        found = columns_of(self._group, batch, width, torch.device("cpu"), mask=None if mask is None else mask.cpu())
        found = found.expand(len(batch), -1)
        return found if mask is None else found & mask.cpu()

    def among(self, parts: tuple[tuple[str, int], ...]) -> Bool[Tensor, "batch source"]:
        """``[batch, source]`` True at the tokens that count, where the sources are of the stacks ``parts``."""
        made = [
            self.member(width) if name == self.stack else torch.zeros(len(self._ask.batch), width, dtype=torch.bool)
            for name, width in parts
        ]
        return torch.cat(made, dim=1)
