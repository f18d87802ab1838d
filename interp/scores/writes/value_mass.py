"""Attention weighted by what the attended values write: ``||A_ij v_j W_O||`` in place of ``A_ij``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import Site
from interp.edits.groups import Group
from interp.errors import BadInput, Unsupported
from interp.model.head_norms import HeadNorms
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.groups.groups import members_of, refuse_shared
from interp.scores.long_context.chosen_rows import ChosenRowMean


def value_weights(
    pattern: Float[Tensor, "*batch query key"], norms: Float[Tensor, "*batch key"]
) -> Float[Tensor, "*batch query key"]:
    """Rows of ``A_ij n_j / sum_k A_ik n_k`` with ``n_j = ||v_j W_O||``: shares of what is written; 0 / 0 is NaN.

    Equal to the pattern where all values have one norm. Kobayashi et al., 2020.

    Example:
        >>> value_weights(torch.tensor([[0.9, 0.1]]), torch.tensor([1.0, 9.0]))
        tensor([[0.5000, 0.5000]])
    """
    weighted = pattern * norms.unsqueeze(-2)
    return weighted / weighted.sum(-1, keepdim=True)


class ValueMass(ChosenRowMean):
    """Mean over rows of the share of ``||A_ij v_j W_O||`` that lies on groups of keys.

    Args:
        ask: what is scored.
        members: ``[group, batch or 1, key]``; columns beyond its last one belong to no group.
        rows: ``[batch, row]`` True at the query rows that count; None for all real ones.
        names: labels of several groups; None for one.
    """

    sites = frozenset({Site.V})

    def __init__(
        self,
        ask: Ask,
        members: Bool[Tensor, "group batch key"],
        rows: Bool[Tensor, "batch row"] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(ask, rows, names)
        ask.stack.require(Site.V, edit=False)
        self.members = members
        self._norms: Tensor | None = None

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The norms of this layer's values, written by each query head."""
        v, own = seen[Site.V], self.ask.stack.layer(layer)
        if v.shape[-1] != own.d_head:
            raise Unsupported(
                f"{self.ask.name}: in layer {layer} of stack {self.ask.stack.name!r} a value has {v.shape[-1]} entries "
                f"and a head's output {own.d_head}; something stands between them, and no value is written by itself."
            )
        self._norms = HeadNorms(own, v).of_values(v)

    def per_row(self, block: Block, products: Tensor | None) -> Tensor:
        """The share of each group; NaN where a row writes nothing."""
        assert self._norms is not None
        norms = self._norms[..., : block.n_keys]  # [batch, head, key]
        missing = max(0, block.n_keys - self.members.shape[-1])
        member = torch.nn.functional.pad(self.members[..., : block.n_keys].to(norms.dtype), (0, missing))
        group = torch.einsum("bhk,gbk->bhkg", norms, member.expand(-1, len(norms), -1))
        made = block.pattern @ torch.cat([norms.unsqueeze(-1), group], dim=-1)  # [batch, head, row, 1 + group]
        share = made[..., 1:] / made[..., :1]
        return share if self.bins is not None else share.squeeze(-1)

    def counted(self, block: Block) -> Bool[Tensor, "batch head row"]:
        """Real rows that were asked for and write something."""
        assert self._norms is not None
        written = torch.einsum("bhrk,bhk->bhr", block.pattern, self._norms[..., : block.n_keys]) > 0
        chosen = super().counted(block)
        return (chosen if chosen.ndim == written.ndim else chosen[:, None]) & written


def value_weighted_mass(ask: Ask, *, keys: Any = None, queries: Group = None) -> ValueMass:
    """The share of what a head's attention writes that comes from ``keys``, a mean over the rows ``queries``.

    ``mean_i sum_{j in keys} A_ij ||v_j W_O|| / sum_j A_ij ||v_j W_O||``, in [0, 1]: a key with a large weight and a
    small value counts little. Padding never counts; BOS is an ordinary key; a gate between the map and the output
    projection is not counted.

    Args:
        ask: what is scored.
        keys: a group of keys (a span, a slice, a BoolTensor ``[batch, key]``), or several as a mapping name -> group, a
            list of span names or token groups: one value per group then.
        queries: rows that count, all for None.

    Raises:
        BadInput: no keys, a group without a token in some prompt, or two that share a token.
    """
    if keys is None:
        raise BadInput(f"{ask.name}: keys= is missing; name the tokens whose share is wanted, such as keys='image'.")
    names, members = members_of(ask, keys, "keys", keys=True)
    if names is not None:
        refuse_shared(ask, names, members)
    return ValueMass(ask, members, _rows(ask, queries), names)


def value_weighted_sink(ask: Ask, *, queries: Group = None) -> ValueMass:
    """The share of what a head's attention writes that comes from each prompt's first token, a mean over rows.

    A sink takes a large part of the attention and a small part of this, since its value is short (Gu et al., 2025).
    The first row, which sees nothing else, counts as 1.

    Args:
        ask: what is scored.
        queries: rows that count, all for None.

    On a stack of images the first column is the CLS token, where there is one.
    """
    mask = ask.key_mask
    first = torch.ones(1, 1, dtype=torch.bool) if mask is None else (mask.cumsum(-1) == 1) & mask
    return ValueMass(ask, first[None], _rows(ask, queries))


def _rows(ask: Ask, queries: Group) -> Bool[Tensor, "batch row"] | None:
    return None if queries is None else ask.columns(queries, "queries")
