"""Attention flow: written-out examples, closed forms, bounds, what changes nothing, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from flow_graphs import KINDS, half_residual, random_maps

import interp
from interp import BadInput, Flow, SaturatedFlow, attention_flow

CAUSAL = [[[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]], [[1, 0, 0], [0.25, 0.75, 0], [0.6, 0.1, 0.3]]]
BOTH_WAYS = [
    [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]],
    [[0.3, 0.3, 0.4], [0.7, 0.2, 0.1], [0.25, 0.5, 0.25]],
    [[0.5, 0.25, 0.25], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]],
]


def quiet(maps: Any, **options: Any) -> np.ndarray:
    """The flows, without the warning that they do not depend on the target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SaturatedFlow)
        return np.asarray(attention_flow(maps, **options))


def near(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


def test_the_causal_example() -> None:
    near(attention_flow(CAUSAL), [[1, 0, 0], [0.375, 0.75, 0], [0.45, 0.2, 0.65]], 1e-12)
    near(attention_flow(CAUSAL, targets=[-1], normalise=True), [[0.3461538, 0.1538462, 0.5]])


def test_the_example_that_looks_both_ways() -> None:
    levels = attention_flow(BOTH_WAYS, each_layer=True)
    near(levels[0], half_residual(np.array(BOTH_WAYS))[0], 1e-12)
    near(levels[1], [[0.85, 0.5, 0.5], [0.45, 0.85, 0.6], [0.475, 0.475, 0.975]], 1e-12)
    near(levels[2], [[0.95, 0.75, 0.75], [0.65, 0.9, 0.8], [0.675, 0.675, 1]])
    near(attention_flow(BOTH_WAYS), levels[2], 0)
    near(attention_flow(BOTH_WAYS[:2]), levels[1], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_is_the_step_and_two_have_a_closed_form(kind: str) -> None:
    maps = random_maps(kind, 2, 7, causal=kind == "zeros", seed=3)
    steps = half_residual(maps)
    near(attention_flow(maps[:1]), steps[0], 1e-12)
    expected = [[np.minimum(steps[1][i], steps[0][:, j]).sum() for j in range(7)] for i in range(7)]
    near(attention_flow(maps), expected, 1e-12)
    assert attention_flow(maps).settled == {"closed form": 49}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds(kind: str, causal: bool) -> None:
    maps = random_maps(kind, 7, 9, causal=causal, seed=11)
    steps = half_residual(maps)
    found = quiet(maps)
    rollout = np.linalg.multi_dot(steps[::-1])
    assert (rollout <= found + 1e-7).all()
    assert (found >= 0).all() and (found <= 1 + 1e-12).all()
    places = np.arange(9)
    for target in range(9):
        for source in range(9):
            if causal and source > target:
                assert found[target, source] == 0
                continue
            inside = (places >= source) & (places <= target) if causal else places >= 0
            for layer, step in enumerate(steps):  # the cut through each whole layer, within the window
                tails = places == target if layer == 6 else inside
                heads = places == source if layer == 0 else inside
                assert found[target, source] <= step[np.ix_(tails, heads)].sum() + 1e-7


def test_identity_maps_give_the_identity_and_change_nothing() -> None:
    own = np.eye(6)
    near(attention_flow(np.stack([own] * 5)), own, 1e-12)
    maps = random_maps("dense", 3, 6, causal=True, seed=5)
    expected = quiet(maps)
    for place in range(4):
        near(quiet(np.insert(maps, place, own, axis=0)), expected)


def test_renaming_tokens_renames_the_flow() -> None:
    maps = random_maps("sharp", 5, 7, causal=False, seed=2)
    order = np.random.default_rng(0).permutation(7)
    near(quiet(maps[:, order][:, :, order]), quiet(maps)[order][:, order])


def test_turning_the_graph_upside_down_swaps_targets_and_sources() -> None:
    draw = np.random.default_rng(4)
    orders = np.stack([np.eye(6)[[draw.permutation(6) for _ in range(8)]].mean(0) for _ in range(4)])
    near(quiet(orders[::-1].swapaxes(1, 2), residual=0), quiet(orders, residual=0).T)


@pytest.mark.parametrize("causal", [True, False])
def test_chosen_targets_and_sources_are_rows_and_columns(causal: bool) -> None:
    maps = random_maps("sink", 6, 10, causal=causal, seed=8)
    whole = quiet(maps)
    near(quiet(maps, targets=[-1, 2, -1]), whole[[9, 2, 9]], 1e-7)
    near(quiet(maps, sources=[3, -10]), whole[:, [3, 0]], 1e-7)
    near(quiet(maps, targets=torch.tensor([4]), sources=np.array([1, 7])), whole[[4]][:, [1, 7]], 1e-7)


def test_levels_are_flows_of_the_first_layers() -> None:
    maps = random_maps("dense", 6, 8, causal=True, seed=1)
    levels = quiet(maps, each_layer=True, normalise=True)
    for layer in range(6):
        near(levels[layer], quiet(maps[: layer + 1], normalise=True), 1e-7)
    near(levels.sum(-1), np.ones((6, 8)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_carries_flows_up(kind: str, causal: bool) -> None:
    maps = random_maps(kind, 7, 7, causal=causal, seed=4)
    steps = half_residual(maps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SaturatedFlow)
        found = attention_flow(maps, each_layer=True)
    levels = np.asarray(found)
    for layer in range(1, 7):
        assert (steps[layer] @ levels[layer - 1] <= levels[layer] + 1e-7).all()
        near(levels[layer], quiet(maps[: layer + 1]), 1e-7)
    if kind == "half identity":
        assert any("carried up" in way for way in found.settled)


@pytest.mark.parametrize(("temperature", "least"), [(1.0, 0.999), (2.0, 0.99), (4.0, 0.85)])
def test_deep_maps_that_look_both_ways_saturate(temperature: float, least: float) -> None:
    shares = []
    for seed in range(4):
        scores = temperature * np.random.default_rng(seed).normal(size=(6, 8, 8))
        maps = torch.from_numpy(scores).softmax(-1).numpy()
        columns = np.minimum(1, half_residual(maps)[0].sum(0))
        shares.append((abs(quiet(maps) - columns) < 1e-6).mean())
    assert np.mean(shares) >= least, shares


@pytest.mark.parametrize("temperature", [3.0, 10.0])
def test_twelve_layers_forget_the_target(temperature: float) -> None:
    scores = temperature * torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    with pytest.warns(SaturatedFlow, match="same whatever the target"):
        found = attention_flow(scores.softmax(-1))
    assert found.spread.max() < 1e-6
    assert np.asarray(found).std(0).max() < 1e-6
    columns = half_residual(scores.softmax(-1).numpy())[0].sum(0)
    assert (abs(np.asarray(found) - np.minimum(1, columns)) < 1e-6).mean() > 0.85


def test_the_warning_comes_once_where_it_is_due() -> None:
    maps = random_maps("dense", 6, 8, causal=False, seed=0)
    for options in ({}, {"targets": [-1]}, {"each_layer": True}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attention_flow(maps, **options)
        assert [one.category for one in caught] == [SaturatedFlow]
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention_flow(maps[:3])
        attention_flow(random_maps("dense", 6, 8, causal=True, seed=0))
        attention_flow(np.stack([np.eye(5)] * 6))


def test_the_spread_is_the_deviation_over_targets_with_a_path() -> None:
    maps = random_maps("dense", 5, 6, causal=True, seed=0)
    found = attention_flow(maps)
    values = np.asarray(found)
    expected = [values[source:, source].std() for source in range(5)]
    near(found.spread[:5], expected, 1e-9)
    assert np.isnan(found.spread[5])


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_heads_are_fused_before_the_residual(heads: str) -> None:
    maps = np.stack([random_maps("dense", 4, 6, causal=True, seed=seed) for seed in range(3)], axis=1)
    fused = {"mean": maps.mean(1), "max": maps.max(1), "min": maps.min(1)}[heads]
    added = fused + np.eye(6) * 1.0
    steps = added / added.sum(-1, keepdims=True)
    near(quiet(maps, heads=heads), quiet(steps, residual=0))


def test_heads_by_weights() -> None:
    maps = np.stack([random_maps("dense", 4, 6, causal=True, seed=seed) for seed in range(2)], axis=1)
    weights = np.array([[1.0, 3.0], [1, 0], [2, 2], [0, 5]])
    shares = weights / weights.sum(1, keepdims=True)
    near(quiet(maps, heads=weights), quiet(np.einsum("lh,lhqk->lqk", shares, maps)))
    ragged = [maps[0], maps[1, :1], maps[2], maps[3]]
    near(quiet(ragged), quiet(np.stack([one.mean(0) for one in ragged])))


def test_the_residual_share() -> None:
    maps = random_maps("dense", 4, 5, causal=True, seed=6)
    own = np.eye(5)
    near(quiet(maps, residual=None), quiet(maps, residual=0), 0)
    near(quiet(maps, residual=0.25), quiet(0.75 * maps + 0.25 * own, residual=0))
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    steps = (1 - shares)[:, None, None] * maps + shares[:, None, None] * own
    near(quiet(maps, residual=shares), quiet(steps, residual=0))
    near(quiet(maps, residual=1.0), own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    maps = torch.from_numpy(random_maps("dense", 5, 7, causal=True, seed=9)).to(dtype)
    found = attention_flow(maps, missing="renormalise")
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = maps.double() / maps.double().sum(-1, keepdim=True)
    near(found, quiet(exact))
    assert not found.requires_grad


def test_the_result_is_a_tensor_that_knows_how_it_was_found() -> None:
    maps = random_maps("dense", 6, 6, causal=True, seed=0)
    found = attention_flow(torch.from_numpy(maps).requires_grad_(), targets=[-1, 3], sources=[0, 2, 5])
    assert isinstance(found, Flow) and isinstance(found, torch.Tensor)
    assert found.shape == (2, 3) and type(found[0, 1]) is torch.Tensor and type(found + 1) is torch.Tensor
    assert np.asarray(found).shape == (2, 3)
    assert type(torch.stack([found, found])) is torch.Tensor
    assert sum(found.settled.values()) == 6
    assert found.settled["no path"] == 1
    table = found.table()
    assert table.to_dict("list")["target"] == [5, 5, 5, 3, 3, 3]
    assert table.to_dict("list")["source"] == [0, 2, 5, 0, 2, 5]
    near(table["flow"], np.asarray(found).ravel(), 0)
    assert "Flow(2 x 3; " in repr(found) and "no path: 1" in repr(found) and "tensor(" in repr(found)
    levels = attention_flow(maps, each_layer=True)
    assert levels.table().columns.tolist() == ["layers", "target", "source", "flow"]
    assert sum(levels.settled.values()) == 6 * 36


def test_padding_rows_carry_nothing() -> None:
    maps = random_maps("dense", 4, 5, causal=True, seed=3)
    padded = np.zeros((4, 7, 7))
    padded[:, :5, :5] = maps
    found = quiet(padded)
    near(found[:5, :5], quiet(maps))
    assert (found[5:] == 0).all() and (found[:, 5:] == 0).all()


def _with(value: float) -> np.ndarray:
    maps = random_maps("dense", 3, 4, causal=True, seed=0)
    maps[1, 2, 1] = value
    return maps


EVEN = np.full((3, 4, 4), 0.25)


@pytest.mark.parametrize(
    ("maps", "options", "words"),
    [
        (_with(-0.1), {}, "negative"),
        (_with(np.nan), {}, "NaN"),
        (_with(np.inf), {}, "infinite"),
        (_with(-0.1), {"missing": "sink"}, "negative"),
        (EVEN * 1.2, {}, "more than 1"),
        (EVEN * 1.2, {"missing": "sink"}, "more than 1"),
        (EVEN * 0.8, {}, "missing='sink'"),
        (EVEN, {"missing": "drop"}, "Unknown rule"),
        (EVEN[:, :, :3] * 4 / 3, {}, "4 queries and 3 keys"),
        (EVEN[0], {}, r"shape \[4, 4\]"),
        (EVEN[None, None], {}, "one prompt"),
        ([], {}, "no layer"),
        ([EVEN[0], EVEN[0, :3, :3] * 4 / 3], {}, "as many tokens"),
        ("maps", {}, "str"),
        (EVEN, {"targets": [4]}, "4 tokens"),
        (EVEN, {"targets": [-5]}, "4 tokens"),
        (EVEN, {"sources": [7]}, "sources"),
        (EVEN, {"targets": []}, "list of tokens"),
        (EVEN, {"targets": [0.5]}, "list of tokens"),
        (EVEN, {"targets": [True]}, "list of tokens"),
        (EVEN, {"targets": -1}, "list of tokens"),
        (EVEN, {"residual": 1.5}, "0 to 1"),
        (EVEN, {"residual": [0.5, 0.5]}, "residual"),
        (EVEN, {"heads": "median"}, "Unknown fusion"),
        (EVEN, {"heads": [[1.0]]}, "weights"),
    ],
)
def test_refusals(maps: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        attention_flow(maps, **options)


def test_it_is_public() -> None:
    assert interp.attention_flow is attention_flow
