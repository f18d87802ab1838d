"""Items and tasks as values: what is refused, what is noted where, and files that hold them."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from circuits.tasks import FAMILIES, Item, Task, make_task
from circuits.tasks.draw import Draw
from circuits.tasks.wording import fill, spaced
from interp.errors import BadInput, UnknownName


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"right": ()}, "no right answer"),
        ({"right": (" a",), "wrong": (" a",)}, "right and wrong at once"),
        ({"right": ("",)}, "not empty"),
        ({"clean": "", "right": (" a",)}, "empty"),
        ({"corrupted": (1, 2), "right": (" a",)}, "types"),
        ({"right": (" a",), "positions": {"x": (0, 9)}}, "outside 0 to 4"),
        ({"right": (" a",), "positions": {"x": (2, 2)}}, "outside 0 to 4"),
        ({"right": (" a",), "corrupted_positions": {"x": (0, 1)}}, "no such prompt"),
    ],
)
def test_an_item_that_cannot_be_is_refused(told: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        Item(**{"clean": "text", **told})  # pyright: ignore[reportArgumentType]


def test_a_position_that_is_not_there_is_named_with_those_that_are() -> None:
    item = Item("ab cd", (" e",), positions={"first": (0, 2)})
    assert item.marked("first") == "ab"
    with pytest.raises(BadInput, match="known there: first"):
        item.marked("second")
    with pytest.raises(BadInput, match="corrupted prompt"):
        item.marked("first", "corrupted")


def test_items_and_tasks_do_not_change_and_can_be_pickled() -> None:
    task = make_task("ioi", n=3)
    with pytest.raises(TypeError):
        task[0].positions["IO"] = (0, 1)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(TypeError):
        task[0].labels["order"] = "?"  # pyright: ignore[reportIndexIssue]
    assert pickle.loads(pickle.dumps(task)) == task
    assert len({task[0], task[1], task[0]}) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_task_opens_as_it_was(name: str, tmp_path: Path) -> None:
    task = make_task(name, n=5, seed=3)
    assert Task.open(task.save(tmp_path / "deep" / "task.jsonl")) == task


def test_a_saved_task_may_hold_separators_of_lines_in_its_texts(tmp_path: Path) -> None:
    task = Task("odd", (Item("a\u2028b\x85c\nd", (" e",)),))
    assert Task.open(task.save(tmp_path / "odd.jsonl")) == task


def test_files_that_are_no_tasks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"clean": "a", "right": " b"}\n')
    with pytest.raises(BadInput, match="read_task"):
        Task.open(file)
    make_task("pronoun", n=2).save(file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], json.dumps({"clean": "a", "right": []})]))
    with pytest.raises(BadInput, match="line 3: An item cannot be: there is no right answer"):
        Task.open(file)
    file.write_text("\n".join([*lines[:2], "{"]))
    with pytest.raises(BadInput, match="line 3 is not JSON"):
        Task.open(file)
    file.write_text("\n".join([*lines[:2], json.dumps({"right": [" b"]})]))
    with pytest.raises(BadInput, match="line 3"):
        Task.open(file)


def test_names_options_and_numbers_are_checked_with_near_matches() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'greater-than'"):
        make_task("greater_than")
    with pytest.raises(UnknownName, match="Did you mean 'corruption'"):
        make_task("ioi", coruption="abc")
    with pytest.raises(UnknownName, match="Did you mean 'abc-s1'"):
        make_task("ioi", corruption="abc-1")
    for n in (0, -1, 2.0, True):
        with pytest.raises(BadInput, match="n="):
            make_task("ioi", n=n)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="seed="):
        make_task("ioi", seed="1")  # pyright: ignore[reportArgumentType]


def test_more_items_than_there_are_is_said_with_the_number_that_was_made() -> None:
    assert len(make_task("mental-math", n=20, operands=(1, 4))) == 20
    with pytest.raises(BadInput, match=r"after \d+ items"):
        make_task("mental-math", n=100, operands=(1, 4))


def test_tables_labels_and_choices() -> None:
    task = make_task("ioi", n=12, seed=0)
    table = task.table()
    assert list(table["item"]) == list(range(12)) and list(table["order"]) == task.labels("order")
    assert table["clean"][3] == task[3].clean and table["right"][3] == list(task[3].right)
    assert task.counts("order") == dict(Counter(item.labels["order"] for item in task))
    assert len(task.select(lambda item: item.labels["order"] == "ABBA")) == 6
    assert task.select([5, -1]).items == (task[5], task[11]) and task.select(slice(2, 4)).items == task.items[2:4]
    assert {"IO", "S1", "S2", "END"} <= set(task.positions())
    for wrong in ([12], [], lambda item: False):
        with pytest.raises(BadInput, match="select"):
            task.select(wrong)
    with pytest.raises(BadInput, match="Did you mean 'template'"):
        task.labels("templte")


def test_templates_note_where_parts_stand() -> None:
    worded = fill("{a} and {b:second} and {_c}", {"a": "one", "b": "two", "_c": "three"})
    assert {name: worded.text[a:b] for name, (a, b) in worded.spans.items()} == {
        "a": "one",
        "second": "two",
        "END": "e",
    }
    with pytest.raises(BadInput, match="twice"):
        fill("{a} {a}", {"a": "x"})


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "induction-random"])
def test_spacing_keeps_words_and_marks(name: str) -> None:
    task = make_task(name, n=8)
    for before, after in zip(task, task.spaced(), strict=True):
        assert isinstance(after.clean, str) and isinstance(before.clean, str)
        assert after.clean.split() == fill(after.clean, {}).text.split()
        assert after.clean.replace(" ", "") == before.clean.replace(" ", "")
        for place in before.positions:
            marked, old = after.marked(place), before.marked(place)
            assert isinstance(marked, str) and isinstance(old, str)
            assert marked.replace(" ", "") == old.replace(" ", "")


def test_spacing_ids_is_refused_and_marks_stand_alone() -> None:
    with pytest.raises(BadInput, match="token ids"):
        make_task("induction-random", n=1).spaced()
    assert spaced("a, b. (c)", {}).text == "a , b . ( c )"
    assert spaced("What?\nA:", {"END": (7, 8)}).text == "What ?\nA :"


def test_draws_are_balanced_in_every_block_and_independent_of_the_number_of_items() -> None:
    options = ("x", "y", "z")
    chosen = [Draw("t", 5, index).balanced(options, "what") for index in range(30)]
    assert all(set(chosen[start : start + 3]) == set(options) for start in range(0, 30, 3))
    assert len({tuple(chosen[start : start + 3]) for start in range(0, 30, 3)}) > 1
    assert chosen != [Draw("t", 6, index).balanced(options, "what") for index in range(30)]
    assert chosen != [Draw("t", 5, index).balanced(options, "other") for index in range(30)]
    assert Draw("t", 5, 1).balanced(options, "what") == Draw("t", 5, 1, attempt=9).balanced(options, "what")
