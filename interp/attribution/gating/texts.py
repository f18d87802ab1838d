"""``gating_texts``: texts with a loss mask, from a list, a table file or a dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.handle import Model
from interp.names import unknown

Rows = list[str] | pd.DataFrame
_READERS = (".csv", ".jsonl", ".ndjson", ".json")


def gating_texts(
    model: Model,
    source: Any,
    *,
    text: str = "text",
    target: str | None = None,
    prompt: str = "prompt",
    split: str | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
) -> Batch:
    """A batch of texts with the span ``"loss"`` over the tokens to be predicted; no labels are needed.

    Args:
        model: the handle; its tokenizer encodes the texts.
        source: a list of texts, of (prompt, target) pairs or of rows by column; the path of a CSV or JSONL file; or a
            ``datasets`` Dataset or DatasetDict.
        text: the column with whole texts: every token but the first is predicted.
        target: the column with what is predicted; the text is then ``prompt`` followed by ``target``, as they are (put
            the space that parts them at the head of the target).
        prompt: the column that comes before it.
        split: which split, for a DatasetDict.
        limit: only the first so many rows.
        max_tokens: longer texts are cut to their first so many tokens; whole texts only.

    Raises:
        BadInput: an unknown column, file type or split, an empty text, a target whose first token merges with the
            prompt's last.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = gating_texts(model, [("the cat sat", " on the")])
        >>> batch.spans["loss"].sum(1).tolist()
        [2]
    """
    for name, value in (("limit", limit), ("max_tokens", max_tokens)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise BadInput(f"{name}={value!r}: expected a whole number of at least 1, or None.")
    if model.tokenizer is None:
        raise BadInput(f"gating_texts: {model.name!r} came without a tokenizer; pass load(..., tokenizer=...).")
    rows = _rows(source, split)
    if isinstance(rows, pd.DataFrame):
        rows = rows.iloc[:limit]
        if target is None and isinstance(source, list | tuple) and not isinstance(source[0], Mapping):
            return _targeted(model, _column(rows, "prompt"), _column(rows, "target"), max_tokens)
        if target is not None:
            return _targeted(model, _column(rows, prompt), _column(rows, target), max_tokens)
        return _whole(model, _column(rows, text), max_tokens)
    if target is not None:
        raise BadInput(f"target={target!r} names a column, but a list of plain texts has none; give pairs or rows.")
    return _whole(model, rows[:limit], max_tokens)


def _rows(source: Any, split: str | None) -> Rows:
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source))
    if isinstance(source, Mapping) or split is not None:  # a DatasetDict
        if not isinstance(source, Mapping) or split not in source:
            known = list(source) if isinstance(source, Mapping) else []
            raise BadInput(unknown(split, known, "split") + " Name one with split=.")
        source = source[split]
    frame = getattr(source, "to_pandas", None)
    if frame is not None:
        return frame()
    if isinstance(source, pd.DataFrame):
        return source
    if not isinstance(source, Sequence) or not source:
        raise BadInput(
            f"gating_texts: a {type(source).__name__} came; expected a list of texts, pairs or rows with at least one "
            "entry, the path of a CSV or JSONL file, or a Dataset."
        )
    if all(isinstance(row, str) for row in source):
        return list(source)
    if all(isinstance(row, Mapping) for row in source):
        return pd.DataFrame(list(source))
    if all(isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2 for row in source):  # noqa: PLR2004
        return pd.DataFrame([tuple(row) for row in source], columns=["prompt", "target"])
    kinds = sorted({type(row).__name__ for row in source})
    raise BadInput(f"gating_texts: rows of {', '.join(kinds)}; expected texts, (prompt, target) pairs or mappings.")


def _from_file(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise BadInput(f"gating_texts: {path} is not a file; give a CSV or JSONL file, or a list of texts.")
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise BadInput(f"gating_texts: {path.name} is of type {kind!r}; expected one of {', '.join(_READERS)}.")
    try:
        if kind == ".csv":
            return pd.read_csv(path, keep_default_na=False, dtype=str)
        return pd.read_json(path, lines=kind != ".json", dtype=False)  # pyright: ignore[reportArgumentType]
    except (ValueError, pd.errors.ParserError) as error:
        raise BadInput(f"gating_texts: {path} cannot be read as {kind[1:].upper()} ({error}).") from None


def _column(rows: pd.DataFrame, name: str) -> list[str]:
    if name not in rows.columns:
        raise BadInput(unknown(name, map(str, rows.columns), "column"))
    values = rows[name].tolist()
    wrong = [place for place, value in enumerate(values) if not isinstance(value, str) or not value]
    if wrong:
        raise BadInput(
            f"gating_texts: column {name!r} holds {values[wrong[0]]!r} in row {wrong[0]} ({len(wrong)} such rows); "
            "expected a text that is not empty."
        )
    return values


def _whole(model: Model, texts: list[str], max_tokens: int | None) -> Batch:
    if max_tokens is None:
        batch = encode(model, texts)
    else:
        batch = encode(model, [row[:max_tokens] for row in model.tokenizer(texts)["input_ids"]])
    first = batch.mask.long().argmax(1)
    span = batch.mask.clone()
    span[torch.arange(len(batch)), first] = False  # nothing predicts it
    short = (span.sum(1) == 0).nonzero()[:, 0].tolist()
    if short:
        raise BadInput(f"gating_texts: texts of a single token, in which nothing is predicted: {short}.")
    return replace(batch, spans={"loss": span})


def _targeted(model: Model, prompts: list[str], targets: list[str], max_tokens: int | None) -> Batch:
    if max_tokens is not None:
        raise BadInput("gating_texts: max_tokens= cuts whole texts; with a target, leave long rows out.")
    whole = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    alone = model.tokenizer(prompts, add_special_tokens=False)["input_ids"]
    together = model.tokenizer(whole, add_special_tokens=False)["input_ids"]
    for place, (before, after) in enumerate(zip(alone, together, strict=True)):
        if after[: len(before)] != before:
            shown = [model.tokenizer.convert_ids_to_tokens(row) for row in (before, after)]
            raise BadInput(
                f"gating_texts: the target of row {place} merges with its prompt: {shown[0]} alone, {shown[1]} "
                "together. Put the space between them at the head of the target, or move the border."
            )
    spans = [(len(prompt), len(prompt) + len(target)) for prompt, target in zip(prompts, targets, strict=True)]
    return encode(model, whole, spans={"loss": spans})
