"""Tasks from tables of the user's own: CSV, JSONL, data frames and `datasets`, with named columns."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from circuits.tasks.item import Item
from circuits.tasks.task import Task
from interp.errors import BadInput
from interp.names import unknown

_SHOWN = 8  # bad rows in a message


def read_task(
    source: Any,
    *,
    clean: str = "clean",
    right: str = "right",
    wrong: str | None = None,
    corrupted: str | None = None,
    corrupted_right: str | None = None,
    baseline: str | None = None,
    positions: Mapping[str, str] | Sequence[str] = (),
    corrupted_positions: Mapping[str, str] | Sequence[str] = (),
    labels: Sequence[str] = (),
    separator: str = "|",
    bad: Literal["refuse", "skip"] = "refuse",
    name: str | None = None,
) -> Task:
    """A task of the rows of a table.

    Args:
        source: the path of a ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file (a list of objects), a data frame, a
            ``datasets.Dataset``, or any iterable of mappings.
        clean, right: the columns of the prompt and of its right answers. Answers stand exactly as they continue the
            prompt, with a leading space where there is one; several are a list, or one text split at ``separator``.
        wrong, corrupted, corrupted_right, baseline: further columns; left out, they are taken where the table has
            columns of these names.
        positions: name of the position -> column (or names of columns), in which stands either a text that the clean
            prompt has exactly once, or (start, end) characters as ``[3, 8]`` or ``3:8``.
        corrupted_positions: the same for the corrupted prompt; where left out, those of ``positions`` that are texts
            are looked for in the corrupted prompt too.
        labels: columns kept as labels, for clusters and statistics.
        separator: between several answers of one cell.
        bad: ``"refuse"`` stops at bad rows and names them with reasons; ``"skip"`` leaves them out, and
            ``task.refused`` says which and why.
        name: of the task; by default the file's.

    Raises:
        UnknownName: a column that the table lacks; with near matches.
        BadInput: a file of another kind, no rows, or bad rows.

    Example:
        >>> rows = [{"clean": "Two and two is", "right": " four", "wrong": " five| six", "who": "Two and"}]
        >>> task = read_task(rows, positions={"first": "who"}, name="sums")
        >>> task[0].wrong, task[0].marked("first")
        ((' five', ' six'), 'Two and')
    """
    if bad not in ("refuse", "skip"):
        raise BadInput(f"bad={bad!r}: expected 'refuse' or 'skip'.")
    rows, found = _rows(source)
    if not rows:
        raise BadInput(f"read_task: {found} has no rows.")
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    optional = {"wrong": wrong, "corrupted": corrupted, "corrupted_right": corrupted_right, "baseline": baseline}
    use = {"clean": clean, "right": right}
    use |= {key: given or key for key, given in optional.items() if given or key in columns}
    places = dict(positions) if isinstance(positions, Mapping) else {column: column for column in positions}
    moved = (
        dict(corrupted_positions)
        if isinstance(corrupted_positions, Mapping)
        else {column: column for column in corrupted_positions}
    )
    for column in (*use.values(), *places.values(), *moved.values(), *labels):
        if column not in columns:
            raise BadInput(unknown(column, columns, f"column of {found}"))
    items, refused = [], []
    for number, row in rows:
        try:
            items.append(_item(row, use, places, moved, labels, separator))
        except BadInput as error:
            refused.append((number, str(error)))
    if refused and (bad == "refuse" or not items):
        shown = "\n".join(f"  row {number}: {reason}" for number, reason in refused[:_SHOWN])
        more = f"\n  and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise BadInput(
            f"read_task: {len(refused)} of {len(rows)} rows of {found} cannot be used (bad='skip' leaves them out):\n"
            f"{shown}{more}"
        )
    return Task(name or found, tuple(items), None, {"source": found}, f"rows of {found}", tuple(refused))


def _item(
    row: Mapping[str, Any], use: Mapping[str, str], places: Mapping[str, str], moved: Mapping[str, str],
    labels: Sequence[str], separator: str,
) -> Item:  # fmt: skip
    texts = {key: _text(row, use[key]) for key in ("clean", "corrupted", "baseline") if key in use}
    if texts["clean"] is None:
        raise BadInput(f"column {use['clean']!r} is empty")
    answers = {
        key: _answers(row.get(use[key]), use[key], separator)
        for key in ("right", "wrong", "corrupted_right")
        if key in use
    }
    if not answers["right"]:
        raise BadInput(f"column {use['right']!r} is empty; a right answer is needed")
    spans = {name: _span(row.get(column), texts["clean"], column, "clean") for name, column in places.items()}
    other = texts.get("corrupted")
    shifted = {}
    if other is not None:
        shifted = {name: _span(row.get(column), other, column, "corrupted") for name, column in moved.items()}
        for name, column in places.items() if not moved else ():
            if isinstance(row.get(column), str) and other.count(row[column]) == 1:
                shifted[name] = _span(row[column], other, column, "corrupted")
    end = {"END": (len(texts["clean"]) - 1, len(texts["clean"]))}
    return Item(
        clean=texts["clean"],
        right=answers["right"],
        wrong=answers.get("wrong", ()),
        corrupted=other,
        corrupted_right=answers.get("corrupted_right") or None,
        baseline=texts.get("baseline"),
        positions=end | spans,
        corrupted_positions={} if other is None else {"END": (len(other) - 1, len(other))} | shifted,
        labels={name: _value(row.get(name)) for name in labels},
    )


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value == ""  # noqa: PLR0124 - NaN


def _text(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    if _missing(value):
        return None
    if not isinstance(value, str):
        raise BadInput(f"column {column!r} holds {value!r} ({type(value).__name__}); expected a text")
    return value


def _answers(value: Any, column: str, separator: str) -> tuple[str, ...]:
    if _missing(value):
        return ()
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                value = [value]
        else:
            value = value.split(separator) if separator else [value]
    parts = list(value) if isinstance(value, list | tuple) or hasattr(value, "tolist") else [value]
    if any(not isinstance(part, str) or part == "" for part in parts):
        raise BadInput(f"column {column!r} holds {value!r}; expected texts, as they continue the prompt")
    return tuple(parts)


def _span(value: Any, text: str | None, column: str, side: str) -> tuple[int, int]:
    """Characters from start to end, from a text that occurs once or from the two numbers."""
    told = text or ""
    pair = _numbers(value)
    if pair is not None:
        if not 0 <= pair[0] < pair[1] <= len(told):
            raise BadInput(
                f"column {column!r}: {value!r} is outside the {side} prompt, which has {len(told)} characters"
            )
        return pair
    if not isinstance(value, str) or not value:
        raise BadInput(f"column {column!r} holds {value!r}; expected a part of the {side} prompt, or (start, end)")
    count = told.count(value)
    if count != 1:
        raise BadInput(
            f"column {column!r}: {value!r} stands {count} times in the {side} prompt {told!r}; expected once, or give "
            "(start, end) characters"
        )
    start = told.index(value)
    return start, start + len(value)


def _numbers(value: Any) -> tuple[int, int] | None:
    if isinstance(value, str):
        parts: Sequence[Any] = value.strip().strip("[]()").replace(",", ":").split(":")
        parts = [int(part) for part in parts] if all(part.strip().isdigit() for part in parts) else ()
    else:
        parts = list(value) if isinstance(value, list | tuple) or hasattr(value, "tolist") else ()
    if len(parts) != 2 or any(isinstance(part, bool | str | float) for part in parts):  # noqa: PLR2004 - its two ends
        return None
    return int(parts[0]), int(parts[1])


def _value(value: Any) -> Any:
    """A plain value, so that the task can be saved."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if _missing(value) and value != "" else value


