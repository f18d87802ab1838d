"""What the command says of a task: the facts beside its line, and its whole card with an item; made without torch."""

from __future__ import annotations

import json
from typing import Any

from circuits.tasks import FAMILIES, TASKS, Item, make_task


def task_facts(name: str) -> dict[str, str]:
    """What a task that makes items measures, its answers and its corruptions; nothing for other prompts."""
    if name not in FAMILIES:
        return {}
    family = FAMILIES[name]
    return {"measures": family.measures, "answer": family.answer, "corruptions": ", ".join(family.corruptions)}


def task_card(name: str) -> dict[str, Any]:
    """Everything that is known of a task, as plain values, with the first item that seed 0 gives."""
    if name not in FAMILIES:
        return {"kind": "task", "name": name, "line": TASKS[name]}
    family = FAMILIES[name]
    corruptions = "; ".join(f"{value}: {meaning}" for value, meaning in family.corruptions.items())
    return {
        "kind": "task",
        "name": name,
        "line": family.summary,
        "measures": family.measures,
        "answer": family.answer,
        **example_of(make_task(name, n=1, seed=0)[0]),
        "positions": "; ".join(f"{place}: {meaning}" for place, meaning in family.positions.items()),
        "source": family.source,
        "use": f'circuits.make_task("{name}", n=100, seed=0)',
        "options": {
            **({"corruption": corruptions} if len(family.corruptions) > 1 else {}),
            **family.options,
        },
    }


def example_of(item: Item) -> dict[str, str]:
    """An item's prompts and answers as they are written in JSON, so that spaces and line breaks are seen."""
    told = {"clean": item.clean, "corrupted": item.corrupted, "baseline": item.baseline}
    made = {side: json.dumps(text, ensure_ascii=False) for side, text in told.items() if text is not None}
    return made | {"right": _some(item.right), "wrong": _some(item.wrong)}


def _some(answers: tuple[Any, ...], shown: int = 4) -> str:
    more = f" and {len(answers) - shown} more" if len(answers) > shown else ""
    return ", ".join(json.dumps(answer, ensure_ascii=False) for answer in answers[:shown]) + more
