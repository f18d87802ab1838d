"""Texts filled in from parts, with a note of where each named part came to stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from interp.errors import BadInput

_SLOT = re.compile(r"\{([^{}:]+)(?::([^{}]+))?\}")
_PUNCTUATION = re.compile(r"(?<=[^\s])(?=[.,:;?!()+=*\"])|(?<=[.,:;?!()+=*\"])(?=[^\s])")


@dataclass(frozen=True)
class Worded:
    """A text and the spans of its named parts, characters from start to end."""

    text: str
    spans: Mapping[str, tuple[int, int]]


def fill(template: str, parts: Mapping[str, str], *, end: bool = True) -> Worded:
    """The template with its slots filled, and where they stand.

    Args:
        template: ``{name}`` is replaced by ``parts[name]`` and noted under that name; ``{name:note}`` is noted under
            ``note``; under a name that begins with ``_`` nothing is noted.
        parts: what goes into the slots.
        end: whether the last character is noted as ``END``.

    Example:
        >>> worded = fill("{S:S1} saw {IO}; {S:S2} gave it to", {"S": "Ann", "IO": "Bo"})
        >>> worded.text, worded.spans["S2"]
        ('Ann saw Bo; Ann gave it to', (12, 15))
    """
    text, spans, done = "", {}, 0
    for slot in _SLOT.finditer(template):
        text += template[done : slot.start()]
        name, note = slot[1], slot[2] or slot[1]
        if not note.startswith("_"):
            if note in spans:
                raise BadInput(f"Template {template!r} notes {note!r} twice; write {{{name}:another name}}.")
            spans[note] = (len(text), len(text) + len(parts[name]))
        text += parts[name]
        done = slot.end()
    text += template[done:]
    if end:
        spans["END"] = (len(text) - 1, len(text))
    return Worded(text, spans)


def spaced(text: str, spans: Mapping[str, tuple[int, int]]) -> Worded:
    """The text with punctuation set off by spaces, as tokenizers of whole words want it, and the spans moved along.

    Example:
        >>> spaced("Then, Ann (or Bo) ran.", {"who": (6, 9)})
        Worded(text='Then , Ann ( or Bo ) ran .', spans={'who': (7, 10)})
    """
    cuts = [match.start() for match in _PUNCTUATION.finditer(text)]
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def moved(place: int, opening: bool) -> int:
        return place + sum(cut <= place if opening else cut < place for cut in cuts)

    return Worded(" ".join(pieces), {name: (moved(a, True), moved(b, False)) for name, (a, b) in spans.items()})


def article(word: str) -> str:
    """``a`` or ``an``, by the first letter.

    Example:
        >>> article("orange"), article("red")
        ('an', 'a')
    """
    return "an" if word[:1].lower() in "aeiou" else "a"
