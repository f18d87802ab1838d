"""The report of a real run, opened in a browser: its cells tell the numbers of the table, and nothing goes wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from browser import chromium, hover_cell, opened

import circuits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"n_prompts": 16, "segment": 20, "batch_size": 8, "draws": 10, "shown": 2, "emergence": False}
    return circuits.run("induction", settings, out=tmp_path_factory.mktemp("page") / "run").folder


def value(folder: Path, quantity: str, layer: int, head: int) -> float:
    """One number of the table of heads that the run wrote."""
    written = next(folder.glob("heads.*"))
    table = pd.read_parquet(written) if written.suffix == ".parquet" else pd.read_csv(written)
    rows = table[(table["quantity"] == quantity) & (table["layer"] == layer) & (table["head"] == head)]
    return float(rows["value"].iloc[0])


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_cell_of_the_report_tells_the_number_of_the_table(folder: Path, scheme: str) -> None:
    chromium()
    report = folder / "report.html"
    assert report.stat().st_size <= 8e6
    with opened(report, scheme) as view:  # fails on any console error and on any request
        label = hover_cell(view, 0, 0, 0, (2, 4))
        assert view.locator("h1").text_content() is not None
    found = re.match(r"L0\.H0previous token (\d\.\d{3})", label)
    assert found, label
    assert float(found[1]) == pytest.approx(value(folder, "previous_token", 0, 0), abs=6e-4)
