"""What settles a flow: cuts from above, feasible flows from below, searches in few edges; each against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flow_graphs import KINDS, half_residual, network_flow, network_of, random_maps

from interp.tracing.flow import settle as settling
from interp.tracing.flow import solver
from interp.tracing.flow.closed_forms import bottleneck_sums
from interp.tracing.flow.cuts import cut_bounds
from interp.tracing.flow.layered_graph import LayeredGraph, Pairs
from interp.tracing.flow.settle import settle
from interp.tracing.flow.spreading import spread_flows


def every_cut(steps: np.ndarray, target: int, source: int) -> float:
    """The cheapest of all cuts, one by one: a set of tokens on the target's side at each level between."""
    n_layers, length, _ = steps.shape
    sides = [np.array(bits, dtype=float) for bits in itertools.product((0, 1), repeat=length)]
    own, last = np.eye(length)[target], 1 - np.eye(length)[source]
    best = np.inf
    for chosen in itertools.product(sides, repeat=n_layers - 1):
        levels = [last, *chosen, own]
        cut = sum(levels[layer + 1] @ steps[layer] @ (1 - levels[layer]) for layer in range(n_layers))
        best = min(best, cut)
    return best


def loose(pairs: Pairs) -> np.ndarray:
    """A bound that proves nothing."""
    return np.full(len(pairs), np.inf)


def all_pairs(length: int) -> Pairs:
    targets, sources = np.divmod(np.arange(length * length), length)
    return Pairs(targets, sources)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["dense", "sharp", "zeros", "ties"])
def test_the_cheapest_of_all_cuts(kind: str, causal: bool) -> None:
    for n_layers, length in ((3, 3), (4, 3), (3, 4)):
        steps = half_residual(random_maps(kind, n_layers, length, causal=causal, seed=n_layers))
        found = settle(LayeredGraph(steps), np.arange(length), np.arange(length)).values
        for target, source in [(length - 1, 0), (length - 1, length - 2), (1, 1), (0, 1)]:
            assert found[target, source] == pytest.approx(every_cut(steps, target, source), abs=1e-7)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_layers", [3, 4, 9])
def test_bounds_hold_on_both_sides(kind: str, causal: bool, n_layers: int) -> None:
    length = 8
    graph = LayeredGraph(half_residual(random_maps(kind, n_layers, length, causal=causal, seed=6)))
    pairs = all_pairs(length)
    exact, _ = solver.solve(graph, pairs[graph.reach.ravel()], loose(pairs[graph.reach.ravel()]))
    bounds = cut_bounds(graph, np.arange(length), np.arange(length)).values.ravel()
    assert (bounds[~graph.reach.ravel()] == 0).all()
    pairs, bounds = pairs[graph.reach.ravel()], bounds[graph.reach.ravel()]
    assert (bounds >= exact - 1e-7).all()
    for share in (0.0, 0.3, 0.5, 1.0):
        for shape in ("even", "well placed"):
            lowest = spread_flows(graph, pairs, bounds, share=share, shape=shape)
            assert (lowest >= 0).all() and (lowest <= exact + 1e-7).all()
            wild = spread_flows(graph, pairs, 3 * bounds, share=share, shape=shape)  # too high an aim proves nothing
            assert (wild <= exact + 1e-7).all()


def test_a_spread_flow_is_feasible_edge_by_edge() -> None:
    """One level's move: no edge overfull, no node gives more than it holds."""
    from interp.tracing.flow.spreading import _moved

    draw = np.random.default_rng(0)
    step = half_residual(random_maps("dense", 1, 6, causal=False, seed=0))[0]
    held, goal = draw.uniform(0, 0.4, (50, 6)), draw.uniform(0, 0.4, (50, 6))
    after = _moved(held, goal, step)
    assert (after.sum(1) <= held.sum(1) + 1e-12).all() and (after >= 0).all()
    # by brute force: what can be held after is what a flow through the layer allows
    for before, later in zip(held[:10], after[:10], strict=True):
        for nodes in itertools.product((False, True), repeat=6):
            chosen = np.array(nodes)
            room = sum(min(before[k], step[k, chosen].sum()) for k in range(6))
            assert later[chosen].sum() <= room + 1e-12


