"""Rollout of given maps: exact oracles, invariants, and the product of whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dense_rollout import block_rollout, dense, random_maps, step

import interp
from interp.errors import BadInput

W1 = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
W2 = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.6, 0.1, 0.3]]
V1 = [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]]
V2 = [[0.3, 0.3, 0.4], [0.7, 0.2, 0.1], [0.25, 0.5, 0.25]]
V3 = [[0.5, 0.25, 0.25], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]
CAUSAL = [[1, 0, 0], [0.34375, 0.65625, 0], [0.3775, 0.135, 0.4875]]
BOTH_WAYS = [
    [0.409375, 0.28046875, 0.31015625],
    [0.268125, 0.3859375, 0.3459375],
    [0.29125, 0.25375, 0.455],
]


@pytest.mark.parametrize("as_given", [list, np.array, torch.tensor])
def test_the_toys_are_exact(as_given: Any) -> None:
    found = interp.rollout(as_given([W1, W2]))
    np.testing.assert_allclose(found, CAUSAL, rtol=0, atol=1e-7 if as_given is torch.tensor else 1e-15)
    found = interp.rollout(as_given([V1, V2, V3]))
    np.testing.assert_allclose(found, BOTH_WAYS, rtol=0, atol=1e-7 if as_given is torch.tensor else 1e-15)
    by_top = interp.rollout(as_given([V1, V2, V3]), each_layer=True)
    np.testing.assert_allclose(by_top[0], step(np.array(V1)), rtol=0, atol=1e-7)
    np.testing.assert_allclose(by_top[1], dense([step(np.array(V1)), step(np.array(V2))]), rtol=0, atol=1e-7)
    np.testing.assert_allclose(by_top[2], BOTH_WAYS, rtol=0, atol=1e-7)


def test_the_order_of_layers_matters_and_is_from_the_first_on() -> None:
    backwards = interp.rollout([V3, V2, V1])
    np.testing.assert_allclose(backwards, dense([step(np.array(v)) for v in (V3, V2, V1)]), rtol=0, atol=1e-15)
    assert np.abs(backwards.numpy() - np.array(BOTH_WAYS)).max() > 0.02


def test_row_sums_are_by_row() -> None:
    """Entries of rows that sum to unequal numbers, as ``max`` leaves them: each row is divided by its own sum."""
    maps = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]])  # fused by max: [[.9, .9], [.5, .5]]
    found = interp.rollout(maps[None], heads="max").numpy()
    np.testing.assert_allclose(found, [[1.9 / 2.8, 0.9 / 2.8], [0.25, 0.75]], rtol=1e-15)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", ["mean", "max", "min", "weights"])
@pytest.mark.parametrize("residual", [0.5, 0.0, 0.2, 1.0, "layer", "query"])
def test_it_is_the_product_of_whole_matrices(causal: bool, heads: str, residual: Any) -> None:
    maps = random_maps(4, 3, 7, causal=causal)
    draw = np.random.default_rng(1)
    shares: Any = {"layer": draw.random(4), "query": draw.random((4, 7))}.get(residual, residual)
    weights = draw.random((4, 3)) if heads == "weights" else [heads] * 4
    steps = []
    for index in range(4):
        fuse: Any = weights[index]
        square = (
            getattr(np, heads)(maps[index], axis=0)
            if isinstance(fuse, str)
            else np.tensordot(fuse / fuse.sum(), maps[index], axes=1)
        )
        steps.append(step(square, shares if np.ndim(shares) == 0 else shares[index]))
    options: Any = {"heads": heads if heads != "weights" else weights, "residual": shares}
    whole = dense(steps)
    np.testing.assert_allclose(interp.rollout(maps, **options), whole, rtol=0, atol=1e-14)
    for targets in ([-1], [0], [3, 3, -2]):
        np.testing.assert_allclose(interp.rollout(maps, targets=targets, **options), whole[targets], rtol=0, atol=1e-14)
    tops = interp.rollout(maps, each_layer=True, **options)  # products of maps
    few = interp.rollout(maps, each_layer=True, targets=[-1], **options)  # vectors from every top
    for index in range(4):
        np.testing.assert_allclose(tops[index], dense(steps[: index + 1]), rtol=0, atol=1e-14)
        np.testing.assert_allclose(few[index], tops[index][-1:], rtol=0, atol=1e-14)


def test_rows_are_read_in_blocks() -> None:
    """More rows than one block holds, a single row, and rows with gaps."""
    maps = random_maps(2, 1, 1500, seed=3)[:, 0]
    whole = dense([step(layer) for layer in maps])
    np.testing.assert_allclose(interp.rollout(maps, targets=[7, 1400, 3]), whole[[7, 1400, 3]], rtol=0, atol=1e-12)
    thin = interp.rollout(torch.tensor(maps).float(), targets=[-1])
    assert thin.dtype == torch.float32
    np.testing.assert_allclose(thin, whole[-1:], rtol=0, atol=1e-6)


def test_invariants() -> None:
    identity = np.broadcast_to(np.eye(5), (3, 5, 5))
    np.testing.assert_array_equal(interp.rollout(identity), np.eye(5))
    causal, both_ways = random_maps(4, 2, 6, causal=True), random_maps(4, 2, 6)
    for maps in (causal, both_ways):
        found = interp.rollout(maps).numpy()
        np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-14)
        assert (found >= 0).all()
        # a layer that attends to itself alone changes nothing, wherever it stands
        for place in (0, 2, 4):
            more = np.insert(maps, place, np.eye(6), axis=0)
            np.testing.assert_allclose(interp.rollout(more), found, rtol=0, atol=1e-14)
        assert interp.rollout(maps, residual=1.0).tolist() == np.eye(6).tolist()
    assert not np.triu(interp.rollout(causal).numpy(), 1).any()
    order = np.random.default_rng(5).permutation(6)
    moved = interp.rollout(both_ways[:, :, order][..., order]).numpy()
    np.testing.assert_allclose(moved, interp.rollout(both_ways).numpy()[order][:, order], rtol=0, atol=1e-14)
    swapped = both_ways[:, ::-1].copy()
    np.testing.assert_allclose(interp.rollout(swapped), interp.rollout(both_ways), rtol=0, atol=1e-14)


def test_layers_below_start_are_left_out() -> None:
    maps = random_maps(5, 2, 6)
    for start in range(5):
        np.testing.assert_allclose(interp.rollout(maps, start=start), interp.rollout(maps[start:]), rtol=0, atol=1e-15)
    assert interp.rollout(maps, start=2, each_layer=True).shape == (3, 6, 6)


def test_layers_may_differ_in_heads() -> None:
    maps = [random_maps(1, heads, 5, seed=heads)[0] for heads in (1, 4, 2)]
    whole = dense([step(layer.mean(0)) for layer in maps])
    np.testing.assert_allclose(interp.rollout(maps), whole, rtol=0, atol=1e-15)
    np.testing.assert_allclose(interp.rollout([torch.tensor(layer) for layer in maps]), whole, rtol=0, atol=1e-15)
    weights = [[2.0], [1.0, 0.0, 0.0, 3.0], [1.0, 1.0]]
    steps = [step(np.tensordot(np.array(w) / sum(w), m, axes=1)) for w, m in zip(weights, maps, strict=True)]
    np.testing.assert_allclose(interp.rollout(maps, heads=weights), dense(steps), rtol=0, atol=1e-15)


def test_sixteen_bits_are_calculated_in_float32() -> None:
    maps = torch.tensor(random_maps(12, 4, 64))
    found = interp.rollout(maps.bfloat16(), missing="renormalise")
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, interp.rollout(maps), rtol=0, atol=1e-3)
    with pytest.raises(BadInput, match="missing='renormalise'"):
        interp.rollout(maps.bfloat16())


@pytest.mark.parametrize("with_encoder", [True, False])
def test_encoder_decoder_by_block_matrices(with_encoder: bool) -> None:
    maps = random_maps(3, 2, 4, causal=True, seed=1)
    cross = random_maps(3, 4, 4, keys=6, seed=2)
    encoder = random_maps(2, 2, 6, seed=3) if with_encoder else None
    truth = block_rollout(maps, cross, encoder)
    found = interp.rollout(maps, cross=cross, encoder=encoder).numpy()
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-14)
    last = interp.rollout(maps, cross=cross, encoder=encoder, targets=[-1]).numpy()
    np.testing.assert_allclose(last, truth[-1:], rtol=0, atol=1e-15)
    np.testing.assert_allclose(
        interp.rollout(maps, cross=cross, encoder=encoder, residual=0.3).numpy(),
        block_rollout(maps, cross, encoder, residual=0.3),
        rtol=0,
        atol=1e-15,
    )
    tops = interp.rollout(maps, cross=cross, encoder=encoder, each_layer=True)
    few = interp.rollout(maps, cross=cross, encoder=encoder, each_layer=True, targets=[2])
    for layer in range(3):
        below = block_rollout(maps[: layer + 1], cross[: layer + 1], encoder)
        np.testing.assert_allclose(tops[layer], below, rtol=0, atol=1e-15)
        np.testing.assert_allclose(few[layer], below[2:3], rtol=0, atol=1e-15)


def test_parts_of_an_encoder_decoder_take_their_own_options() -> None:
    maps, cross = random_maps(2, 2, 3, seed=1), random_maps(2, 2, 3, keys=4, seed=2)
    shares = {"decoder": [0.1, 0.4], "cross": 1.0}
    found = interp.rollout(maps, cross=cross, residual=shares).numpy()
    assert not found[:, :4].any(), "a cross-attention without a share brings nothing"
    alone = interp.rollout(maps, residual=[0.1, 0.4]).numpy()
    np.testing.assert_allclose(found[:, 4:], alone, rtol=0, atol=1e-15)
    with pytest.raises(BadInput, match="mapping"):
        interp.rollout(maps, cross=cross, residual=[0.1, 0.4])
    with pytest.raises(BadInput, match="nothing for 'cross'"):
        interp.rollout(maps, cross=cross, residual={"decoder": 0.5})


@pytest.mark.slow
def test_long_maps_equal_the_dense_product() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = torch.softmax(2 * torch.randn(6, 2048, 2048, generator=draw), dim=-1)
    state = torch.eye(2048, dtype=torch.float64)
    for layer in maps.double():
        one = layer + torch.eye(2048, dtype=torch.float64)
        state = one / one.sum(-1, keepdim=True) @ state
    found = interp.rollout(maps, targets=[-1, 5])
    torch.testing.assert_close(found.double(), state[[-1, 5]], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.double(), state[[-1, 5]], rtol=1e-4, atol=0)
