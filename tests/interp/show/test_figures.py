"""Figures hold exactly the numbers they were given, and text from outside stays text."""

from __future__ import annotations

import base64
import html
import json
from typing import Any

import numpy as np
import plotly.io
import pytest

from interp.errors import BadInput
from interp.numerals import numeral
from interp.show import (
    Line,
    Mark,
    Panel,
    attention_pattern,
    bar_chart,
    curve_panels,
    emergence,
    grid_heatmap,
    head_heatmap,
    inline_heatmap,
    token_strip,
)
from interp.show.theme import DARK, LIGHT, colour_at, template
from interp.show.tokens import visible

MARKUP = '<script>alert("x")</script>'


def decoded(spec: dict[str, Any]) -> np.ndarray:
    """The array that the page will see, from the typed base64 in the figure's JSON."""
    array = np.frombuffer(base64.b64decode(spec["bdata"]), dtype=spec["dtype"])
    return array.reshape([int(size) for size in spec.get("shape", str(array.size)).split(",")])


def parts(figure: Any) -> dict[str, Any]:
    return json.loads(figure.to_json())


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (12, 12), (48, 64)])
def test_a_heatmap_holds_the_values_as_typed_arrays(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(shape).astype("float32")
    spec = parts(head_heatmap(values, name="induction"))
    np.testing.assert_array_equal(decoded(spec["data"][0]["z"]), values)
    for axis, count in (("xaxis", shape[1]), ("yaxis", shape[0])):
        ticks = spec["layout"][axis]["tickvals"]
        assert ticks == sorted(set(ticks)) and set(ticks) <= set(range(count)) and len(ticks) <= 16
        assert [str(tick) for tick in ticks] == spec["layout"][axis]["ticktext"]


def test_the_hover_label_names_head_value_and_interval() -> None:
    values = np.array([[0.5, np.nan], [0.25, -0.125]])
    figure = head_heatmap(values, low=values - 0.1, high=values + 0.1, name="a < b", prefix="vision.")
    text = figure.data[0].text  # pyright: ignore[reportAttributeAccessIssue]
    assert text[1][1] == "<b>vision.L1.H1</b><br>a &lt; b −0.125<br>95 % interval [−0.225, −0.025]"
    assert text[0][1] == ""
    assert figure.data[0].hoverongaps is False  # pyright: ignore[reportAttributeAccessIssue]


def test_the_colour_scale_is_centred_for_signed_values_only() -> None:
    def ends(values: list[list[float]], **settings: Any) -> tuple[float, float]:
        axis = head_heatmap(np.array(values), **settings).layout["coloraxis"]
        return axis.cmin, axis.cmax

    assert ends([[0.5, -2.0]]) == (-2.0, 2.0)
    assert ends([[0.5, 0.1]]) == (0.0, 0.5)
    assert ends([[0.5, 0.1]], signed=True) == (-0.5, 0.5)
    assert ends([[0.5, -0.1]], signed=False) == (-0.1, 0.5)
    assert ends([[0.0, 0.0]]) == (0.0, 1.0)
    assert ends([[np.nan]]) == (0.0, 1.0)
    assert ends([[3.0]], limits=(0, 1)) == (0, 1)


def test_both_appearances_have_a_diverging_scale_with_its_middle_at_zero() -> None:
    for theme in (LIGHT, DARK):
        places = template(theme).layout.colorscale.diverging  # pyright: ignore[reportAttributeAccessIssue]
        assert places[len(places) // 2][0] == 0.5
        assert len(theme.diverging) % 2 == 1


def test_colours_are_mixed_in_between() -> None:
    assert colour_at(("#000000", "#102030", "#ffffff"), 0.25) == "#081018"
    assert colour_at(("#000000", "#ffffff"), 7) == "#ffffff"


def test_a_heatmap_of_another_shape_is_refused() -> None:
    with pytest.raises(BadInput, match=r"expected an array \[layer, head\]"):
        head_heatmap(np.ones((2, 2, 2)))


def test_a_grid_names_its_rows_and_columns() -> None:
    spec = parts(grid_heatmap(np.eye(2), rows=["L0.H1", MARKUP], columns=["a", "b"], name="effect"))
    assert spec["layout"]["yaxis"]["ticktext"] == ["L0.H1", html.escape(MARKUP)]
    assert spec["data"][0]["text"][1][0] == f"<b>{html.escape(MARKUP)}, a</b><br>effect 0.000"


@pytest.mark.parametrize("layout", ["grid", "menu"])
def test_patterns_are_kept_and_tokens_escaped(layout: Any) -> None:
    tokens = [" the", MARKUP, "\n", "<b>"]
    patterns = np.random.default_rng(0).dirichlet(np.ones(4), (3, 4)).astype("float32")
    spec = parts(attention_pattern(patterns, tokens, ["L0.H1", "L1.H0", "<i>"], layout=layout))
    for trace, pattern in zip(spec["data"], patterns, strict=True):
        np.testing.assert_array_equal(decoded(trace["z"]), pattern)
    axes = [axis for name, axis in spec["layout"].items() if name.startswith(("xaxis", "yaxis"))]
    assert axes and all(axis["ticktext"] == ["·the", html.escape(MARKUP), "↵", "&lt;b&gt;"] for axis in axes)
    assert "<i>" not in json.dumps(spec)
    assert spec["layout"]["coloraxis"]["cmax"] == pytest.approx(patterns.max())


def test_the_menu_shows_one_head_at_a_time() -> None:
    figure = attention_pattern(np.tile(np.eye(3), (8, 1, 1)), ["a", "b", "c"], [f"L0.H{i}" for i in range(8)])
    spec = parts(figure)
    assert [trace["visible"] for trace in spec["data"]] == [True] + [False] * 7
    for place, button in enumerate(spec["layout"]["updatemenus"][0]["buttons"]):
        shown, title = button["args"]
        assert shown["visible"] == [other == place for other in range(8)]
        assert title == {"title.text": f"attention, L0.H{place}"}


def test_long_prompts_are_cut_and_it_is_said() -> None:
    pattern = np.full((1, 90, 90), 1 / 90)
    figure = attention_pattern(pattern, ["x"] * 90, ["L0.H0"])
    assert figure.data[0].z.shape == (64, 64)  # pyright: ignore[reportAttributeAccessIssue]
    assert figure.layout["title"].text == "attention (first 64 of 90 tokens)"


def test_patterns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="65 heads were given, at most 64"):
        attention_pattern(np.ones((65, 1, 1)), ["a"], ["h"] * 65)
    with pytest.raises(BadInput, match=r"came as \[1, 2, 2\].*= \[1, 3, 3\]"):
        attention_pattern(np.ones((1, 2, 2)), ["a", "b", "c"], ["L0.H0"])


def test_bars_hold_values_intervals_and_draws() -> None:
    draws = np.array([0.1, -0.2, 0.05])
    spec = parts(
        bar_chart(["top", "random"], [-2.0, 0.1], low=[-2.5, np.nan], high=[-1.0, np.nan], points={"random": draws})
    )
    bars, dots = spec["data"]
    np.testing.assert_array_equal(decoded(bars["x"]), [-2.0, 0.1])
    np.testing.assert_array_equal(decoded(bars["error_x"]["array"]), [1.0, 0.0])
    np.testing.assert_array_equal(decoded(bars["error_x"]["arrayminus"]), [0.5, 0.0])
    np.testing.assert_array_equal(decoded(dots["x"]), draws)
    assert (np.abs(decoded(dots["y"]) - 1) < 0.31).all()
    assert bars["text"] == [
        "<b>top</b><br>value −2.000<br>95 % interval [−2.500, −1.000]",
        "<b>random</b><br>value 0.100",
    ]


def test_bars_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="2 labels, but values"):
        bar_chart(["a", "b"], [1.0])
    with pytest.raises(BadInput, match="stands twice"):
        bar_chart(["a", "a"], [1.0, 2.0])
    with pytest.raises(BadInput, match=r"points for \['c'\]"):
        bar_chart(["a"], [1.0], points={"c": [1.0]})


