"""Subject-verb agreement: the verb takes the number of its subject, not of the nouns in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, whole_number
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import Worded, fill

NOUNS = (
    "author", "banker", "boy", "brother", "captain", "cousin", "customer", "dancer", "doctor", "driver", "farmer",
    "friend", "girl", "guard", "king", "lawyer", "manager", "neighbor", "officer", "painter", "pilot", "player",
    "queen", "senator", "singer", "sister", "student", "teacher", "worker", "writer",
)  # fmt: skip
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"), (" does", " do"))
LINKS = ("near", "behind", "beside", "with", "above", "below")
CORRUPTIONS = ("number", "attractor")
NUMBERS = ("singular", "plural")


def agreement(
    *, corruption: str = "number", attractors: int = 1, attractor: str = "mixed", answers: str = "one"
) -> Callable[[Draw], Item]:
    """The recipe of an item: a subject, nouns that may differ from it in number, and the verb as the answer.

    Args:
        corruption: ``"number"``: the subject changes its number, and so does the answer; ``"attractor"``: the nouns
            between change theirs, and the answer stays.
        attractors: nouns between subject and verb.
        attractor: their number: ``"same"`` as the subject's, ``"opposite"``, or ``"mixed"`` (half the items each).
        answers: ``"one"``: one verb in its two numbers; ``"all"``: every verb listed, in both numbers.
    """
    one_of(corruption, CORRUPTIONS, "corruption")
    one_of(attractor, ("same", "opposite", "mixed"), "attractor")
    one_of(answers, ("one", "all"), "answers")
    whole_number(attractors, 1 if corruption == "attractor" else 0, 5, "attractors")

    def recipe(draw: Draw) -> Item:
        number, relation = draw.balanced(
            [(a, b) for a in NUMBERS for b in ("same", "opposite") if attractor in (b, "mixed")], "number and attractor"
        )
        between = _other(number) if relation == "opposite" else number
        nouns = draw.sample(NOUNS, attractors + 1)
        links = draw.sample(LINKS, attractors)
        verb = draw.balanced(VERBS, "verb")
        clean = _worded(nouns, links, number, between)
        turned = _other(number) if corruption == "number" else number
        corrupted = _worded(nouns, links, turned, _other(between) if corruption == "attractor" else between)
        verbs = VERBS if answers == "all" else (verb,)

        def forms(which: str) -> tuple[str, ...]:
            return tuple(pair[NUMBERS.index(which)] for pair in verbs)

        return Item(
            clean=clean.text,
            right=forms(number),
            wrong=forms(_other(number)),
            corrupted=corrupted.text,
            corrupted_right=forms(turned),
            positions=clean.spans,
            corrupted_positions=corrupted.spans,
            labels={"number": number, "attractor": relation if attractors else "none", "subject": nouns[0],
                    "verb": verb[0].strip(), "corruption": corruption},
        )  # fmt: skip

    return recipe


def _other(number: str) -> str:
    return NUMBERS[1 - NUMBERS.index(number)]


def _worded(nouns: Sequence[str], links: Sequence[str], number: str, between: str) -> Worded:
    """Every noun of the list takes a plain -s."""
    parts = {"subject": nouns[0] + "s" * (number == "plural")}
    template = "The {subject}"
    for place, (noun, link) in enumerate(zip(nouns[1:], links, strict=True), start=1):
        parts |= {f"attractor_{place}": noun + "s" * (between == "plural"), f"_link{place}": link}
        template += f" {{_link{place}}} the {{attractor_{place}}}"
    return fill(template, parts)
