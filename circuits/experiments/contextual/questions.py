"""Questions with documents, one of which holds the answer: from a file, or drawn for the zoo's needle models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuits.experiments.contextual.config import ContextualConfig
from interp.errors import BadInput
from interp.zoo.needle_text import ASK, BLOCK, VALUES_PER_KEY, needle_rows, needle_vocabulary

if TYPE_CHECKING:
    from interp.model.handle import Model

KEYS = {"question", "documents", "gold", "answer"}


@dataclass(frozen=True)
class Question:
    """A question with its documents.

    Attributes:
        question: the text.
        documents: texts, the gold one among them.
        gold: number of the gold one.
        answer: the right answer.
    """

    question: str
    documents: tuple[str, ...]
    gold: int
    answer: str


@dataclass(frozen=True)
class Drawn:
    """A drawn prompt: ids that end with the question, and where its facts stand.

    Attributes:
        ids: the prompt, up to the key that is asked for.
        facts: first token of each fact, in order of place.
        gold: which of them is asked for.
        answer: ids of the right answer.
    """

    ids: tuple[int, ...]
    facts: tuple[int, ...]
    gold: int
    answer: tuple[int, ...]

    def with_gold_at(self, slot: int) -> Drawn:
        """The same prompt with the gold fact at place ``slot``; the facts between move over by one."""
        order = [number for number in range(len(self.facts)) if number != self.gold]
        order.insert(slot, self.gold)
        ids = list(self.ids)
        for place, number in zip(self.facts, order, strict=True):
            ids[place : place + BLOCK] = self.ids[self.facts[number] : self.facts[number] + BLOCK]
        return Drawn(tuple(ids), self.facts, slot, self.answer)


def read_questions(config: ContextualConfig) -> list[Question]:
    """The questions of the file that the settings name, the first ``n_questions`` of them.

    Raises:
        BadInput: no such file, a line that is not as it should be (with its number), or fewer than four questions.
    """
    assert config.documents is not None
    path = Path(config.documents).expanduser()
    if not path.is_file():
        raise BadInput(f"documents={config.documents!r} is no file; expected one with a JSON object on each line.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"documents={config.documents!r} is not UTF-8: {error.reason} at byte {error.start}.") from None
    found = [_question(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(found) < 4:  # noqa: PLR2004 - two to choose on, two to judge on
        raise BadInput(f"documents={config.documents!r} has {len(found)} questions; give at least 4.")
    return found[: config.n_questions]


def _question(line: str, number: int) -> Question:
    expected = '{"question": text, "documents": [texts], "gold": number of one from 0, "answer": text}'
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"documents, line {number}: no JSON ({error.msg}); expected {expected}.") from None
    if not isinstance(row, dict) or not set(row) >= KEYS:
        lacking = sorted(KEYS - set(row)) if isinstance(row, dict) else sorted(KEYS)
        raise BadInput(f"documents, line {number}: {', '.join(lacking)} missing; expected {expected}.")
    documents, gold = row["documents"], row["gold"]
    texts = [row["question"], row["answer"], *(documents if isinstance(documents, list) else [None])]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadInput(f"documents, line {number}: an empty text, or something else than text; expected {expected}.")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(documents):
        raise BadInput(
            f"documents, line {number}: gold={gold!r} of {len(documents)} documents; expected 0 to "
            f"{len(documents) - 1}."
        )
    if len(documents) < 3:  # noqa: PLR2004 - a gold one and others to tell it from
        raise BadInput(f"documents, line {number}: {len(documents)} documents; expected at least 3.")
    return Question(row["question"], tuple(documents), gold, row["answer"])


def drawn_prompts(model: Model, config: ContextualConfig) -> list[Drawn]:
    """Prompts of the zoo's needle models, with as many facts as the settings say; number i is a function of (seed, i).

    Raises:
        BadInput: a model with another vocabulary, or facts that do not fit into the length.
    """
    vocabulary = needle_vocabulary()
    known = {} if model.tokenizer is None else model.tokenizer.get_vocab()
    if any(known.get(word) != number for word, number in vocabulary.items()):
        raise BadInput(
            f"The facts that are drawn are in the words of the zoo's needle models, and {config.model!r} has another "
            "vocabulary. Give documents=FILE with questions of your own, one JSON object on each line: "
            '{"question": text, "documents": [texts], "gold": number of one from 0, "answer": text}.'
        )
    made = []
    for number in range(config.n_questions):
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        rows = needle_rows(1, config.length, draw, told=config.n_documents, questions=1)
        ids = rows.ids[0].tolist()
        end = len(ids) - 1 - VALUES_PER_KEY  # behind "recall KEY"
        assert ids[end - 2] == vocabulary[ASK]
        needle, asked = rows.needle[0].tolist(), rows.asked[0].tolist()
        facts = _starts(needle)
        gold = next(index for index, place in enumerate(facts) if asked[place])
        made.append(Drawn(tuple(ids[:end]), tuple(facts), gold, tuple(ids[end : end + VALUES_PER_KEY])))
    return made


def _starts(needle: list[bool]) -> list[int]:
    """First token of each fact; facts may stand side by side, and all have one length."""
    starts, place = [], 0
    while place < len(needle):
        if needle[place]:
            starts.append(place)
            place += BLOCK
        else:
            place += 1
    return starts
