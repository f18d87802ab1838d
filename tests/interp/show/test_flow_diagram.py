"""The flow diagram: what it packs and refuses, and that it answers to slider, menus, clicks and keys in a browser."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import opened, steady_box

from interp.errors import BadInput
from interp.show import Figure, Page, Section, bar_chart, flow_diagram, render, write
from interp.show.trace_flow import edges_to

MARKUP = "</script><img src=x onerror=alert(1)>"
TOKENS = ["<bos>", " Mary", MARKUP, "\n", " gave"]
LAYERS = 3


def transitions(layers: int = LAYERS, tokens: int = len(TOKENS), seed: int = 0) -> np.ndarray:
    maps = np.tril(np.random.default_rng(seed).dirichlet(np.ones(tokens), (layers, tokens)) + 1e-9)
    return (maps / maps.sum(-1, keepdims=True) + np.eye(tokens)) / 2


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"]).reshape(packed["shape"])


# ---- what is packed -------------------------------------------------------------------------------------------------


def test_the_page_holds_the_transitions() -> None:
    graph = transitions()
    data = flow_diagram(graph, TOKENS, threshold=0.1).data()
    np.testing.assert_array_equal(unpacked(data["transitions"]), graph.astype(np.float32))
    assert data["target"] == 4 and data["threshold"] == 0.1 and data["edges"] == {} and data["note"] == ""
    assert json.loads(json.dumps(data)) == data


def test_what_reaches_the_target_is_the_row_of_the_rollout() -> None:
    graph = transitions()
    rollout = np.linalg.multi_dot(list(graph[::-1]))
    for target in range(len(TOKENS)):
        edges = edges_to(graph, target)
        np.testing.assert_allclose(edges[0].sum(0), rollout[target])
        np.testing.assert_allclose(edges.sum((1, 2)), 1)
        for below, above in itertools.pairwise(edges):
            np.testing.assert_allclose(below.sum(1), above.sum(0))


def test_long_prompts_keep_what_most_passes_through_with_the_numbers_of_all() -> None:
    graph = transitions(4, 90)
    diagram = flow_diagram(graph, [f"t{n}" for n in range(90)], target=70)
    whole = edges_to(graph, 70)
    assert len(diagram.places) == 48 and 70 in diagram.places and diagram.transitions is None
    kept = list(diagram.places)
    np.testing.assert_array_equal(diagram.edges[70], whole[:, kept][:, :, kept])
    used = whole.sum((0, 1)) + whole.sum((0, 2))
    assert used[kept].min() >= np.delete(used, kept).max() and "42 of 90 tokens are left out" in diagram.data()["note"]


def test_given_edges_are_drawn_as_they_come() -> None:
    flows = {-1: np.full((LAYERS, 5, 5), 0.25), 2: np.zeros((LAYERS, 5, 5))}
    diagram = flow_diagram(transitions(), TOKENS, edges=flows)
    data = diagram.data()
    assert list(data["edges"]) == ["4", "2"] and data["transitions"] is None and data["value"] == "flow"
    np.testing.assert_array_equal(unpacked(data["edges"]["4"]), flows[-1].astype(np.float32))


def test_the_largest_diagrams_fit_a_page(tmp_path: Path) -> None:
    graph = transitions(48, 48)
    figures = [Figure(flow_diagram(graph, ["token"] * 48)), Figure(bar_chart(["a"], [1.0]))]
    assert (
        write(Page("t", "q", "a", sections=[Section("s", figures=figures)]), tmp_path / "r.html").stat().st_size < 6e6
    )
    alone = flow_diagram(transitions(12, 48), ["token"] * 48).write(tmp_path / "alone.html")
    assert alone.stat().st_size < 300_000


def test_nothing_of_a_model_becomes_markup() -> None:
    diagram = flow_diagram(transitions(), TOKENS, layer_names=["a", "b", MARKUP], value=MARKUP)
    for content in (diagram.document(), diagram._repr_html_(), render(_page(diagram))):
        assert MARKUP not in content and "<img src=x" not in content
        assert not re.findall(r'(?:src|href)="(?!data:)', content)


def _page(*diagrams: Any) -> Page:
    return Page("Flow", "What?", "This.", sections=[Section("s", figures=[Figure(d, "A flow.") for d in diagrams])])


def test_a_page_without_a_diagram_holds_none_of_it() -> None:
    assert "flow-frame" not in render(Page("t", "q", "a", sections=[Section("s", "text")]))
    assert render(_page(*[flow_diagram(transitions(), TOKENS)] * 2)).count("function diagram(root)") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"transitions": np.eye(5)}, r"expected|\[layer, query, key\]"),
        ({"transitions": np.zeros((0, 5, 5))}, "a layer at least"),
        ({"transitions": transitions(65)}, "at most 64"),
        ({"transitions": 3 * transitions()}, "sums to 3.000"),
        ({"transitions": -transitions()}, "negative"),
        ({"transitions": np.full((2, 5, 5), np.nan)}, "without padding"),
        ({"target": 5}, "no target 5"),
        ({"edges": {0: transitions()}}, r"target 4 has no edges; those given are of \[0\]"),
        ({"edges": {-1: transitions(2)}}, "edges of target 4 came as"),
        ({"edges": {-1: -transitions()}}, "negative"),
        ({"most_tokens": 60}, "1 to 48"),
        ({"layer_names": ["one"]}, "1 layer_names for 3 layers"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        flow_diagram(**{"transitions": transitions(), "tokens": TOKENS, **change})


def test_too_many_targets_of_given_edges_are_refused() -> None:
    graph = transitions(30, 48)
    with pytest.raises(BadInput, match="fewer targets"):
        flow_diagram(graph, ["t"] * 48, edges=dict.fromkeys(range(48), graph))


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a diagram of shares, one of given flows, and a plot below."""
    flows = {-1: np.full((LAYERS, 5, 5), 0.25), 2: np.eye(5)[None].repeat(LAYERS, 0)}
    page = _page(flow_diagram(transitions(), TOKENS, threshold=0.05), flow_diagram(transitions(), TOKENS, edges=flows),
                 bar_chart(["a"], [1.0]))  # fmt: skip
    return write(page, tmp_path_factory.mktemp("flow") / "report.html")


