"""Answers: texts or ids become token ids, one token each, or are refused with both tokenisations shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.model.handle import Model
from interp.model.inputs import output_embeddings


def answer_ids(
    model: Model, texts: Sequence[str], answers: Sequence[Any] | None, count: int, tokens: str, read_at: Any
) -> Tensor | None:
    """``[batch, k]`` ids of the answers, the right one first, -1 where a prompt has fewer; ``None`` without answers.

    Raises:
        BadInput: another number of answers than prompts, an answer of several tokens that was not declared, one whose
            border merges with the prompt, one that the tokenizer does not know, or an id outside the vocabulary.
    """
    if answers is None:
        return None
    given: Any = answers if isinstance(answers, str) else _plain(answers)
    if isinstance(given, str) or len(given) != count:
        raise BadInput(
            f"encode: {len(given) if not isinstance(given, str) else 'one text as'} answers for {count} prompts; "
            "expected one entry per prompt: a right answer, or (right, wrong, ...)."
        )
    rows = [_row(model, texts[i] if texts else None, given[i], i, tokens, read_at) for i in range(count)]
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def _plain(entry: Any) -> Any:
    """Numbers of torch and numpy as Python's own."""
    if hasattr(entry, "tolist"):
        return entry.tolist()
    return [_plain(part) for part in entry] if isinstance(entry, list | tuple) else entry


def _row(model: Model, prompt: str | None, entry: Any, index: int, tokens: str, read_at: Any) -> list[int]:
    parts = entry if isinstance(entry, list) else [entry]
    if not parts:
        raise BadInput(f"encode: prompt {index} has an empty answer; give the right one first.")
    row = [_one(model, prompt, part, index, tokens, read_at) for part in parts]
    if len(set(row)) != len(row):
        raise BadInput(f"encode: prompt {index}: the answers {parts} are the same token(s) {row}.")
    return row


def _one(model: Model, prompt: str | None, answer: Any, index: int, tokens: str, read_at: Any) -> int:
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise BadInput(f"encode: answer {answer!r} of prompt {index}; expected a text or a token id.")
    if isinstance(answer, int):
        size = _classes(model)
        if not 0 <= answer < size:
            raise BadInput(f"encode: answer id {answer} of prompt {index} is outside 0 to {size - 1}.")
        return answer
    if model.tokenizer is None:
        raise BadInput("encode: answers as texts need a tokenizer; give token ids.")
    ids = _answer_tokens(model, prompt, answer, index, read_at)
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    shown = model.tokenizer.convert_ids_to_tokens(ids)
    if unknown is not None and unknown in ids:
        raise BadInput(
            f"encode: the tokenizer does not know the answer {answer!r} of prompt {index} (it becomes {shown})."
        )
    if len(ids) == 1 or (tokens == "first" and ids):
        return ids[0]
    raise BadInput(
        f"encode: the answer {answer!r} of prompt {index} is {len(ids)} tokens: {shown}. Use an answer of one token, "
        "or declare answer_tokens='first' to let its first token stand for it."
    )


def _answer_tokens(model: Model, prompt: str | None, answer: str, index: int, read_at: Any) -> list[int]:
    def split(text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    follows = prompt is not None and read_at in ("last", -1) and model.stack().causal and model.default_stack == "text"
    if not follows or prompt is None:
        return split(answer)
    before, both = split(prompt), split(prompt + answer)
    if both[: len(before)] == before:
        return both[len(before) :]
    spelled = model.tokenizer.convert_ids_to_tokens
    raise BadInput(
        f"encode: the border between prompt {index} and its answer {answer!r} merges: the prompt alone is "
        f"{spelled(before)[-6:]}, with the answer it is {spelled(both)[-8:]}. Move the space to the answer's front, or "
        "give token ids."
    )


def _classes(model: Model) -> int:
    head = output_embeddings(model)
    found = getattr(head, "out_features", None) or getattr(model.hf.config, "num_labels", None)
    if head is None and isinstance(found, int):
        return found
    return int(found or getattr(model.hf.config.get_text_config(), "vocab_size", 2**31))
