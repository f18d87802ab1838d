"""The registry of scores is data, and the data tell the truth about the code."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import interp.scores
from interp.scores import SCORES

NO_HEAD_SCORES = {"__init__.py", "score.py", "prompts.py", "in_context.py"}  # the last is a score of the whole model


def test_listing_needs_no_torch() -> None:
    code = "import sys; from interp.scores import SCORES; print([str(s) for s in SCORES.values()], *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in loaded and "numpy" not in loaded


@pytest.mark.parametrize("name", SCORES)
def test_an_entry_is_complete(name: str) -> None:
    entry = SCORES[name]
    module, function = entry.function.split(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert entry.range[0] < entry.range[1]
    assert "\n" not in entry.summary and entry.direction
    assert re.search(r"\b(19|20)\d\d\b", entry.source), "paper and year"
    assert entry.needs in ("pattern", "own") and entry.cost in ("linear", "elementwise")


def test_every_file_of_the_folder_is_listed() -> None:
    listed = {f"{entry.function.split(':')[0].rsplit('.', 1)[1]}.py" for entry in SCORES.values()}
    there = {file.name for file in Path(interp.scores.__file__).parent.glob("*.py")}
    assert listed == there - NO_HEAD_SCORES


def test_the_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        SCORES["mine"] = SCORES["induction"]  # type: ignore[index]
