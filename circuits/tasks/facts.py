"""One-hop facts: a relation and a subject, whose object is next; capitals of countries and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from circuits.tasks.choices import one_of, whole_number
from circuits.tasks.draw import Draw
from circuits.tasks.fact_lists import RELATIONS, Relation
from circuits.tasks.item import Item
from circuits.tasks.wording import fill
from interp.errors import BadInput

CORRUPTIONS = ("subject",)


def country_capital(*, shots: int = 0, pairs: Mapping[str, str] | None = None) -> Callable[[Draw], Item]:
    """The recipe of an item: a country, its capital, and as the wrong answer another country's.

    Args:
        shots: answered examples before, about other countries, in the same words.
        pairs: country -> capital instead of ours.
    """
    return facts(relation="capital", shots=shots, pairs=pairs)


def facts(
    *, relation: str = "mixed", corruption: str = "subject", shots: int = 0, pairs: Mapping[str, str] | None = None
) -> Callable[[Draw], Item]:
    """The recipe of an item: the corrupted prompt has another subject, whose object is the wrong answer.

    Args:
        relation: one of ``RELATIONS``, or ``"mixed"``.
        corruption: ``"subject"`` alone.
        shots: answered examples before, of the same relation, none with either object.
        pairs: subject -> object instead of ours, for one relation.
    """
    one_of(relation, (*RELATIONS, "mixed"), "relation")
    one_of(corruption, CORRUPTIONS, "corruption")
    whole_number(shots, 0, 10, "shots")
    tables = dict(RELATIONS)
    if pairs is not None:
        if relation == "mixed":
            raise BadInput("pairs= needs one relation, whose sentences are then used; give relation='capital', say.")
        tables[relation] = Relation(RELATIONS[relation].templates, tuple(pairs.items()))
    for name in (relation,) if relation != "mixed" else tables:
        kinds = len({right for _, right in tables[name].pairs})
        if kinds < 2 + (shots > 0):
            raise BadInput(f"relation {name!r}: {kinds} different objects; expected {2 + (shots > 0)} or more.")

    def recipe(draw: Draw) -> Item:
        kind = draw.balanced(tuple(tables), "relation") if relation == "mixed" else relation
        table = tables[kind]
        number = draw.whole(0, len(table.templates) - 1)
        template = table.templates[number]
        subject, right = draw.choice(table.pairs)
        other, against = draw.choice([pair for pair in table.pairs if pair[1] != right and pair[0] != right])
        told = [pair for pair in table.pairs if not {right, against} & set(pair) and pair[0] not in (subject, other)]
        examples = draw.sample(told, shots)
        before = "".join(f"{fill(template, {'subject': name}).text} {thing}.\n" for name, thing in examples)
        clean, corrupted = (fill(template, {"subject": name}) for name in (subject, other))
        spans = [
            {name: (a + len(before), b + len(before)) for name, (a, b) in worded.spans.items()}
            for worded in (clean, corrupted)
        ]
        return Item(
            clean=before + clean.text,
            right=(" " + right,),
            wrong=(" " + against,),
            corrupted=before + corrupted.text,
            corrupted_right=(" " + against,),
            positions=spans[0],
            corrupted_positions=spans[1],
            labels={"relation": kind, "template": f"{kind} {number}", "subject": subject, "object": right,
                    "corruption": corruption},
        )  # fmt: skip

    return recipe
