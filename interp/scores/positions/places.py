"""``Places``: where tokens stand among their prompt's own, and the entries of a map at given distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput, Unsupported
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.long_context.chosen_rows import ChosenRowMean


@dataclass(frozen=True, eq=False)
class Places:
    """The places 0, 1, 2 ... of each prompt's own tokens, so that padding on either side changes no distance.

    Attributes:
        place: ``[batch, pos]`` place of a column's token; 0 at padding; None where every column is a token.
        column: ``[batch, pos]`` column of the n-th own token (then the padding), None as above.
        length: ``[batch, 1]`` own tokens, None as above.
    """

    place: Int[Tensor, "batch pos"] | None
    column: Int[Tensor, "batch pos"] | None
    length: Int[Tensor, "batch 1"] | None

    @classmethod
    def of(cls, ask: Ask) -> Places:
        """The places of the stack that is scored.

        Raises:
            Unsupported: its queries and keys are tokens of two sequences, or patches of an image.
        """
        if ask.stack.cross:
            raise Unsupported(
                f"{ask.name}: queries and keys of stack {ask.stack.name!r} are tokens of two sequences, between which "
                "there is no distance; score the decoder's or the encoder's own attention."
            )
        if ask.stack.name.startswith("vision"):
            raise Unsupported(
                f"{ask.name}: the positions of stack {ask.stack.name!r} are patches of an image, not a sequence; use "
                "mean_distance_2d, hop_profile or directed_offsets."
            )
        return cls.among(ask.mask)

    @classmethod
    def among(cls, mask: Bool[Tensor, "batch pos"] | None) -> Places:
        """The places of the tokens that ``mask`` says are real; every column's own number for None."""
        if mask is None:
            return cls(None, None, None)
        return cls(
            place=(mask.cumsum(-1) - 1).clamp(min=0) * mask,
            column=(~mask).long().argsort(dim=-1, stable=True),
            length=mask.sum(-1, keepdim=True),
        )

    def at(self, columns: Int[Tensor, "batch k"]) -> Int[Tensor, "batch k"]:
        """The places of the tokens in ``columns``."""
        return columns if self.place is None else self.place.gather(1, columns)

    def keys(self, block: Block, offsets: Int[Tensor, " offset"]) -> tuple[Tensor, Tensor]:
        """``[batch, row, offset]`` the column of the key at each distance (query minus key), and whether there is one.

        Keys that ``exclude_sinks`` leaves out are not there. Where there is none, the column is any.
        """
        wanted = self.at(block.rows).unsqueeze(-1) - offsets.to(block.rows.device)
        if self.column is None or self.length is None:
            length = block.n_keys if block.kept is None else block.kept.shape[-1]
            there, column = (wanted >= 0) & (wanted < length), wanted.clamp(0, length - 1)
        else:
            there = (wanted >= 0) & (wanted < self.length.unsqueeze(-1))
            flat = wanted.clamp(0, self.column.shape[1] - 1).flatten(1)
            column = self.column.gather(1, flat).view_as(wanted)
        if block.kept is not None:
            kept = block.kept.expand(len(wanted), -1).gather(1, column.flatten(1)).view_as(wanted)
            there = there & kept
        return column, there

    def ends(self, block: Block) -> tuple[Int[Tensor, "#batch 1"], Int[Tensor, "#batch 1"]]:
        """The places of each prompt's first and last token, those that ``exclude_sinks`` leaves out not counted."""
        if self.place is None or self.length is None:
            kept = torch.ones(1, block.n_keys, dtype=torch.bool) if block.kept is None else block.kept
            place = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        else:
            place = self.place
            kept = self.column.argsort(-1) < self.length if self.column is not None else place >= 0
            kept = kept if block.kept is None else kept & block.kept
        first = torch.where(kept, place, place.shape[1]).amin(-1, keepdim=True)
        last = torch.where(kept, place, -1).amax(-1, keepdim=True)
        return first.to(block.rows.device), last.to(block.rows.device)

    def entries(
        self, block: Block, offsets: Int[Tensor, " offset"]
    ) -> tuple[Float[Tensor, "batch head row offset"], Bool[Tensor, "batch row offset"]]:
        """The map's entries at distances ``offsets`` (query minus key), 0 where there is no such key; and where."""
        column, there = self.keys(block, offsets)
        held = there & (column < block.n_keys)  # columns that a block leaves away hold nothing
        index = column.clamp(max=block.n_keys - 1)[:, None].expand(-1, block.whole.shape[1], -1, -1)
        return block.pattern.gather(-1, index) * held[:, None], there


class QueryMean(ChosenRowMean):
    """A mean over the rows that ``queries`` names and that have anything left; no other row is computed.

    Args:
        ask: what is scored.
        queries: which rows; all for None.
        bins: labels, where there are several numbers per row.
    """

    def __init__(self, ask: Ask, queries: Group = None, bins: tuple[str, ...] | None = None) -> None:
        super().__init__(ask, None if queries is None else ask.columns(queries, "queries"), bins)


def later_mass(block: Block, places: Places, *, by_distance: bool = False) -> Float[Tensor, "batch head row"] | None:
    """Mass on keys after the query (times their distance with ``by_distance``); None on causal stacks."""
    if block.stack.causal:
        return None
    first = int(block.rows.min()) + 1
    if first >= block.n_keys:
        return None
    columns = torch.arange(first, block.n_keys, device=block.rows.device).expand(len(block.rows), -1)
    ahead = places.at(columns)[:, None, :] - places.at(block.rows)[:, :, None]  # [batch, row, key]
    weight = ahead.clamp(min=0) if by_distance else ahead > 0
    return torch.einsum("bhrk,brk->bhr", block.pattern[..., first:], weight.to(block.pattern.dtype))


def require_causal(ask: Ask) -> None:
    """Refuse a stack in which queries see later keys throughout.

    Raises:
        Unsupported: with what to do.
    """
    if not ask.stack.causal:
        raise Unsupported(
            f"{ask.name}: it is about looking back over a text, and stack {ask.stack.name!r} of "
            f"{ask.stack.model_type!r} sees both ways; score a causal stack."
        )


def whole_number(name: str, option: str, value: object, least: int) -> int:
    """``value`` as an int of at least ``least``.

    Raises:
        BadInput: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{name}: {option}={value!r}; expected a whole number of at least {least}.")
    return value
