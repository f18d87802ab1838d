"""Pattern tests of place on random tokens: previous-token, positional and sink heads."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.labels.masses import ColumnMasses, PairMasses
from interp.scores.labels.reading import PatternReading, Setup, mean_over_prompts
from interp.scores.reducer import RowMean


def previous(setup: Setup) -> PatternReading:
    """Attention to the token before; the null is the head's own attention to tokens further back, one draw a distance.

    Rows begin where the token before is not the first one, so that a head that rests on the first token is none.
    """
    batch = setup.random.once(setup.n_prompts)
    length = batch.width
    far = min(setup.draws, length - 3)
    wanted = torch.stack([offsets(length, distance) for distance in range(1, far + 2)], dim=-1)
    found = setup.read(batch, lambda ask, some: PairMasses(ask, wanted))
    return PatternReading(found[..., 0], np.moveaxis(mean_over_prompts(found[..., 1:]), -1, 0))


def sink(setup: Setup) -> PatternReading:
    """Attention to the first token, the first row left out; the null is the attention to other fixed places."""
    batch = setup.random.once(setup.n_prompts)
    length = batch.width
    places = min(setup.draws, length - 2)
    columns = torch.eye(length)[None, :, : places + 1]
    seen = torch.arange(length)[:, None] > torch.arange(places + 1)  # a row later than the place, never on itself
    found = setup.read(batch, lambda ask, some: ColumnMasses(ask, columns, seen[None]))
    return PatternReading(found[..., 0], np.moveaxis(mean_over_prompts(found[..., 1:]), -1, 0))


def positional(setup: Setup) -> PatternReading:
    """Mean attention to the one place, or distance, that a head attends to most, whatever the tokens.

    Candidates are the places from the second token on, over the rows behind them, and the distances from 2 on, each
    only where half the rows have it. The token itself, the one before it and the first have labels of their own or
    none: a head that attends to one of those more than to any candidate is not eligible. The null takes the same
    maximum after the keys of each row were put in random order.
    """
    batch = setup.random.once(setup.n_prompts)
    names, wanted = candidates(batch.width)
    wanted = torch.cat([wanted, left_out(batch.width)], dim=-1)
    found = setup.read(batch, lambda ask, some: PlaceMasses(ask, wanted, setup.draws, setup.seed, some))
    found = found.reshape(*found.shape[:3], setup.draws + 1, wanted.shape[-1])
    means = np.nan_to_num(mean_over_prompts(found), nan=-1.0)  # [layer, head, 1 + draw, candidate]
    count = len(names)
    best = means[..., 0, :count].argmax(-1)
    own = np.take_along_axis(found[..., 0, :], best[None, ..., None], -1)[..., 0]
    return PatternReading(
        own,
        np.moveaxis(means[..., 1:, :count].max(-1), -1, 0),
        places=np.array(names, dtype=object)[best],
        eligible=means[..., 0, :count].max(-1) > means[..., 0, count:].max(-1),
    )


def left_out(length: int) -> Bool[Tensor, "pos key 3"]:
    """``[pos, key, 3]`` the row's own token, the one before it, and the first, for rows from the third on."""
    rows, keys = torch.arange(length)[:, None], torch.arange(length)
    made = torch.stack([keys == rows, keys == rows - 1, (keys == 0).expand(length, -1)], dim=-1)
    made[:2] = False
    return made


def offsets(length: int, distance: int) -> Bool[Tensor, "pos key"]:
    """``[pos, key]`` True where the key lies ``distance`` before the row and is not the first token.

    Example:
        >>> offsets(4, 1).nonzero().tolist()
        [[2, 1], [3, 2]]
    """
    made = torch.ones(length, length, dtype=torch.bool).tril(-distance).triu(-distance)
    made[:, 0] = False
    return made


def candidates(length: int) -> tuple[list[str], Bool[Tensor, "pos key candidate"]]:
    """Names and ``[pos, key, candidate]``: fixed places from the second token on, and fixed distances from 2 on."""
    most = max(2, length // 2)
    names = [f"place {place}" for place in range(1, most)] + [f"{distance} back" for distance in range(2, most)]
    behind = torch.arange(length)[:, None] > torch.arange(length)  # the row itself is not looked at
    fixed = [behind & (torch.arange(length) == place) for place in range(1, most)]
    return names, torch.stack([*fixed, *(offsets(length, distance) for distance in range(2, most))], dim=-1)


class PlaceMasses(RowMean):
    """Masses on every candidate place, as the maps are and with the keys of each row in random order.

    Args:
        ask: what is read.
        wanted: ``[pos, key, candidate]``.
        draws: random orders.
        seed: of the orders.
        numbers: of the prompts, so that a prompt's orders do not depend on the batch it is in.
    """

    def __init__(
        self, ask: Ask, wanted: Bool[Tensor, "pos key candidate"], draws: int, seed: int, numbers: list[int]
    ) -> None:
        super().__init__(ask, bins=range((draws + 1) * wanted.shape[-1]))
        self.wanted = wanted.to(ask.batch.mask.device).float()
        self.orders = torch.stack([self._orders(draws, seed, number) for number in numbers]).to(self.wanted.device)

    def _orders(self, draws: int, seed: int, number: int) -> Tensor:
        """``[draw, pos, key]`` for each row an order of the keys up to its own."""
        length = len(self.wanted)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        ranks = torch.rand(draws, length, length, generator=generator)
        ranks = ranks.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), 2.0)
        return ranks.argsort(-1)

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row bin"]:
        """``[batch, head, row, (1 + draw) candidate]``."""
        missing = self.wanted.shape[1] - block.n_keys
        pattern = torch.nn.functional.pad(block.pattern, (0, missing))
        wanted = self.wanted[block.rows]  # [batch, row, key, candidate]
        found = [torch.einsum("bhrk,brkc->bhrc", pattern, wanted)]
        for draw in range(self.orders.shape[1]):
            order = self.orders[:, draw].gather(1, block.rows.unsqueeze(-1).expand(-1, -1, pattern.shape[-1]))
            moved = pattern.gather(-1, order[:, None].expand(-1, pattern.shape[1], -1, -1))
            found.append(torch.einsum("bhrk,brkc->bhrc", moved, wanted))
        return torch.cat(found, dim=-1)

    def counted(self, block: Block) -> Bool[Tensor, "batch 1 row bin"]:
        """Rows that have the candidate."""
        there = self.wanted[block.rows].bool().any(2).repeat(1, 1, self.orders.shape[1] + 1)
        return (there & block.real.unsqueeze(-1))[:, None]
