"""Prompts that labels draw: random tokens said once, said twice, and said twice in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.handle import Model
from interp.model.inputs import context_limit
from interp.scores.prompts import ordinary_tokens, start_token

SHORTEST = 4  # tokens of a segment: with fewer there is nothing to shuffle
_KINDS = {"pattern": 0, "task": 1, "null": 2}


@dataclass(frozen=True)
class Drawer:
    """Draws prompts; every prompt is a function of (seed, purpose, its number) alone.

    Attributes:
        model: its tokenizer says which tokens are ordinary.
        segment: tokens before the repetition, S.
        seed: of every draw.
    """

    model: Model
    segment: int
    seed: int

    @property
    def start(self) -> int:
        """Tokens before the first segment: 1 with a start token, else 0."""
        return int(start_token(self.model) is not None)

    def once(self, n: int) -> Batch:
        """``n`` prompts of a start token and 2 S random tokens (drawn with replacement where fewer are known)."""
        rows = []
        for number in range(n):
            pool, generator = self._pool(), self._generator("pattern", number, 1)
            drawn = [
                pool[torch.randperm(len(pool), generator=generator)] for _ in range(-(-2 * self.segment // len(pool)))
            ]
            rows.append(self._begun(torch.cat(drawn)[: 2 * self.segment]))
        return encode(self.model, torch.stack(rows))

    def repeats(self, n: int, *, shuffled: int | None = None) -> Batch:
        """``n`` prompts of a start token, S distinct random tokens, and the same again.

        Args:
            n: how many.
            shuffled: number of the draw of another order of the second half; None for the same order.
        """
        rows = []
        for number in range(n):
            first = self._segment("pattern", number)
            second = first
            if shuffled is not None:
                second = first[torch.randperm(self.segment, generator=self._generator("null", number, shuffled))]
            rows.append(self._begun(torch.cat([first, second])))
        return encode(self.model, torch.stack(rows))

    def task(self, n: int) -> Batch:
        """``n`` prompts that end amid the second copy, with the token to come and another of the segment."""
        rows, answers = [], []
        for number in range(n):
            segment = self._segment("task", number)
            said = self.segment // 2
            rows.append(self._begun(torch.cat([segment, segment[:said]])))
            others = torch.cat([segment[:said], segment[said + 1 :]])
            wrong = others[torch.randint(len(others), (1,), generator=self._generator("task", number, 1))]
            answers.append((int(segment[said]), int(wrong)))
        return encode(self.model, torch.stack(rows), answers=answers)

    def _begun(self, tokens: Int[Tensor, " token"]) -> Int[Tensor, " pos"]:
        start = start_token(self.model)
        return tokens if start is None else torch.cat([torch.tensor([start]), tokens])

    def _segment(self, purpose: str, number: int) -> Int[Tensor, " pos"]:
        pool = self._pool()
        return pool[torch.randperm(len(pool), generator=self._generator(purpose, number, 0))[: self.segment]]

    def _pool(self) -> Int[Tensor, " token"]:
        return torch.tensor(_ordinary(self.model))

    def _generator(self, purpose: str, number: int, part: int) -> torch.Generator:
        spread = (self.seed * 1_000_003 + _KINDS[purpose]) * 1_000_003 + number
        return torch.Generator().manual_seed((spread * 1_000_003 + part) % 2**63)


def drawer_for(model: Model, segment: int | None, seed: int) -> Drawer:
    """What draws prompts for ``model``: of ``segment`` tokens said twice, 24 or as many as fit for None.

    Raises:
        BadInput: a segment below 4, more distinct tokens than there are, or prompts longer than the context.
    """
    most = min(len(_ordinary(model)), ((context_limit(model) or 2**20) - 1) // 2)
    wanted = min(24, most) if segment is None else segment
    if not SHORTEST <= wanted <= most:
        raise BadInput(
            f"segment={wanted}: distinct random tokens said twice must be from {SHORTEST} to {most} here "
            f"({len(_ordinary(model))} ordinary tokens, a context of {context_limit(model)})."
        )
    return Drawer(model, wanted, seed)


def _ordinary(model: Model) -> Sequence[int]:
    return [token for token in ordinary_tokens(model) if token != start_token(model)]
