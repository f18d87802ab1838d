"""Views of traces: what is drawn equals the trace, text from outside stays text, and what does not fit is refused."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from PIL import Image
from scipy.stats import spearmanr

from interp.errors import BadAddress, BadInput
from interp.numerals import numeral
from interp.show import (
    Figure,
    Page,
    Section,
    agreement_bars,
    agreement_by_layer,
    compare_traces,
    image_overlay,
    layer_curves,
    mass_by_layer,
    patches_of,
    plot_trace,
    render,
    token_heatmap,
    trace_tokens,
    write,
)
from interp.show.theme import DARK, LIGHT
from interp.show.tokens import visible
from interp.show.trace_compare import rank_correlations
from interp.show.trace_pixels import outline, spread
from interp.stats import bootstrap_means
from interp.tracing.result import Trace

MARKUP = "<img src=x onerror=alert(1)>"
WORDS = ("<bos>", " Mary", MARKUP, "\n", " gave", "")


def made(method: str, seed: int, *, signed: bool = False, layers: bool = True, prompts: int = 3) -> Trace:
    """Two targets of six columns; the last prompt has a padded column at the left."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(4, prompts, 2, 6)) if signed else draw.dirichlet(np.ones(6), (4, prompts, 2))
    mask = np.ones((prompts, 6), dtype=bool)
    mask[-1, 0] = prompts == 1
    values = np.where(mask[None, :, None], values, np.nan)
    sources = tuple(tuple(w if kept else "" for w, kept in zip(WORDS, row, strict=True)) for row in mask)
    words = tuple((row[4], row[5]) for row in sources)
    targets = np.tile([4, 5], (prompts, 1))
    return Trace(method, values[-1], targets, mask, sources, words, "text", signed, values if layers else None)


def spans(markup: str, name: str) -> list[tuple[str, str, str]]:
    """(number, style, text) of each token in the block of one method."""
    before = re.escape(str(escape(name)))
    found = re.findall(rf'<span title="{before}, token \d+: ([^"]*)" style="([^"]*)">(.*?)</span>', markup)
    return [(number, style, html.unescape(text)) for number, style, text in found]


# ---- the text -------------------------------------------------------------------------------------------------------


def test_every_token_carries_its_number_its_strength_and_its_text() -> None:
    trace = made("rollout <i>", 0)
    drawn = spans(trace.plot(prompt=0, target=0).markup(), "rollout <i>")  # pyright: ignore[reportAttributeAccessIssue]
    row = trace.values[0, 0]
    assert [number for number, _, _ in drawn] == [numeral(float(v)) for v in row]
    assert [text for _, _, text in drawn] == [visible(word) for word in WORDS]
    strengths = [float(re.findall(r"rgba\(74, 127, 224,([\d.]+)\)", style)[0]) for _, style, _ in drawn]
    np.testing.assert_allclose(strengths, 0.6 * row / row.max(), atol=6e-4)
    assert ["outline" in style for _, style, _ in drawn] == [False] * 4 + [True, False]


def test_numbers_against_the_answer_are_told_apart_by_more_than_colour() -> None:
    numbers = np.array([2.0, -1.0, np.nan, 0.0, -0.5, 1.0])
    markup = token_heatmap(WORDS, {"g": numbers}).markup()
    drawn = spans(markup, "g")
    assert ["box-shadow" in style for _, style, _ in drawn] == [False, True, False, False, True, False]
    assert "rgba(216, 112, 63,0.300)" in drawn[1][1] and "background" not in drawn[2][1]
    assert drawn[2][0] == "–" and "−2.000" in markup and "</span>2.000</span>" in markup
    assert f"largest {escape('<bos>')} 2.000, ·Mary −1.000, ∅ 1.000" in markup


def test_padding_is_absent_and_methods_stand_below_each_other() -> None:
    traces = {"raw": made("raw", 1), "gradient": made("gradient", 2, signed=True)}
    drawn = trace_tokens(traces, prompt=2, target=-1)
    assert drawn.tokens == WORDS[1:] and list(drawn.rows) == ["raw", "gradient"] and drawn.marked == {4}
    for name, trace in traces.items():
        np.testing.assert_array_equal(drawn.rows[name], trace.values[2, 1, 1:])
    bottom, top = drawn.limits["gradient"]
    assert bottom == -top == -np.abs(drawn.rows["gradient"]).max() and drawn.limits["raw"][0] == 0
    layered = trace_tokens({"raw": traces["raw"]}, prompt=0, layer=1)
    assert traces["raw"].layers is not None
    np.testing.assert_array_equal(layered.rows["raw"], traces["raw"].layers[1, 0, 1])


