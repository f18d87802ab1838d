"""The same items in several formats: said once, said twice, and said twice with other tokens between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch

import interp
from circuits.experiments.contrast.config import ContrastConfig, Format
from circuits.experiments.repeated import context_length
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.scores.prompts import ordinary_tokens, start_token

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model

MEANING: Mapping[Format, str] = MappingProxyType(
    {
        "once": "S tokens, then S others: nothing comes again, so that there is nothing to copy",
        "twice": "S tokens, then the same S again",
        "apart": "S tokens, S others, then the first S again",
    }
)
SEGMENTS: Mapping[Format, str] = MappingProxyType({"once": "ab", "twice": "aa", "apart": "aba"})


@dataclass(frozen=True, eq=False)
class Items:
    """Items that can be said in any format, all of one length.

    Attributes:
        first: ``[item, S]`` the tokens that every format begins with.
        others: ``[item, S]`` as many tokens, none of which is among the first.
        start: the start token, or None.
    """

    first: np.ndarray
    others: np.ndarray
    start: int | None

    def __len__(self) -> int:
        return len(self.first)

    def select(self, rows: slice) -> Items:
        """Some of the items."""
        return Items(self.first[rows], self.others[rows], self.start)

    def chunks(self, size: int) -> list[Items]:
        """The items in parts of at most ``size``."""
        return [self.select(slice(begin, begin + size)) for begin in range(0, len(self), size)]

    @property
    def fingerprint(self) -> str:
        """Hash of the token ids."""
        return fingerprint_of(self.first, self.others, self.start)

    def batch(self, model: Model, name: Format) -> Batch:
        """The items in one format; the span ``"loss"`` is the last segment from its second token on."""
        before = [] if self.start is None else [np.full((len(self), 1), self.start, dtype=np.int64)]
        parts = {"a": self.first, "b": self.others}
        ids = np.concatenate([*before, *(parts[letter] for letter in SEGMENTS[name])], axis=1)
        foreseen = range(ids.shape[1] - self.first.shape[1] + 1, ids.shape[1])
        return interp.encode(model, torch.from_numpy(ids), spans={"loss": foreseen})


def draw_items(model: Model, *, n: int, formats: Sequence[Format], config: ContrastConfig, purpose: str) -> Items:
    """``n`` items of ``segment`` tokens each; item number i is a function of (seed, purpose, i) alone.

    Args:
        model: its tokenizer says which tokens are words; without one, all ids of the vocabulary are.
        n: how many.
        formats: those that the items will be said in.
        config: segment and seed.
        purpose: items for two purposes are independent.

    Raises:
        BadInput: too few tokens in the vocabulary, or prompts longer than the model's context.
    """
    segment, seed, start = config.segment, config.seed, start_token(model)
    candidates = np.setdiff1d(np.array(ordinary_tokens(model)), [] if start is None else [start])
    if len(candidates) < 2 * segment:
        raise BadInput(
            f"segment={segment}: an item takes {2 * segment} distinct tokens, and the vocabulary has "
            f"{len(candidates)} ordinary ones; at most segment={len(candidates) // 2} works."
        )
    longest, limit = max(len(SEGMENTS[name]) for name in formats), context_length(model) - (start is not None)
    if longest * segment > limit:
        raise BadInput(
            f"segment={segment} makes prompts of {longest * segment} tokens; the model's context holds {limit}. "
            f"At most segment={limit // longest} works."
        )
    drawn = [
        np.random.default_rng([seed, int(fingerprint_of("items", purpose), 16) % 2**32, number]).choice(
            candidates, size=2 * segment, replace=False
        )
        for number in range(n)
    ]
    ids = np.stack(drawn).astype(np.int64)
    return Items(ids[:, :segment], ids[:, segment:], start)
