"""Attention to the items of a list (documents, shots, options) by the place at which they stand."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.groups.groups import members_of, refuse_shared
from interp.scores.long_context.chosen_rows import ChosenRowMean

ITEM = "item "


def spans_beginning(ask: Ask, beginning: str, what: str) -> list[str]:
    """Names of the batch's spans that begin like this, in order.

    Raises:
        BadInput: there is none.
    """
    found = [name for name in ask.batch.spans if name.startswith(beginning)]
    if not found:
        raise BadInput(
            f"{ask.name}: no span begins with {beginning!r}; the batch has {sorted(ask.batch.spans) or 'none'}. Mark "
            f"them with encode(..., spans={{'{beginning}1': ..., '{beginning}2': ...}}), or name them with {what}=."
        )
    return found


def item_members(ask: Ask, items: Any, what: str = "items") -> tuple[tuple[str, ...], Bool[Tensor, "item batch pos"]]:
    """Names and members of the items; each prompt's first token, where attention sinks, belongs to none.

    Raises:
        BadInput: fewer than two items, two that share a token, or one that is empty in some prompt.
    """
    given = spans_beginning(ask, ITEM, what) if items is None else items
    names, members = members_of(ask, given, what, keys=True)
    if names is None or len(names) < 2:  # noqa: PLR2004 - a slot has no place among others
        raise BadInput(f"{ask.name}: {what}={items!r} is one item; give at least two, in their order in the prompt.")
    mask = ask.key_mask
    if mask is not None:
        members = members & ~(mask & (mask.cumsum(-1) == 1))
    refuse_shared(ask, names, members)
    for name, member in zip(names, members, strict=True):
        empty = (~member.any(-1)).nonzero().flatten().tolist()
        if empty:
            raise BadInput(
                f"{ask.name}: {name!r} is the first token alone in prompts {empty[:5]}, which belongs to no item."
            )
    return names, members


class ItemAttention(ChosenRowMean):
    """Mean over the query rows of the mass on each item, then as shares of all items.

    Args:
        ask: what is scored.
        names: the items.
        members: ``[item, batch, key]``.
        queries: ``[batch, pos]``.
        per_token: mean over an item's tokens in place of their sum.
        shares: divide by the sum over items.
    """

    def __init__(
        self, ask: Ask, names: tuple[str, ...], members: Tensor, queries: Tensor, *, per_token: bool, shares: bool
    ) -> None:
        super().__init__(ask, queries, names)
        open_columns = members if ask.dropped is None else members & ~ask.dropped
        lengths = open_columns.sum(-1, keepdim=True) if per_token else torch.ones_like(members[..., :1])
        self.columns = (open_columns / lengths).permute(1, 2, 0).float()  # [batch, key, item]
        self.shares = shares

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "batch key item"]:
        """The items as columns."""
        return self.columns[:, :n_keys]

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row item"]:
        """The mass on each item."""
        assert products is not None
        return products

    def measured(self) -> Measured:
        """Shares by layer; NaN where no item gets any attention."""
        found = super().measured()
        if not self.shares:
            return found
        return Measured({layer: item_shares(mass) for layer, mass in found.by_layer.items()}, bins=self.bins)


def item_shares(mass: Float[Tensor, "*any item"]) -> Float[Tensor, "*any item"]:
    """``b_k = m_k / sum_k m_k``: sums to 1; NaN where every m is 0.

    Example:
        >>> item_shares(torch.tensor([0.1, 0.3])).tolist()
        [0.25, 0.75]
    """
    return mass / mass.sum(-1, keepdim=True)


def item_attention(
    ask: Ask, *, items: Any = None, queries: Any = None, per_token: bool = False, shares: bool = True
) -> ItemAttention:
    """How a head's attention to the items of a list is shared among their places, in [0, 1].

    ``b_k = m_k / sum_k m_k`` with ``m_k = mean_{i in queries} sum_{j in item k} A_ij`` ("Attention Basin", 2025). It is
    a property of the place only where contents are exchanged between places over the prompts:
    :func:`interp.rotated_items` makes such prompts, :func:`interp.attention_basin` averages over them.

    Args:
        ask: what is scored.
        items: the items in their order: names of spans, or a mapping name -> group; the spans that begin with
            ``"item "`` for None. A prompt's first token belongs to none.
        queries: the query rows; the position that is read for None. Several are steadier.
        per_token: divide each mass by the item's number of tokens, where lengths differ.
        shares: divide by the sum over items; otherwise the masses themselves.

    Raises:
        BadInput: fewer than two items, or items that overlap.
    """
    names, members = item_members(ask, items)
    return ItemAttention(ask, names, members, read_rows(ask, queries), per_token=per_token, shares=shares)


def read_rows(ask: Ask, queries: Any) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` the query rows that ``queries`` means, the position that is read for None.

    Raises:
        BadInput: None on a stack without such a position.
    """
    if queries is not None:
        return members_of(ask, queries, "queries", keys=False)[1].any(0)
    mask = ask.mask
    if mask is None or mask.shape != ask.batch.mask.shape or ask.stack.name == "encoder":
        raise BadInput(f"{ask.name}: name the query rows of stack {ask.stack.name!r} with queries=.")
    rows = torch.zeros_like(mask)
    rows[torch.arange(len(rows)), ask.batch.read_at] = True
    return rows