def test_the_target_is_marked_where_its_token_is_a_source() -> None:
    trace = made("rollout", 18)
    both = dataclasses.replace(
        trace, stack="decoder", source_stacks=(("encoder", 1), ("decoder", 5)), targets=trace.targets - 2
    )
    drawn = trace_tokens({"r": both}, target=0)
    assert drawn.marked == {3} and drawn.parts == {0: "encoder", 1: "decoder"}
    assert trace_tokens({"r": both}, prompt=2, target=0).parts == {0: "decoder"}  # whose encoder holds padding alone
    assert re.findall(r"(<br>)?<i [^>]*>(\w+)</i>", drawn.markup()) == [("", "encoder"), ("<br>", "decoder")]
    assert trace_tokens({"r": dataclasses.replace(trace, stack="cross")}).marked == set()


def test_text_from_outside_stays_text_in_every_view() -> None:
    trace = made(MARKUP, 3)
    views = [trace_tokens({MARKUP: trace}).markup(), compare_traces([trace, made("b", 4)])._repr_html_()]
    views.append(image_overlay(np.zeros((4, 4)), {MARKUP: np.eye(2)}).markup())
    for view in (trace.plot("heatmap"), trace.plot("layers"), compare_traces([trace, made("b", 4)]).bars("b")):
        views.append(view.to_json())  # pyright: ignore[reportAttributeAccessIssue]
    for view in views:
        assert MARKUP not in view and "&lt;img" in view


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: token_heatmap(["a"], {}), "no numbers"),
        (lambda: token_heatmap(["a"], {"x": [1.0, 2.0]}), "1 tokens, but 'x' has values of shape"),
        (lambda: token_heatmap(["a"] * 5000, dict.fromkeys("abc", [0.0] * 5000)), "12000 that a page"),
        (lambda: token_heatmap(["a"], [1.0], marked=[1]), "marked places or parts"),
        (lambda: trace_tokens({}), "no traces"),
        (lambda: trace_tokens({"a": made("a", 0), "b": made("b", 0, prompts=1)}, prompt=0, target=7), "target 7"),
        (lambda: plot_trace(made("a", 0), "token"), "tokens"),
        (lambda: plot_trace(made("a", 0), "tokens", grid=(2, 2)), "no option|grid"),
        (lambda: plot_trace(made("a", 0), "tokens", prompt=9), "prompt 9"),
        (lambda: plot_trace(made("a", 0, layers=False), "layers"), "each_layer"),
        (lambda: plot_trace(made("a", 0), "layers", prompts="all"), "name the sources"),
        (lambda: plot_trace(made("a", 0), "layers", prompts="some", sources={"x": [1]}), "expected 'all'"),
        (lambda: plot_trace(made("a", 0), "layers", sources={"x": [6]}), "columns 0 to 5"),
        (lambda: plot_trace(made("a", 0), "image"), "patch_grid"),
        (lambda: plot_trace(made("a", 0), "image", image=np.zeros((4, 4)), grid=(2, 2)), "6 sources; give columns="),
    ],
)
def test_what_a_view_cannot_show_is_refused(call: Any, says: str) -> None:
    with pytest.raises((BadInput, BadAddress), match=says):
        call()


# ---- heatmap and curves ---------------------------------------------------------------------------------------------


def test_the_heatmap_holds_every_target_of_the_prompt() -> None:
    trace = made("rollout", 5)
    figure: Any = trace.plot("heatmap", prompt=2)
    np.testing.assert_array_equal(figure.data[0].z, trace.values[2, :, 1:])
    shown = [html.escape(word if len(word) < 24 else word[:23] + "…") for word in map(visible, WORDS[1:])]
    assert list(figure.layout.xaxis.ticktext) == shown
    assert "target 4 ·gave, source 1 ·Mary" in figure.data[0].text[0][0]
    many = dataclasses.replace(trace, values=np.zeros((1, 1, 200)), mask=np.ones((1, 200), bool),
                               sources=(("a",) * 200,), targets=np.array([[3]]), target_words=(("a",),))  # fmt: skip
    with pytest.raises(BadInput, match="1 targets by 200 sources"):
        many.plot("heatmap")


