"""Arithmetic: two operands with an operation, and mental math A+B+C (Mamidanna et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.tasks.choices import one_of, whole_number, whole_range
from circuits.tasks.draw import Draw
from circuits.tasks.item import Item
from circuits.tasks.wording import Worded, fill
from interp.errors import BadInput

FORMS = {
    "spaced": ("{A} {op:op_1} {B} {equals}", "{A} {op:op_1} {B} {op:op_2} {C} {equals}", " "),
    "tight": ("{A}{op:op_1}{B}{equals}", "{A}{op:op_1}{B}{op:op_2}{C}{equals}", ""),
    "question": ("Q: What is {A} {op:op_1} {B}?\nA:", "Q: What is {A} {op:op_1} {B} {op:op_2} {C}?\nA:", " "),
}
OPERATIONS = ("+", "-", "*")
CORRUPTIONS = ("operand", "all")
LETTERS = ("A", "B", "C")


def arithmetic(
    *,
    corruption: str = "operand",
    operation: str = "+",
    operands: tuple[int, int] = (1, 99),
    form: str = "spaced",
    shots: int = 0,
) -> Callable[[Draw], Item]:
    """The recipe of an item with two operands; the result is never below 0 and never one of the operands.

    Args:
        corruption: ``"operand"``: one of them becomes another number (which one is balanced); ``"all"``: each does.
        operation: ``"+"``, ``"-"``, ``"*"`` or ``"mixed"``.
        operands: smallest and largest.
        form: ``"spaced"`` (``12 + 5 =``), ``"tight"`` (``12+5=``, the answer without a space) or ``"question"``.
        shots: solved examples before, in the same form and with the same operation.
    """
    one_of(operation, (*OPERATIONS, "mixed"), "operation")
    return _recipe(2, corruption, (operation,), operands, form, shots)


def mental_math(
    *, corruption: str = "operand", operands: tuple[int, int] = (1, 9), form: str = "spaced", shots: int = 0
) -> Callable[[Draw], Item]:
    """The recipe of an item A + B + C, whose sum is none of the operands.

    Args:
        corruption: as for two operands.
        operands: smallest and largest; larger ones can be several tokens, which the tokenizer check then says.
        form: as for two operands.
        shots: as for two operands.
    """
    return _recipe(3, corruption, ("+",), operands, form, shots)


def arithmetic_prompt(operands: Sequence[int], *, operation: str = "+", form: str = "spaced") -> Worded:
    """The prompt of two or three operands with the spans ``A``, ``B``, ``C``, the signs and ``END``.

    Example:
        >>> worded = arithmetic_prompt((3, 4, 5))
        >>> worded.text, worded.spans["C"]
        ('3 + 4 + 5 =', (8, 9))
    """
    one_of(form, FORMS, "form")
    one_of(operation, OPERATIONS, "operation")
    if len(operands) not in (2, 3):
        raise BadInput(f"{len(operands)} operands; expected 2 or 3.")
    parts = {letter: str(number) for letter, number in zip(LETTERS, operands, strict=False)}
    return fill(FORMS[form][len(operands) - 2], parts | {"op": operation, "equals": "="})


def result_of(operands: Sequence[int], operation: str = "+") -> int:
    """What comes out, from left to right."""
    total = operands[0]
    for number in operands[1:]:
        total = {"+": total + number, "-": total - number, "*": total * number}[operation]
    return total


def _recipe(
    count: int, corruption: str, operations: Sequence[str], operands: tuple[int, int], form: str, shots: int
) -> Callable[[Draw], Item]:
    one_of(corruption, CORRUPTIONS, "corruption")
    one_of(form, FORMS, "form")
    low, high = whole_range(operands, 0, 10**6, "operands")
    whole_number(shots, 0, 20, "shots")
    if high - low < 3:  # noqa: PLR2004 - fewer leave no other number
        raise BadInput(f"operands={operands!r}: expected at least four different numbers to choose from.")
    lead = FORMS[form][2]

    def numbers(
        draw: Draw, operation: str, *, keep: dict[int, int] | None = None, result: int | None = None
    ) -> list[int]:
        """Operands with a result that none of them is; those in ``keep`` stay, and the result is not ``result``."""
        for _ in range(2000):
            made = [(keep or {}).get(place, draw.whole(low, high)) for place in range(count)]
            total = result_of(made, operation)
            if total >= 0 and total not in made and total != result:
                return made
        raise BadInput(f"operands={operands!r}: no sums for operation {operation!r} whose result is no operand.")

    def recipe(draw: Draw) -> Item:
        operation = draw.balanced(OPERATIONS, "operation") if operations[0] == "mixed" else operations[0]
        solved = [numbers(draw, operation) for _ in range(shots)]
        before = "".join(
            f"{arithmetic_prompt(one, operation=operation, form=form).text}{lead}{result_of(one, operation)}\n"
            for one in solved
        )
        clean = numbers(draw, operation)
        total = result_of(clean, operation)
        changed = draw.balanced(range(count), "changed")
        kept = {place: clean[place] for place in range(count) if place != changed} if corruption == "operand" else {}
        other = numbers(draw, operation, keep=kept, result=total)
        sides = [arithmetic_prompt(one, operation=operation, form=form) for one in (clean, other)]
        spans = [{name: (a + len(before), b + len(before)) for name, (a, b) in side.spans.items()} for side in sides]
        against = result_of(other, operation)
        return Item(
            clean=before + sides[0].text,
            right=(f"{lead}{total}",),
            wrong=(f"{lead}{against}",),
            corrupted=before + sides[1].text,
            corrupted_right=(f"{lead}{against}",),
            positions=spans[0],
            corrupted_positions=spans[1],
            labels={**{letter: number for letter, number in zip(LETTERS, clean, strict=False)}, "result": total,
                    "operation": operation, "form": form, "corruption": corruption,
                    "changed": LETTERS[changed] if corruption == "operand" else "all"},
        )  # fmt: skip

    return recipe
