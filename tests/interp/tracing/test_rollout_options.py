"""Options of a rollout: discarding with ties, weights of heads, missing mass, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dense_rollout import dense, dense_rollout, dropped, random_maps, step

import interp
from interp import HeadScores
from interp.attribution.gating.history import History
from interp.errors import BadInput, UnknownName
from interp.tracing.fusion import fusion_of
from interp.tracing.transitions import discarded


@pytest.mark.parametrize("share", [0.1, 0.29, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("causal", [True, False])
def test_discard_is_exact(share: float, heads: str, causal: bool) -> None:
    maps = random_maps(3, 2, 10, causal=causal)
    truth = dense_rollout(maps, heads=heads, discard=share)
    np.testing.assert_allclose(interp.rollout(maps, heads=heads, discard=share), truth, rtol=0, atol=1e-14)
    last = interp.rollout(maps, heads=heads, discard=share, targets=[-1])
    np.testing.assert_allclose(last, truth[-1:], rtol=0, atol=1e-14)


def test_ties_go_row_by_row_and_the_count_is_exact() -> None:
    square = np.full((4, 4), 0.25)
    for share in np.linspace(0, 0.99, 34):
        found = discarded(torch.tensor(square)[None], float(share), keep_first=False)[0].numpy()
        assert (found == 0).sum() == int(share * 16 + 1e-9)
        np.testing.assert_array_equal(found, dropped(square, float(share), keep_first=False))
        assert (np.diff((found.ravel() != 0).astype(int)) >= 0).all(), "the first of equals go first"
    few = np.round(np.random.default_rng(0).random((6, 6)), 1)
    np.testing.assert_array_equal(discarded(torch.tensor(few)[None], 0.6)[0].numpy(), dropped(few, 0.6))


def test_the_first_entry_is_spared_by_option() -> None:
    square = np.array([[0.01, 0.99], [0.5, 0.5]])
    assert discarded(torch.tensor(square)[None], 0.25)[0].tolist() == square.tolist()
    assert discarded(torch.tensor(square)[None], 0.25, keep_first=False)[0].tolist() == [[0, 0.99], [0.5, 0.5]]
    kept = interp.rollout(square[None], discard=0.25, keep_first=False)
    np.testing.assert_allclose(kept, [[1 / 1.99, 0.99 / 1.99], [0.25, 0.75]], rtol=1e-15)


def test_every_prompt_discards_its_own_entries() -> None:
    squares = torch.tensor(random_maps(5, 1, 6)[:, 0])
    together = discarded(squares, 0.7)
    for one, alone in zip(squares, together, strict=True):
        assert torch.equal(discarded(one[None], 0.7)[0], alone)
    shuffled = discarded(squares.flip(0), 0.7).flip(0)
    assert torch.equal(shuffled, together)


def test_padding_is_not_counted() -> None:
    square = torch.tensor(random_maps(1, 1, 5, seed=2)[0])
    wide = torch.zeros(1, 8, 8, dtype=square.dtype)
    wide[0, 2:7, 2:7] = square[0]
    maps = [wide.numpy()] * 2
    truth = interp.rollout([square] * 2, discard=0.6)
    found = interp.rollout(maps, discard=0.6)
    np.testing.assert_allclose(found[2:7, 2:7], truth, rtol=0, atol=1e-15)
    assert not found[:2].any() and not found[7:].any() and not found[:, 7:].any()


# ---- weights of heads -----------------------------------------------------------------------------------------------


def by_weights(maps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return dense([step(np.tensordot(row / row.sum(), layer, axes=1)) for row, layer in zip(weights, maps, strict=True)])


def test_tables_of_heads_weigh() -> None:
    maps = random_maps(3, 4, 6)
    weights = np.random.default_rng(0).random((3, 4))
    truth = by_weights(maps, weights)
    for given in (weights, weights.tolist(), torch.tensor(weights), 7 * weights):
        np.testing.assert_allclose(interp.rollout(maps, heads=given), truth, rtol=0, atol=1e-15)
    table = HeadScores.from_array(np.stack([weights * 0.5, weights * 1.5]), name="two", sample_axis="prompt")
    np.testing.assert_allclose(interp.rollout(maps, heads=table), truth, rtol=0, atol=1e-15)
    one_head = np.eye(4)[[2, 0, 3]]
    alone = dense([step(maps[layer, head]) for layer, head in enumerate((2, 0, 3))])
    np.testing.assert_allclose(interp.rollout(maps, heads=one_head), alone, rtol=0, atol=1e-15)
    np.testing.assert_allclose(interp.rollout(maps, heads=np.ones((3, 4))), interp.rollout(maps), rtol=0, atol=1e-15)


def test_gates_weigh_by_facilitation() -> None:
    maps = random_maps(2, 3, 5)
    draw = np.random.default_rng(3)
    retain, remove, warm = draw.random((3, 4, 2, 3))
    nothing = np.zeros((4, 0))
    history = History(*[nothing] * len(History.__dataclass_fields__))
    gates = interp.Gates(retain, remove, warm, (0, 1, 2, 3), history)
    truth = by_weights(maps, remove.mean(0))
    np.testing.assert_allclose(interp.rollout(maps, heads=gates), truth, rtol=0, atol=1e-15)


def test_layers_of_fewer_heads_have_blank_cells_in_a_table() -> None:
    values = np.array([[1.0, 3.0, np.nan], [1.0, 1.0, 2.0]])
    fusion = fusion_of(HeadScores.from_array(values, name="uneven"), [2, 3])
    assert fusion.weights is not None
    assert [row.tolist() for row in fusion.weights] == [[0.25, 0.75], [0.25, 0.25, 0.5]]
    skipping = fusion_of(HeadScores.from_array(values, name="uneven"), [3], layers=[1])
    assert skipping.weights is not None and skipping.weights[0].tolist() == [0.25, 0.25, 0.5]
    with pytest.raises(BadInput, match=r"layer 0.*nan"):
        fusion_of(HeadScores.from_array(values, name="uneven"), [3, 3])


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ("median", "median"),
        ([[1.0, -0.5], [1.0, 1.0]], "at least 0"),
        ([[1.0, float("nan")], [1.0, 1.0]], "2 heads and 2 weights|at least 0"),
        ([[0.0, 0.0], [1.0, 1.0]], "not all 0"),
        ([[1.0], [1.0]], "one per head"),
        ([[1.0, 1.0]], "layer, head"),
        ([1.0, 1.0], "layer, head"),
        (3.5, "float"),
        (HeadScores.from_array(np.ones((1, 2)), name="short"), "1 layers"),
        (HeadScores.from_array(np.ones((2, 2)), name="kv", unit="kv"), "query head"),
    ],
)
def test_weights_that_cannot_be_are_refused(heads: Any, said: str) -> None:
    with pytest.raises((BadInput, UnknownName), match=said):
        interp.rollout(random_maps(2, 2, 4), heads=heads)


# ---- missing mass ---------------------------------------------------------------------------------------------------

SHORT = np.array([[[[0.5, 0.0], [0.2, 0.4]], [[1.0, 0.0], [0.3, 0.3]]]])  # rows sum to .5, .6 and to 1, .6


def test_missing_mass_leaves_stays_or_is_made_up() -> None:
    sink = interp.rollout(SHORT, missing="sink").numpy()
    np.testing.assert_allclose(sink, [[0.875, 0], [0.125, 0.675]], rtol=1e-15)
    np.testing.assert_allclose(sink.sum(-1), [0.875, 0.8], rtol=1e-15)
    stays = interp.rollout(SHORT, missing="self").numpy()
    np.testing.assert_allclose(stays, [[1, 0], [0.125, 0.875]], rtol=1e-15)
    up = interp.rollout(SHORT, missing="renormalise").numpy()
    np.testing.assert_allclose(up, [[1, 0], [(0.2 + 0.3) / 0.6 / 4, 0.5 + (0.4 + 0.3) / 0.6 / 4]], rtol=1e-15)
    with pytest.raises(BadInput, match=r"sink.*self.*renormalise"):
        interp.rollout(SHORT)


def test_a_sink_is_one_more_column() -> None:
    """Leaving the graph is attention to one more token that sends nothing on: for every fusion, with discarding too."""
    maps = random_maps(3, 3, 6)
    short = maps * np.random.default_rng(0).uniform(0.3, 1, (3, 3, 6, 1))
    for heads in ("mean", "max", "min"):
        state = np.eye(7)[:, :6]
        for layer in short:
            wide = np.zeros((3, 7, 7))
            wide[:, :6, :6] = layer
            wide[:, :6, 6] = 1 - layer.sum(-1)
            wide[:, 6, 6] = 1
            state = step({"mean": wide.mean(0), "max": wide.max(0), "min": wide.min(0)}[heads]) @ state
        found = interp.rollout(short, heads=heads, missing="sink").numpy()
        np.testing.assert_allclose(found, state[:6], rtol=0, atol=1e-15)
        assert (found.sum(-1) < 1).all()


def test_staying_is_more_on_the_diagonal() -> None:
    maps = random_maps(3, 3, 6)
    short = maps * np.random.default_rng(0).uniform(0.3, 1, (3, 3, 6, 1))
    filled = short + (1 - short.sum(-1))[..., None] * np.eye(6)
    for options in ({}, {"heads": "max"}, {"heads": "min"}, {"discard": 0.5}):
        truth = interp.rollout(filled, **options)
        np.testing.assert_allclose(interp.rollout(short, missing="self", **options), truth, rtol=0, atol=1e-15)


def test_made_up_rows_are_rows_divided_by_their_sums() -> None:
    maps = random_maps(3, 3, 6)
    odd = maps * np.random.default_rng(0).uniform(0.3, 1.7, (3, 3, 6, 1))
    for options in ({}, {"heads": "max"}, {"heads": "min"}, {"discard": 0.5}):
        truth = interp.rollout(maps, **options)
        np.testing.assert_allclose(interp.rollout(odd, missing="renormalise", **options), truth, rtol=0, atol=1e-14)


def test_missing_mass_of_a_cross_attention() -> None:
    maps = random_maps(1, 1, 2)
    cross = np.array([[[0.5, 0.25, 0.0], [0.25, 0.25, 0.5]]])
    sink = interp.rollout(maps, cross=cross, missing="sink").numpy()
    np.testing.assert_allclose(sink[:, :3], cross[0] / 2, rtol=1e-15)
    np.testing.assert_allclose(sink.sum(-1), [0.875, 1], rtol=1e-15)
    stays = interp.rollout(maps, cross=cross, missing="self").numpy()
    np.testing.assert_allclose(stays.sum(-1), [1, 1], rtol=1e-15)
    own = interp.rollout(maps).numpy()
    np.testing.assert_allclose(stays[:, 3:], own * [[0.625], [0.5]], rtol=1e-15)


def test_rows_without_normalisation() -> None:
    maps = random_maps(2, 3, 4)
    steps = [0.5 * layer.max(0) + 0.5 * np.eye(4) for layer in maps]
    found = interp.rollout(maps, heads="max", normalise=False)
    np.testing.assert_allclose(found, dense(steps), rtol=0, atol=1e-15)
    np.testing.assert_allclose(interp.rollout(maps, normalise=False), interp.rollout(maps), rtol=0, atol=1e-15)


def test_empty_rows_stay_empty() -> None:
    maps = random_maps(2, 2, 5, causal=True)
    maps[:, :, 3:] = 0
    for missing in (None, "sink", "self", "renormalise"):
        found = interp.rollout(maps, missing=missing).numpy()
        assert not found[3:].any()
        np.testing.assert_allclose(found[:3, :3], interp.rollout(maps[:, :, :3, :3]), rtol=0, atol=1e-15)


# ---- refusals -------------------------------------------------------------------------------------------------------


def spoiled(value: float, *, layer: int = 1, row: int = 2) -> np.ndarray:
    maps = random_maps(3, 2, 4)
    maps[layer, 1, row, 0] = value
    return maps


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("options", [{}, {"targets": [-1]}, {"start": 1}])
@pytest.mark.parametrize(
    ("value", "said"), [(-0.25, "negative"), (np.nan, "NaN"), (np.inf, "NaN or infinite"), (1.5, "more than 1")]
)
def test_maps_that_are_no_distributions_are_refused(
    value: float, said: str, layer: int, row: int, options: dict[str, Any]
) -> None:
    """Wherever they are spoiled, in rows that no target reaches and in layers that are left out as well."""
    with pytest.raises(BadInput, match=said) as error:
        interp.rollout(spoiled(value, layer=layer, row=row), **options)
    assert f"patterns[{layer}]" in str(error.value)


@pytest.mark.parametrize("missing", ["sink", "self", "renormalise"])
def test_no_rule_makes_negative_numbers_probabilities(missing: Any) -> None:
    for value in (-0.25, np.nan):
        with pytest.raises(BadInput, match=r"patterns\[1\]"):
            interp.rollout(spoiled(value), missing=missing)


@pytest.mark.parametrize(
    ("maps", "options", "said"),
    [
        (np.eye(3), {}, "layer, query, key"),
        (np.ones((1, 1, 1, 3, 3)), {}, "one prompt"),
        ([np.ones((2, 1, 3, 3)) / 3], {}, "one prompt"),
        ([], {}, "no layer"),
        ("maps", {}, "str"),
        ([np.eye(3), np.eye(4)], {}, "as many tokens"),
        (np.ones((2, 3, 4)) / 4, {}, "cross="),
        (np.ones((1, 2, 2)) * 0.5j, {}, "complex"),
        (np.array([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.0, 0.0]]]]), {}, "sum to 0.0000"),
        ([["a"]], {}, "array of numbers"),
        (None, {"targets": [3]}, "0 to 2"),
        (None, {"targets": [-4]}, "0 to 2"),
        (None, {"targets": [0.5]}, "columns"),
        (None, {"targets": []}, "columns"),
        (None, {"targets": [[0]]}, "columns"),
        (None, {"discard": 1.0}, r"\[0, 1\)"),
        (None, {"discard": -0.1}, r"\[0, 1\)"),
        (None, {"missing": "drop"}, "rule for missing mass"),
        (None, {"start": 2}, "2 layers"),
        (None, {"start": -1}, "0 or above"),
        (None, {"residual": 1.5}, "0 to 1"),
        (None, {"residual": [0.1, 0.2, 0.3]}, "layer"),
        (None, {"residual": "measured"}, "interp.trace"),
        (None, {"residual": float("nan")}, "0 to 1"),
        (None, {"encoder": np.eye(3)[None]}, "without cross="),
        (None, {"cross": np.ones((1, 3, 2)) / 2}, "2 layers"),
        (None, {"cross": np.ones((2, 4, 2)) / 2}, "queries"),
        (None, {"cross": np.ones((2, 3, 2)) / 2, "encoder": np.eye(3)[None]}, "sees 2"),
        (None, {"cross": np.ones((2, 3, 2)) / 2, "encoder": np.ones((1, 2, 3)) / 3}, "self-attention"),
    ],
)
def test_what_cannot_be_is_refused(maps: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        interp.rollout(np.stack([np.eye(3)] * 2) if maps is None else maps, **options)
