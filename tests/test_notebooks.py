"""Every notebook runs from top to bottom, is stored without outputs, and can be pointed at another model."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LONGEST_DEF = 5


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / name, as_version=4)


def code_cells(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def faults(book: nbformat.NotebookNode) -> list[str]:
    """What is wrong with a notebook as it is stored."""
    cells = code_cells(book)
    found = []
    first = ast.parse(cells[0].source).body
    if not (len(first) == 1 and isinstance(first[0], ast.Assign) and ast.unparse(first[0].targets[0]) == "MODEL"):
        found.append("the first code cell is not `MODEL = ...` alone")
    if any(cell.outputs or cell.execution_count is not None for cell in cells):
        found.append("stored with outputs")
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ClassDef):
                found.append(f"defines the class {node.name}")
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_DEF:
                found.append(f"{node.name} is longer than {LONGEST_DEF} lines")
    return found


def test_there_are_notebooks_and_they_are_numbered() -> None:
    numbers = [int(name.split("-")[0]) for name in NAMES]
    assert numbers and sorted(set(numbers)) == list(range(1, max(numbers) + 1))  # two tours may share a number


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_clean(name: str) -> None:
    nbformat.validate(notebook(name))
    assert faults(notebook(name)) == []


def test_each_fault_is_found() -> None:
    long = "def f():\n" + "    x = 1\n" * LONGEST_DEF
    cells = [nbformat.v4.new_code_cell(source) for source in ("import interp", long, "class A: pass")]
    cells[0].outputs = [nbformat.v4.new_output("stream", text="1")]
    assert len(faults(nbformat.v4.new_notebook(cells=cells))) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel")
    from nbclient import NotebookClient

    root = str(FOLDER.parent)
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("PYTHONWARNINGS", "error:::interp,error:::circuits,error:::probes")
    book = notebook(name)
    NotebookClient(book, timeout=240, kernel_name="python3", resources={"metadata": {"path": root}}).execute()
    shown = [output for cell in code_cells(book) for output in cell.outputs]
    rich = [output for output in shown if "text/html" in output.get("data", {})]
    assert len(rich) >= 2, "results show themselves as tables and heatmaps"
    assert not [output for output in shown if output.output_type == "error"]
