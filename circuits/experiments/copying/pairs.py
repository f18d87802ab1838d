"""Pairs of prompts that differ in whether copying helps: the same end after its first copy, or after other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import interp
from circuits.experiments.repeated import check_length
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.scores.prompts import ordinary_tokens, start_token

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model


@dataclass(frozen=True, eq=False)
class CopyingPairs:
    """Clean prompts ``start? A A'`` and corrupted prompts ``start? B A'``, all of one length.

    A' is A without its last token, which is the right answer; B shares no token with A, and its last token is the
    wrong answer. So only the first half tells the two answers apart, and it does so in the clean prompt alone.

    Attributes:
        clean, corrupted: ``[prompt, pos]`` token ids.
        right, wrong: ``[prompt]`` token ids.
        start: how many tokens stand before the first copy (1 with a start token, 0 without).
        segment: length of A.
    """

    clean: np.ndarray
    corrupted: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    start: int
    segment: int

    def __len__(self) -> int:
        return len(self.clean)

    def select(self, rows: Sequence[int] | slice) -> CopyingPairs:
        """Some of the pairs."""
        parts = (self.clean[rows], self.corrupted[rows], self.right[rows], self.wrong[rows])
        return CopyingPairs(*parts, self.start, self.segment)

    def chunks(self, size: int) -> list[CopyingPairs]:
        """The pairs in parts of at most ``size``."""
        return [self.select(slice(begin, begin + size)) for begin in range(0, len(self), size)]

    @property
    def fingerprint(self) -> str:
        """Hash of the token ids."""
        return fingerprint_of(self.clean, self.corrupted, self.right, self.wrong)

    def clean_batch(self, model: Model) -> Batch:
        """The clean prompts as the model takes them, with their answers."""
        return self._batch(model, self.clean)

    def corrupted_batch(self, model: Model) -> Batch:
        """The corrupted prompts as the model takes them, with the same answers."""
        return self._batch(model, self.corrupted)

    def _batch(self, model: Model, ids: np.ndarray) -> Batch:
        answers = [(int(right), int(wrong)) for right, wrong in zip(self.right, self.wrong, strict=True)]
        return interp.encode(model, torch.from_numpy(ids), answers=answers)


def copying_pairs(model: Model, *, n: int, segment: int, seed: int, purpose: str) -> CopyingPairs:
    """``n`` pairs; pair number i is a function of (seed, purpose, i) alone.

    Args:
        model: its tokenizer says which tokens are words; without one, all ids of the vocabulary are.
        n: how many.
        segment: length of A and of B.
        seed: of the experiment.
        purpose: ``"selection"``, ``"evaluation"``, ``"reference"``; pairs for two purposes are independent.

    Raises:
        BadInput: too few tokens in the vocabulary, or prompts longer than the model's context.
    """
    start = start_token(model)
    candidates = np.setdiff1d(np.array(ordinary_tokens(model)), [] if start is None else [start])
    if len(candidates) < 2 * segment:
        raise BadInput(
            f"segment={segment}: a pair takes {2 * segment} distinct tokens, and the vocabulary has {len(candidates)} "
            f"ordinary ones; at most segment={len(candidates) // 2} works."
        )
    check_length(model, 2 * segment - 1 + (start is not None), segment)
    before = [] if start is None else [start]
    clean, corrupted, right, wrong = [], [], [], []
    for number in range(n):
        generator = np.random.default_rng([seed, int(fingerprint_of("pairs", purpose), 16) % 2**32, number])
        own, other = generator.choice(candidates, size=2 * segment, replace=False).reshape(2, segment)
        clean.append([*before, *own, *own[:-1]])
        corrupted.append([*before, *other, *own[:-1]])
        right.append(own[-1])
        wrong.append(other[-1])
    return CopyingPairs(
        clean=np.array(clean, dtype=np.int64),
        corrupted=np.array(corrupted, dtype=np.int64),
        right=np.array(right, dtype=np.int64),
        wrong=np.array(wrong, dtype=np.int64),
        start=int(start is not None),
        segment=segment,
    )
