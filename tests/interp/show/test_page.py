"""The report page: whole, offline, escaped, small enough, and alive in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import chromium, hover_cell, opened
from markupsafe import Markup

from interp.errors import BadInput
from interp.show import (
    Figure,
    KeyFigure,
    Page,
    Section,
    attention_pattern,
    bar_chart,
    emergence,
    head_heatmap,
    render,
    token_strip,
    write,
)

MARKUP = "<script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    numbers = np.random.default_rng(0).random((12, 12))
    numbers[11, 11] = np.nan
    return numbers


@pytest.fixture(scope="module")
def page(values: np.ndarray) -> Page:
    tokens = ["<bos>", " the", MARKUP, " river", " the", MARKUP, " river"]
    patterns = np.random.default_rng(1).dirichlet(np.ones(7), (8, 7)).astype("float32")
    heads = [f"L{layer}.H{layer + 1}" for layer in range(8)]
    table = pd.DataFrame({"head": heads, "value": np.linspace(-1, 1, 8), "token": [MARKUP] * 8})
    figures = [
        Figure(head_heatmap(values, low=values - 0.1, high=values + 0.1, name="induction"), "Scores.", "Twelve layers"),
        Figure(attention_pattern(patterns, tokens, heads), f"Patterns of {MARKUP}"),
        Figure(token_strip(tokens, np.arange(7.0), name="loss"), "Loss."),
    ]
    more = [
        Figure(bar_chart(["top heads", "random heads"], [-2.0, 0.1], low=[-3, 0], high=[-1, 0.2])),
        Figure(emergence([0, 1, 2], {"loss": [3.0, 2.0, 1.0]}, {"L1.H0": [0.0, 0.5, 0.9]})),
    ]
    sections = [
        Section("Scores", f"First.\n\nSecond {MARKUP}.", figures, table, "The table."),
        Section("Effects", "", more),
    ]
    return Page(
        f"Induction {MARKUP}",
        "Which heads?",
        "Two heads.",
        "With a doubt.",
        [KeyFigure("score", 0.93128, "0.9 to 1"), KeyFigure("prompts", 64)],
        sections,
        {"model": {"name": MARKUP, "layers": 12}, "kernels": ["sdpa", "eager"], "seed": 0},
    )


@pytest.fixture(scope="module")
def path(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(page, tmp_path_factory.mktemp("page") / "report.html")


def test_the_page_is_one_offline_file_of_bounded_size(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= 8e6
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    ours = re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:)', ours)
    assert "@import" not in ours and "url(" not in ours


def test_the_plotting_library_is_there_once_and_only_where_needed(page: Page) -> None:
    content = render(page)
    assert len(re.findall(r"plotly\.js v\d", content)) == 1
    assert content.count("<script>") == 2 and content.count('<script type="application/json"') == 5
    assert len(render(Page("t", "q", "a")).encode()) < 20_000


def test_text_from_outside_is_escaped_everywhere(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    assert MARKUP not in content
    assert "<script>document" not in content
    assert "&lt;script&gt;document.title=&#39;taken&#39;&lt;/script&gt;" in content


def test_every_part_of_the_page_is_there(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    for piece in (
        *("Which heads?", "Two heads.", "With a doubt.", ">0.931<", ">64<", "0.9 to 1"),
        *('aria-label="Twelve layers"', "<b>Figure 1.</b> Scores.", "<b>Figure 3.</b> Loss.", "The table."),
        *(">−0.714<", "model.layers", "sdpa, eager", 'download="table-1.csv"', '<p class="text">First.</p>'),
    ):
        assert piece in content, piece


def test_long_tables_are_cut_on_the_page_and_whole_in_the_download() -> None:
    table = pd.DataFrame({"head": [f"L{i}.H0" for i in range(100)]})
    content = render(Page("t", "q", "a", sections=[Section("s", table=table, max_rows=5)]))
    assert content.count("<td") == 5 and "The first 5 of 100 rows." in content
    assert "L99.H0" in content


def test_a_page_over_the_limit_is_refused_and_nothing_written(page: Page, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"takes \d\.\d MB; the limit is 4 MB"):
        write(page, tmp_path / "report.html", limit_mb=4)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_pattern_figure_still_fits(tmp_path: Path) -> None:
    patterns = np.random.default_rng(0).dirichlet(np.ones(64), (64, 64)).astype("float32")
    figure = attention_pattern(patterns, [f"token {i}" for i in range(64)], [f"L{i}.H0" for i in range(64)])
    heat = [Figure(head_heatmap(np.random.default_rng(i).random((48, 64)))) for i in range(4)]
    assert write(Page("t", "q", "a", sections=[Section("s", figures=[Figure(figure), *heat])]), tmp_path / "r.html")


def test_a_figure_of_plain_text_is_refused() -> None:
    with pytest.raises(BadInput, match="plain text; pass a plotly figure, or Markup"):
        render(Page("t", "q", "a", sections=[Section("s", figures=[Figure("<p>x</p>")])]))  # pyright: ignore[reportArgumentType]
    assert "<p>x</p>" in render(Page("t", "q", "a", sections=[Section("s", figures=[Figure(Markup("<p>x</p>"))])]))


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser_path(path: Path) -> Path:
    chromium()
    return path


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_cell_tells_its_head_value_and_interval(browser_path: Path, values: np.ndarray, scheme: str) -> None:
    with opened(browser_path, scheme) as view:
        text = hover_cell(view, 0, 5, 7, (12, 12))
        value = values[5, 7]
        assert text == f"L5.H7induction {value:.3f}95 % interval [{value - 0.1:.3f}, {value + 0.1:.3f}]"
        ground = view.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        ink = view.evaluate("getComputedStyle(document.querySelector('.gtitle')).fill")
        bright, dim = (ground, ink) if scheme == "light" else (ink, ground)
        assert brightness(bright) > 200 and brightness(dim) < 60


def brightness(colour: str) -> float:
    return float(np.mean([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]))


@pytest.mark.browser
def test_the_page_follows_a_change_of_appearance(browser_path: Path) -> None:
    with opened(browser_path) as view:
        ink = "getComputedStyle(document.querySelector('.gtitle')).fill"
        before = brightness(view.evaluate(ink))
        view.emulate_media(color_scheme="dark")
        view.wait_for_timeout(500)
        assert before < 100 and brightness(view.evaluate(ink)) > 200
        view.emulate_media(color_scheme="dark", media="print")
        view.wait_for_timeout(500)
        assert brightness(view.evaluate(ink)) < 100


@pytest.mark.browser
def test_tokens_with_markup_are_shown_as_text(browser_path: Path) -> None:
    with opened(browser_path) as view:
        assert view.title() == f"Induction {MARKUP}"
        assert MARKUP in view.locator("h1").text_content()
        assert MARKUP in view.locator(".tokens").text_content()
        words = hover_cell(view, 1, 2, 5, (7, 7))
        shown = MARKUP[:27] + "…"
        assert f"query {shown}" in words and f"key {shown}" in words
        assert view.evaluate("document.title") == f"Induction {MARKUP}"


@pytest.mark.browser
def test_the_menu_changes_the_head(browser_path: Path) -> None:
    with opened(browser_path) as view:
        menu = view.locator("select")
        assert menu.locator("option").all_text_contents() == [f"L{layer}.H{layer + 1}" for layer in range(8)]
        menu.select_option(label="L3.H4")
        view.wait_for_timeout(300)
        assert hover_cell(view, 1, 1, 1, (7, 7)).startswith("L3.H4")
        assert view.locator(".plot").nth(1).locator(".gtitle").text_content() == "attention, L3.H4"


@pytest.mark.browser
def test_a_narrow_page_has_nothing_outside_it(browser_path: Path) -> None:
    with opened(browser_path, width=360) as view:
        assert view.evaluate("document.documentElement.scrollWidth") <= 360
        widths = view.evaluate("[...document.querySelectorAll('.main-svg')].map(e => e.getBoundingClientRect().right)")
        assert widths and max(widths) <= 360


@pytest.mark.browser
def test_the_request_check_can_fail(path: Path, tmp_path: Path) -> None:
    chromium()
    calling = tmp_path / "calling.html"
    calling.write_text('<html data-drawn="0"><img src="http://127.0.0.1:9/x.png"></html>', encoding="utf-8")
    with pytest.raises(AssertionError, match=r"127\.0\.0\.1"), opened(calling):
        pass
