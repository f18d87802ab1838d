"""The prompts: facts hidden in a text at several lengths and depths, half of the facts to choose heads on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from circuits.experiments.retrieval.config import RetrievalConfig
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.scores.long_context.haystack import Fact, Haystack, haystack, haystack_batch
from interp.zoo.needle_text import ASK, KEYS, STOP, TELL, VALUES, VALUES_PER_KEY, filler_words, needle_vocabulary

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model

FEWEST = 4  # facts
SPARE = 1.5  # a drawn text is so many times as long as the longest prompt


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of one half of the facts.

    Attributes:
        made: the prompts; those of one length stand together.
        owners: the number of each prompt's fact.
    """

    made: tuple[Haystack, ...]
    owners: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.made)

    def chunks(self, size: int) -> list[Prompts]:
        """Parts of at most ``size`` prompts, each of prompts with the same number of tokens, answers included."""
        groups: dict[int, list[int]] = {}
        for index, prompt in enumerate(self.made):
            groups.setdefault(len(prompt.ids) * 10_000 + len(prompt.answer_ids), []).append(index)
        return [
            Prompts(tuple(self.made[i] for i in part), tuple(self.owners[i] for i in part))
            for group in groups.values()
            for part in (group[begin : begin + size] for begin in range(0, len(group), size))
        ]

    def in_order(self, size: int) -> Prompts:
        """The prompts in the order in which their chunks hold them, so that results need no sorting."""
        parts = self.chunks(size)
        return Prompts(
            tuple(prompt for part in parts for prompt in part.made), tuple(one for part in parts for one in part.owners)
        )

    def batch(self, model: Model, *, answers: bool = True) -> Batch:
        """The prompts as the model takes them, with their answers at the end or without."""
        return haystack_batch(model, self.made, answers=answers)

    @property
    def fingerprint(self) -> str:
        """Hash of ids and places."""
        return fingerprint_of([[one.ids, one.answer_ids, one.needle.start, one.needle.stop] for one in self.made])


def retrieval_prompts(model: Model, config: RetrievalConfig) -> tuple[Prompts, Prompts]:
    """``(selection, evaluation)``: no fact is in both.

    Raises:
        BadInput: a text without facts or facts without a text, fewer than four facts, a text too short.
    """
    texts = _given(config) if config.text is not None or config.facts else _drawn(config)
    if len(texts) < FEWEST:
        raise BadInput(
            f"retrieval: {len(texts)} facts; give at least {FEWEST}: half choose heads and half judge them, and an "
            "interval needs two facts in each."
        )
    half = (len(texts) + 1) // 2
    parts = (range(half), range(half, len(texts)))
    selection, evaluation = (_made(model, config, texts, numbers) for numbers in parts)
    return selection, evaluation


def _made(model: Model, config: RetrievalConfig, texts: Sequence[tuple[Fact, str]], numbers: Sequence[int]) -> Prompts:
    made, owners = [], []
    for length in config.lengths:
        for number in numbers:
            fact, text = texts[number]
            for depth in config.depths:
                made.append(haystack(model, text, fact, length=length, depth=depth, template=config.template))
                owners.append(number)
    return Prompts(tuple(made), tuple(owners)).in_order(config.batch_size)


def _given(config: RetrievalConfig) -> list[tuple[Fact, str]]:
    if config.text is None or not config.facts:
        raise BadInput("retrieval: text= and facts= go together; a text file, and the facts to hide in it.")
    path = Path(config.text).expanduser()
    if not path.is_file():
        raise BadInput(f"retrieval: text={config.text!r} is no file; expected one in UTF-8 to hide the facts in.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"retrieval: text={config.text!r} is not UTF-8 ({error.reason} at byte {error.start})."
        ) from None
    return [(Fact(fact.sentence, fact.question, fact.answer), text) for fact in config.facts]


def _drawn(config: RetrievalConfig) -> list[tuple[Fact, str]]:
    """Facts of the zoo's words, each with a babble of its own in which others are told; number i is a function of
    (seed, i)."""
    words = list(needle_vocabulary())
    made = []
    for number in range(config.n_facts):
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        told = config.distractors + 1
        keys = [KEYS[place] for place in torch.randperm(len(KEYS), generator=draw)[:told].tolist()]
        chosen = torch.randperm(len(VALUES), generator=draw)[: told * VALUES_PER_KEY].tolist()
        values = [" ".join(VALUES[place] for place in chosen[i::told]) for i in range(told)]
        n_filler = int(max(config.lengths) * SPARE)
        sentences = " ".join(words[token] for token in filler_words(n_filler, draw).tolist()).split(f" {STOP}")
        parts = [f"{part.strip()} {STOP}" for part in sentences if part.strip()]
        for key, said in zip(keys[1:], values[1:], strict=True):
            parts.insert(int(torch.randint(len(parts) + 1, (1,), generator=draw)), f"{TELL} {key} {said} {STOP}")
        made.append((Fact(f"{TELL} {keys[0]} {values[0]} {STOP}", f"{ASK} {keys[0]}", values[0]), " ".join(parts)))
    return made
