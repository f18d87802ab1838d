"""The prompts: every question with its gold document at several places, half of the questions to choose heads on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import interp
from circuits.experiments.contextual.config import ContextualConfig
from circuits.experiments.contextual.questions import Drawn, Question, drawn_prompts, read_questions
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.scores.long_context.contextual import DOCUMENT
from interp.zoo.needle_text import BLOCK

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model

Range = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: its tokens, without the answer.
        documents: first token and the one after the last of each document, in order of place.
        gold: which of them holds the answer.
        answer: tokens of the answer that is read behind it.
        right: tokens of the right answer.
        question: number of the question; prompts of one are resampled together.
    """

    ids: tuple[int, ...]
    documents: tuple[Range, ...]
    gold: int
    answer: tuple[int, ...]
    right: tuple[int, ...]
    question: int


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of one half of the questions."""

    made: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.made)

    @property
    def slots(self) -> list[int]:
        """Places at which a gold document stands."""
        return sorted({one.gold for one in self.made})

    @property
    def cluster(self) -> tuple[str, ...]:
        """The question of each prompt."""
        return tuple(f"question {one.question}" for one in self.made)

    @property
    def fingerprint(self) -> str:
        """Hash of ids, places and answers."""
        return fingerprint_of([[one.ids, one.documents, one.gold, one.answer] for one in self.made])

    def chunks(self, size: int) -> list[Prompts]:
        """Parts of at most ``size`` prompts, in order."""
        return [Prompts(self.made[begin : begin + size]) for begin in range(0, len(self.made), size)]

    def with_answers(self, answers: Sequence[Sequence[int]]) -> Prompts:
        """The prompts with other answers behind them."""
        pairs = zip(self.made, answers, strict=True)
        return Prompts(tuple(replace(one, answer=tuple(answer)) for one, answer in pairs))

    def batch(self, model: Model, *, answers: bool = True) -> Batch:
        """The prompts as the model takes them, with spans ``document 1`` ..., ``gold`` and ``answer``."""
        spans: dict[str, list[range]] = {
            f"{DOCUMENT}{slot + 1}": [range(*one.documents[slot]) for one in self.made]
            for slot in range(len(self.made[0].documents))
        }
        spans["gold"] = [range(*one.documents[one.gold]) for one in self.made]
        batch = interp.encode(model, [list(one.ids) for one in self.made], spans=spans)
        return interp.with_answer(model, batch, [one.answer for one in self.made], name="answer") if answers else batch


def contextual_prompts(model: Model, config: ContextualConfig) -> tuple[Prompts, Prompts]:
    """``(selection, evaluation)``: no question is in both.

    Raises:
        BadInput: a file that is not as it should be, or a model that the drawn facts are not made for.
    """
    if config.documents is None:
        made = [
            [_of_drawn(one, slot, number) for slot in _slots(config, len(one.facts))]
            for number, one in enumerate(drawn_prompts(model, config))
        ]
    else:
        questions = read_questions(config)
        k = min(config.n_documents, *(len(one.documents) for one in questions))
        made = [
            [_of_text(model, config, one, slot, k, number) for slot in _slots(config, k)]
            for number, one in enumerate(questions)
        ]
    half = (len(made) + 1) // 2
    selection, evaluation = (Prompts(tuple(one for own in part for one in own)) for part in (made[:half], made[half:]))
    return selection, evaluation


def _slots(config: ContextualConfig, k: int) -> list[int]:
    return sorted({round(place * (k - 1)) for place in config.places})


def _of_drawn(drawn: Drawn, slot: int, number: int) -> Prompt:
    moved = drawn.with_gold_at(slot)
    documents = tuple((start, start + BLOCK) for start in moved.facts)
    return Prompt(moved.ids, documents, slot, moved.answer, moved.answer, number)


def _of_text(model: Model, config: ContextualConfig, question: Question, slot: int, k: int, number: int) -> Prompt:
    others = [text for place, text in enumerate(question.documents) if place != question.gold][: k - 1]
    contents = [*others[:slot], question.documents[question.gold], *others[slot:]]
    before, after = (part.replace("{question}", question.question) for part in config.template.split("{documents}"))
    text, edges = before, []
    for place, content in enumerate(contents):
        shown = config.document.replace("{number}", str(place + 1))
        lead = len(text) + shown.index("{document}")
        text += shown.replace("{document}", content)
        edges.append((lead, lead + len(content)))
    text += after
    bos: bool | str = "tokenizer"
    if config.chat:
        text, edges, bos = *_in_chat(model, text, edges), False
    spans = {f"{DOCUMENT}{place + 1}": [edge] for place, edge in enumerate(edges)}
    batch = interp.encode(model, [text], spans=spans, bos=bos)  # pyright: ignore[reportArgumentType]
    assert batch.ids is not None
    ranges = [batch.spans[name][0].nonzero()[:, 0].tolist() for name in spans]
    gap = "" if text.endswith((" ", "\n")) or config.chat else " "
    answer = tuple(model.tokenizer(gap + question.answer.strip(), add_special_tokens=False)["input_ids"])
    return Prompt(
        tuple(batch.ids[0].tolist()), tuple((own[0], own[-1] + 1) for own in ranges), slot, answer, answer, number
    )


def _in_chat(model: Model, text: str, edges: list[Range]) -> tuple[str, list[Range]]:
    tokenizer = model.tokenizer
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise BadInput("chat=true: this model's tokenizer has no chat template; leave it out.")
    messages = [{"role": "user", "content": text.strip()}]
    shown = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    at = shown.find(text.strip())
    if at < 0:
        raise BadInput("chat=true: the chat template changes the prompt's text; use template= without chat.")
    moved = at - (len(text) - len(text.lstrip()))
    return shown, [(start + moved, end + moved) for start, end in edges]
