"""One item of a task: the prompts that belong together, their answers, and where things stand in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from interp.errors import BadInput

Text = str | tuple[int, ...]
Answer = str | int
Side = Literal["clean", "corrupted", "baseline"]
Spans = Mapping[str, tuple[int, int]]
SIDES: tuple[Side, ...] = ("clean", "corrupted", "baseline")


@dataclass(frozen=True)
class Item:
    """A clean prompt with its answers, and what it is compared with.

    Attributes:
        clean: the prompt that is to be answered: a text, or token ids.
        right: the right answers, exactly as they continue the prompt (with a leading space where there is one).
        wrong: answers that the right ones are set against; may be empty.
        corrupted: the prompt that differs from the clean one in what the task is about, ``None`` without.
        corrupted_right: the right answers to the corrupted prompt, ``None`` where it has none (nothing is repeated,
            no relation holds).
        baseline: a prompt of the same form with nothing of the task in it, whose activations can be averaged; or
            ``None``.
        positions: name -> (start, end) in the clean prompt: characters of a text, positions of ids. ``END`` is where
            the answer is read.
        corrupted_positions, baseline_positions: the same of the other prompts; a name may be missing there.
        labels: what the item was made from (template, order, queried index ...), plain values: groups for statistics
            and clusters of intervals.

    Example:
        >>> item = Item("The capital of France is", (" Paris",), (" Rome",), positions={"subject": (15, 21)})
        >>> item.clean[slice(*item.positions["subject"])]
        'France'
    """

    clean: Text
    right: tuple[Answer, ...]
    wrong: tuple[Answer, ...] = ()
    corrupted: Text | None = None
    corrupted_right: tuple[Answer, ...] | None = None
    baseline: Text | None = None
    positions: Spans = field(default_factory=dict)
    corrupted_positions: Spans = field(default_factory=dict)
    baseline_positions: Spans = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("positions", "corrupted_positions", "baseline_positions"):
            spans = {key: (int(start), int(end)) for key, (start, end) in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(spans))
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))
        if reason := self.fault():
            raise BadInput(f"An item cannot be: {reason}.")

    def __hash__(self) -> int:
        return hash((self.clean, self.right, self.wrong, self.corrupted, self.baseline))

    def __reduce__(self) -> Any:  # views of mappings cannot be pickled
        return Item.from_json, (self.as_json(),)

    def text(self, side: Side) -> Text | None:
        """The prompt of one side."""
        return {"clean": self.clean, "corrupted": self.corrupted, "baseline": self.baseline}[side]

    def spans(self, side: Side) -> Spans:
        """The positions of one side."""
        return self.positions if side == "clean" else getattr(self, f"{side}_positions")

    def marked(self, name: str, side: Side = "clean") -> Text:
        """What stands at a position."""
        text = self.text(side)
        if text is None or name not in self.spans(side):
            known = ", ".join(self.spans(side)) or "none"
            raise BadInput(f"Position {name!r} is not in the {side} prompt; known there: {known}.")
        return text[slice(*self.spans(side)[name])]

    def fault(self) -> str | None:
        """Why this is no item, in words; ``None`` where it is one."""
        kinds = {type(text) for text in (self.clean, self.corrupted, self.baseline) if text is not None}
        if not all(self.text(side) for side in SIDES if self.text(side) is not None):
            return "a prompt is empty"
        if kinds not in ({str}, {tuple}):
            return (
                f"prompts are of the types {sorted(kind.__name__ for kind in kinds)}; all texts, or all tuples of ids"
            )
        if not self.right:
            return "there is no right answer"
        answers = (*self.right, *self.wrong, *(self.corrupted_right or ()))
        if any(not isinstance(answer, str | int) or isinstance(answer, bool) or answer == "" for answer in answers):
            return f"answers {answers!r} must be texts that are not empty, or token ids"
        if shared := set(self.right) & set(self.wrong):
            return f"{sorted(map(str, shared))} is right and wrong at once"
        for side in SIDES:
            text = self.text(side)
            if text is None and self.spans(side):
                return f"there are positions of a {side} prompt, and no such prompt"
            for name, (start, end) in self.spans(side).items():
                if text is None or not 0 <= start < end <= len(text):
                    return f"position {name!r} of the {side} prompt is ({start}, {end}), outside 0 to {len(text or '')}"
        return None

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a line of JSON; what is not there is left out."""
        made: dict[str, Any] = {"clean": _plain(self.clean), "right": list(self.right), "wrong": list(self.wrong)}
        for name in ("corrupted", "baseline"):
            if (text := getattr(self, name)) is not None:
                made[name] = _plain(text)
        if self.corrupted_right is not None:
            made["corrupted_right"] = list(self.corrupted_right)
        for name in ("positions", "corrupted_positions", "baseline_positions"):
            if getattr(self, name):
                made[name] = {key: list(span) for key, span in getattr(self, name).items()}
        return {**made, "labels": dict(self.labels)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Item:
        """The item that :meth:`as_json` gave."""
        told = dict(content)
        for name in ("clean", "corrupted", "baseline", "right", "wrong", "corrupted_right"):
            if isinstance(told.get(name), list):
                told[name] = tuple(told[name])
        for name in ("positions", "corrupted_positions", "baseline_positions"):
            told[name] = {key: (span[0], span[1]) for key, span in told.get(name, {}).items()}
        return Item(**told)


def _plain(text: Text) -> Any:
    return text if isinstance(text, str) else list(text)
