"""Concentration of a head's whole map, and how different the maps of a layer's heads are."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer
from interp.scores.shape.distribution import lengths


def frobenius(pattern: Float[Tensor, "*maps query key"]) -> Float[Tensor, "*maps"]:
    """``[...]`` ``||A||_F`` of each map: ``sqrt(T)`` for one-hot rows, ``sqrt(1 + 1/2 + ... + 1/T)`` if uniform causal.

    Example:
        >>> frobenius(torch.eye(4))
        tensor(2.)
    """
    return torch.linalg.matrix_norm(pattern)


def diversity_of(
    pattern: Float[Tensor, "batch head query key"], visible: Bool[Tensor, "batch query key"]
) -> Float[Tensor, " batch"]:
    """``[batch]`` mean over visible (query, key) pairs of the standard deviation over heads of ``A[head, query, key]``.

    ``2 / (T (T + 1)) sum_{j <= i} std_h A[h, i, j]`` on causal maps, with the deviation of the heads at hand (divided
    by their number): 0 for identical heads. NaN for one head, whose diversity means nothing.

    Example:
        >>> two = torch.stack([torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])])
        >>> diversity_of(two[None], torch.ones(1, 2, 2).tril().bool())  # entries 1 and 2 of the second row: 1/2 each
        tensor([0.3333])
    """
    total, number = _spread(pattern, visible)
    return total.float() / number


def _spread(pattern: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    if pattern.shape[1] == 1:
        return torch.full((len(pattern),), torch.nan, dtype=torch.float64), torch.ones(len(pattern))
    deviation = (pattern - pattern.mean(1, keepdim=True)).square_().mean(1).sqrt_()
    apart = torch.where(visible, deviation, torch.zeros_like(deviation))
    return apart.sum((1, 2), dtype=torch.float64), visible.sum((1, 2))


class Concentration(Reducer):
    """The Frobenius norm of each head's map over real rows."""

    def __init__(self, ask: Ask, *, share: bool) -> None:
        super().__init__(ask)
        self.share = share
        self.squares: dict[int, Tensor] = {}
        self.rows_seen: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the squares of the block's entries."""
        norms = torch.linalg.vector_norm(block.pattern, dim=-1)  # faster than the sum of squares
        squares = torch.where(block.real[:, None], norms, torch.zeros_like(norms)).double().square().sum(-1)
        self.squares[block.layer] = self.squares.get(block.layer, 0) + squares
        held = ((block.kept_mass > 0) & block.real[:, None]).sum(-1)
        self.rows_seen[block.layer] = self.rows_seen.get(block.layer, 0) + held

    def measured(self) -> Measured:
        """The root, divided by that of the number of rows where shares were asked for."""
        found = {layer: squares.sqrt() for layer, squares in self.squares.items()}
        if self.share:
            found = {layer: norm / self.rows_seen[layer].sqrt() for layer, norm in found.items()}
        none = {
            layer: torch.where(self.rows_seen[layer] > 0, x, torch.full_like(x, torch.nan))
            for layer, x in found.items()
        }
        return Measured(none, metadata={"tokens": lengths(self.ask)})


def concentration(ask: Ask, share: bool = False) -> Concentration:
    """``||A||_F`` of each head's map: between 1 and the square root of the number of rows.

    Args:
        ask: what is scored.
        share: divide by that root, so that prompts of different lengths compare: 1 for one-hot rows.
    """
    return Concentration(ask, share=share)


class HeadDiversity(Reducer):
    """The mean over visible pairs of the deviation between a layer's heads."""

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's pairs that any head sees."""
        visible = block.open_keys.any(1) & block.real.unsqueeze(-1)
        total, number = _spread(block.pattern, visible)
        before = self.found.get(block.layer, (0, 0))
        self.found[block.layer] = before[0] + total, before[1] + number

    def measured(self) -> Measured:
        """One number per layer, which every head shows."""
        made = {}
        for layer, (total, number) in self.found.items():
            made[layer] = (total / number).unsqueeze(1).expand(-1, self.ask.stack.n_heads(layer))
        return Measured(made, metadata={"tokens": lengths(self.ask)})


def head_diversity(ask: Ask) -> HeadDiversity:
    """How different the maps of a layer's heads are: see :func:`diversity_of`; NaN at layers with one head."""
    return HeadDiversity(ask)
