"""What the README says is so: its Python runs, its folders exist, its commands are targets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Code blocks of one language, in order; "" for blocks that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [code for named, code in fenced if named == language]


def test_the_five_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) <= 5
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size" in capsys.readouterr().out


def test_the_tree_is_the_repository() -> None:
    tree = next(block for block in blocks("") if "interp/" in block)
    top = set(re.findall(r"^(\w[\w.]*)/", tree, flags=re.MULTILINE))
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    assert top == folders - {"build", "dist", "runs"}
    rooms = set(re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE))
    real = {path.name for path in (ROOT / "interp").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == real


def test_its_commands_are_make_targets() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for command in re.findall(r"`?make ([\w-]+)`?", README):
        assert command in targets, command
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_its_links_and_pictures_exist() -> None:
    for target in re.findall(r"!?\[[^\]]*\]\(([^)]+)\)", README):
        if not target.startswith(("http", "#")):
            assert (ROOT / target).exists(), target


def test_the_speed_table_is_the_one_that_was_measured() -> None:
    measured = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
    quoted = README.split("<!-- speed table -->")[1].split("<!-- /speed table -->")[0]
    rows = [line for line in measured.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    assert [line for line in quoted.splitlines() if line.startswith("| ")] == rows
    machine = next(line for line in measured.splitlines() if line.startswith("Machine: "))
    assert machine in quoted
