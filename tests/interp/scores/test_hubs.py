"""Graphs of maps: stars, complete graphs and two hubs; block by block and whole; hubs and frames of reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal

import interp
from interp.errors import BadInput
from interp.scores.shape import hubs
from interp.scores.shape.frames import above_percentile, hub_count, row_distance, row_distance_of
from interp.scores.shape.hubs import (
    MOST_TOKENS,
    THETAS,
    components_of,
    connected_parts,
    cycle_rank,
    cycle_rank_of,
    edges_of,
    fiedler_of,
    fiedler_value,
    freeman,
    hub_centralisation,
    star_likeness,
    star_share,
)

MEASURES = {
    "centralisation": (hub_centralisation, lambda graph: float(freeman(degrees(graph), real(graph)))),
    "star": (star_likeness, lambda graph: float(star_share(degrees(graph), real(graph)))),
    "fiedler": (fiedler_value, fiedler_of),
    "parts": (connected_parts, components_of),
    "cycles": (cycle_rank, cycle_rank_of),
}


def degrees(graph: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(graph.sum(1))


def real(graph: np.ndarray) -> torch.Tensor:
    return torch.ones(len(graph), dtype=torch.bool)


def star(n: int) -> np.ndarray:
    made = np.zeros((n, n), dtype=bool)
    made[0, 1:] = made[1:, 0] = True
    return made


def values(graph: np.ndarray) -> dict[str, float]:
    return {name: measure(graph) for name, (_, measure) in MEASURES.items()}


def test_star_complete_and_two_hubs() -> None:
    """Star: 1, 1, Fiedler 1, one part, no cycle. Complete: 0, 2/n, n, (n-1)(n-2)/2 cycles. Two hubs: in between."""
    assert values(star(6)) == pytest.approx({"centralisation": 1, "star": 1, "fiedler": 1, "parts": 1, "cycles": 0})
    whole = values(~np.eye(6, dtype=bool))
    assert whole == pytest.approx({"centralisation": 0, "star": 2 / 6, "fiedler": 6, "parts": 1, "cycles": 10})
    two = np.zeros((8, 8), dtype=bool)
    two[0, 1:5] = two[1:5, 0] = two[1, 5:] = two[5:, 1] = True
    found = values(two)
    assert 0 < found["centralisation"] < 1 and 0 < found["star"] < 1 and 0 < found["fiedler"] < 1
    apart = values(np.kron(np.eye(2), star(3)).astype(bool))
    assert apart["parts"] == 2 and apart["fiedler"] == pytest.approx(0, abs=1e-9) and apart["cycles"] == 0
    empty = values(np.zeros((4, 4), dtype=bool))
    assert empty["centralisation"] == 0 and np.isnan(empty["star"]) and empty["parts"] == 4


def test_a_sink_is_a_star_and_a_uniform_map_is_complete() -> None:
    for name, (make, _) in MEASURES.items():
        thetas = {"thetas": (0.01,)}
        sink, even = (reduced(make(ask_for(6), **thetas), x).item() for x in (all_on_first(6), uniform_causal(6)))
        assert sink == pytest.approx(MEASURES[name][1](star(6)))
        assert even == pytest.approx(MEASURES[name][1](~np.eye(6, dtype=bool)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("split", [1, 4, 50])
@pytest.mark.parametrize("name", MEASURES)
def test_the_reducer_by_brute_force(name: str, split: int, causal: bool) -> None:
    """Causal maps are counted block by block (degrees), others held whole; padding is no node."""
    make, measure = MEASURES[name]
    draw = torch.Generator().manual_seed(3)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, :2] = False
    visible = torch.ones(12, 12).bool() if not causal else torch.ones(12, 12).tril().bool()
    visible = visible & mask[0] & mask[0][:, None]
    scores = 2 * torch.randn(2, 12, 12, generator=draw)
    pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
    options: dict[str, Any] = {} if causal else {"visible": visible}
    found = reduced(make(ask_for(12, mask=mask)), pattern, rows_per_block=split, **options)[0]
    assert found.shape == (2, len(THETAS))
    for head in range(2):
        for place, theta in enumerate(THETAS):
            graph = edges_of(pattern[head, 2:, 2:], theta).numpy()
            assert float(found[head, place]) == pytest.approx(measure(graph), nan_ok=True, rel=1e-6, abs=1e-9)


def test_above_uniform() -> None:
    """A uniform map has no edge beyond its baseline, so that only a preference shows."""
    ask = ask_for(6)
    assert reduced(star_likeness(ask, minus_uniform=True), uniform_causal(6)).isnan().all()
    half = 0.5 * uniform_causal(6) + 0.5 * all_on_first(6)
    assert reduced(hub_centralisation(ask, thetas=(0.05,), minus_uniform=True), half).item() == 1


@pytest.mark.parametrize("thetas", [(), (0.1, 1.0), (-0.1,), "0.1", (True,)])
def test_thresholds_that_are_none_are_refused(thetas: Any) -> None:
    with pytest.raises(BadInput, match="from 0 on and below 1"):
        hub_centralisation(ask_for(6), thetas=thetas)


def test_long_prompts_are_refused_where_maps_are_held(case_of: Callable[[str], Case]) -> None:
    short = ask_for(5)
    tokens = torch.zeros(1, MOST_TOKENS + 1, dtype=torch.long)
    long = replace(short, batch=replace(short.batch, ids=tokens, mask=torch.ones_like(tokens) > 0))
    with pytest.raises(BadInput, match=f"takes at most {MOST_TOKENS}.*any length"):
        fiedler_value(long)
    with pytest.raises(BadInput, match="takes at most 4"):
        cycle_rank(ask_for(5), most_tokens=4)
    hub_centralisation(long)
    case = case_of("bart")
    with pytest.raises(BadInput, match="queries are not its keys"):
        interp.score(case.model, case.batch(), "hub_centralisation", stack="cross")


def test_rows_in_one_frame_or_in_many() -> None:
    assert reduced(row_distance(ask_for(8)), all_on_first(8)).item() == 0
    assert reduced(row_distance(ask_for(8)), torch.eye(8)).item() == 1
    assert row_distance_of(torch.ones(1, 1)).isnan()


@pytest.mark.parametrize("split", [1, 3, 50])
def test_the_distance_of_rows_pair_by_pair(split: int) -> None:
    scores = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(4))
    pattern = scores.masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf).softmax(-1)
    expected = []
    for head in pattern.double():
        pairs = [1 - (head[i] * head[j]).sqrt().sum() for i in range(9) for j in range(i)]
        expected.append(float(torch.stack(pairs).mean().sqrt()))
    assert reduced(row_distance(ask_for(9)), pattern, rows_per_block=split)[0].tolist() == pytest.approx(expected)
    assert row_distance_of(pattern).tolist() == pytest.approx(expected, rel=1e-5)


def test_entries_above_a_percentile() -> None:
    """Of ten entries the one at place floor(0.9 x 9) = 8 in rising order is the ninth: the largest alone is above."""
    row = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]]) / 55
    assert above_percentile(row, torch.tensor([10]), 0.9)[0].nonzero().flatten().tolist() == [9]
    assert above_percentile(row, torch.tensor([10]), 0.5)[0].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
    assert not above_percentile(torch.full((1, 10), 0.1), torch.tensor([10]), 0.9).any()
    tied = torch.tensor([[0.3, 0.3, 0.3, 0.1]])
    assert not above_percentile(tied, torch.tensor([4]), 0.9).any()


@pytest.mark.parametrize("split", [1, 3, 50])
def test_hubs_are_counted(split: int) -> None:
    """One sink, two hubs, none."""
    two = torch.zeros(30, 30)
    two[:, 0] = 0.5
    two[:, 5] = 0.5
    two[:6] = all_on_first(30)[:6]
    maps = torch.stack([all_on_first(30), two, uniform_causal(30), torch.eye(30)])
    found = reduced(hub_count(ask_for(30)), maps[:2], rows_per_block=split)[0].tolist()
    assert found == [1, 2]
    assert reduced(hub_count(ask_for(30)), maps[2:], rows_per_block=split)[0].tolist() == [0, 0]
    assert reduced(hub_count(ask_for(30)), previous_map(30)).item() <= 2, (
        "the last tokens are seen by one or two queries"
    )


@pytest.mark.parametrize("options", [{"percentile": 1}, {"share": 0}, {"share": True}])
def test_shares_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="above 0 and below 1"):
        hub_count(ask_for(5), **options)


@pytest.mark.parametrize("name", ["fiedler", "parts", "cycles"])
def test_whole_graphs_of_many_prompts_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts x heads x tokens^2 are bounded, and what to do is said: prompts that fit one at a time are taken so."""
    monkeypatch.setattr(hubs, "MOST_ENTRIES", 2 * 2 * 8**2)  # two prompts of 8 tokens of the two heads
    make = MEASURES[name][0]
    with pytest.raises(BadInput, match=r"3 prompts x 2 heads x 8\^2 entries .* Use batch_size=2"):
        make(ask_for(8, batch_size=3))
    make(ask_for(8, batch_size=2))
    with pytest.raises(BadInput, match="one alone is too long"):
        make(ask_for(12, batch_size=1))


@pytest.mark.parametrize("score", ["hub_centralisation", "fiedler_value"])
def test_maps_of_images_are_bounded_as_they_come(
    case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    case = case_of("vit")
    interp.score(case.model, case.batch(2), score)
    monkeypatch.setattr(hubs, "MOST_ENTRIES", 50)
    with pytest.raises(BadInput, match="more than 50"):
        interp.score(case.model, case.batch(2), score)


def test_degrees_of_causal_maps_have_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MOST_ENTRIES", 1)
    assert reduced(hub_centralisation(ask_for(8), thetas=(0.05,)), all_on_first(8)).item() == pytest.approx(1)
