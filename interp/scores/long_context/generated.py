"""Answers that the model writes itself, put behind their prompts so that one forward reads them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.generate import generate
from interp.model.handle import Model
from interp.scores.ask import Ask
from interp.scores.long_context.continuation import end_tokens, refuse_beyond_context
from interp.scores.long_context.rouge import rouge_1_recall

_OF_TEXT = frozenset({"input_ids", "attention_mask", "position_ids", "token_type_ids"})


@dataclass(frozen=True, eq=False)
class Written:
    """What was written.

    Attributes:
        batch: the prompts that count with their answers behind them, with the spans ``needle`` and ``answer``; None
            where no prompt counts.
        kept: ``[prompt]`` which prompts those are.
        dropped: ``[batch, pos]`` the key columns that were left out of the prompts, in ``batch``'s columns; or None.
        recall: per prompt the share of the needle's words that the answer says.
        texts: per prompt the answer.
        counted: per prompt whether it counts.
    """

    batch: Batch | None
    kept: Int[Tensor, " prompt"]
    dropped: Bool[Tensor, "batch pos"] | None
    recall: list[float]
    texts: list[str]
    counted: list[bool]


def generated_answers(
    ask: Ask,
    needle: Bool[Tensor, "batch pos"],
    *,
    max_new_tokens: int,
    stop: str | None,
    recall_over: float,
    stem: bool,
) -> Written:
    """The greedy answers to an ask's prompts, and those that say enough of the needle read again.

    Prompts of one length are generated together, so that none is padded.

    Args:
        ask: whose batch holds the prompts, without answers.
        needle: True at the tokens that the answer should say.
        max_new_tokens: of the longest answer.
        stop: the answer ends before the first token whose text holds this; None for the end token alone.
        recall_over: a prompt counts where the recall of the needle is larger.
        stem: compare stems of words.

    Raises:
        BadInput: prompts of more than text, a model that does not generate, options out of range, or more tokens than
            the context holds.
    """
    batch, model = ask.batch, ask.model
    _refuse(ask, max_new_tokens, recall_over)
    refuse_beyond_context(ask.name, model, max(batch.lengths), max_new_tokens)
    rows = [_real(batch.ids, batch.mask, row) for row in range(len(batch))]
    answers = _answers(model, rows, max_new_tokens, stop)
    recall, texts = [], []
    for row, answer in enumerate(answers):
        wanted = _real(batch.ids, batch.mask & needle, row)
        texts.append(_text(model, answer))
        recall.append(_recall(model, wanted, answer, stem))
    counted = [bool(answer) and share > recall_over for answer, share in zip(answers, recall, strict=True)]
    kept = [row for row, counts in enumerate(counted) if counts]
    if not kept:
        return Written(None, torch.tensor([], dtype=torch.long), None, recall, texts, counted)
    own = [needle[row][batch.mask[row]].nonzero().flatten().tolist() for row in kept]
    read = encode(
        model,
        [rows[row] + answers[row] for row in kept],
        spans={
            "needle": [[range(place, place + 1) for place in places] for places in own],
            "answer": [range(len(rows[row]), len(rows[row]) + len(answers[row])) for row in kept],
        },
    )
    return Written(read, torch.tensor(kept), _carried(ask, read, kept), recall, texts, counted)


def _refuse(ask: Ask, max_new_tokens: int, recall_over: float) -> None:
    batch = ask.batch
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise BadInput(f"{ask.name}: max_new_tokens={max_new_tokens!r}; an answer needs at least one.")
    if not 0 <= recall_over < 1:
        raise BadInput(f"{ask.name}: recall_over={recall_over}; expected a share from 0 to below 1.")
    more = sorted(set(batch.inputs) - _OF_TEXT)
    if more or batch.default_stack == "decoder":
        raise BadInput(
            f"{ask.name}: it takes text prompts of a decoder; these hold {more or 'an encoder too'}. Put "
            "the answers into the prompts and ask for retrieval."
        )


def _answers(model: Model, rows: Sequence[list[int]], most: int, stop: str | None) -> list[list[int]]:
    """Per prompt the new tokens before the end token or the stop text."""
    answers: list[list[int]] = [[] for _ in rows]
    ends = frozenset(end_tokens(model))
    for length in sorted({len(row) for row in rows}):
        group = [index for index, row in enumerate(rows) if len(row) == length]
        prompts = encode(model, torch.tensor([rows[index] for index in group]))
        written = generate(
            model,
            prompts,
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            stopping_criteria=[_Stopped(model, length, ends, stop)],
        )
        for index, new in zip(group, written.new_tokens.tolist(), strict=True):
            answers[index] = new[: _end(model, new, ends, stop)]
    return answers


class _Stopped:
    """A row is done once its answer has ended."""

    def __init__(self, model: Model, length: int, ends: frozenset[int], stop: str | None) -> None:
        self.model, self.length, self.ends, self.stop = model, length, ends, stop

    def __call__(self, ids: Tensor, scores: Any, **_options: Any) -> Tensor:
        new = ids[:, self.length :].tolist()
        done = [_end(self.model, row, self.ends, self.stop) < len(row) for row in new]
        return torch.tensor(done, device=ids.device)


def _end(model: Model, tokens: list[int], ends: frozenset[int], stop: str | None) -> int:
    """How many of the tokens are the answer."""
    for index, token in enumerate(tokens):
        if token in ends or (stop is not None and model.tokenizer is not None and stop in _text(model, [token])):
            return index
    return len(tokens)


def _text(model: Model, tokens: list[int]) -> str:
    return " ".join(map(str, tokens)) if model.tokenizer is None else model.tokenizer.decode(tokens)


def _recall(model: Model, wanted: list[int], said: list[int], stem: bool) -> float:
    """Of words; of tokens where there is no tokenizer, or where the needle has no word."""
    if model.tokenizer is not None:
        share = rouge_1_recall(_text(model, wanted), _text(model, said), stem=stem)
        if share == share:  # noqa: PLR0124 - not NaN
            return share
    return sum((Counter(wanted) & Counter(said)).values()) / len(wanted)


def _real(ids: Tensor | None, member: Tensor, row: int) -> list[int]:
    assert ids is not None
    return ids[row][member[row]].tolist()


def _carried(ask: Ask, read: Batch, kept: Sequence[int]) -> Tensor | None:
    """The columns that are left out of the prompts, at the same tokens of ``read``."""
    if ask.dropped is None:
        return None
    carried = torch.zeros_like(read.mask)
    for place, row in enumerate(kept):
        own = ask.dropped[row][ask.batch.mask[row]]
        columns = read.mask[place].nonzero().flatten()[: len(own)]
        carried[place, columns] = own.to(carried.device)
    return carried
