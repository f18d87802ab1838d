"""A task: named items made from a seed, which can be looked at, chosen from, saved and opened."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from circuits.tasks.item import SIDES, Item
from circuits.tasks.wording import spaced
from interp.errors import BadInput
from interp.files import write_whole
from interp.names import unknown

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "headscope-task-1"


@dataclass(frozen=True)
class Task:
    """Items of one kind.

    Attributes:
        name: what kind.
        items: in the order made; item k of a generated task depends on the seed and on the items before it, never on
            how many follow.
        seed: what they were made from, ``None`` for data of the user's own.
        options: what was asked for, plain values.
        summary: the task in one line.
        refused: (row, reason) of what was skipped on the way in, for data of the user's own.
    """

    name: str
    items: tuple[Item, ...]
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    refused: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.items:
            raise BadInput(f"Task {self.name!r} has no items.")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def __reduce__(self) -> Any:
        return Task, (self.name, self.items, self.seed, dict(self.options), self.summary, self.refused)

    def labels(self, name: str) -> list[Any]:
        """One label per item: ``cluster=`` of an interval, or what a statistic counts.

        Raises:
            UnknownName: no item has it; the message gives near matches.
        """
        known = set().union(*(item.labels for item in self.items))
        if name not in known:
            raise BadInput(unknown(name, known, f"label of {self.name}"))
        return [item.labels.get(name) for item in self.items]

    def counts(self, label: str) -> dict[Any, int]:
        """How many items have each value of a label."""
        return dict(Counter(self.labels(label)))

    def positions(self) -> tuple[str, ...]:
        """The names of the positions that every clean prompt has."""
        return tuple(name for name in self.items[0].positions if all(name in item.positions for item in self.items))

    def select(self, chosen: Iterable[int] | slice | Callable[[Item], bool]) -> Task:
        """The items at these indices (or in this slice, or for which a function says so), in that order."""
        if isinstance(chosen, slice):
            kept = self.items[chosen]
        elif callable(chosen):
            kept = tuple(item for item in self.items if chosen(item))
        else:
            indices = list(chosen)
            outside = [index for index in indices if not -len(self) <= index < len(self)]
            if outside:
                raise BadInput(f"select: items {outside[:5]} of {len(self)}; they are 0 to {len(self) - 1}.")
            kept = tuple(self.items[index] for index in indices)
        if not kept:
            raise BadInput(f"select: none of the {len(self)} items of {self.name!r} is left.")
        return replace(self, items=kept)

    def spaced(self) -> Task:
        """The same items with punctuation set off by spaces, for tokenizers that know whole words alone.

        Example:
            >>> from circuits.tasks import make_task
            >>> make_task("multiple-choice", n=1).spaced()[0].clean[-8:]
            'Answer :'
        """
        return replace(
            self, items=tuple(_spaced(item) for item in self.items), options={**self.options, "spaced": True}
        )

    def table(self) -> pd.DataFrame:
        """One row per item: its prompts, its answers, and a column for each label."""
        import pandas as pd

        names = list(dict.fromkeys(name for item in self.items for name in item.labels))
        rows = [
            {
                "item": number,
                **{side: item.text(side) for side in SIDES},
                "right": list(item.right),
                "wrong": list(item.wrong),
                "corrupted_right": None if item.corrupted_right is None else list(item.corrupted_right),
                **{name if name not in ("item", "right", "wrong", *SIDES) else f"label {name}": item.labels.get(name)
                   for name in names},
            }
            for number, item in enumerate(self.items)
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of a JSONL file with the task in the first line and one item in each that follows."""
        head = {
            "format": FORMAT,
            "task": self.name,
            "seed": self.seed,
            "options": dict(self.options),
            "summary": self.summary,
            "refused": [list(row) for row in self.refused],
        }
        lines = [head, *(item.as_json() for item in self.items)]
        return write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Task:
        """The task that :meth:`save` wrote.

        Raises:
            BadInput: another kind of file, or a line that is no item; the message says which.
        """
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        head = _parsed(lines[0], path, 1)
        if head.get("format") != FORMAT:
            raise BadInput(
                f"{path} is not a saved task (its first line names no {FORMAT!r}). For a table of your own use "
                "circuits.read_task(path, clean=..., right=...)."
            )
        items = []
        for number, line in enumerate(lines[1:], start=2):
            if not line.strip():
                continue
            try:
                items.append(Item.from_json(_parsed(line, path, number)))
            except (TypeError, KeyError, IndexError, ValueError) as error:
                raise BadInput(f"{path}, line {number}: {error}") from None
        refused = tuple((int(row), str(reason)) for row, reason in head.get("refused", ()))
        return Task(head["task"], tuple(items), head["seed"], head["options"], head.get("summary", ""), refused)

    def __repr__(self) -> str:
        first = self.items[0]
        seed = "" if self.seed is None else f", seed {self.seed}"
        return (
            f"Task({self.name!r}, {len(self)} items{seed}; {first.clean!r} -> {' / '.join(map(repr, first.right[:2]))})"
        )


def _spaced(item: Item) -> Item:
    if not isinstance(item.clean, str):
        raise BadInput("spaced: these items are token ids; only texts have punctuation.")
    told: dict[str, Any] = {}
    for side, spans in zip(SIDES, ("positions", "corrupted_positions", "baseline_positions"), strict=True):
        if (text := item.text(side)) is not None:
            worded = spaced(cast(str, text), item.spans(side))
            told |= {side: worded.text, spans: worded.spans}
    return replace(item, **told)


def _parsed(line: str, path: object, number: int) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}, line {number}: a {type(content).__name__}; expected an object.")
    return content