@pytest.fixture(scope="module")
def shared_view(path: Path) -> Iterator[Any]:
    with opened(path, "dark") as page:
        yield page


@pytest.fixture
def view(shared_view: Any) -> Any:
    """The first diagram as it was at first: the last token at the top, threshold 0.05."""
    form = shared_view.locator("#flow-1 form")
    form.locator("[name=layer]").select_option(str(LAYERS))
    form.locator("[name=target]").select_option("4")
    slide(shared_view, 0.05)
    return shared_view


def slide(view: Any, least: float) -> None:
    view.locator("#flow-1 [name=threshold]").fill(str(least))


def drawn(view: Any, diagram: str = "#flow-1") -> dict[tuple[int, int, int], float]:
    """(layer, from, to) -> weight of every edge that is drawn now."""
    found = view.locator(f"{diagram} .edge").evaluate_all(
        "all => all.map(e => [e.dataset.layer, e.dataset.from, e.dataset.to, e.dataset.weight].map(Number))"
    )
    return {(int(layer), int(start), int(end)): weight for layer, start, end, weight in found}


def nodes(view: Any) -> np.ndarray:
    """``[layer + 1, token]`` what passes through every node."""
    values = view.locator("#flow-1 .node").evaluate_all("all => all.map(e => Number(e.dataset.value))")
    return np.array(values).reshape(LAYERS + 1, len(TOKENS))


def expected(target: int, least: float, top: int = LAYERS) -> dict[tuple[int, int, int], float]:
    edges = edges_to(transitions().astype(np.float32).astype(float)[:top], target)
    kept = np.argwhere((edges >= least) & (edges > 0))
    return {(int(layer) + 1, int(i), int(j)): float(edges[layer, i, j]) for layer, i, j in kept}


def matches(found: dict[tuple[int, int, int], float], wanted: dict[tuple[int, int, int], float]) -> None:
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[edge] for edge in wanted], list(wanted.values()), rtol=1e-6)


@pytest.mark.browser
def test_the_edges_that_are_drawn_are_those_of_the_target(view: Any) -> None:
    matches(drawn(view), expected(4, 0.05))
    rollout = np.linalg.multi_dot(list(transitions()[::-1]))
    np.testing.assert_allclose(nodes(view)[0], rollout[4], rtol=1e-6)
    assert nodes(view)[LAYERS].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.browser
def test_the_threshold_hides_edges_and_brings_them_back(view: Any) -> None:
    for least in (0.2, 0.0, 0.11):
        slide(view, least)
        matches(drawn(view), expected(4, least))
        words = view.locator("#flow-1 .flow-count").text_content()
        assert words.startswith(f"{len(expected(4, least))} of {len(expected(4, 0.0))} edges")
    view.locator("#flow-1 [name=threshold]").press("ArrowLeft")
    assert view.locator("#flow-1 output").text_content() == "0.109"


@pytest.mark.browser
def test_a_target_is_chosen_by_menu(view: Any) -> None:
    assert view.locator("#flow-1 [name=target] option").all_text_contents()[2] == f"{MARKUP} (2)"
    view.locator("#flow-1 [name=target]").select_option("2")
    matches(drawn(view), expected(2, 0.05))
    view.locator("#flow-1 [name=layer]").select_option(label="layer 1")
    matches(drawn(view), expected(2, 0.05, top=2))


