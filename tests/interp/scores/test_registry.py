"""The registry of scores is data, and the data tell the truth about the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import interp.scores
from interp.scores import SCORES, kinds
from interp.scores.planning import function_of

FAMILIES = sorted((Path(interp.scores.__file__).parent / "catalogue").glob("[a-z]*.py"))


def test_listing_needs_no_torch() -> None:
    code = "import sys; from interp.scores import SCORES; print([str(s) for s in SCORES.values()], *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in loaded and "numpy" not in loaded


@pytest.mark.parametrize("name", SCORES)
def test_an_entry_is_complete(name: str) -> None:
    entry = SCORES[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert entry.range[0] < entry.range[1]
    assert "\n" not in entry.summary and entry.direction and entry.counts
    assert re.search(r"\b(19|20)\d\d\b", entry.source), "paper and year"
    assert entry.needs in get_args(kinds.Needs) and entry.cost in get_args(kinds.Cost)
    assert entry.where in get_args(kinds.Where) and entry.shape in get_args(kinds.Shape)
    assert entry.sense in (-1, 0, 1)
    assert bool(entry.forwards) == (entry.needs not in ("pass", "weights")), "forwards of its own are said"
    if entry.prompts != "given":
        assert callable(function_of(entry.prompts))


@pytest.mark.parametrize("name", SCORES)
def test_the_options_are_those_of_the_function(name: str) -> None:
    function = function_of(SCORES[name].function)
    first, *options = inspect.signature(function).parameters.values()
    assert first.name == "ask"
    assert {option.name for option in options} == set(SCORES[name].options)
    assert all(option.default is not inspect.Parameter.empty or "required" in SCORES[name].options[option.name]
               for option in options)  # fmt: skip
    assert function.__doc__, "the formula and its source"


def test_no_name_stands_in_two_families() -> None:
    names = [
        name for file in FAMILIES for name in importlib.import_module(f"interp.scores.catalogue.{file.stem}").ENTRIES
    ]
    assert sorted(names) == sorted(set(names)) == sorted(SCORES)


@pytest.mark.parametrize("file", FAMILIES, ids=lambda file: file.stem)
def test_the_catalogue_is_data_alone(file: Path) -> None:
    imported = {
        node.module
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert imported <= {"__future__", "collections.abc", "types", "interp.scores.kinds", "math"}


def test_the_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        SCORES["mine"] = SCORES["induction"]  # type: ignore[index]
