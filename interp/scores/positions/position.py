"""Scores of where a head looks relative to repeats: previous-token, duplicate-token, induction.

All are means over query rows of attention mass, in float32, per prompt and head; NaN where a prompt has no row that
counts. Padded rows and keys never count. BOS is an ordinary key: it takes mass away from the others, and nothing is
renormalised unless sinks are excluded; then a row counts where a key that it should look at is left, and something of
it. A BOS that is not repeated is nobody's earlier copy.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.long_context.chosen_rows import standing
from interp.scores.reducer import RowMean

_HELD = 1 << 22  # entries of wanted keys that are held from layer to layer


class PreviousToken(RowMean):
    """``mean_i A[i, i - 1]`` over the rows from a prompt's second token on."""

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        self.whole = bool(ids_and_mask(ask)[1].all())

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The entry one column to the left of each row's own."""
        before = (block.rows - 1).clamp(min=0)
        index = before[:, None, :, None].expand(-1, block.pattern.shape[1], -1, 1)
        return block.pattern.gather(-1, index).squeeze(-1)

    def counted(self, block: Block) -> Bool[Tensor, "batch row"] | Bool[Tensor, "batch head row"]:
        """Rows whose neighbour to the left is a real token that is not left out."""
        if self.whole and block.kept is None and block.all_real and int(block.rows.min()) > 0:
            return block.real
        mask = ids_and_mask(self.ask)[1]
        mask = mask if block.kept is None else mask & block.kept
        before = (block.rows - 1).clamp(min=0)
        return _both(standing(block, None), (block.rows > 0) & mask.gather(1, before))


class MatchMass(RowMean):
    """Mean over the rows that have a wanted key of the mass on wanted keys: earlier copies, or what followed them.

    Args:
        ask: what is scored.
        followers: count the tokens after the earlier copies in place of the copies.
    """

    def __init__(self, ask: Ask, *, followers: bool) -> None:
        super().__init__(ask)
        self.ids, self.mask = ids_and_mask(ask)
        self.followers = followers
        self._held: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The mass on the wanted keys."""
        return torch.einsum("bhrk,brk->bhr", block.pattern, self.wanted(block).to(block.pattern.dtype))

    def counted(self, block: Block) -> Bool[Tensor, "batch row"] | Bool[Tensor, "batch head row"]:
        """Rows that have a wanted key which is not left out."""
        wanted = self.wanted(block)
        if block.kept is not None:
            wanted = wanted & block.kept[:, None, : block.n_keys]
        return _both(standing(block, None), wanted.any(-1))

    def wanted(self, block: Block) -> Bool[Tensor, "batch row key"]:
        """The keys in question, worked out once for each layer's block of a short prompt."""
        place = (int(block.rows[0, 0]), block.rows.shape[1], block.n_keys)
        held = self._held.get(place)
        if held is not None and torch.equal(held[0], block.rows):
            return held[1]
        earlier = earlier_copies(self.ids, self.mask, block.rows)
        if self.followers:
            moved = torch.zeros_like(earlier)
            moved[..., 1:] = earlier[..., :-1]
            own = torch.arange(earlier.shape[-1], device=earlier.device) == block.rows.unsqueeze(-1)
            earlier = moved & ~own  # a token does not follow into itself
        wanted = earlier[..., : block.n_keys]
        if len(self.ids) * self.ids.shape[1] ** 2 > _HELD:  # what is held must not grow with the square of a prompt
            self._held.clear()
        self._held[place] = (block.rows, wanted)
        return wanted


def _both(
    standing: Bool[Tensor, "batch *head row"], having: Bool[Tensor, "batch row"]
) -> Bool[Tensor, "batch *head row"]:
    """Rows that have something left, and a key to look at."""
    return standing & (having if standing.ndim == having.ndim else having[:, None])


def previous_token(ask: Ask) -> PreviousToken:
    """The mean of ``A[i, i - 1]`` over the rows from a prompt's second token on, in [0, 1] (Olsson et al., 2022)."""
    return PreviousToken(ask)


def duplicate_token(ask: Ask) -> MatchMass:
    """The mean over tokens that stood before of the mass on their earlier occurrences (Wang et al., 2022)."""
    return MatchMass(ask, followers=False)


def induction(ask: Ask) -> MatchMass:
    """The mean over tokens that stood before of the mass on the tokens that followed (Olsson et al., 2022).

    ``mean_i sum_{j < i - 1, t_j = t_i} A[i, j + 1]`` over the rows i that have such a j. On BOS and S distinct tokens
    said twice this is the mean of the diagonal at offset 1 - S over the second copy's rows; the entry before them is no
    induction event, its query being the last token of the first copy.
    """
    return MatchMass(ask, followers=True)


def ids_and_mask(ask: Ask) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """The token ids and the real tokens of the stack that is scored.

    Raises:
        BadInput: the batch has no token ids there.
    """
    if ask.batch.ids is None or ask.stack.name != ask.batch.default_stack:
        raise BadInput(
            f"{ask.name}: it compares token ids, and stack {ask.stack.name!r} of this batch has none; score the stack "
            f"of the tokens ({ask.batch.default_stack!r}) with prompts of ids or texts."
        )
    return ask.batch.ids, ask.batch.mask


def earlier_copies(
    ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], rows: Int[Tensor, "batch row"] | None = None
) -> Bool[Tensor, "batch row key"]:
    """``[batch, row, key]`` True where the key is an earlier copy of the row's token; padding never counts.

    Args:
        ids: token ids.
        mask: real tokens.
        rows: columns of the rows, all for None.

    Example:
        >>> earlier_copies(torch.tensor([[7, 8, 7]]), torch.ones(1, 3, dtype=torch.bool))[0, 2].tolist()
        [True, False, False]
    """
    columns = torch.arange(ids.shape[1], device=ids.device)
    rows = columns.expand(ids.shape[0], -1) if rows is None else rows
    same = ids.gather(1, rows)[:, :, None] == ids[:, None, :]
    return same & (columns < rows.unsqueeze(-1)) & mask.gather(1, rows)[:, :, None] & mask[:, None, :]