def test_curves_hold_the_mass_of_the_sources_and_its_interval() -> None:
    trace = made("rollout", 6)
    assert trace.layers is not None
    mass = mass_by_layer(trace.layers, [1, 2], target=0)
    np.testing.assert_allclose(mass, trace.layers[:, :, 0, 1:3].sum(-1).T)
    figure: Any = trace.plot("layers", sources={"names": [1, 2]}, prompt=1, target=0)
    np.testing.assert_allclose(figure.data[0].y, mass[1])
    every: Any = trace.plot("layers", sources={"names": [1, 2]}, prompts="all", target=0)
    low, high = bootstrap_means(mass)
    np.testing.assert_allclose(every.data[1].y, mass.mean(0))
    np.testing.assert_allclose(every.data[0].y, [*high, *low[::-1]])
    chosen: Any = trace.plot("layers", prompt=0, target=1)
    top = trace.top(5, prompt=0, target=1)
    assert [line.name for line in chosen.data] == [
        html.escape(f"{visible(w)} ({s})") for w, s in zip(top.token, top.source, strict=True)
    ]
    assert trace.layers.shape[0] == len(chosen.data[0].x)


def test_padded_sources_have_no_mass() -> None:
    trace = made("rollout", 7)
    assert trace.layers is not None and np.isnan(mass_by_layer(trace.layers, [0])[2]).all()
    whole = mass_by_layer(trace.layers, range(6))
    np.testing.assert_allclose(whole[:2], 1)


