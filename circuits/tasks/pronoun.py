"""Gendered pronoun: somebody is named, and a pronoun for them is next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import article, fill
from circuits.tasks.words import MEN, WOMEN

ROLES = (
    "baker", "coach", "cook", "dancer", "doctor", "driver", "editor", "farmer", "friend", "gardener", "guide",
    "lawyer", "leader", "listener", "manager", "neighbor", "nurse", "painter", "pilot", "player", "poet", "runner",
    "singer", "student", "swimmer", "teacher", "writer",
)  # fmt: skip
TEMPLATES = (
    "{name} is known as a good {role} because",
    "Everybody likes {name}, the {role}, since",
    "We asked {name} to be our {role}, and",
    "{name} became {_a} {role} last year, and now",
    "I met {name} at work. As {_a} {role},",
    "{name} was hired as {_a} {role} after",
)
CORRUPTIONS = ("other-gender", "same-gender")
PRONOUNS = {"female": " she", "male": " he"}


def pronoun(
    *,
    corruption: str = "other-gender",
    women: Sequence[str] | None = None,
    men: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
) -> Callable[[Draw], Item]:
    """The recipe of an item: the name decides between `` he`` and `` she``; the rest of the text does not.

    Args:
        corruption: the name becomes one of the ``"other-gender"``, or another of the ``"same-gender"`` (a control: the
            answer stays).
        women, men, roles: words instead of ours.
    """
    one_of(corruption, CORRUPTIONS, "corruption")
    people = {"female": word_list(women, WOMEN, 2, "women"), "male": word_list(men, MEN, 2, "men")}
    jobs = word_list(roles, ROLES, 1, "roles")

    def recipe(draw: Draw) -> Item:
        number = draw.balanced(range(len(TEMPLATES)), "template")
        gender = draw.balanced(("female", "male"), "gender")
        other = "male" if gender == "female" else "female"
        role = draw.choice(jobs)
        (name,) = draw.sample(people[gender], 1)
        changed = other if corruption == "other-gender" else gender
        (new,) = draw.sample(people[changed], 1, without=(name,))
        clean, corrupted = (
            fill(TEMPLATES[number], {"name": who, "role": role, "_a": article(role)}) for who in (name, new)
        )
        return Item(
            clean=clean.text,
            right=(PRONOUNS[gender],),
            wrong=(PRONOUNS[other],),
            corrupted=corrupted.text,
            corrupted_right=(PRONOUNS[changed],),
            positions=clean.spans,
            corrupted_positions=corrupted.spans,
            labels={"gender": gender, "template": number, "name": name, "role": role, "corruption": corruption},
        )

    return recipe