def _rows(source: Any) -> tuple[list[tuple[int, Mapping[str, Any]]], str]:
    """The rows with their numbers as the user sees them (lines of a file, else from 0), and what they are of."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise BadInput(f"read_task: there is no file {str(path)!r}.")
        return _file_rows(path), path.name
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        records: Iterable[Any] = source.to_dict("records")
        return list(enumerate(records)), "the data frame"
    try:
        rows = list(enumerate(source))
    except TypeError:
        rows = [(0, source)]
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise BadInput(
                f"read_task: row {number} is a {type(row).__name__}; expected a path, a data frame, a dataset or rows "
                "that are mappings of columns."
            )
    return rows, f"the {type(source).__name__}"


def _file_rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="," if kind == ".csv" else "\t", restkey="", strict=True)
            try:
                rows: list[tuple[int, Mapping[str, Any]]] = list(enumerate(reader, start=1))
            except csv.Error as error:
                raise BadInput(f"read_task: {path.name}, line {reader.line_num}: {error}.") from None
        wide = [number for number, row in rows if "" in row]
        if wide:
            raise BadInput(
                f"read_task: {path.name}, row {wide[0]} has more cells than there are columns; quote commas."
            )
        return rows
    if kind == ".jsonl":
        lines = enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        return [(number, _object(line, path, number)) for number, line in lines if line.strip()]
    if kind == ".json":
        content = _loaded(path.read_text(encoding="utf-8"), path, None)
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise BadInput(f"read_task: {path.name} holds no list of objects.")
        return list(enumerate(content))
    raise BadInput(
        f"read_task: {path.name} is a {kind or 'file without an ending'}; expected .csv, .tsv, .jsonl or .json."
    )


def _object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    content = _loaded(line, path, number)
    if not isinstance(content, dict):
        raise BadInput(f"read_task: {path.name}, row {number} is a {type(content).__name__}; expected an object.")
    return content


def _loaded(text: str, path: Path, number: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = "" if number is None else f", row {number}"
        raise BadInput(f"read_task: {path.name}{where} is not JSON: {error}.") from None
