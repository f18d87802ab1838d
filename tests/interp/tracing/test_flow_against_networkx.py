"""Flows equal those that networkx finds, on hundreds of layered graphs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from flow_graphs import KINDS, half_residual, network_flow, network_of, random_maps

import interp


def compare(maps: np.ndarray, steps: np.ndarray, *, pairs: int, seed: int, **options: object) -> None:
    """Some pairs of one graph."""
    n_layers, length, _ = maps.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", interp.SaturatedFlow)
        found = interp.attention_flow(maps, **options)
    graph = network_of(steps)
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(length * length)[:pairs]
    for target, source in zip(*np.divmod(chosen, length), strict=True):
        expected = network_flow(graph, n_layers, int(target), int(source))
        assert float(found[target, source]) == pytest.approx(expected, abs=1e-6), (target, source)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_random_graphs(kind: str, causal: bool) -> None:
    for seed in range(20):
        n_layers, length = 1 + seed % 8, 2 + seed % 6
        maps = random_maps(kind, n_layers, length, causal=causal, seed=seed)
        compare(maps, half_residual(maps), pairs=5, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
def test_without_residual(kind: str) -> None:
    for seed in range(6):
        maps = random_maps(kind, 3 + seed, 5, causal=bool(seed % 2), seed=100 + seed)
        compare(maps, maps, pairs=5, seed=seed, residual=0)


@pytest.mark.parametrize("causal", [True, False])
def test_rows_that_lack_mass(causal: bool) -> None:
    for seed in range(6):
        maps = random_maps("dense", 3 + seed, 5, causal=causal, seed=200 + seed)
        left = np.random.default_rng(seed).uniform(0.2, 1, size=(*maps.shape[:2], 1))
        own = np.eye(maps.shape[-1])
        steps = {
            "sink": (maps * left + own) / 2,
            "self": (maps * left + (1 - left) * own + own) / 2,
            "renormalise": half_residual(maps),
        }
        for rule, expected in steps.items():
            compare(maps * left, expected, pairs=4, seed=seed, missing=rule)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_larger_graphs(kind: str, causal: bool) -> None:
    for n_layers, length in ((12, 14), (6, 24), (4, 40)):
        maps = random_maps(kind, n_layers, length, causal=causal, seed=length)
        compare(maps, half_residual(maps), pairs=12, seed=length)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["dense", "sharp", "sink", "window", "uneven", "half identity"])
def test_windows_wide_enough_to_be_thinned(kind: str, causal: bool) -> None:
    maps = random_maps(kind, 5, 120, causal=causal, seed=1)
    targets = [119, 110, 60]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", interp.SaturatedFlow)
        found = interp.attention_flow(maps, targets=targets)
    graph = network_of(half_residual(maps))
    for place, target in enumerate(targets):
        for source in (0, 7, 40):
            expected = network_flow(graph, 5, target, source)
            assert float(found[place, source]) == pytest.approx(expected, abs=1e-6), (target, source, found.settled)
