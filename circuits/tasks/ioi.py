"""Indirect object identification: of two people named, one gives something to the other (Wang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import Worded, article, fill
from circuits.tasks.words import NAMES, PLACES, THINGS
from interp.errors import BadInput

# {X} and {Y} are the two people in the order they are first named, {S} the one who acts, {_a} is a or an
TEMPLATES = (
    "On Monday {X} and {Y} met at the {place}. There {S} showed the {thing} to",
    "Once {X} and {Y} had reached the {place}, {S} handed the {thing} to",
    "While {X} and {Y} were waiting at the {place}, {S} passed {_a} {thing} to",
    "Last summer {X} and {Y} worked near the {place}, and {S} sold {_a} {thing} to",
    "At the {place}, {X} and {Y} talked for an hour before {S} offered {_a} {thing} to",
    "Because {X} and {Y} had come to the {place} early, {S} brought {_a} {thing} to",
    "In the evening {X} and {Y} walked past the {place}; later {S} sent {_a} {thing} to",
    "Nobody saw {X} and {Y} behind the {place}, where {S} returned the {thing} to",
    "The day {X} and {Y} visited the {place} was cold, so {S} lent {_a} {thing} to",
    "After dinner {X} and {Y} drove to the {place}. On the way {S} threw the {thing} to",
    "Yesterday {X} and {Y} found the {place} empty, and then {S} gave the {thing} to",
    "As soon as {X} and {Y} left the {place}, {S} mailed {_a} {thing} to",
    "Although {X} and {Y} were late for the {place}, {S} still wanted to give the {thing} to",
    "It was noon when {X} and {Y} sat down at the {place}, and {S} pushed the {thing} over to",
    "Two friends, {X} and {Y}, stood outside the {place} until {S} gave {_a} {thing} to",
)
ORDERS = ("BABA", "ABBA")
CORRUPTIONS = ("abc", "abc-s1", "abc-s2", "flip", "swap", "order", "random")


def ioi(
    *,
    order: str = "mixed",
    corruption: str = "abc",
    names: Sequence[str] | None = None,
    places: Sequence[str] | None = None,
    things: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> Callable[[Draw], Item]:
    """The recipe of an item: ``IO`` is the answer, ``S1`` and ``S2`` are the two mentions of the other person.

    Args:
        order: ``"BABA"`` names the subject first, ``"ABBA"`` the indirect object; ``"mixed"`` is half and half.
        corruption: see ``CORRUPTIONS``.
        names, places, things: words instead of ours.
        templates: texts with ``{X}``, ``{Y}`` and ``{S}`` once each, in this order, instead of ours.
    """
    one_of(order, (*ORDERS, "mixed"), "order")
    one_of(corruption, CORRUPTIONS, "corruption")
    people = word_list(names, NAMES, 5, "names")
    where = word_list(places, PLACES, 1, "places")
    what = word_list(things, THINGS, 1, "things")
    forms = tuple(_checked(template) for template in (TEMPLATES if templates is None else templates))
    if not forms:
        raise BadInput("templates: none were given; leave it out for ours, or give at least one.")

    def recipe(draw: Draw) -> Item:
        number = draw.balanced(range(len(forms)), "template")
        form = forms[number]
        own_order = draw.balanced(ORDERS, "order") if order == "mixed" else order
        giver, other, *new = draw.sample(people, 5)
        place, thing = draw.choice(where), draw.choice(what)
        first = (giver, other) if own_order == "BABA" else (other, giver)

        def told(x: str, y: str, s: str) -> Worded:
            return _worded(form, own_order, x, y, s, place, thing)

        clean = told(*first, giver)
        corrupted, answer = _corrupted(corruption, told, first, giver, other, new)
        baseline = told(*new)
        return Item(
            clean=clean.text,
            right=(" " + other,),
            wrong=(" " + giver,),
            corrupted=corrupted.text,
            corrupted_right=None if answer is None else (" " + answer,),
            baseline=baseline.text,
            positions=clean.spans,
            corrupted_positions=corrupted.spans,
            baseline_positions=baseline.spans,
            labels={"template": number, "order": own_order, "IO": other, "S": giver, "pair": f"{other}/{giver}",
                    "place": place, "thing": thing, "corruption": corruption},
        )  # fmt: skip

    return recipe


def _corrupted(
    corruption: str, told: Callable[[str, str, str], Worded], first: tuple[str, str], giver: str, other: str,
    new: Sequence[str],
) -> tuple[Worded, str | None]:  # fmt: skip
    """The corrupted text, and the answer to it, ``None`` where nobody is named twice."""
    if corruption == "flip":
        return told(*first, other), giver
    if corruption == "swap":
        return told(first[1], first[0], other), giver
    if corruption == "order":
        return told(first[1], first[0], giver), other
    if corruption == "random":
        renamed = {giver: new[0], other: new[1]}
        return told(renamed[first[0]], renamed[first[1]], new[0]), new[1]
    if corruption == "abc-s1":
        x, y = (new[0] if name == giver else name for name in first)
        return told(x, y, giver), None
    if corruption == "abc-s2":
        return told(*first, new[0]), None
    return told(new[0], new[1], new[2]), None


def _worded(form: str, order: str, x: str, y: str, s: str, place: str, thing: str) -> Worded:
    first, second = ("S1", "IO") if order == "BABA" else ("IO", "S1")
    noted = form.replace("{X}", f"{{X:{first}}}").replace("{Y}", f"{{Y:{second}}}").replace("{S}", "{S:S2}")
    worded = fill(noted, {"X": x, "Y": y, "S": s, "place": place, "thing": thing, "_a": article(thing)})
    spans = dict(worded.spans)
    spans["S1+1"] = _word_after(worded.text, spans["S1"][1])
    return Worded(worded.text, spans)


def _word_after(text: str, place: int) -> tuple[int, int]:
    """The span of what follows: punctuation that touches, or the next word."""
    start = place + (text[place] == " ")
    stop = start + 1
    while stop < len(text) and text[start].isalnum() and text[stop].isalnum():
        stop += 1
    return start, stop


def _checked(template: str) -> str:
    slots = ("{X}", "{Y}", "{S}")
    if any(template.count(slot) != 1 for slot in slots) or sorted(slots, key=template.index) != list(slots):
        raise BadInput(f"Template {template!r}: expected {{X}}, {{Y}} and {{S}} once each and in this order.")
    return template
