"""Tasks in the command: the list, the card with an item, and nothing heavy loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import circuits
from circuits.cli import app
from circuits.task_card import task_card
from circuits.tasks import FAMILIES, TASKS, make_task


def printed(*asked: str) -> str:
    """Standard output of the command."""
    result = CliRunner().invoke(app, list(asked))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_has_every_task_with_its_corruptions() -> None:
    listed = {entry["name"]: entry for entry in json.loads(printed("list", "tasks", "--json"))}
    assert listed.keys() == TASKS.keys()
    for name, family in FAMILIES.items():
        assert listed[name]["corruptions"] == ", ".join(family.corruptions) and listed[name]["line"] == family.summary


@pytest.mark.parametrize("name", TASKS)
def test_the_card_of_a_task_shows_an_item_and_every_option(name: str) -> None:
    card = json.loads(printed("show", name, "--kind", "task", "--json"))
    assert card == json.loads(json.dumps(task_card(name)))
    if name in FAMILIES:
        item = make_task(name, n=1, seed=0)[0]
        assert json.loads(card["clean"]) == (item.clean if isinstance(item.clean, str) else list(item.clean))
        assert json.loads(card["right"].partition(", ")[0].partition(" and ")[0]) == item.right[0]
        assert set(FAMILIES[name].options) <= set(card["options"])
    else:
        assert set(card) == {"kind", "name", "line"}


def test_prompts_are_printed_as_they_are() -> None:
    shown = printed("show", "docstring", "--kind", "task")
    item = make_task("docstring", n=1, seed=0)[0]
    assert json.dumps(item.clean) in shown and json.dumps(item.corrupted) in shown


def test_showing_a_task_loads_nothing_heavy() -> None:
    program = (
        "import sys\nsys.argv = ['circuits', 'show', 'ioi', '--kind', 'task']\nfrom circuits.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'transformers', 'pandas', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "name",
    ["make_task", "encode_task", "task_ability", "read_task", "known_words", "Task", "Item", "TaskBatch", "Ability"],
)
def test_public_names_resolve(name: str) -> None:
    assert getattr(circuits, name).__doc__ and name in circuits.__all__
