"""Acronyms: three capitalised words, then their first letters; the third is next (Garcia-Carrasco et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import fill
from interp.errors import BadInput

WORDS = (
    "Action", "Agency", "Army", "Bank", "Board", "Bureau", "Center", "Club", "Council", "Data", "Defense", "Drama",
    "Energy", "Event", "Export", "Family", "Forest", "Fund", "Group", "Growth", "Guard", "Health", "History", "House",
    "Image", "Income", "Island", "Job", "Journal", "Justice", "Labor", "League", "Library", "Market", "Media", "Music",
    "Nature", "Network", "North", "Ocean", "Office", "Opera", "Park", "Peace", "Police", "Quality", "Quest", "Radio",
    "Record", "River", "School", "Service", "Space", "Team", "Trade", "Travel", "Union", "Unit", "Valley", "Video",
    "Vision", "Water", "Wealth", "World", "Youth", "Zone",
)  # fmt: skip
FORMS = {
    "joined": ("The {W1} {W2} {W3} ({L1}{L2}", ""),
    "spaced": ("The {W1} {W2} {W3} ( {L1} {L2}", " "),
}
CORRUPTIONS = ("third", "all")
_WORDS_IN_ALL = 3


def acronyms(
    *, corruption: str = "third", form: str = "joined", words: Sequence[str] | None = None
) -> Callable[[Draw], Item]:
    """The recipe of an item: three words of different first letters, of which two are given.

    Args:
        corruption: the ``"third"`` word becomes one with another first letter, or ``"all"`` words do, and the letters
            given with them.
        form: ``"joined"`` (``(CE`` -> ``O``) or ``"spaced"`` (``( C E`` -> `` O``), for tokenizers that merge letters.
        words: capitalised words instead of ours.
    """
    one_of(corruption, CORRUPTIONS, "corruption")
    one_of(form, FORMS, "form")
    vocabulary = word_list(words, WORDS, 2 * _WORDS_IN_ALL, "words")
    if len({word[0] for word in vocabulary}) < 2 * _WORDS_IN_ALL:
        raise BadInput(f"words: expected at least {2 * _WORDS_IN_ALL} different first letters.")
    template, lead = FORMS[form]

    def recipe(draw: Draw) -> Item:
        letters = draw.sample(sorted({word[0] for word in vocabulary}), 2 * _WORDS_IN_ALL)
        drawn = [draw.choice([word for word in vocabulary if word[0] == letter]) for letter in letters]
        clean_words, new = drawn[:_WORDS_IN_ALL], drawn[_WORDS_IN_ALL:]
        changed = [*clean_words[:-1], new[-1]] if corruption == "third" else new
        clean, corrupted = (
            fill(
                template, {f"W{n}": word for n, word in enumerate(some, start=1)} | {"L1": some[0][0], "L2": some[1][0]}
            )
            for some in (clean_words, changed)
        )
        return Item(
            clean=clean.text,
            right=(lead + clean_words[-1][0],),
            wrong=(lead + changed[-1][0],),
            corrupted=corrupted.text,
            corrupted_right=(lead + changed[-1][0],),
            positions=clean.spans,
            corrupted_positions=corrupted.spans,
            labels={"letter": clean_words[-1][0], "words": clean_words, "corruption": corruption},
        )

    return recipe
