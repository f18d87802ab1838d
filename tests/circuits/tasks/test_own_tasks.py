"""Tasks from tables: every kind of file and row, and every bad row with its number and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from circuits.tasks import Task
from circuits.tasks.own import read_task
from interp.errors import BadInput

ROWS: list[dict[str, Any]] = [
    {"clean": "Ann saw Bo, so", "corrupted": "Ann saw Cy, so", "right": " Bo", "wrong": " Cy| Di", "who": "Ann",
     "span": "8:10", "kind": "x"},
    {"clean": 'Di said "hi" to', "corrupted": 'Bo said "hi" to', "right": " Ed", "wrong": " Ann", "who": "Di",
     "span": "0:2", "kind": "y"},
]  # fmt: skip
OPTIONS: dict[str, Any] = {"positions": {"WHO": "who", "place": "span"}, "labels": ["kind"]}


def checked(task: Task) -> None:
    """The two rows, from wherever they came."""
    first, second = task
    assert (first.clean, first.corrupted, first.right, first.wrong) == (
        "Ann saw Bo, so", "Ann saw Cy, so", (" Bo",), (" Cy", " Di")
    )  # fmt: skip
    assert first.marked("WHO") == first.marked("WHO", "corrupted") == "Ann" and first.marked("place") == "Bo"
    assert first.marked("END") == "o" and task.labels("kind") == ["x", "y"]
    assert second.marked("WHO") == "Di" and "WHO" not in second.corrupted_positions
    assert second.clean == 'Di said "hi" to'


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "frame", "rows", "iterator"])
def test_every_kind_of_table_gives_the_same_items(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"mine.{kind}"
    source: Any = file
    if kind in ("csv", "tsv"):
        pd.DataFrame(ROWS).to_csv(file, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "jsonl":
        file.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n")
    elif kind == "json":
        file.write_text(json.dumps(ROWS))
    else:
        source = {"frame": pd.DataFrame(ROWS), "rows": ROWS, "iterator": iter(ROWS)}[kind]
    task = read_task(source, **OPTIONS)
    checked(task)
    if kind in ("csv", "tsv", "jsonl", "json"):
        assert task.name == file.name
    assert Task.open(task.save(tmp_path / "saved.jsonl")) == task


def test_a_dataset_of_the_datasets_library() -> None:
    datasets = pytest.importorskip("datasets")
    checked(read_task(datasets.Dataset.from_list(ROWS), **OPTIONS))


def test_lists_and_numbers_may_stand_in_cells() -> None:
    row = {"prompt": "Two and two is", "yes": ["four", "4"], "no": '[" five", " six"]', "at": [8, 11]}
    task = read_task([row], clean="prompt", right="yes", wrong="no", positions=["at"], name="sums")
    assert task[0].right == ("four", "4") and task[0].wrong == (" five", " six") and task[0].marked("at") == "two"
    assert read_task([{"clean": "a", "right": " b|c"}], separator="")[0].right == (" b|c",)
    other = read_task(
        [{"clean": "a b", "right": " c", "corrupted": "b a", "x": "a"}], positions=["x"], corrupted_positions={"x": "x"}
    )
    assert other[0].marked("x", "corrupted") == "a" and other[0].corrupted_positions["x"] == (2, 3)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"clean": ""}, "column 'clean' is empty"),
    ({"clean": 7}, r"column 'clean' holds 7 \(int\)"),
    ({"right": None}, "a right answer is needed"),
    ({"right": 7}, "column 'right' holds 7"),
    ({"right": " Bo| Bo", "wrong": " Bo"}, "right and wrong at once"),
    ({"right": " Bo|"}, "as they continue the prompt"),
    ({"who": "Zed"}, "'Zed' stands 0 times"),
    ({"clean": "Ann and Ann saw Bo, so"}, "'Ann' stands 2 times"),
    ({"span": "8:99"}, "outside the clean prompt, which has 14 characters"),
    ({"span": None}, "column 'span' holds None"),
    ({"corrupted": 3.5}, "column 'corrupted' holds 3.5"),
]


@pytest.mark.parametrize(("change", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_bad_rows_are_refused_with_number_and_reason(change: dict[str, Any], reason: str) -> None:
    rows = [ROWS[1], {**ROWS[0], **change}, ROWS[0]]
    with pytest.raises(BadInput, match=f"1 of 3 rows[\\s\\S]*row 1: .*{reason}"):
        read_task(rows, **OPTIONS)
    task = read_task(rows, **OPTIONS, bad="skip")
    assert len(task) == 2 and [row for row, _ in task.refused] == [1]


def test_many_bad_rows_are_counted_and_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"12 of 13 rows[\s\S]*row 8: [\s\S]*and 4 more"):
        read_task([ROWS[0], *[{**ROWS[0], "clean": ""} for _ in range(12)]])
    with pytest.raises(BadInput, match="2 of 2 rows"):
        read_task([{"clean": "", "right": " a"}] * 2, bad="skip")
    file = tmp_path / "gaps.jsonl"
    file.write_text('{"clean": "a", "right": " b"}\n\n{"clean": "", "right": " b"}\n')
    with pytest.raises(BadInput, match="row 3: column 'clean' is empty"):
        read_task(file)


def test_columns_that_are_not_there_are_named_with_near_matches() -> None:
    with pytest.raises(BadInput, match="Did you mean 'clean'"):
        read_task(ROWS, clean="cleen")
    with pytest.raises(BadInput, match="Unknown column of the list 'answer'"):
        read_task(ROWS, right="answer")
    with pytest.raises(BadInput, match="'kinds'"):
        read_task(ROWS, labels=["kinds"])
    with pytest.raises(BadInput, match="bad='drop'"):
        read_task(ROWS, bad="drop")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "clean,right\nx, y,z\n", "row 1 has more cells"),
        ("a.csv", "clean,right\n", "has no rows"),
        ("a.jsonl", "{", "row 1 is not JSON"),
        ("a.jsonl", "[1]", "row 1 is a list"),
        ("a.json", '{"clean": 1}', "no list of objects"),
        ("a.parquet", "", r"expected \.csv"),
    ],
)
def test_files_that_are_no_tables_are_refused(name: str, content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=reason):
        read_task(tmp_path / name)


def test_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file"):
        read_task(tmp_path / "none.csv")
    for source in (7, ["text"], [("a", "b")]):
        with pytest.raises(BadInput, match="expected a path, a data frame"):
            read_task(source)
    with pytest.raises(BadInput, match="has no rows"):
        read_task([])
