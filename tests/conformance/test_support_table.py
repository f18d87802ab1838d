"""The README's support table is the measured one, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import TINY

from .support_table import COLUMNS, FIRST, LAST, README, between_markers, support_table, write


@pytest.fixture(scope="module")
def measured() -> str:
    return support_table()


def test_the_readme_holds_exactly_the_measured_table(measured: str) -> None:
    command = "PYTHONPATH=tests python -m conformance.support_table --write"
    assert between_markers(README.read_text(encoding="utf-8")) == measured, f"the table is out of date; run {command}"


def test_every_family_has_a_line(measured: str) -> None:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in measured.splitlines()]
    assert {len(line) for line in lines} == {len(COLUMNS)} and tuple(lines[0]) == COLUMNS
    named = {line[0].split(" (")[0] for line in lines[2:]}
    assert named == {name.partition("-")[0] for name in TINY}


def test_the_table_says_what_is_known(measured: str) -> None:
    """A few lines that are known by other means, so that a table of yes alone would not pass."""
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in measured.splitlines()
    }
    assert lines["llama"] == ["`text`", "yes", "yes", "yes", "yes", "left, right", "yes"]
    assert lines["bloom"][2] == "no" and lines["bloom"][3] == "yes" and lines["bloom"][4] == "no"
    assert lines["bert"][5] == "right" and lines["bert"][6] == "none"
    assert "`vision` no" in lines["qwen2_vl"][2] and lines["qwen2_vl"][1] == "yes"
    assert lines["t5"][0] == "`decoder`, `encoder`, `cross`"


def test_writing_touches_the_table_alone(tmp_path: Path, measured: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{FIRST}\nold\n{LAST}\nafter\n", encoding="utf-8")
    write(readme)
    assert readme.read_text(encoding="utf-8") == f"before\n{FIRST}\n{measured}\n{LAST}\nafter\n"
    with pytest.raises(ValueError, match="support table"):
        between_markers("no markers here")