@pytest.mark.browser
def test_a_target_is_chosen_by_a_click_and_pointing_gives_the_value(view: Any) -> None:
    place = "#flow-1 .node[data-layer='2'][data-pos='3'] rect"
    view.locator(place).scroll_into_view_if_needed()
    box = steady_box(view, place)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    share = nodes(view)[2, 3]
    view.mouse.move(x, y, steps=3)
    tip = view.locator("#flow-1 .flow-tip")
    tip.wait_for(state="visible")
    assert tip.text_content().startswith(f"layer 1, ↵ (3): share of the target {share:.3f}")
    view.mouse.click(x, y)
    view.locator("#flow-1 .node[data-layer='2'][data-pos='3'][aria-pressed=true]").wait_for()
    matches(drawn(view), expected(3, 0.05, top=2))
    assert view.locator("#flow-1 [name=target]").input_value() == "3"
    assert view.locator("#flow-1 [name=layer]").input_value() == "2"


@pytest.mark.browser
def test_pointing_at_an_edge_gives_its_value(view: Any) -> None:
    (layer, start, end), weight = max(expected(4, 0.05).items(), key=lambda one: (one[0][1] == one[0][2], one[1]))
    line = f"#flow-1 .edge[data-layer='{layer}'][data-from='{start}'][data-to='{end}'] path.line"
    view.locator(line).scroll_into_view_if_needed()
    box = steady_box(view, line)
    view.mouse.move(box["x"] + box["width"] / 2 - 2, box["y"] + box["height"] / 2)
    view.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    words = f"{TOKENS[start]} ({start})".replace(" gave", "·gave")
    view.locator("#flow-1 .flow-tip", has_text=f"{words} from {words}").wait_for()
    assert view.locator("#flow-1 .flow-tip").text_content().endswith(f"share of the target {weight:.3f}")


@pytest.mark.browser
def test_keys_move_between_nodes_and_choose(view: Any) -> None:
    chosen = view.locator("#flow-1 .node[tabindex='0']")
    assert chosen.count() == 1 and chosen.get_attribute("data-pos") == "4"
    chosen.focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown"):
        view.keyboard.press(key)
    here = view.locator("#flow-1 .node:focus")
    assert (here.get_attribute("data-layer"), here.get_attribute("data-pos")) == ("2", "2")
    said = view.locator("#flow-1 .flow-said").text_content()
    assert said.startswith(f"layer 1, {MARKUP} (2): share of the target {nodes(view)[2, 2]:.3f}; from ")
    view.keyboard.press("Enter")
    matches(drawn(view), expected(2, 0.05, top=2))
    assert view.locator("#flow-1 .node:focus").get_attribute("aria-pressed") == "true"
    view.keyboard.press("ArrowDown")
    view.keyboard.press("ArrowDown")
    view.keyboard.press("Enter")  # an input token: what it becomes at the top
    matches(drawn(view), expected(2, 0.05))


@pytest.mark.browser
def test_given_flows_offer_their_own_targets_alone(view: Any) -> None:
    assert view.locator("#flow-2 [name=target] option").count() == 2
    assert not view.locator("#flow-2 .flow-layer").is_visible()
    assert set(drawn(view, "#flow-2").values()) == {0.25} and len(drawn(view, "#flow-2")) == LAYERS * 25
    view.locator("#flow-2 [name=target]").select_option("2")
    assert drawn(view, "#flow-2") == {(layer, i, i): 1 for layer in (1, 2, 3) for i in range(5)}
    view.locator("#flow-2 .node[data-layer='1'][data-pos='0'] circle").click(force=True)
    assert "not kept in this page" in view.locator("#flow-2 .flow-said").text_content()


@pytest.mark.browser
def test_the_drawing_can_be_saved(view: Any) -> None:
    with view.expect_download() as saved:
        view.locator("#flow-1 [name=save]").click()
    content = Path(saved.value.path()).read_text()
    assert content.startswith("<svg") and "var(" not in content and content.count('class="line"') == len(drawn(view))


@pytest.mark.browser
def test_alone_and_in_a_notebook_nothing_sticks_out(view: Any, tmp_path: Path) -> None:
    diagram = flow_diagram(transitions(12, 48), ["token"] * 48)
    frame = tmp_path / "notebook.html"
    frame.write_text(f"<body>{diagram._repr_html_()}</body>", encoding="utf-8")
    other = view.context.browser.new_page()
    faults: list[str] = []
    other.on("console", lambda message: faults.append(message.text))
    other.on("pageerror", lambda error: faults.append(str(error)))
    other.set_viewport_size({"width": 360, "height": 900})
    for path in (diagram.write(tmp_path / "alone.html"), frame):
        other.goto(path.as_uri())
        inner = other.frames[-1]
        inner.wait_for_selector(".edge", state="attached")
        assert inner.locator(".edge").count() > 10
        assert inner.evaluate("document.documentElement.scrollWidth") <= 360
        heights = inner.evaluate("[document.documentElement.scrollHeight, window.innerHeight]")
        assert path is not frame or heights[0] <= heights[1] + 120  # the frame holds the drawing, or nearly
    other.close()
    assert faults == []
