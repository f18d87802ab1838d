"""Pattern tests on random tokens said twice: induction and duplicate-token heads."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.scores.labels.masses import PairMasses
from interp.scores.labels.reading import PatternReading, Setup, mean_over_prompts


def induction(setup: Setup) -> PatternReading:
    """Attention from each token of the second copy to the token after its first copy.

    The null is the same rows and keys with the second half in a random order: what a head that looks a fixed distance
    back gets as well.
    """
    return _against_shuffled(setup, after=1)


def duplicate(setup: Setup) -> PatternReading:
    """Attention from each token of the second copy to its first copy; the null is as for induction."""
    return _against_shuffled(setup, after=0)


def _against_shuffled(setup: Setup, *, after: int) -> PatternReading:
    drawer = setup.random
    wanted = copies(drawer.start, drawer.segment, after)

    def masses(shuffled: int | None) -> np.ndarray:
        batch = drawer.repeats(setup.n_prompts, shuffled=shuffled)
        return setup.read(batch, lambda ask, some: PairMasses(ask, wanted))[..., 0]

    own = masses(None)
    null = np.stack([mean_over_prompts(masses(draw)) for draw in range(setup.draws)])
    return PatternReading(own, null)


def copies(start: int, segment: int, after: int) -> Bool[Tensor, "pos key 1"]:
    """``[pos, key, 1]`` for the rows of the second copy, the key ``after`` places behind the first copy of the token.

    Args:
        start: tokens before the first copy.
        segment: tokens of a copy.
        after: 0 for the copy itself, 1 for what followed it (the second copy's last row is then left out: what
            followed stands in the second copy itself).

    Example:
        >>> copies(0, 2, 1)[..., 0].nonzero().tolist(), copies(0, 2, 0)[..., 0].nonzero().tolist()
        ([[2, 1]], [[2, 0], [3, 1]])
    """
    length = start + 2 * segment
    wanted = torch.zeros(length, length, 1, dtype=torch.bool)
    rows = torch.arange(start + segment, length - after)
    wanted[rows, rows - segment + after] = True
    return wanted
