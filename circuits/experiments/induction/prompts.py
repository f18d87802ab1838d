"""Prompts of the induction experiment: random tokens said twice, and natural text said twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.model.inputs import context_limit
from interp.scores.prompts import ordinary_tokens, start_token

if TYPE_CHECKING:
    from interp.model.load import Model


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


def natural_prompts(model: Model, texts: Sequence[str]) -> tuple[list[Repeated], list[str]]:
    """One prompt for each text, said twice, and a note for each that had to be changed or left out.

    Words that the tokenizer does not know are dropped, and the note says how many.

    Args:
        model: with a tokenizer.
        texts: natural sentences.
    """
    if model.tokenizer is None:
        return [], ["Natural prompts were left out: the model came without a tokenizer."] if texts else []
    start, prompts, notes = start_token(model), [], []
    unknown_id = model.tokenizer.unk_token_id
    for text in texts:
        ids = [int(token) for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        known = [token for token in ids if token != unknown_id]
        if len(known) < len(ids):
            dropped = len(ids) - len(known)
            notes.append(
                f"{dropped} of {len(ids)} tokens of {_shown(text)} are unknown to the tokenizer and were dropped."
            )
        if len(known) < 4:  # noqa: PLR2004 - nothing to repeat
            notes.append(f"{_shown(text)} was left out: {len(known)} known tokens are too few.")
            continue
        known = known[: (context_length(model) - 1) // 2]
        row = [*([start] if start is not None else []), *known, *known]
        prompts.append(Repeated(np.array([row], dtype=np.int64), int(start is not None), len(known)))
    return prompts, notes


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


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")  # noqa: PLR2004 - columns in a note