@pytest.mark.parametrize("causal", [True, False])
def test_certificates_settle_most_of_a_deep_graph(causal: bool) -> None:
    graph = LayeredGraph(half_residual(random_maps("dense", 12, 20, causal=causal, seed=0)))
    counts = settle(graph, np.arange(20), np.arange(20)).counts
    certified = sum(number for way, number in counts.items() if "=" in way)
    assert certified > counts["solver"]
    assert counts["no path"] == (190 if causal else 0) if causal else "no path" not in counts


def test_every_pair_is_counted_once() -> None:
    graph = LayeredGraph(half_residual(random_maps("sharp", 8, 9, causal=True, seed=0)))
    assert sum(settle(graph, np.arange(9), np.array([0, 4])).counts.values()) == 18


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["dense", "sharp", "sink", "window", "zeros", "half identity"])
def test_few_edges_prove_what_all_do(kind: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = LayeredGraph(half_residual(random_maps(kind, 5, 14, causal=causal, seed=3)))
    pairs = all_pairs(14)[graph.reach.ravel()]
    expected, few = solver.solve(graph, pairs, loose(pairs))
    assert few == 0
    monkeypatch.setattr(solver, "NARROW", 4)
    monkeypatch.setattr(solver, "WIDE", 4)
    found, few = solver.solve(graph, pairs, loose(pairs))
    assert few > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_few_edges_that_prove_nothing_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # without a residual many weak edges count: a thinned graph holds less than the whole
    graph = LayeredGraph(random_maps("dense", 4, 12, causal=False, seed=0))
    expected, _ = solver.solve(graph, all_pairs(12), loose(all_pairs(12)))
    monkeypatch.setattr(solver, "NARROW", 4)
    monkeypatch.setattr(solver, "WIDE", 4)
    monkeypatch.setattr(solver, "STRONGEST", (1,))
    found, few = solver.solve(graph, all_pairs(12), loose(all_pairs(12)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    assert few < 144


def test_upside_down() -> None:
    graph = LayeredGraph(half_residual(random_maps("sharp", 5, 9, causal=True, seed=1)))
    pairs = all_pairs(9)[graph.reach.ravel()]
    assert graph.causal and graph.upside_down.causal
    expected, _ = solver.solve(graph, pairs, loose(pairs))
    found, _ = solver.solve(graph.upside_down, pairs.upside_down(9), loose(pairs.upside_down(9)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_many_small_networks_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = LayeredGraph(half_residual(random_maps("zeros", 6, 10, causal=True, seed=1)))
    pairs = all_pairs(10)[graph.reach.ravel()]
    expected, _ = solver.solve(graph, pairs, loose(pairs))
    monkeypatch.setattr(solver, "EDGES", 1)
    found, _ = solver.solve(graph, pairs, loose(pairs))
    np.testing.assert_array_equal(found, expected)
    network = network_of(graph.steps)
    for place in range(0, len(pairs), 7):
        assert found[place] == pytest.approx(
            network_flow(network, 6, int(pairs.targets[place]), int(pairs.sources[place])), abs=1e-7
        )


def test_long_lists_of_sources_leave_out_bounds_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.tracing.flow import cuts

    graph = LayeredGraph(half_residual(random_maps("dense", 6, 9, causal=True, seed=1)))
    expected = settle(graph, np.array([8]), np.arange(9)).values
    monkeypatch.setattr(cuts, "WORK", 0)
    loose = cut_bounds(graph, np.array([8]), np.arange(9)).values
    assert (loose >= expected - 1e-7).all()
    np.testing.assert_allclose(settle(graph, np.array([8]), np.arange(9)).values, expected, rtol=0, atol=1e-7)


def test_bottleneck_sums_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.tracing.flow import closed_forms

    draw = np.random.default_rng(0)
    first, second = draw.random((7, 5)), draw.random((5, 3))
    expected = np.minimum(first[:, :, None], second[None]).sum(1)
    monkeypatch.setattr(closed_forms, "ENTRIES", 1)
    np.testing.assert_allclose(bottleneck_sums(first, second), expected)


def test_spreads_in_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.tracing.flow import spreading

    graph = LayeredGraph(half_residual(random_maps("dense", 8, 9, causal=True, seed=1)))
    expected = settle(graph, np.arange(9), np.arange(9))
    monkeypatch.setattr(spreading, "ENTRIES", 20)
    found = settle(graph, np.arange(9), np.arange(9))
    assert dict(found.counts) == dict(expected.counts)
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-9)
    assert settling.MEET < solver.TOLERANCE