def test_curves_hold_their_lines_bands_and_marks() -> None:
    x, y = np.array([1.0, 10.0, 100.0]), np.array([3.0, 2.0, 1.0])
    figure = curve_panels(x, [Panel("loss", [Line("all", y, y - 1, y + 1)])], marks=[Mark(10, "<bump>")], log_x=True)
    spec = parts(figure)
    band, curve = spec["data"]
    np.testing.assert_array_equal(decoded(curve["x"]), x)
    np.testing.assert_array_equal(decoded(curve["y"]), y)
    np.testing.assert_array_equal(decoded(band["y"]), [4, 3, 2, 0, 1, 2])
    np.testing.assert_array_equal(decoded(band["x"]), [1, 10, 100, 100, 10, 1])
    assert spec["layout"]["shapes"][0]["x0"] == 10
    label = spec["layout"]["annotations"][0]
    assert (label["x"], label["text"]) == (1.0, "&lt;bump&gt;")
    with pytest.raises(BadInput, match="give one per x"):
        curve_panels(x, [Panel("loss", [Line("all", y[:2])])])


def test_emergence_has_a_panel_of_losses_and_one_of_scores() -> None:
    spec = parts(emergence([0, 1], {"second half": [6.0, 1.0]}, {"L1.H0": [0.0, 0.9], "L0.H1": [0.1, 0.8]}))
    assert [trace["yaxis"] for trace in spec["data"]] == ["y", "y2", "y2"]
    assert len({trace["line"]["color"] for trace in spec["data"]}) == 3