def test_curves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="0 curves"):
        layer_curves({})
    with pytest.raises(BadInput, match="over the same layers"):
        layer_curves({"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(BadInput, match=r"bands for \['c'\]"):
        layer_curves({"a": [1.0]}, bands={"c": ([0.0], [1.0])})


# ---- methods side by side -------------------------------------------------------------------------------------------


def test_the_matrix_is_the_mean_rank_correlation_over_prompts() -> None:
    traces = {"raw": made("raw", 8), "rollout": made("rollout", 9), "flow": made("flow", 10)}
    found = compare_traces(traces, target=0)
    for i, first in enumerate(traces.values()):
        for j, second in enumerate(traces.values()):
            for prompt in range(3):
                kept = first.mask[prompt]
                expected: Any = spearmanr(first.values[prompt, 0, kept], second.values[prompt, 0, kept])
                assert found.spearman[i, j, prompt] == pytest.approx(expected.statistic)
    figure: Any = found.plot()
    np.testing.assert_allclose(figure.data[0].z, found.spearman.mean(-1))
    low, _ = bootstrap_means(np.moveaxis(found.spearman, -1, 0))
    np.testing.assert_allclose(found.low, low)
    assert found.table().spearman.tolist() == [found.mean[0, 1], found.mean[0, 2], found.mean[1, 2]]
    bars: Any = found.bars("flow")
    order = sorted(("raw", "rollout"), key=lambda name: -found.mean[found.names.index(name), 2])
    assert [label.strip() for label in bars.layout.yaxis.ticktext] == order
    np.testing.assert_allclose(bars.data[0].x, [found.mean[found.names.index(name), 2] for name in order])
    np.testing.assert_allclose(bars.data[1].x, found.spearman[found.names.index(order[0]), 2])


def test_ties_constants_and_left_out_columns() -> None:
    rows = np.array([[[1.0, 1.0, 2.0, 3.0]], [[0.3, 0.2, 0.9, 0.9]], [[5.0, 5.0, 5.0, 5.0]]])
    found = rank_correlations(rows)
    expected: Any = spearmanr(rows[0, 0], rows[1, 0])
    assert found[0, 1, 0] == pytest.approx(expected.statistic) and np.isnan(found[:, 2]).all()
    first, second = made("a", 11), made("b", 12)
    whole, part = compare_traces([first, second]), compare_traces([first, second], exclude=[1])
    kept = [0, 2, 3, 4, 5]
    expected = spearmanr(first.values[0, -1, kept], second.values[0, -1, kept])
    assert part.spearman[0, 1, 0] == pytest.approx(expected.statistic) != whole.spearman[0, 1, 0]


def test_signed_and_unsigned_are_compared_by_size_and_it_is_said() -> None:
    signed, plain = made("g", 13, signed=True), made("a", 14)
    found = compare_traces([signed, plain], target=0)
    expected: Any = spearmanr(np.abs(signed.values[0, 0]), plain.values[0, 0])
    assert found.sizes and found.spearman[0, 1, 0] == pytest.approx(expected.statistic)
    assert "of sizes" in found.plot().layout["title"].text
    assert not compare_traces([signed, made("h", 15, signed=True)]).sizes


def test_traces_of_other_prompts_are_not_compared() -> None:
    with pytest.raises(BadInput, match="two at least"):
        compare_traces([made("a", 0), made("a", 1)])
    with pytest.raises(BadInput, match=r"'b'.*not of the same prompts"):
        compare_traces([made("a", 0), made("b", 0, prompts=2)])
    with pytest.raises(BadInput, match="rollout"):
        compare_traces([made("a", 0), made("rollout", 1)]).bars("rolout")


def agreement_table() -> pd.DataFrame:
    rows = [("raw", pd.NA, 0.1, -0.1, 0.3), ("rollout", pd.NA, 0.5, 0.4, 0.6), ("flow", pd.NA, 0.45, 0.3, 0.52)]
    rows += [("rollout", layer, 0.2 + layer / 10, 0.1, 0.4) for layer in range(3)] + [("raw", 1, 0.3, 0.2, 0.5)]
    table = pd.DataFrame(rows, columns=["trace", "layer", "mean", "low", "high"]).assign(reference="blank-out")
    other = table.assign(reference="gradient", mean=-table["mean"])
    return pd.concat([table, other]).astype({"layer": "Int64"})


def test_bars_of_a_table_light_what_the_chart_cannot_tell_from_the_best() -> None:
    figure: Any = agreement_bars(agreement_table(), reference="blank-out", points={"raw": [0.0, np.nan, 0.2]})
    assert list(figure.data[0].x) == [0.5, 0.45, 0.1]
    np.testing.assert_allclose(figure.data[0].error_x.array, [0.1, 0.07, 0.2])
    lit = figure.data[0].marker.color
    assert lit[0] == lit[1] != lit[2] and list(figure.data[1].x) == [0.0, 0.2]
    assert "one prompt 0.200" in figure.data[1].text[1]
    with pytest.raises(BadInput, match=r"'lime' of a whole trace.*blank-out"):
        agreement_bars(agreement_table(), reference="lime")
    with pytest.raises(BadInput, match="no columns"):
        agreement_bars(pd.DataFrame({"trace": ["a"]}), reference="blank-out")


def test_agreement_by_layer_holds_each_layer_and_its_band() -> None:
    figure: Any = agreement_by_layer(agreement_table(), reference="gradient")
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    np.testing.assert_allclose(lines["rollout"].y, [-0.2, -0.3, -0.4])
    np.testing.assert_array_equal(lines["raw"].y, [np.nan, -0.3, np.nan])
    band = next(trace for trace in figure.data if trace.name == "rollout, interval")
    np.testing.assert_allclose(band.y, [0.4, 0.4, 0.4, 0.1, 0.1, 0.1])


# ---- images ---------------------------------------------------------------------------------------------------------


def pictures(markup: str) -> list[np.ndarray]:
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', markup)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def test_the_pictures_in_the_page_are_the_image_and_the_blend() -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    maps = {"rollout": draw.random((2, 3)), "gradient": draw.normal(size=(2, 3))}
    overlay = image_overlay(image, maps)
    shown = pictures(overlay.markup())
    np.testing.assert_array_equal(shown[0], image)
    for name, picture in zip(maps, shown[1:], strict=True):
        np.testing.assert_array_equal(picture, overlay.blended(name))
        np.testing.assert_array_equal(overlay.heat(name), np.kron(maps[name], np.ones((3, 3))))
    grey = 165 + (246 - 165) * (image @ [0.299, 0.587, 0.114]) / 255
    where = np.unravel_index(maps["rollout"].argmax(), (2, 3))
    row, column = where[0] * 3, where[1] * 3  # the strongest patch
    expected = (1 - 0.82) * grey[row, column] + 0.82 * np.array([36, 96, 235])
    np.testing.assert_allclose(overlay.blended("rollout")[row, column], expected, atol=0.51)


def test_each_patch_says_its_number_and_a_missing_one_nothing() -> None:
    grid = np.array([[0.25, -1.5], [np.nan, 0.0]])
    overlay = image_overlay(np.zeros((4, 4)), {"g": grid})
    titles = re.findall(r"<title>(.*?)</title>", overlay.markup())
    assert titles == ["g, patch (0, 0): 0.250", "g, patch (0, 1): −1.500", "g, patch (1, 1): 0.000"]
    assert overlay.limits["g"] == (-1.5, 1.5) and np.isnan(overlay.heat("g")[3, 0])
    assert (overlay.blended("g")[2:, :2] == 165).all()  # the bare image, greyed


def test_bilinear_is_what_torch_makes_of_it() -> None:
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(1).random((5, 3))
    for size in ((20, 12), (17, 31), (5, 3)):
        given = torch.from_numpy(grid)[None, None]
        expected = torch.nn.functional.interpolate(given, size=size, mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(spread(grid, size, "bilinear"), expected.numpy(), atol=1e-12)
        nearest = torch.nn.functional.interpolate(given, size=size, mode="nearest-exact")[0, 0]
        np.testing.assert_array_equal(spread(grid, size, "nearest"), nearest.numpy())
    hole = grid.copy()
    hole[0, 0] = np.nan
    assert np.isfinite(spread(hole, (20, 12), "bilinear")).sum() > 0.9 * 240


def filled(path: str, size: tuple[int, int]) -> np.ndarray:
    """The region whose border a path is: pixels from which a ray to the left crosses it an odd number of times."""
    crossing = np.zeros((size[0], size[1] + 1), dtype=int)
    for x, y, kind, end in re.findall(r"M(\d+),(\d+)([HV])(\d+)", path):
        if kind == "V":
            crossing[int(y) : int(end), int(x)] += 1
    return crossing.cumsum(1)[:, :-1] % 2 == 1


def test_the_outline_is_the_border_of_the_region() -> None:
    for seed in range(5):
        region = np.random.default_rng(seed).random((7, 9)) < 0.4
        np.testing.assert_array_equal(filled(outline(region), (7, 9)), region)
        sides = sum(np.abs(np.diff(np.pad(region.astype(int), 1), axis=axis)).sum() for axis in (0, 1))
        steps = re.findall(r"M(\d+),(\d+)([HV])(\d+)", outline(region))
        assert sum(int(end) - int(x if kind == "H" else y) for x, y, kind, end in steps) == sides


def test_a_region_of_patches_is_outlined_at_their_pixels() -> None:
    region = np.array([[True, False], [False, False]])
    overlay = image_overlay(np.zeros((6, 6)), {"g": np.eye(2)}, region=region)
    path = re.findall(r'class="region" d="([^"]+)"', overlay.markup())
    assert len(path) == 2 and filled(path[0], (6, 6)).tolist() == (np.kron(region, np.ones((3, 3))) > 0).tolist()


def test_large_images_are_scaled_down_and_the_page_stays_small(tmp_path: Path) -> None:
    image = np.random.default_rng(2).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    maps = {f"method {n}": np.random.default_rng(n).random((24, 24)) for n in range(3)}
    overlay = image_overlay(image, maps, region=np.ones((900, 1600)), between="bilinear")
    assert overlay.image.shape == (252, 448, 3) and overlay.region is not None and overlay.region.shape == (252, 448)
    page = Page("t", "q", "a", sections=[Section("s", figures=[Figure(overlay, "Noise, the worst there is.")])])
    assert write(page, tmp_path / "report.html").stat().st_size < 3e6


@pytest.mark.parametrize(
    ("image", "options", "says"),
    [
        (np.zeros((3, 8, 8)), {}, "Channels stand last"),
        (np.full((8, 8), 1.5), {}, "undo the processor"),
        (np.zeros((8, 8)), {"between": "cubic"}, "cubic"),
        (np.zeros((8, 8)), {"maps": {}}, "no heat maps"),
        (np.zeros((8, 8)), {"maps": np.zeros(9)}, "reshape"),
        (np.zeros((8, 8)), {"maps": np.zeros((9, 9))}, "holds a pixel at least"),
        (np.zeros((8, 8)), {"region": np.zeros((3, 3))}, "region came as"),
        (np.zeros((150, 150)), {"maps": np.zeros((150, 150))}, "20000"),
    ],
)
def test_images_and_maps_that_do_not_fit_are_refused(image: np.ndarray, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        image_overlay(image, **{"maps": np.zeros((2, 2)), **options})


def test_a_file_for_a_paper_holds_the_same_pictures(tmp_path: Path) -> None:
    maps = {MARKUP: np.eye(2), "g": -np.eye(2)}
    overlay = image_overlay(np.zeros((4, 6)), maps, region=np.ones((4, 6)))
    content = overlay.save(tmp_path / "figure.svg").read_text()
    root = ElementTree.fromstring(content)
    assert MARKUP not in content and root.tag.endswith("svg")
    assert root[0].tag.endswith("rect") and root[0].get("fill") == "#fff"  # black words on white, in dark viewers too
    shown = pictures(content)
    for name, picture in zip(maps, shown[1:], strict=True):
        np.testing.assert_array_equal(picture, overlay.blended(name))
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["image", MARKUP, "0", "1.000", "g", "−1.000", "1.000"]
    assert content.count('class="region"') == 3


def test_letters_can_be_read_over_the_strongest_colours() -> None:
    def light(channels: np.ndarray) -> float:
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05

    def channels(colour: str) -> np.ndarray:
        return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255

    for theme in (LIGHT, DARK):
        for colour in ((74, 127, 224), (216, 112, 63)):
            ground = 0.6 * np.array(colour) / 255 + 0.4 * channels(theme.page)
            ends = sorted([light(ground), light(channels(theme.ink))])
            assert ends[1] / ends[0] > 4.5  # WCAG 2 AA for text


def test_a_row_of_a_trace_is_laid_out_over_the_image() -> None:
    row = np.arange(6.0)
    assert patches_of(row, (2, 2, 2)).tolist() == [[2, 3], [4, 5]]
    assert patches_of(row, (2, 2), columns=[4, 3, 2, 1]).tolist() == [[4, 3], [2, 1]]
    trace = made("rollout", 16)
    overlay: Any = trace.plot("image", image=np.zeros((4, 4)), grid=(1, 3), columns=[1, 2, 3], prompt=2, target=0)
    np.testing.assert_array_equal(overlay.maps["rollout"], trace.values[2, :1, 1:4])
    every = np.array([[0, 1, 2], [0, 1, 2], [3, 2, 1]])  # of all prompts, as patch_columns gives them
    turned: Any = trace.plot("image", image=np.zeros((4, 4)), grid=(1, 3), columns=every, prompt=2, target=0)
    np.testing.assert_array_equal(turned.maps["rollout"], trace.values[2, :1, 3:0:-1])
    with pytest.raises(BadInput, match="columns of 2 prompts came; the trace has 3"):
        trace.plot("image", image=np.zeros((4, 4)), grid=(1, 3), columns=every[:2], prompt=2)
    with pytest.raises(BadInput, match="2 x 2 patches, but 3 columns"):
        patches_of(row, (2, 2), columns=[1, 2, 3])
    with pytest.raises(BadInput, match="run from 3 to 9"):
        patches_of(row, (1, 2), columns=[3, 9])


# ---- in a page ------------------------------------------------------------------------------------------------------


def test_views_are_figures_of_a_page_and_need_no_script() -> None:
    trace = made("rollout", 17)
    overlay = image_overlay(np.zeros((4, 4)), {"g": np.eye(2)})
    page = Page("t", "q", "a", sections=[Section("s", figures=[Figure(trace_tokens({"r": trace})), Figure(overlay)])])
    content = render(page)
    assert "headscope-tokens" in content and "headscope-overlay" in content and "<script" not in content
    assert len(content) < 40_000


def test_the_largest_text_is_smaller_than_a_page(tmp_path: Path) -> None:
    numbers = np.random.default_rng(3).normal(size=3000)
    heatmap = token_heatmap([" token"] * 3000, dict.fromkeys(("raw", "rollout", "flow", "gradient"), numbers))
    assert len(heatmap.markup().encode()) < 3e6
    assert json.dumps(heatmap._repr_html_())


def test_the_shape_of_a_patch_grid_is_followed() -> None:
    pytest.importorskip("torch")
    import interp
    from interp.zoo.digits import digit_images, pixel_values

    model = interp.load("digits-vit")
    batch = interp.encode(model, inputs={"pixel_values": pixel_values(digit_images(2).images)})
    grid = interp.patch_grid(model, batch)
    trace = interp.trace(model, batch, "raw")
    overlay: Any = trace.plot("image", image=digit_images(2).images[1].numpy(), grid=grid, prompt=1)
    np.testing.assert_array_equal(overlay.maps["raw"].ravel(), trace.values[1, 0, 1:])
    np.testing.assert_array_equal(overlay.heat("raw"), overlay.maps["raw"])  # a patch is a pixel
