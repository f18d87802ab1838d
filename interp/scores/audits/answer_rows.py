"""The rows of attention at the position where the answer is read."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.reducer import Reducer


class AnswerRows(Reducer):
    """``[batch, head, key]`` of each layer: the row of attention that stands where the answer is read.

    Args:
        ask: what is scored.
        row: another position; of images the first (CLS) by default.
    """

    def __init__(self, ask: Ask, row: Group = None) -> None:
        super().__init__(ask)
        self.rows = answer_row(ask, row)
        self.patterns: dict[int, Tensor] = {}
        self.open: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Keep the row, and which keys it sees."""
        self.patterns[block.layer] = block.pattern[:, :, 0].clone()
        self.open[block.layer] = block.open_keys[:, :, 0].expand(-1, block.pattern.shape[1], -1).clone()

    def of(self, layer: int, n_keys: int) -> tuple[Float[Tensor, "batch head key"], Bool[Tensor, "batch head key"]]:
        """The rows and their visible keys, filled up to ``n_keys`` columns."""
        missing = (0, n_keys - self.patterns[layer].shape[-1])
        return (
            torch.nn.functional.pad(self.patterns[layer], missing),
            torch.nn.functional.pad(self.open[layer], missing),
        )


def answer_row(ask: Ask, row: Group = None) -> Tensor:
    """``[batch, 1]`` the column of the row in question.

    Raises:
        BadInput: several rows.
    """
    if row is None:
        if ask.mask is None:
            return torch.zeros(len(ask.batch), 1, dtype=torch.long)
        return ask.batch.read_at[:, None]
    member = ask.columns(row, "row")
    if int(member.sum(-1).max()) > 1:
        raise BadInput(f"{ask.name}: row={row!r} means several positions in a prompt; name one.")
    return member.to(torch.uint8).argmax(-1, keepdim=True)
