"""Shapley values: brute force over orders, efficiency, symmetry, and how sampling behaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case
from linear_model import linear_model, prompts

import interp
from interp import At, Batch, Model, Site
from interp.attribution.request import Request
from interp.attribution.shapley import (
    coalitions_of,
    drawn_orders,
    exact_values,
    marginal_changes,
    sets_of,
    shapley,
    standard_error,
)

IDS = ([3, 5, 2, 7, 4], [8, 2, 6, 9, 1], [4, 4, 5, 1, 2])
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]
ALL: Mapping[str, Any] = {"permutations": "all"}


@pytest.fixture(scope="module")
def four_heads() -> tuple[Model, Batch]:
    model = tiny_gpt2(layers=2, dtype=torch.float64)
    return model, prompts(model, *IDS)


def brute_force(model: Model, batch: Batch) -> np.ndarray:
    """``[prompt, head]`` the mean over all 24 orders, each set measured by a plain run."""
    worth: dict[frozenset[int], np.ndarray] = {}
    for size in range(5):
        for who in combinations(range(4), size):
            edits = [interp.zero(At(Site.Z, *HEADS[n])) for n in range(4) if n not in who]
            logits = interp.run(model, batch, edits=edits).logits
            assert logits is not None
            worth[frozenset(who)] = interp.logit_difference(logits, batch).numpy()
    total = np.zeros((len(batch), 4))
    for order in permutations(range(4)):
        for place, head in enumerate(order):
            total[:, head] += worth[frozenset(order[: place + 1])] - worth[frozenset(order[:place])]
    return total / 24


def test_every_set_gives_the_brute_force_values_per_prompt(four_heads: tuple[Model, Batch]) -> None:
    found = shapley(*four_heads, Request(options=ALL))
    wanted = brute_force(*four_heads)
    np.testing.assert_allclose(found.samples.reshape(3, 4), wanted, rtol=1e-8, atol=1e-12)
    assert found.sample_axis == "prompt" and found.quantity == "contribution" and found.sense == 1
    assert found.metadata["cost"] == "16 forwards" and found.metadata["standard_error"] == 0
    gap = np.abs(-interp.attribute(*four_heads, "zero").samples.reshape(3, 4) - wanted).max()
    assert gap > 1e-3  # heads interact, so that the values are not those of single removals


def test_sampled_orders_agree_within_their_standard_error(four_heads: tuple[Model, Batch]) -> None:
    wanted = brute_force(*four_heads).mean(0)
    for antithetic in (False, True):
        options = {"permutations": 60, "antithetic": antithetic}
        found = shapley(*four_heads, Request(options=options, seed=1))
        assert found.sample_axis == "permutation" and found.samples.shape == (60, 2, 2)
        errors = np.array([found.metadata["standard_errors"][f"L{layer}.H{head}"] for layer, head in HEADS])
        assert found.metadata["standard_error"] == pytest.approx(errors.max()) and (errors > 0).all()
        assert (np.abs(found.values.ravel() - wanted) < 4 * errors).all()
        samples = found.samples.reshape(60, 4)
        draws = samples.reshape(30, 2, 4).mean(1) if antithetic else samples
        np.testing.assert_allclose(errors, draws.std(0, ddof=1) / len(draws) ** 0.5, rtol=1e-9)


def test_every_order_sums_to_what_all_heads_do(four_heads: tuple[Model, Batch]) -> None:
    """Efficiency, order by order."""
    model, batch = four_heads
    found = shapley(model, batch, Request(options={"permutations": 6}))
    plain = interp.run(model, batch).logits
    empty = interp.run(model, batch, edits=[interp.zero(At(Site.Z))]).logits
    assert plain is not None and empty is not None
    whole, nothing = (float(interp.logit_difference(logits, batch).mean()) for logits in (plain, empty))
    np.testing.assert_allclose(found.samples.sum((1, 2)), whole - nothing, rtol=1e-9)
    said = found.metadata["efficiency"]
    assert (said["all"], said["none"]) == (pytest.approx(whole), pytest.approx(nothing))
    assert said["sum"] == pytest.approx(whole - nothing)


def test_where_heads_do_not_interact_one_order_is_enough() -> None:
    model = linear_model()
    batch = prompts(model, *IDS)
    found = shapley(model, batch, Request(options={"permutations": 1, "antithetic": False}))
    np.testing.assert_allclose(found.values, -interp.attribute(model, batch, "zero").values, rtol=1e-5, atol=1e-8)
    assert np.isnan(found.metadata["standard_error"])


def test_axioms_on_a_game_of_numbers() -> None:
    """The glove game: a left glove (0) and two right ones (1, 2) are worth 1 as a pair: 2/3, 1/6, 1/6; 3 is nobody."""
    worth = {who: np.array([float(0 in who and bool(who & {1, 2}))]) for who in sets_of(range(4))}
    assert exact_values(worth, 4)[0].tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6, 0])
    orders = np.array(list(permutations(range(4))))
    np.testing.assert_allclose(marginal_changes(worth, orders).mean(0)[:, 0], exact_values(worth, 4)[0], atol=1e-12)
    assert coalitions_of(np.array([[1, 0], [0, 1]])) == [frozenset(), {0}, {1}, {0, 1}]


def test_orders_come_in_pairs_and_depend_on_the_seed_alone() -> None:
    pairs = drawn_orders(5, 8, antithetic=True, seed=3)
    assert (pairs[::2] == pairs[1::2, ::-1]).all() and (np.sort(pairs) == np.arange(5)).all()
    assert (pairs == drawn_orders(5, 8, antithetic=True, seed=3)).all()
    assert (pairs != drawn_orders(5, 8, antithetic=True, seed=4)).any()
    assert (drawn_orders(5, 8, antithetic=True, seed=3)[:4] == drawn_orders(5, 4, antithetic=True, seed=3)).all()


def test_pairs_are_one_draw_for_the_interval(four_heads: tuple[Model, Batch]) -> None:
    found = shapley(*four_heads, Request(options={"permutations": 4}))
    assert found.cluster == ("0", "0", "1", "1")
    assert standard_error(np.array([[0.0], [2.0], [3.0], [5.0]]), pairs=True).tolist() == pytest.approx([1.5])


def test_absent_heads_at_their_mean(four_heads: tuple[Model, Batch]) -> None:
    """Nobody there: every head at its mean over the reference."""
    model, batch = four_heads
    reference = prompts(model, [1, 2, 3, 4, 5], [6, 7, 8, 9, 10])
    found = interp.attribute(model, batch, "shapley", reference=reference, permutations="all")
    edits = [interp.mean(At(Site.Z, layer), reference=reference) for layer in (0, 1)]
    plain, empty = interp.run(model, batch).logits, interp.run(model, batch, edits=edits).logits
    assert plain is not None and empty is not None
    wanted = (interp.logit_difference(plain, batch) - interp.logit_difference(empty, batch)).numpy()
    np.testing.assert_allclose(found.samples.sum((1, 2)), wanted, rtol=1e-9)
    alone = [interp.mean(At(Site.Z, 1, heads=(1,)), reference=reference)]
    last = interp.sweep(model, batch, [alone], interp.logit_difference).effects[0].numpy()
    only = interp.attribute(model, batch, "shapley", reference=reference, permutations="all", heads=["L1.H1"])
    np.testing.assert_allclose(only.samples[:, 1, 1], -last, rtol=1e-9)
    assert found.metadata["absent"] == "mean" and np.isfinite(only.values).sum() == 1


def test_key_value_heads_join_with_all_their_query_heads(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = replace(case.batch(2, 5), answers=torch.tensor([[7, 9], [11, 6]]))
    found = shapley(case.model, batch, Request(by="kv", options=ALL))
    assert found.unit == "kv" and found.values.shape == (2, 2) and found.metadata["cost"] == "16 forwards"
    alone = interp.attribute(case.model, batch, "shapley", by="kv", heads=["L1.H0"], permutations="all")
    removed = interp.attribute(case.model, batch, "zero", by="kv", heads=["L1.H0"])
    np.testing.assert_allclose(alone.samples[:, 1, 0], -removed.samples[:, 1, 0], rtol=1e-4, atol=1e-6)


def test_a_head_that_writes_nothing_gets_nothing_and_twins_get_the_same() -> None:
    """Dummy and symmetry: head 1 of layer 0 is silenced, layer 1 holds the same head twice."""
    model = tiny_gpt2(layers=2, dtype=torch.float64)
    first, second = (block.attn for block in model.hf.transformer.h)
    with torch.no_grad():
        first.c_proj.weight[4:].zero_()
        for start in (0, 8, 16):
            second.c_attn.weight[:, start + 4 : start + 8] = second.c_attn.weight[:, start : start + 4]
            second.c_attn.bias[start + 4 : start + 8] = second.c_attn.bias[start : start + 4]
        second.c_proj.weight[4:] = second.c_proj.weight[:4]
    found = shapley(model, prompts(model, *IDS), Request(options=ALL)).samples
    np.testing.assert_allclose(found[:, 0, 1], 0, atol=1e-12)
    np.testing.assert_allclose(found[:, 1, 0], found[:, 1, 1], rtol=1e-9)
    assert np.abs(found[:, 1, 0]).min() > 1e-4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"options": {"permutations": 3}}, "an even number"),
        ({"options": {"permutations": 0}}, "an int of at least 1"),
        ({"options": {"antithetic": "yes"}}, "True or False"),
        ({"site": Site.V}, "taken away at Site.Z"),
        ({"by": "position"}, "taken away at Site.Z"),
        ({"cluster": ["a", "b", "c"]}, "the samples here are orders"),
        ({"freeze": "norms"}, "exact interventions"),
        ({"metric": lambda logits, batch: logits[:, -1, :2]}, "several numbers"),
    ],
)
def test_what_cannot_be_is_refused(four_heads: tuple[Model, Batch], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(interp.BadInput, match=message):
        shapley(*four_heads, Request(method="shapley", **asked))


def test_every_set_of_many_heads_is_refused() -> None:
    model = tiny_gpt2(layers=7)
    with pytest.raises(interp.BadInput, match="at most 12 heads, and there are 14"):
        shapley(model, prompts(model, *IDS), Request(options=ALL))
