"""Similarities of every two maps of a forward, summed over a few rows of all layers at a time."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.reducer import Reducer
from interp.scores.shape.distribution import distributions, mass_of
from interp.scores.shape.entropy import row_entropy
from interp.scores.shape.selection import largest

Measure = Literal["cosine", "jsd", "top_k"]
ENTRIES = 1 << 23  # of all layers' maps held at once; with what is made of them about 128 MiB of float32


class PairSums(Reducer):
    """Sums over rows of what every two maps share. Rows may come from several forwards, some rows of each.

    Args:
        ask: what is compared.
        measure: ``cosine``, ``jsd`` or ``top_k``.
        k: of ``top_k``.
        mean: compare the mean maps of layers in place of heads.

    Attributes:
        places: ``(layer, head)`` of each map, head None for mean maps.
    """

    def __init__(self, ask: Ask, measure: Measure, k: int, *, mean: bool) -> None:
        super().__init__(ask)
        self.measure, self.k, self.mean = measure, k, mean
        self.places: list[tuple[int, int | None]] = []
        self.held: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.finished: set[int] = set()
        self.sums: Tensor | None = None
        self.numbers: Tensor | None = None
        self.by_chance: Tensor | None = None

    def block(self, block: Block, products: Tensor | None) -> None:
        """Keep the rows until every layer has shown them."""
        pattern, counted = distributions(block), block.real[:, None] & (mass_of(block) > 0)
        n_open = block.n_open.expand_as(counted)
        if self.mean:
            counted = counted.any(1, keepdim=True)
            pattern, n_open = pattern.mean(1, keepdim=True), n_open.amax(1, keepdim=True)
        self.held.setdefault(block.layer, []).append((pattern, counted, n_open))

    def finish(self, layer: int, seen: object) -> None:
        """After the last layer: add what every two maps share on these rows, and forget the rows."""
        self.finished.add(layer)
        if len(self.finished) < len(self.ask.layers):
            return
        width = max(part[0].shape[-1] for parts in self.held.values() for part in parts)
        maps, counted, n_open, self.places = [], [], [], []
        for at, parts in sorted(self.held.items()):
            padded = [torch.nn.functional.pad(pattern, (0, width - pattern.shape[-1])) for pattern, _, _ in parts]
            maps.append(torch.cat(padded, dim=2))
            counted.append(torch.cat([part[1] for part in parts], dim=2))
            n_open.append(torch.cat([part[2] for part in parts], dim=2))
            self.places += [(at, None if self.mean else head) for head in range(maps[-1].shape[1])]
        self.held, self.finished = {}, set()
        self._add(torch.cat(maps, 1), torch.cat(counted, 1), torch.cat(n_open, 1))

    def _add(self, maps: Tensor, counted: Tensor, n_open: Tensor) -> None:
        """``maps [batch, place, row, key]``, and which rows count, with how many keys."""
        if self.measure == "top_k":
            counted = counted & (n_open > self.k)
            chosen = largest(maps, torch.minimum(torch.full_like(n_open, self.k), n_open)) & counted.unsqueeze(-1)
            sums = _gram(chosen.to(maps.dtype)) / self.k
            share = torch.where(counted, self.k / n_open.clamp(min=1), 0.0).sum((1, 2), dtype=torch.float64)
            chance = torch.stack([share, counted.sum((1, 2)).double()])
            self.by_chance = chance if self.by_chance is None else self.by_chance + chance
        elif self.measure == "cosine":
            sums = _gram(maps * counted.unsqueeze(-1))
        else:
            sums = _shared_information(maps, counted)
        numbers = _gram(counted.to(maps.dtype).unsqueeze(-1))
        self.sums = sums if self.sums is None else self.sums + sums
        self.numbers = numbers if self.numbers is None else self.numbers + numbers

    def values(self) -> tuple[Float[Tensor, "batch place place"], Float[Tensor, " batch"] | None]:
        """The similarities, and what chance would give them (top_k alone)."""
        assert self.sums is not None and self.numbers is not None
        chance = None if self.by_chance is None else self.by_chance[0] / self.by_chance[1]
        if self.measure != "cosine":
            return self.sums / self.numbers, chance
        norms = self.sums.diagonal(dim1=1, dim2=2).sqrt()
        return self.sums / (norms.unsqueeze(1) * norms.unsqueeze(2)), chance


def _gram(x: Tensor) -> Float[Tensor, "batch place place"]:
    flat = x.flatten(2)
    return torch.matmul(flat, flat.transpose(1, 2)).double()


def _shared_information(maps: Tensor, counted: Tensor) -> Float[Tensor, "batch place place"]:
    """Sums over rows of ``1 - JSD(p, q) / ln 2`` for every two maps."""
    entropy = row_entropy(maps)
    made = torch.zeros(len(maps), maps.shape[1], maps.shape[1], dtype=torch.float64, device=maps.device)
    for place in range(maps.shape[1]):
        for other in range(place + 1):
            both = counted[:, place] & counted[:, other]
            mixed = row_entropy((maps[:, place] + maps[:, other]) / 2)
            apart = (mixed - (entropy[:, place] + entropy[:, other]) / 2).clamp(0, math.log(2)) / math.log(2)
            same = torch.where(both, 1 - apart, torch.zeros_like(apart)).sum(-1, dtype=torch.float64)
            made[:, place, other] = made[:, other, place] = same
    return made


def row_chunks(ask: Ask, queries: int | None, entries: int) -> list[Int[Tensor, "batch k"] | None]:
    """Query rows of each forward that is needed, so that all layers' maps of them have at most ``entries`` entries.

    Args:
        ask: what is compared.
        queries: how many rows of each prompt, evenly spread over its tokens (one: its last), all of a prompt that has
            no more; all for None. What a prompt is asked for does not depend on the others.
        entries: prompts x heads of all layers x rows x keys.
    """
    mask = ask.mask
    if mask is None:  # positions are not known beforehand: images, whose maps are small
        return [None]
    columns = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    if queries is not None:
        columns = _spread_rows(mask, queries)
    keys = ask.key_mask
    n_keys = mask.shape[1] if keys is None else keys.shape[1]
    per_row = len(mask) * n_keys * sum(ask.stack.n_heads(layer) for layer in ask.layers)
    step = max(1, entries // per_row)
    return [columns[:, first : first + step] for first in range(0, columns.shape[1], step)]


def _spread_rows(mask: Bool[Tensor, "batch pos"], queries: int) -> Int[Tensor, "batch k"]:
    """Columns of ``queries`` real tokens of each prompt; shorter prompts are filled up with padding, never counted."""
    chosen = []
    for own in mask:
        columns = own.nonzero().flatten()
        count = min(queries, len(columns))
        places = torch.linspace(0, len(columns) - 1, count).round().long() if count > 1 else torch.tensor([-1])
        chosen.append(columns[places.to(columns.device)])
    widest = max(len(columns) for columns in chosen)
    filler = mask.int().argmin(-1)  # a prompt with fewer tokens than another has padding
    return torch.stack(
        [
            torch.cat([columns, place.expand(widest - len(columns))])
            for columns, place in zip(chosen, filler, strict=True)
        ]
    )


def best_matching(grid: Float[Tensor, "head other"]) -> list[tuple[int, int, float]]:
    """Pairs (row, column, value) of the matching with the largest sum, by the Hungarian method.

    As many as can be of the pairs that have a value: rows and columns of NaN (heads that say nothing) stay alone.

    Example:
        >>> best_matching(torch.tensor([[0.5, 1.0], [0.0, 0.75]]))
        [(0, 0, 0.5), (1, 1, 0.75)]
    """
    values, there = grid.double().cpu().numpy(), ~grid.isnan().cpu().numpy()
    if not there.any():
        return []
    low, high = values[there].min(), values[there].max()
    worst = low - (high - low + 1) * max(values.shape)  # worse than whatever the other pairs gain by it
    rows, columns = linear_sum_assignment(np.where(there, values, worst), maximize=True)
    return [(int(a), int(b), float(values[a, b])) for a, b in zip(rows, columns, strict=True) if there[a, b]]
