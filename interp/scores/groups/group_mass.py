"""The attention that goes from one group of tokens to another."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.groups.groups import members_of, refuse_shared, token_groups
from interp.scores.long_context.chosen_rows import columns_with_filler, standing
from interp.scores.reducer import Reducer


def mass_of_groups(
    pattern: Float[Tensor, "batch head row key"], groups: Bool[Tensor, "kind batch key"]
) -> Float[Tensor, "batch head row kind"]:
    """``[batch, head, row, group]`` the sum of each row over each group's keys.

    ``m_g(i) = sum_{j in g} A_ij``; where the groups partition the keys a row's masses sum to what the row sums to.

    Example:
        >>> mass_of_groups(torch.tensor([[[[0.25, 0.75]]]]), torch.tensor([[[True, False]], [[False, True]]])).tolist()
        [[[[0.25, 0.75]]]]
    """
    return torch.einsum("bhrk,gbk->bhrg", pattern, groups.to(pattern.dtype))


def top_of_groups(
    pattern: Float[Tensor, "batch head row key"], groups: Bool[Tensor, "kind batch key"], top: int
) -> Float[Tensor, "batch head row kind"]:
    """``[batch, head, row, group]`` the sum of each row's ``top`` largest entries within each group."""
    n = min(top, pattern.shape[-1])
    return torch.stack([(pattern * own[:, None, None]).topk(n, dim=-1).values.sum(-1) for own in groups], dim=-1)


class GroupMass(Reducer):
    """Mean over the rows of each query group of the mass on each key group.

    Args:
        ask: what is scored.
        keys: ``[group, batch, key]``.
        queries: ``[group, batch, pos]``, None for all real rows as one group.
        bins: labels, query group by query group; None for a single number.
        top: of each group only so many largest entries of a row count; None for all.
    """

    def __init__(
        self, ask: Ask, keys: Tensor, queries: Tensor | None, bins: tuple[str, ...] | None, top: int | None
    ) -> None:
        super().__init__(ask)
        self.keys, self.queries, self.bins, self.top = keys, queries, bins, top
        self.rows = None if queries is None else columns_with_filler(queries.any(0))
        self.sums: dict[int, Tensor] = {}
        self.numbers: dict[int, Tensor] = {}

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "#batch key group"] | None:
        """The groups as columns; none where only the largest entries count."""
        return None if self.top is not None else self.keys[..., :n_keys].permute(1, 2, 0).float()

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the rows of each query group."""
        if self.top is None:
            assert products is not None
            values = products
        else:
            values = top_of_groups(
                block.pattern, self.keys[..., : block.n_keys].expand(-1, len(block.rows), -1), self.top
            )
        if self.queries is None and block.kept is None and block.all_real:
            added = values.sum(2, dtype=torch.float64).unsqueeze(2)
            self._add(block.layer, added, torch.full_like(added[..., 0], values.shape[2]))
            return
        wanted = [None] if self.queries is None else list(self.queries)
        counted = torch.stack([_per_head(standing(block, member)) for member in wanted])  # [group, batch, head, row]
        counted = counted.expand(-1, -1, values.shape[1], -1).double()
        added = torch.einsum("bhrg,qbhr->bhqg", values.double(), counted)
        self._add(block.layer, added, counted.sum(-1).permute(1, 2, 0))

    def _add(self, layer: int, added: Tensor, number: Tensor) -> None:
        """Sums ``[batch, head, query group, group]`` and rows ``[batch, head, query group]``."""
        if layer in self.sums:
            added, number = self.sums[layer] + added, self.numbers[layer] + number
        self.sums[layer], self.numbers[layer] = added, number

    def measured(self) -> Measured:
        """Sums over numbers; NaN where a prompt has no row of the query group."""
        means = {layer: (self.sums[layer] / self.numbers[layer].unsqueeze(-1)).flatten(2) for layer in self.sums}
        if self.bins is None:
            return Measured({layer: mean[..., 0] for layer, mean in means.items()})
        return Measured(means, bins=self.bins)


def _per_head(counted: Tensor) -> Tensor:
    return counted if counted.ndim == 3 else counted[:, None]  # noqa: PLR2004 - batch, head, row


def group_mass(ask: Ask, *, keys: Any = None, queries: Any = None, top: int | None = None) -> GroupMass:
    """The mean over query rows of the mass on each group of keys, in [0, 1].

    ``m_{q,g} = mean_{i in q} sum_{j in g} A_ij``. Where the key groups partition the prompt the masses of one query
    group sum to 1 (less with sink logits).

    Args:
        ask: what is scored.
        keys: the key groups: :class:`interp.TokenGroups`, a list of span names, a mapping name -> group, or one group
            for a single number per head. None for :func:`interp.token_groups` of the batch.
        queries: the query rows: one group, or several as for ``keys`` (bins are then named ``"question -> image"``);
            all for None.
        top: count only this many largest entries of a row within each group (5 in the selective attention of "Attention
            Entropy is a Key Factor", 2025); all for None.

    Raises:
        BadInput: a group without tokens in some prompt, key groups that share a token, groups of other prompts, or
            ``top`` below 1.
        BadAddress: an unknown span, or positions outside a prompt.
    """
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise BadInput(f"{ask.name}: top={top!r}; expected how many of the largest entries count, at least 1.")
    if keys is None:
        if ask.stack.name != ask.batch.default_stack and not ask.stack.cross:
            raise BadInput(
                f"{ask.name}: name keys= for stack {ask.stack.name!r}; only prompts of tokens have defaults."
            )
        keys = token_groups(ask.model, ask.batch)
    names, members = members_of(ask, keys, "keys", keys=True)
    if names is not None:
        refuse_shared(ask, names, members)
    rows = None if queries is None else members_of(ask, queries, "queries", keys=False)
    bins = names
    if rows is not None and rows[0] is not None:
        bins = tuple(f"{row} -> {key}" for row in rows[0] for key in names or ("keys",))
    return GroupMass(ask, members, None if rows is None else rows[1], bins, top)
