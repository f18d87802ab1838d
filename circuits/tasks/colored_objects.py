"""Colored Objects: three coloured things lie somewhere, the colour of one is asked for (Merullo et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, whole_number, word_list
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import article, fill
from circuits.tasks.words import COLORS

SURFACES = ("table", "desk", "floor")
OBJECTS = (
    "pencil", "notebook", "pen", "cup", "plate", "jug", "mug", "puzzle", "textbook", "leash", "necklace", "bracelet",
    "bottle", "ball", "envelope", "lighter", "bowl",
)  # fmt: skip
PHRASES = ("there is", "you see", "I see")
CORRUPTIONS = ("queried-object", "colors")
PER_SHOT = 3
_SCENE = (
    "Q: On the {surface}, {phrase} {a1} {color_1} {object_1}, {a2} {color_2} {object_2}, and {a3} {color_3} {object_3}."
    " What color is the {queried}?\nA:"
)


def colored_objects(
    *,
    corruption: str = "queried-object",
    shots: int = 1,
    wrong: str = "counterfactual",
    objects: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    surfaces: Sequence[str] | None = None,
) -> Callable[[Draw], Item]:
    """The recipe of an item: shots with their answers, then a question; no two scenes share an object or a colour.

    Args:
        corruption: ``"queried-object"``: the same text but for the object asked for; ``"colors"``: the same question
            with the colours of two objects exchanged.
        shots: answered questions before the one that is asked.
        wrong: ``"counterfactual"``: the answer to the corrupted prompt; ``"present"``: both other colours of the scene.
        objects, colors, surfaces: words instead of the published ones.
    """
    one_of(corruption, CORRUPTIONS, "corruption")
    one_of(wrong, ("counterfactual", "present"), "wrong")
    whole_number(shots, 0, 20, "shots")
    needed = PER_SHOT * (shots + 1)
    things = word_list(objects, OBJECTS, needed, "objects")
    hues = word_list(colors, COLORS, needed, "colors")
    where = word_list(surfaces, SURFACES, 1, "surfaces")
    for words, option in ((things, "objects"), (hues, "colors")):
        word_list(words, (), needed, f"{option} for shots={shots}")

    def recipe(draw: Draw) -> Item:
        some, shades = draw.sample(things, needed), draw.sample(hues, needed)
        asked = draw.balanced(range(PER_SHOT), "queried")
        other = (asked + draw.balanced((1, 2), "other")) % PER_SHOT
        before, spans = "", {}
        for shot in range(shots):
            part = slice(PER_SHOT * shot, PER_SHOT * (shot + 1))
            index = draw.balanced(range(PER_SHOT), f"queried in shot {shot}")
            text, _ = _scene(draw, where, some[part], shades[part], index)
            before += f"{text} {shades[part][index].capitalize()}\n"
        last = slice(PER_SHOT * shots, needed)
        named, tones = some[last], shades[last]
        state = draw.random.getstate()
        text, spans = _scene(draw, where, named, tones, asked, len(before))
        draw.random.setstate(state)
        changed = list(tones)
        if corruption == "colors":
            changed[asked], changed[other] = tones[other], tones[asked]
        counterfactual, placed = _scene(
            draw, where, named, changed, other if corruption == "queried-object" else asked, len(before)
        )
        right, against = (" " + tones[place].capitalize() for place in (asked, other))
        third = PER_SHOT - asked - other
        return Item(
            clean=before + text,
            right=(right,),
            wrong=(against,) if wrong == "counterfactual" else (against, " " + tones[third].capitalize()),
            corrupted=before + counterfactual,
            corrupted_right=(against,),
            positions=_roles(spans, asked, other, third),
            corrupted_positions=_roles(placed, asked, other, third),
            labels={"queried": asked + 1, "other": other + 1, "object": named[asked], "color": tones[asked],
                    "objects": named, "colors": tones, "shot_objects": some[: last.start],
                    "shot_colors": shades[: last.start], "corruption": corruption},
        )  # fmt: skip

    return recipe


def _scene(
    draw: Draw, surfaces: Sequence[str], objects: Sequence[str], colors: Sequence[str], asked: int, offset: int = 0
) -> tuple[str, dict[str, tuple[int, int]]]:
    parts = {"surface": draw.choice(surfaces), "phrase": draw.choice(PHRASES), "queried": objects[asked]}
    for number, (thing, color) in enumerate(zip(objects, colors, strict=True), start=1):
        parts |= {f"a{number}": article(color), f"color_{number}": color, f"object_{number}": thing}
    worded = fill(_SCENE, parts)
    spans = {name: (a + offset, b + offset) for name, (a, b) in worded.spans.items()}
    return worded.text, {name: span for name, span in spans.items() if name not in ("a1", "a2", "a3", "phrase")}


def _roles(spans: dict[str, tuple[int, int]], asked: int, other: int, third: int) -> dict[str, tuple[int, int]]:
    """With the colours named by what they are to the clean question as well."""
    roles = {"right_color": asked, "wrong_color_1": other, "wrong_color_2": third, "right_object": asked}
    return spans | {name: spans[f"{name.split('_')[1]}_{place + 1}"] for name, place in roles.items()}