def test_tokens_become_visible_text() -> None:
    assert [visible(token) for token in ("", "  ", " a ", "a b", "\t\n")] == ["∅", "··", "·a·", "a b", "⇥↵"]
    assert visible("\u202eabc") == "⟨202E⟩abc" and visible("\x00a\x1b\x7f") == "␀a␛␡"  # nothing turns, nothing hides
    assert visible("عالم\u200d") == "عالم\u200d"  # letters and joiners stay
    strip = token_strip([MARKUP, "b", "c"], [1.0, -0.5, np.nan], name='"n"')
    assert (
        MARKUP not in strip
        and html.escape(MARKUP, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in strip
    )
    assert "rgba(74, 127, 224, 0.550)" in strip and "rgba(216, 112, 63, 0.275)" in strip and "transparent" in strip
    with pytest.raises(BadInput, match="2 tokens but values of shape"):
        token_strip(["a", "b"], [1.0])


def test_the_inline_heatmap_draws_each_head_once() -> None:
    drawing = inline_heatmap(np.array([[0.0, 1.0], [np.nan, 0.5]]), name="a & b")
    assert drawing.count("<rect") == 3
    assert f'fill="{LIGHT.sequential[0]}"><title>L0.H0  a &amp; b 0.000' in drawing
    assert f'fill="{LIGHT.sequential[-1]}"><title>L0.H1' in drawing
    assert f'fill="{LIGHT.sequential[2]}"><title>L1.H1' in drawing


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (-0.0001, "−1.00e−4"),
        (0.9999, "1.000"),
        (-12, "−12"),
        (1234567, "1\u202f234\u202f567"),
        (12345.6, "12\u202f345.6"),
        (2.5e7, "2.50e7"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
        (None, "–"),
        (True, "True"),
        ("L1.H0", "L1.H0"),
        (np.float32(0.25), "0.250"),
        (np.int64(3), "3"),
    ],
)
def test_numbers_as_text(value: object, text: str) -> None:
    assert numeral(value) == text


def test_no_global_plotting_default_is_touched() -> None:
    before = plotly.io.templates.default
    head_heatmap(np.ones((2, 2)))
    assert plotly.io.templates.default == before == "plotly"
