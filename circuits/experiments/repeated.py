"""Random tokens said twice: prompts whose second half nothing but copying can foresee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import interp
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.model.inputs import context_limit
from interp.scores.prompts import ordinary_tokens, start_token

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model


@dataclass(frozen=True, eq=False)
class Repeated:
    """Prompts ``start? + segment + segment``, all of one length.

    Attributes:
        ids: ``[prompt, pos]`` token ids.
        start: how many tokens stand before the first segment (1 with a start token, 0 without).
        segment: length of the segment, S.
    """

    ids: np.ndarray
    start: int
    segment: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def first(self) -> slice:
        """Columns of the tokens of the first copy that anything predicts."""
        return slice(max(self.start, 1), self.start + self.segment)

    @property
    def second(self) -> slice:
        """Columns of the tokens of the second copy, from its second token on; the first of it cannot be foreseen."""
        return slice(self.start + self.segment + 1, self.start + 2 * self.segment)

    @property
    def queries(self) -> slice:
        """Columns that predict :attr:`second`: there an induction head looks at the token after the earlier copy."""
        return slice(self.second.start - 1, self.second.stop - 1)

    def select(self, rows: Sequence[int] | slice) -> Repeated:
        """Some of the prompts."""
        return Repeated(self.ids[rows], self.start, self.segment)

    def chunks(self, size: int) -> list[Repeated]:
        """The prompts in parts of at most ``size``."""
        return [self.select(slice(begin, begin + size)) for begin in range(0, len(self), size)]

    @property
    def fingerprint(self) -> str:
        """Hash of the token ids."""
        return fingerprint_of(self.ids)

    def batch(self, model: Model) -> Batch:
        """The prompts as the model takes them; the span ``"loss"`` is :attr:`second`, which copying foresees."""
        foreseen = range(self.second.start, self.second.stop)
        return interp.encode(model, torch.from_numpy(self.ids), spans={"loss": foreseen})


def random_prompts(model: Model, *, n: int, segment: int, seed: int, purpose: str) -> Repeated:
    """``n`` prompts of a start token, ``segment`` distinct random tokens, and the same tokens again.

    Prompt number i is a function of (seed, purpose, i) alone.

    Args:
        model: its tokenizer says which tokens are words; without one, all ids of the vocabulary are.
        n: how many.
        segment: S.
        seed: of the experiment.
        purpose: ``"selection"``, ``"evaluation"``, ``"reference"``; sets for two purposes are independent.

    Raises:
        BadInput: too few tokens in the vocabulary, or prompts longer than the model's context.
    """
    start = start_token(model)
    candidates = np.setdiff1d(np.array(ordinary_tokens(model)), [] if start is None else [start])
    if len(candidates) < segment:
        raise BadInput(
            f"segment={segment}: the vocabulary has {len(candidates)} ordinary tokens, too few for {segment} distinct "
            f"ones; at most segment={len(candidates)} works."
        )
    length = 2 * segment + (start is not None)
    check_length(model, length, segment)
    rows = []
    for number in range(n):
        generator = np.random.default_rng([seed, int(fingerprint_of(purpose), 16) % 2**32, number])
        drawn = generator.choice(candidates, size=segment, replace=False)
        rows.append(np.concatenate([[start] if start is not None else [], drawn, drawn]))
    return Repeated(np.stack(rows).astype(np.int64), int(start is not None), segment)


def context_length(model: Model) -> int:
    """Tokens that fit, by the model's config; a large number where it sets no limit."""
    return context_limit(model) or 2**20


def check_length(model: Model, length: int, segment: int) -> None:
    """Refuses prompts of ``length`` tokens that are longer than the context."""
    limit = context_length(model)
    if length > limit:
        raise BadInput(
            f"segment={segment} makes prompts of {length} tokens; the model's context holds {limit}. "
            f"At most segment={segment - (length - limit + 1) // 2} works."
        )
