"""The arithmetic behind the benchmarks: intervals, rounds, lines and their files."""

from __future__ import annotations

import random
import statistics
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module("pairs")
    for name in ("pairs", "lines", "run_all"):
        sys.modules.pop(name, None)


@pytest.fixture
def lines(pairs: Any) -> Any:
    return import_module("lines")


@pytest.mark.parametrize(("n", "ends"), [(15, (4, 12)), (30, (10, 21)), (6, (1, 6)), (3, (1, 3)), (1, (1, 1))])
def test_the_interval_ends_at_the_tabulated_ranks(pairs: Any, n: int, ends: tuple[int, int]) -> None:
    values = [float(i) for i in range(1, n + 1)]
    random.Random(0).shuffle(values)
    found = pairs.median_interval(values)
    assert (found.low, found.high) == ends
    assert found.median == statistics.median(values)


def test_the_interval_covers_the_median_as_often_as_it_says(pairs: Any) -> None:
    draw = random.Random(1)
    intervals = [pairs.median_interval([draw.expovariate(1) for _ in range(15)]) for _ in range(4000)]
    covered = statistics.mean(i.low <= 0.6931 <= i.high for i in intervals)  # ln 2, the median of an exponential
    assert covered == pytest.approx(0.965, abs=0.012)


def test_rounds_are_interleaved_and_start_in_turn(pairs: Any) -> None:
    seen: list[str] = []
    actions = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = pairs.time_rounds(actions, rounds=4, warmups=0)
    assert "".join(seen) == "abbaabba"
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}


def test_what_an_action_is_given_is_made_for_each_round(pairs: Any) -> None:
    made: list[int] = []
    taken: list[int] = []

    def prepare() -> int:
        made.append(len(made))
        return made[-1]

    pairs.time_rounds({"a": taken.append}, rounds=3, warmups=1, prepare={"a": prepare})
    assert taken == made == [0, 1, 2, 3]


def test_a_ratio_is_of_the_pairs_not_of_the_medians(pairs: Any) -> None:
    times = {"a": [2.0, 40.0, 600.0], "b": [1.0, 10.0, 100.0]}
    assert pairs.ratio(times, "a", "b") == (4.0, 2.0, 6.0)


@pytest.mark.parametrize(
    ("sense", "bound", "holds"),
    [
        ("at most", 1.0, True),
        ("at most", 0.8, False),
        ("at least", 1.2, True),
        ("at least", 1.4, False),
        (None, None, None),
    ],
)
def test_a_line_holds_when_the_better_end_meets_it(lines: Any, sense: Any, bound: Any, holds: bool | None) -> None:
    assert lines.Line("claim", lines.Interval(1.1, 0.9, 1.3), "x", sense, bound).holds is holds


def test_results_are_read_back_and_gathered(lines: Any, tmp_path: Path) -> None:
    line = lines.Line("gating / plain", lines.Interval(1.01, 0.98, 1.04), "x", "at most", 1.05, "2.1 s")
    lines.write("gating", [line], {"threads": 2}, tmp_path)
    machine, found = lines.read(tmp_path / "gating.json")
    assert found == [line]
    assert machine["threads"] == 2
    page = import_module("run_all").gather(tmp_path)
    assert "| gating / plain | 1.01 | 0.98 to 1.04 | at most 1.05 | holds | 2.1 s |" in page
    assert "1 of 1 lines hold" in page
    assert f"torch {machine['torch']}" in page


def test_every_script_is_run(pairs: Any) -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text()} - {"run_all", "command"}
    assert set(import_module("run_all").SCRIPTS) == scripts
