"""Induction: what followed the last time follows again; in random token ids, and in sentences about people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, whole_number, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import fill
from circuits.tasks.words import NAMES
from interp.errors import BadInput

RANDOM_CORRUPTIONS = ("answer", "unrepeated")
NATURAL_CORRUPTIONS = ("other-name", "new-name")
FAMILY_NAMES = (
    "Abbott", "Archer", "Bishop", "Brooks", "Carter", "Chapman", "Cooper", "Dawson", "Fisher", "Fletcher", "Foster",
    "Gardner", "Graham", "Harper", "Hayes", "Hunter", "Knight", "Lawson", "Marshall", "Mason", "Mills", "Moore",
    "Nelson", "Parker", "Porter", "Price", "Reed", "Shaw", "Spencer", "Stone", "Turner", "Walker", "Warren", "Webb",
    "Wood", "Young",
)  # fmt: skip
TEMPLATES = (
    "{P} {Q:P_last} bought the old mill, and {R} {T:R_last} repaired it. Years later the town still remembered {S}",
    "The letter was signed by {P} {Q:P_last} and {R} {T:R_last}. The first to answer was {S}",
    "In the play {P} {Q:P_last} is the judge and {R} {T:R_last} the thief. The critics praised {S}",
    "Both {P} {Q:P_last} and {R} {T:R_last} ran for mayor. In the end the people chose {S}",
    "The guide met {P} {Q:P_last} in the morning and {R} {T:R_last} at night. The book is about {S}",
)


def induction_random(
    *,
    corruption: str = "answer",
    vocabulary: tuple[int, int] = (1000, 10000),
    length: int = 25,
    first: int | None = None,
) -> Callable[[Draw], Item]:
    """The recipe of an item of token ids: different random ids, then the same ids again up to some place.

    Args:
        corruption: ``"answer"``: in the first copy another id stands in the answer's place, and is then the right
            answer; ``"unrepeated"``: the first copy is replaced by ids that never come again.
        vocabulary: smallest and largest id, both included.
        length: ids in the first copy.
        first: an id to begin with, such as the tokenizer's BOS.
    """
    one_of(corruption, RANDOM_CORRUPTIONS, "corruption")
    whole_number(length, 2, 100_000, "length")
    low, high = (vocabulary[0], vocabulary[1]) if len(vocabulary) == 2 else (0, -1)  # noqa: PLR2004 - its two ends
    if not 0 <= low <= high or high - low + 1 < 2 * length + 1:
        raise BadInput(
            f"vocabulary={vocabulary!r}: expected (smallest, largest) id with at least {2 * length + 1} ids between "
            f"them, for length={length}."
        )
    head = () if first is None else (whole_number(first, 0, 2**31, "first"),)

    def recipe(draw: Draw) -> Item:
        ids = _different(draw, low, high, 2 * length + 1, without=head)
        copy, fresh, other = ids[:length], ids[length : 2 * length], ids[-1]
        place = draw.balanced(range(1, length), "place")
        changed = [*copy[:place], other, *copy[place + 1 :]] if corruption == "answer" else fresh
        clean, corrupted = ((*head, *start, *copy[:place]) for start in (copy, changed))
        lead = len(head)
        spans = {"previous_copy": lead + place - 1, "source": lead + place, "END": len(clean) - 1}
        positions = {name: (at, at + 1) for name, at in spans.items()}
        positions |= {"first_copy": (lead, lead + length), "second_copy": (lead + length, len(clean))}
        return Item(
            clean=clean,
            right=(copy[place],),
            wrong=(other,),
            corrupted=corrupted,
            corrupted_right=(other,) if corruption == "answer" else None,
            positions=positions,
            corrupted_positions=positions,
            labels={"place": place, "length": length, "corruption": corruption},
        )

    return recipe


def _different(draw: Draw, low: int, high: int, count: int, *, without: Sequence[int]) -> list[int]:
    """Different ids; the vocabulary is not listed, since it can be large."""
    found = draw.random.sample(range(low, high + 1), min(count + len(without), high - low + 1))
    left = [one for one in found if one not in without][:count]
    if len(left) < count:
        raise BadInput(f"vocabulary: {len(left)} ids are left without {list(without)}; {count} are needed.")
    return left


def induction_natural(
    *, corruption: str = "other-name", names: Sequence[str] | None = None, family_names: Sequence[str] | None = None
) -> Callable[[Draw], Item]:
    """The recipe of an item: two people with first and last names, then a first name again; its last name is next.

    Args:
        corruption: at the end stands the ``"other-name"`` of the two (the answer flips), or a ``"new-name"`` (no
            answer).
        names, family_names: words instead of ours.
    """
    one_of(corruption, NATURAL_CORRUPTIONS, "corruption")
    given = word_list(names, NAMES, 3, "names")
    families = word_list(family_names, FAMILY_NAMES, 2, "family_names")

    def recipe(draw: Draw) -> Item:
        number = draw.balanced(range(len(TEMPLATES)), "template")
        asked = draw.balanced((0, 1), "asked")
        people, last = draw.sample(given, 3), draw.sample(families, 2, without=given)
        parts = {"P": people[0], "Q": last[0], "R": people[1], "T": last[1]}
        end = people[1 - asked] if corruption == "other-name" else people[2]
        clean, corrupted = (fill(TEMPLATES[number], parts | {"S": who}) for who in (people[asked], end))
        roles = {"first_mention": "PR"[asked], "source": ("P_last", "R_last")[asked]}
        roles |= {"other_mention": "PR"[1 - asked], "other_source": ("P_last", "R_last")[1 - asked]}

        def named(spans: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
            return {role: spans[slot] for role, slot in roles.items()} | {
                "second_mention": spans["S"], "END": spans["END"]
            }  # fmt: skip

        return Item(
            clean=clean.text,
            right=(" " + last[asked],),
            wrong=(" " + last[1 - asked],),
            corrupted=corrupted.text,
            corrupted_right=(" " + last[1 - asked],) if corruption == "other-name" else None,
            positions=named(dict(clean.spans)),
            corrupted_positions=named(dict(corrupted.spans)),
            labels={"template": number, "asked": asked + 1, "name": people[asked], "corruption": corruption},
        )

    return recipe
