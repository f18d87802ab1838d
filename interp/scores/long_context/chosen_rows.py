"""Scores of some query rows alone: answers, questions, generated tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.reducer import RowMean


class ChosenRowMean(RowMean):
    """A mean over chosen query rows; no other row is computed.

    Args:
        ask: what is scored.
        chosen: ``[batch, pos]`` the rows; None for every real one.
        bins: labels, where there are several numbers per row.
    """

    def __init__(
        self, ask: Ask, chosen: Bool[Tensor, "batch pos"] | None, bins: Sequence[object] | None = None
    ) -> None:
        super().__init__(ask, bins)
        self.chosen = chosen
        self.rows = None if chosen is None else columns_with_filler(chosen)

    def counted(self, block: Block) -> Bool[Tensor, "batch row"] | Bool[Tensor, "batch head row"]:
        """The chosen rows of the block that see a key which is not left out."""
        return standing(block, self.chosen)


def standing(
    block: Block, chosen: Bool[Tensor, "batch pos"] | None
) -> Bool[Tensor, "batch row"] | Bool[Tensor, "batch head row"]:
    """True at the rows that count: real, chosen, and with some mass on keys that are not left out.

    Args:
        block: the rows.
        chosen: ``[batch, pos]``; None for every real row.
    """
    real = block.real if chosen is None else block.real & chosen.gather(1, block.rows)
    return real if block.kept is None else real[:, None] & (block.kept_mass > 0)


def columns_with_filler(chosen: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch k"] | None:
    """``[batch, k]`` the chosen columns of each prompt, in order; None where that would be all of some prompt's.

    Prompts with fewer are filled up with a column that is not chosen, so that counting the chosen ones counts each
    once.

    Example:
        >>> columns_with_filler(torch.tensor([[False, True, True], [False, False, True]])).tolist()
        [[1, 2], [2, 0]]
    """
    counts = chosen.sum(-1)
    if bool((counts == chosen.shape[1]).any()) or not bool(chosen.any()):
        return None
    order = (~chosen).long().argsort(dim=-1, stable=True)  # the chosen columns first, then the others
    filler = order.gather(1, counts[:, None])
    k = int(counts.max())
    kept = torch.arange(k, device=chosen.device) < counts[:, None]
    return torch.where(kept, order[:, :k], filler)


def one_before(
    chosen: Bool[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, " batch"]]:
    """The rows that predict the chosen tokens: one real token to the left; and whether each prompt's first was chosen.

    Args:
        chosen: the tokens.
        mask: real tokens.
    """
    real = chosen & mask
    first = mask & (mask.cumsum(-1) == 1)
    rows, columns = torch.nonzero(real & ~first, as_tuple=True)
    order = (~mask).long().argsort(dim=-1, stable=True)  # ordinal -> column
    moved = torch.zeros_like(chosen)
    moved[rows, order[rows, mask.cumsum(-1)[rows, columns] - 2]] = True
    return moved, (real & first).any(-1)
