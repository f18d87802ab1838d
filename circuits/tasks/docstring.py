"""Docstring: a function's parameters are described in order, the third is next (Heimersheim and Janiak 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, whole_number, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import Worded, fill

# nouns that serve as names of functions and parameters and as words of the description
WORDS = (
    "angle", "area", "base", "block", "border", "buffer", "cache", "cell", "chain", "channel", "child", "cluster",
    "client", "code", "color", "column", "count", "curve", "cycle", "data", "date", "depth", "edge", "entry", "error",
    "event", "factor", "field", "file", "filter", "flag", "folder", "font", "frame", "graph", "group", "head", "height",
    "host", "image", "index", "input", "item", "key", "label", "layer", "length", "level", "limit", "line", "list",
    "mode", "model", "name", "node", "number", "object", "offset", "order", "output", "page", "parent", "path", "phase",
    "point", "port", "price", "query", "range", "rate", "record", "region", "result", "role", "root", "row", "rule",
    "sample", "scale", "scope", "score", "shape", "side", "size", "slot", "source", "speed", "stage", "start", "state",
    "step", "stream", "style", "table", "tag", "target", "task", "text", "time", "title", "token", "tree", "type",
    "unit", "user", "value", "vector", "version", "weight", "width", "window",
)  # fmt: skip
CORRUPTIONS = ("definition", "documentation", "both", "swap")
DOCUMENTED = 3


def docstring(
    *, corruption: str = "both", before: int = 0, after: int = 3, words: Sequence[str] | None = None
) -> Callable[[Draw], Item]:
    """The recipe of an item: three parameters A, B, C among others; A and B are described, C is the answer.

    Args:
        corruption: which names become new ones: ``"definition"`` (A, B, C in the signature), ``"documentation"`` (A
            and B in the description), ``"both"`` (each with its own new names); ``"swap"``: C and the parameter
            after it change places, and so the answer.
        before, after: other parameters in the signature before A and after C.
        words: words instead of ours.
    """
    one_of(corruption, CORRUPTIONS, "corruption")
    whole_number(before, 0, 8, "before")
    whole_number(after, 1, 8, "after")
    needed = 1 + 2 + 2 * 2 + 2 * DOCUMENTED + (DOCUMENTED - 1) + before + after
    vocabulary = word_list(words, WORDS, needed, "words")

    def recipe(draw: Draw) -> Item:
        some = iter(draw.sample(vocabulary, needed))
        function = next(some)
        documented = [next(some) for _ in range(DOCUMENTED)]
        front, back = ([next(some) for _ in range(count)] for count in (before, after))
        about = [next(some) for _ in range(6)]
        new, told = ([next(some) for _ in range(count)] for count in (DOCUMENTED, DOCUMENTED - 1))
        clean = _worded(function, front, documented, back, documented[:-1], about)
        defined, described, rest = list(documented), documented[:-1], list(back)
        if corruption in ("definition", "both"):
            defined = new
        if corruption in ("documentation", "both"):
            described = told
        if corruption == "swap":
            defined, rest = [*documented[:-1], back[0]], [documented[-1], *back[1:]]
        corrupted = _worded(function, front, defined, rest, described, about)
        return Item(
            clean=clean.text,
            right=(" " + documented[-1],),
            wrong=tuple(" " + name for name in (*back, *front, *documented[:-1])),
            corrupted=corrupted.text,
            corrupted_right=(" " + back[0],) if corruption == "swap" else None,
            positions=clean.spans,
            corrupted_positions=corrupted.spans,
            labels={"answer": documented[-1], "function": function, "before": before, "after": after,
                    "corruption": corruption},
        )  # fmt: skip

    return recipe


def _worded(
    function: str, front: Sequence[str], defined: Sequence[str], back: Sequence[str], described: Sequence[str],
    about: Sequence[str],
) -> Worded:  # fmt: skip
    parts = {"function": function, "A": defined[0], "B": defined[1], "C": defined[2]}
    parts |= {"a": described[0], "b": described[1]}
    parts |= {f"_before{number}": name for number, name in enumerate(front)}
    parts |= {f"after_{number}": name for number, name in enumerate(back, start=1)}
    parts |= {f"_about{number}": word for number, word in enumerate(about)}
    names = [*(f"{{_before{number}}}" for number in range(len(front))), "{A:A_def}", "{B:B_def}", "{C:C_def}"]
    names += [f"{{after_{number}}}" for number in range(1, len(back) + 1)]
    template = (
        "def {function}(self, " + ", ".join(names) + "):\n"
        '    """{_about0} {_about1}\n\n'
        "    :param {a:A_doc}: {_about2} {_about3}\n"
        "    :param {b:B_doc}: {_about4} {_about5}\n"
        "    :param"
    )
    return fill(template, parts)
