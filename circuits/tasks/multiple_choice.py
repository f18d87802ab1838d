"""Multiple choice copying: a fact is told and asked for; the answer is the letter in front of the right choice."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, whole_number, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import article, fill
from circuits.tasks.words import COLORS, THINGS

SHADES = (*COLORS, "white", "gray", "pink", "silver")
CORRUPTIONS = ("fact", "order", "letters")


def multiple_choice(
    *,
    corruption: str = "fact",
    choices: int = 4,
    letters: str = "ABCD",
    things: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
) -> Callable[[Draw], Item]:
    """The recipe of an item: a thing has a colour, which stands behind one of the letters.

    Args:
        corruption: ``"fact"``: the thing has the colour of another choice; ``"order"``: two choices change places, so
            that the right one has another letter; ``"letters"``: each letter becomes another (the answer with it).
        choices: how many.
        letters: ``"ABCD"``: in the order of the alphabet; ``"random"``: different letters at random.
        things, colors: words instead of ours.
    """
    one_of(corruption, CORRUPTIONS, "corruption")
    one_of(letters, ("ABCD", "random"), "letters")
    whole_number(choices, 2, 10, "choices")
    objects = word_list(things, THINGS, 1, "things")
    shades = word_list(colors, SHADES, choices, "colors")
    template = "Fact: {_art} {thing} is {color}.\nQuestion: What color is the {thing:asked}?\n"
    template += "".join(f"{{letter_{n}}}. {{choice_{n}}}\n" for n in range(1, choices + 1)) + "Answer:"

    def recipe(draw: Draw) -> Item:
        thing, hues = draw.choice(objects), draw.sample(shades, choices)
        pool = string.ascii_uppercase
        marks = list(pool[:choices]) if letters == "ABCD" else draw.sample(pool, choices)
        place = draw.balanced(range(choices), "place")
        other = (place + 1 + draw.whole(0, choices - 2)) % choices
        said, order, signs = hues[place], list(hues), list(marks)
        if corruption == "fact":
            said = hues[other]
        elif corruption == "order":
            order[place], order[other] = order[other], order[place]
        else:
            signs = draw.sample(pool, choices, without=marks)

        def told(color: str, listed: Sequence[str], named: Sequence[str]) -> dict[str, str]:
            parts = {"_art": article(thing).capitalize(), "thing": thing, "color": color}
            for number in range(choices):
                parts |= {f"letter_{number + 1}": named[number], f"choice_{number + 1}": listed[number]}
            return parts

        clean, corrupted = fill(template, told(hues[place], hues, marks)), fill(template, told(said, order, signs))
        roles = {"right_letter": f"letter_{place + 1}", "right_choice": f"choice_{place + 1}"}
        answer = signs[place] if corruption == "letters" else marks[other]
        return Item(
            clean=clean.text,
            right=(" " + marks[place],),
            wrong=tuple(" " + marks[n] for n in (other, *(n for n in range(choices) if n not in (place, other)))),
            corrupted=corrupted.text,
            corrupted_right=(" " + answer,),
            positions={**clean.spans, **{role: clean.spans[slot] for role, slot in roles.items()}},
            corrupted_positions={**corrupted.spans, **{role: corrupted.spans[slot] for role, slot in roles.items()}},
            labels={"place": place + 1, "other": other + 1, "thing": thing, "color": hues[place],
                    "letter": marks[place], "corruption": corruption},
        )  # fmt: skip

    return recipe
