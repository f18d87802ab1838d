"""The diagram of a run: its numbers are the rollout's and a maximum flow's, and what it cannot draw is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2

import interp
from interp.show.trace_flow import edges_to
from interp.tracing.diagram import edge_flow, trace_diagram

IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
LEFT = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return tiny_gpt2(layers=2)


def test_what_arrives_at_the_bottom_is_the_rollout(model: interp.Model) -> None:
    batch = interp.encode(model, IDS, mask=LEFT)
    ways: list[dict[str, Any]] = [{}, {"heads": "max"}, {"residual": 0.2}, {"residual": "measured"}]
    ways.append({"exclude_sinks": "first"})
    for options in ways:
        rollout = interp.trace(model, batch, "rollout", **options)
        for prompt, first in ((0, 0), (1, 2)):
            diagram = trace_diagram(model, batch, prompt=prompt, **options)
            assert diagram.transitions is not None and len(diagram.tokens) == 5 - first
            arrived = edges_to(diagram.transitions, diagram.target)[0].sum(0)
            np.testing.assert_allclose(arrived, rollout.values[prompt, 0, first:], atol=1e-6)


def test_the_target_is_a_row_and_the_tokens_are_the_prompts(model: interp.Model) -> None:
    batch = interp.encode(model, IDS, mask=LEFT)
    diagram = trace_diagram(model, batch, prompt=1, target=1)
    assert diagram.target == 1 and diagram.tokens == batch.tokens[1]
    assert diagram.layer_names == ("layer 0", "layer 1")


@pytest.mark.parametrize("seed", range(8))
def test_edges_of_a_maximum_flow_carry_its_value_and_keep_what_they_take(seed: int) -> None:
    networkx = pytest.importorskip("networkx")
    draw = np.random.default_rng(seed)
    n_layers, length = 2 + seed % 3, 6
    graph = draw.dirichlet(np.full(length, 0.4), (n_layers, length))
    if seed % 2:
        graph = np.tril(graph) * (draw.random(graph.shape) < 0.7)
    for target, source in ((5, 0), (5, 3), (2, 2)):
        carried = edge_flow(graph, target, source)
        assert carried.min() >= 0 and (carried <= graph + 1e-9).all()
        for below, above in itertools.pairwise(carried):
            np.testing.assert_allclose(below.sum(1), above.sum(0), atol=1e-12)
        assert np.count_nonzero(carried[-1].sum(1)) <= 1 and np.count_nonzero(carried[0].sum(0)) <= 1
        net = networkx.DiGraph()
        net.add_nodes_from([(n_layers, target), (0, source)])
        for layer, query, key in np.argwhere(graph > 0):
            net.add_edge((layer + 1, query), (layer, key), capacity=float(graph[layer, query, key]))
        value = networkx.maximum_flow_value(net, (n_layers, target), (0, source))
        assert carried[-1, target].sum() == pytest.approx(value, abs=1e-7)
        assert carried[0, :, source].sum() == pytest.approx(value, abs=1e-7)


def test_the_flow_to_a_source_is_the_traces_flow(model: interp.Model) -> None:
    batch = interp.encode(model, IDS, mask=LEFT)
    flow = interp.trace(model, batch, "flow")
    for prompt, source in ((0, 1), (1, 2)):
        diagram = trace_diagram(model, batch, prompt=prompt, source=source)
        edges = diagram.edges[diagram.target]
        assert diagram.value == "flow"
        assert edges[-1, diagram.target].sum() == pytest.approx(flow.values[prompt, 0, source], abs=1e-6)


def test_images_have_a_diagram_too() -> None:
    from interp.zoo.digits import digit_images, pixel_values

    vit = interp.load("digits-vit")
    images = interp.encode(vit, inputs={"pixel_values": pixel_values(digit_images(2).images)})
    diagram = trace_diagram(vit, images, prompt=1)
    assert diagram.n_tokens == 65 and len(diagram.tokens) == 48 and diagram.target == 0
    rollout = interp.trace(vit, images, "rollout").values[1, 0]
    arrived = diagram.edges[0][0].sum(0)
    assert (arrived <= rollout[list(diagram.places)] + 1e-6).all() and arrived.sum() > 0.5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": 2}, "no prompt 2"),
        ({"target": slice(0, 2)}, "2 targets came"),
        ({"source": 0, "prompt": 1}, "no source 0"),
        ({"source": 9}, "no source 9"),
        ({"heads": "median"}, "median"),
        ({"stack": "vision"}, "text"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_forward(
    model: interp.Model, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = interp.encode(model, IDS, mask=LEFT)
    monkeypatch.setattr(model.hf, "forward", lambda *a, **k: pytest.fail("a forward ran"))
    with pytest.raises(interp.HeadscopeError, match=says):
        trace_diagram(model, batch, **options)
