"""The map of all heads: what it packs, what it refuses, and that it answers to filters and clicks in a browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import opened, steady_box

from interp.errors import BadInput
from interp.show import Explorer, Figure, MapScore, Page, Section, label_map, render, write
from interp.show.explorer import typed

MARKUP = "<img src=x onerror=alert(1)>"
EXISTS = np.array([[True, True, True], [True, True, False]])
INDUCTION = np.array([[0.1, 0.2, 0.3], [0.9, 0.4, np.nan]])
SIGNED = np.array([[-1.0, 0.0, 0.5], [0.25, -0.5, np.nan]])
TOKENS = ["<bos>", " the", MARKUP, "\n"]


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    patterns = np.random.default_rng(0).dirichlet(np.ones(4), (2, 4))
    return Explorer(
        exists=EXISTS,
        scores=[
            MapScore(
                "induction",
                INDUCTION,
                INDUCTION - 0.05,
                INDUCTION + 0.05,
                INDUCTION * 0,
                INDUCTION * 0 + 0.35,
                f"What {MARKUP}",
                "1: all",
            ),
            MapScore("signed_one", SIGNED, signed=True),
        ],
        labels={"L1.H0": ["induction", "sink"], "L0.H1": [MARKUP]},
        stages={"induction": "latent reasoning", "sink": "outside", MARKUP: "in-context identification"},
        evidence={"L1.H0": ["induction: it stands out", f"sink: {MARKUP}"]},
        patterns=patterns,
        pattern_heads=["L0.H1", "L1.H0"],
        tokens=TOKENS,
        more={"L1.H0": [("sink profile", "0: 0.5, 1: 0.25")]},
    )


@pytest.fixture(scope="module")
def path(explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = Page("Atlas", "Which?", "Some.", sections=[Section("Heads", "", [Figure(explorer, "The map.", "A map.")])])
    return write(page, tmp_path_factory.mktemp("explorer") / "report.html")


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"]).reshape(packed["shape"])


# ---- what is packed -------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_they_went_in(explorer: Explorer) -> None:
    data = explorer.data()
    np.testing.assert_array_equal(unpacked(data["scores"][0]["values"]), INDUCTION.astype(np.float32))
    assert data["scores"][1]["low"] is None and data["scores"][1]["nullHigh"] is None
    assert explorer.patterns is not None
    np.testing.assert_allclose(unpacked(data["patterns"]) / 65535, explorer.patterns, atol=1e-5)
    assert unpacked(typed(np.array([[1.5, -2.0]], dtype=">f4"))).tolist() == [[1.5, -2.0]]
    assert json.loads(json.dumps(data)) == data


def test_long_prompts_are_cut_and_the_page_says_so() -> None:
    many = Explorer(np.ones((1, 1), bool), [MapScore("s", np.zeros((1, 1)))], patterns=np.zeros((1, 70, 70)),
                    pattern_heads=["L0.H0"], tokens=["x"] * 70)  # fmt: skip
    data = many.data()
    assert data["patterns"]["shape"] == [1, 64, 64] and len(data["tokens"]) == 64 and data["cut"]


def test_the_largest_page_is_smaller_than_8_mb(tmp_path: Path) -> None:
    heads = [f"L{layer}.H{head}" for layer in range(24) for head in range(16)]
    values = np.random.default_rng(0).random((24, 16))
    scores = [
        MapScore(f"score {n}", values, values, values, values, values, "What it is.", "1: all") for n in range(80)
    ]
    patterns = np.random.default_rng(1).random((64, 64, 64))
    more = {head: [("profile", "0: 0.123, " * 12)] * 20 for head in heads}
    large = Explorer(
        np.ones((24, 16), bool), scores, patterns=patterns, pattern_heads=heads[:64], tokens=["token"] * 64, more=more
    )
    page = Page("Atlas", "Which?", "Some.", sections=[Section("Heads", "", [Figure(large)])])
    assert write(page, tmp_path / "report.html").stat().st_size < 8e6


def test_nothing_of_a_model_becomes_markup(path: Path) -> None:
    content = path.read_text()
    assert MARKUP not in content and content.count("plotly.js v") <= 1
    assert not re.findall(r'(?:src|href)="(?!data:)', re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL))


def test_a_page_without_a_map_holds_none_of_it() -> None:
    assert "explorer" not in render(Page("t", "q", "a", sections=[Section("s", "text")]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": []}, "no scores"),
        ({"scores": [MapScore("s", np.zeros((1, 3)))]}, "'s' came as"),
        ({"scores": [MapScore("s", INDUCTION, null_high=np.zeros((3, 3)))]}, "null_high of 's'"),
        ({"pattern_heads": ["L0.H0"] * 65}, "at most 64"),
        ({"patterns": np.zeros((2, 3, 4)), "pattern_heads": ["a", "b"], "tokens": ["x"] * 3}, "patterns came as"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Explorer(**{"exists": EXISTS, "scores": [MapScore("s", INDUCTION)], **change})


def test_the_map_of_labels_has_a_colour_for_every_stage_and_refuses_no_heads() -> None:
    cells = {"L0.H0": (0, 0), "L0.H1": (0, 1), "L1.H0": (1, 0)}
    figure = label_map(cells, {"L1.H0": ["induction", "sink"], "L0.H1": [MARKUP]}, {"induction": "b", MARKUP: "a"})
    assert figure.data[0].text[1][0] == "induction<br>sink" and MARKUP not in figure.to_json()
    assert [trace.name for trace in figure.data[1:]] == ["b", "a"] and np.isnan(figure.data[0].z[1][1])
    with pytest.raises(BadInput, match="no heads"):
        label_map({}, {}, {})


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view(path: Path) -> Iterator[Any]:
    with opened(path, "dark") as page:
        yield page


def heading(view: Any) -> str:
    return view.locator(".explorer h3").text_content()


def shown(view: Any) -> list[list[Any]]:
    """The numbers that colour the map now."""
    return view.evaluate("document.querySelector('.explorer-map').data[1].z")


def click(view: Any, layer: int, head: int) -> None:
    """Point at a cell as a person does: wait until the map stands still and says what is there, then press."""
    from playwright.sync_api import TimeoutError as Missed

    view.locator(".explorer-map").scroll_into_view_if_needed()
    for _ in range(8):  # a redraw forgets where the mouse is until it moves again
        box = steady_box(view, ".explorer-map .nsewdrag")
        x, y = box["x"] + (head + 0.5) * box["width"] / 3, box["y"] + (layer + 0.5) * box["height"] / 2
        view.mouse.move(x - 2, y - 2)
        view.mouse.move(x, y, steps=3)
        try:
            view.locator(".explorer-map .hovertext", has_text=f"L{layer}.H{head}").wait_for(timeout=4000)
        except Missed:
            continue
        view.mouse.click(x, y)
        return
    raise AssertionError(f"the map never said what is at L{layer}.H{head}")


def test_the_first_labelled_head_is_shown_and_a_click_shows_another(view: Any) -> None:
    assert heading(view) == f"L0.H1: {MARKUP}"
    click(view, 1, 0)
    view.locator(".explorer h3", has_text="L1.H0").wait_for()
    assert heading(view) == "L1.H0: induction, sink" and view.url.endswith("#L1.H0")
    assert view.locator(".explorer-evidence li").all_text_contents() == ["induction: it stands out", f"sink: {MARKUP}"]
    rows = [row.locator("td").all_text_contents() for row in view.locator(".explorer-table tbody tr").all()]
    assert rows == [
        ["induction", "0.900", "0.850 to 0.950", "0.000 to 0.350 *"],
        ["signed one", "0.250", "", ""],
        ["sink profile", "0: 0.5, 1: 0.25"],
    ]
    data = view.evaluate("document.querySelector('.explorer-pattern').data[0].z")
    expected = np.random.default_rng(0).dirichlet(np.ones(4), (2, 4))[1]
    np.testing.assert_allclose(data, expected, atol=1e-5)


def test_a_head_without_a_pattern_says_so(view: Any) -> None:
    click(view, 0, 2)
    view.locator(".explorer h3", has_text="L0.H2").wait_for()
    assert heading(view) == "L0.H2: no label"
    assert "is not kept in this page, which holds those of 2 heads" in view.locator(".explorer-missing").text_content()
    assert view.locator(".explorer-pattern .nsewdrag").count() == 0


def test_filters_leave_the_heads_that_pass(view: Any) -> None:
    form = view.locator(".explorer form")
    np.testing.assert_allclose(shown(view)[0], INDUCTION[0], rtol=1e-6)
    form.locator("[name=label]").select_option("sink")
    assert [[value is not None for value in row] for row in shown(view)] == [[False] * 3, [True, False, False]]
    assert view.locator(".explorer-count").text_content().startswith("1 of 5 heads")
    form.locator("[name=label]").select_option("no label")
    assert [[value is not None for value in row] for row in shown(view)] == [[True, False, True], [False, True, False]]
    form.locator("[name=first]").fill("1")
    assert [[value is not None for value in row] for row in shown(view)] == [[False] * 3, [False, True, False]]
    form.locator("[name=first]").fill("0")
    form.locator("[name=label]").select_option("any")
    form.locator("[name=least]").fill("0.3")
    assert [[value is not None for value in row] for row in shown(view)] == [[False, False, True], [True, True, False]]
    form.locator("[name=beyond]").check()
    assert [[value is not None for value in row] for row in shown(view)] == [[False] * 3, [True, True, False]]
    form.locator("[name=least]").fill("")
    form.locator("[name=beyond]").uncheck()
    form.locator("[name=score]").select_option("signed_one")
    np.testing.assert_allclose(shown(view)[0], SIGNED[0])
    assert view.evaluate("document.querySelector('.explorer-map').layout.coloraxis.cmin") == -1
    assert not view.locator(".explorer-null").is_visible()
    form.locator("[name=score]").select_option("induction")


def test_the_address_chooses_a_head_and_so_does_the_menu(view: Any) -> None:
    view.evaluate("window.location.hash = '#L1.H1'")
    view.locator(".explorer h3", has_text="L1.H1").wait_for()
    view.locator(".explorer [name=head]").select_option("L0.H0")
    view.locator(".explorer h3", has_text="L0.H0").wait_for()
    assert view.url.endswith("#L0.H0")


def test_pointing_at_a_head_names_it(view: Any) -> None:
    box = view.locator(".explorer-map .nsewdrag").first.bounding_box()
    x, y = box["x"] + box["width"] / 6, box["y"] + 3 * box["height"] / 4
    view.mouse.move(x - 3, y - 3)
    view.mouse.move(x, y, steps=3)
    label = view.locator(".explorer-map .hoverlayer .hovertext")
    label.wait_for(timeout=10_000)
    words = label.text_content()
    assert "L1.H0" in words and "induction 0.900" in words and "null 0.000 to 0.350" in words
