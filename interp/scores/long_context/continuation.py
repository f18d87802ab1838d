"""Prompts with an answer behind them: given (teacher forcing), or generated greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.generate import generate
from interp.model.handle import Model
from interp.model.inputs import context_limit
from interp.model.rewriting import NEW, rewritten

GENERATED = "generated"


def with_answer(model: Model, batch: Batch, answers: Sequence[Any], *, name: str = GENERATED) -> Batch:
    """The prompts with their answers behind them, which the span ``name`` marks: one forward of it is teacher forcing.

    Args:
        model: the handle.
        batch: the prompts; spans, answers and read positions go with them.
        answers: per prompt a text or a list of token ids.
        name: of the span.

    Raises:
        BadInput: another number of answers than prompts, an empty one, or a text without a tokenizer.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4]]))
        >>> longer = with_answer(model, batch, [[5, 3]])
        >>> longer.ids.tolist(), longer.spans["generated"].tolist()
        ([[0, 3, 4, 5, 3]], [[False, False, False, True, True]])
    """
    if len(answers) != len(batch):
        raise BadInput(f"with_answer: {len(answers)} answers for {len(batch)} prompts; give one each.")
    if batch.ids is None:
        raise BadInput("with_answer: these prompts have no token ids to put an answer behind.")
    added = [_ids(model, answer, row) for row, answer in enumerate(answers)]
    ids, source = [], []
    for row, tokens in enumerate(added):
        columns = batch.mask[row].nonzero()[:, 0]
        ids.append(batch.ids[row, columns].tolist() + tokens)
        source.append(columns.tolist() + [NEW] * len(tokens))
    made, _ = rewritten(model, batch, ids, source)
    behind = made.mask.cumsum(-1) > batch.mask.sum(-1, keepdim=True)
    return replace(made, spans={**made.spans, name: made.mask & behind})


def _ids(model: Model, answer: Any, row: int) -> list[int]:
    if isinstance(answer, str):
        if model.tokenizer is None:
            raise BadInput("with_answer: an answer as text needs a tokenizer; give token ids.")
        answer = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    tokens = [int(token) for token in answer]
    if not tokens:
        raise BadInput(f"with_answer: the answer of prompt {row} is empty; give at least one token.")
    return tokens


def with_generated(
    model: Model, batch: Batch, *, max_new_tokens: int = 100, stop: Sequence[int] = (), name: str = GENERATED
) -> Batch:
    """The prompts with what the model generates greedily after them, which the span ``name`` marks.

    Generation ends at the model's end token or at one of ``stop``; neither belongs to the answer. Prompts of one length
    are generated together, so that nothing is padded.

    Args:
        model: the handle.
        batch: the prompts.
        max_new_tokens: the longest answer.
        stop: token ids that end an answer, such as that of a line break.
        name: of the span.

    Raises:
        BadInput: a prompt after which nothing is generated but the end token, or more tokens than the context holds.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> with_generated(model, batch, max_new_tokens=2).spans["generated"].sum().item()
        2
    """
    refuse_beyond_context("with_generated", model, max(batch.lengths), max_new_tokens)
    answers: list[list[int]] = [[] for _ in range(len(batch))]
    ends = {*stop, *end_tokens(model)}
    for rows, part in _of_one_length(model, batch):
        made = generate(
            model,
            part,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
        for row, tokens in zip(rows, made.new_tokens.tolist(), strict=True):
            cut = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
            answers[row] = tokens[:cut]
    empty = [row for row, answer in enumerate(answers) if not answer]
    if empty:
        raise BadInput(
            f"with_generated: the model ends at once after prompts {empty[:5]}; leave them out, or give the answers "
            "(with_answer)."
        )
    return with_answer(model, batch, answers, name=name)


def refuse_beyond_context(name: str, model: Model, longest: int, max_new_tokens: int) -> None:
    """Refuse answers that would not fit behind the longest prompt.

    Args:
        name: who asks, for the message.
        model: whose context.
        longest: tokens of the longest prompt.
        max_new_tokens: of the longest answer.

    Raises:
        BadInput: with how many tokens there is room for.
    """
    limit = context_limit(model)
    if limit is not None and longest + max_new_tokens > limit:
        room = limit - longest
        advice = f"ask for max_new_tokens={room} at most" if room > 0 else "give shorter prompts"
        raise BadInput(
            f"{name}: {longest} tokens of the longest prompt and max_new_tokens={max_new_tokens} exceed the context of "
            f"{model.name!r}, which holds {limit}; {advice}."
        )


def end_tokens(model: Model) -> list[int]:
    """Ids of the tokens with which the model ends what it writes; none where it names none."""
    found = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _of_one_length(model: Model, batch: Batch) -> list[tuple[list[int], Batch]]:
    """Prompts by their length, without padding."""
    if bool(batch.mask.all()):
        return [(list(range(len(batch))), batch)]
    parts = []
    lengths = torch.tensor(batch.lengths)
    for length in sorted(set(batch.lengths)):
        rows = (lengths == length).nonzero()[:, 0].tolist()
        part = batch.select(rows)
        own = part.mask
        inputs = {
            key: value[own].view(len(rows), length, *value.shape[2:])
            if isinstance(value, Tensor) and value.shape[:2] == own.shape
            else value
            for key, value in part.inputs.items()
            if key not in ("position_ids", "cache_position")
        }
        parts.append((rows, encode(model, inputs=inputs)))
    return parts
