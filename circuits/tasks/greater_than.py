"""Greater-than: something lasted from one year to another of the same century (Hanna et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, whole_range, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import fill

NOUNS = (
    "alliance", "blockade", "boom", "boycott", "campaign", "conflict", "crisis", "dispute", "drought", "dynasty",
    "embargo", "empire", "epidemic", "exhibition", "expedition", "famine", "feud", "friendship", "journey", "marriage",
    "mission", "occupation", "partnership", "plague", "project", "quarrel", "rebellion", "reign", "revolt", "search",
    "siege", "strike", "study", "tour", "treaty", "trial", "truce", "uprising", "voyage", "war",
)  # fmt: skip
WORDINGS = {
    "to": "The {noun} lasted from the year {century:XX1}{years:YY} to {century:XX2}",
    "to the year": "The {noun} lasted from the year {century:XX1}{years:YY} to the year {century:XX2}",
}
CORRUPTIONS = ("01", "later")
_LAST = 99


def greater_than(
    *,
    corruption: str = "01",
    wording: str = "to",
    centuries: tuple[int, int] = (11, 17),
    years: tuple[int, int] = (2, 98),
    nouns: Sequence[str] | None = None,
) -> Callable[[Draw], Item]:
    """The recipe of an item: every two-digit year above YY is right, every other one is wrong.

    Args:
        corruption: ``"01"``: YY becomes 01, which says nothing about the end; ``"later"``: YY becomes another, larger
            year (as random as YY; 99 at most).
        wording: the end of the sentence: ``"to"`` or ``"to the year"``.
        centuries: smallest and largest XX.
        years: smallest and largest YY.
        nouns: words instead of ours.
    """
    one_of(corruption, CORRUPTIONS, "corruption")
    one_of(wording, WORDINGS, "wording")
    low, high = whole_range(centuries, 10, _LAST, "centuries")
    first, last = whole_range(years, 2, _LAST - 1, "years")
    things = word_list(nouns, NOUNS, 1, "nouns")

    def recipe(draw: Draw) -> Item:
        noun, century = draw.choice(things), draw.whole(low, high)
        year = draw.balanced(range(first, last + 1), "year")
        other = 1 if corruption == "01" else draw.whole(year + 1, _LAST)
        clean, corrupted = (
            fill(WORDINGS[wording], {"noun": noun, "century": str(century), "years": f"{start:02d}"})
            for start in (year, other)
        )
        after = tuple(f"{end:02d}" for end in range(other + 1, _LAST + 1))
        return Item(
            clean=clean.text,
            right=tuple(f"{end:02d}" for end in range(year + 1, _LAST + 1)),
            wrong=tuple(f"{end:02d}" for end in range(year + 1)),
            corrupted=corrupted.text,
            corrupted_right=after or None,
            positions=clean.spans,
            corrupted_positions=corrupted.spans,
            labels={"noun": noun, "century": century, "year": year, "decade": year // 10, "corrupted_year": other,
                    "corruption": corruption},
        )  # fmt: skip

    return recipe
