"""LIME: closed forms of the fit, additive metrics, draws that belong to a prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from torch import Tensor

import interp
from interp import BadInput, Batch, UnknownName
from interp.metrics.declare import declared
from interp.scores.audits.lime import lime_fit, presence_draws

IDS = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11, 12]]


def worth_of(token: Tensor) -> Tensor:
    return torch.sin(token.double() * 1.7) * 3


@declared(positions="answers")
def additive(logits: Tensor, batch: Batch) -> Tensor:
    return (worth_of(batch.inputs["input_ids"]) * batch.inputs["attention_mask"]).sum(-1)


def draws(samples: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.rand(samples, tokens, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_the_fit_by_least_squares_with_the_roots_of_the_weights() -> None:
    """Another road: numpy's least squares of rows scaled by the square root of the kernel, the ridge as more rows."""
    present = draws(40, 5)
    values = torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    found = lime_fit(present, values, width=0.4, ridge=0.3)
    x = present.double().numpy()
    root = np.exp(-((1 - np.sqrt(x.mean(1))) ** 2) / 0.4**2 / 2)[:, None]
    design = np.concatenate([np.ones((40, 1)), x], 1)
    rows = np.concatenate([design * root, np.sqrt(0.3) * np.eye(6)[1:]])
    target = np.concatenate([values.numpy() * root[:, 0], np.zeros(5)])
    exact = np.linalg.lstsq(rows, target, rcond=None)[0]
    np.testing.assert_allclose(found.weights, exact[1:], atol=1e-9)
    assert found.intercept == pytest.approx(exact[0])


def test_a_line_is_found_exactly_with_errors_of_nothing() -> None:
    present = draws(60, 4)
    slope = torch.tensor([1.0, -2.0, 0.0, 5.0]).double()
    found = lime_fit(present, 7 + present.double() @ slope, ridge=0.0)
    torch.testing.assert_close(found.weights, slope)
    assert found.intercept == pytest.approx(7) and float(found.standard_errors.max()) < 1e-6
    assert found.r_squared == pytest.approx(1)
    few = lime_fit(present[:4], torch.ones(4))
    assert bool(few.standard_errors.isnan().all())


def test_standard_errors_are_the_scatter_over_many_fits() -> None:
    slope = torch.tensor([1.0, -1.0, 0.5]).double()
    noise = torch.Generator().manual_seed(3)
    present = draws(200, 3)
    fits = [
        lime_fit(present, present.double() @ slope + torch.randn(200, generator=noise).double(), ridge=0.0)
        for _ in range(300)
    ]
    scatter = torch.stack([fit.weights for fit in fits]).std(0)
    said = torch.stack([fit.standard_errors for fit in fits]).mean(0)
    torch.testing.assert_close(said, scatter, rtol=0.15, atol=0)


@pytest.mark.parametrize("by", ["replace", "remove"])
def test_a_sum_over_tokens_is_found_exactly(by: str) -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, IDS, padding_side="left")
    own = {"replacement": 12} if by == "replace" else {}
    found = interp.trace(model, batch, "lime", metric=additive, by=by, samples=40, ridge=0.0, **own)
    base = float(worth_of(torch.tensor(12))) if by == "replace" else 0.0
    for row, prompt in enumerate(IDS):
        places = batch.mask[row].nonzero().flatten().tolist()
        exact = worth_of(torch.tensor(prompt)).numpy() - base
        np.testing.assert_allclose(found.values[row, 0, places[:-1]], exact[:-1], atol=1e-6)
        assert np.isnan(found.values[row, 0, places[-1]])
    errors = np.array(found.metadata["standard_error"], dtype=float)
    assert errors.shape == batch.mask.shape and np.nanmax(errors) < 1e-5
    assert found.metadata["taken_away"] == by and found.metadata["samples"] == 40


def test_draws_belong_to_the_prompt_and_the_seed() -> None:
    free = torch.ones(2, 6, dtype=torch.bool)
    free[1, 4:] = False
    one = presence_draws(free, [11, 22], 50, 0)
    turned = presence_draws(free[[1, 0]], [22, 11], 50, 0)
    assert bool((one[:, [1, 0]] == turned).all())
    assert not bool((one == presence_draws(free, [11, 22], 50, 1)).all())
    shifted = torch.cat([torch.zeros(1, 2, dtype=torch.bool), free[:1]], dim=1)
    assert bool((presence_draws(shifted, [11], 50, 0)[:, :, 2:] == one[:, :1]).all())
    counts = one[:, 0].sum(-1)
    assert int(counts.min()) == 0 and int(counts.max()) == 6  # from none to all


def test_results_of_one_seed_are_the_same_and_of_two_alike() -> None:
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])

    def of(seed: int) -> np.ndarray:
        return interp.trace(model, batch, "lime", metric=interp.logit_difference, samples=200, seed=seed).values[0, 0]

    first, other = of(0), of(1)
    np.testing.assert_array_equal(first, of(0))
    assert not np.array_equal(first, other, equal_nan=True)
    assert set(first[:4].argsort()[-2:]) == set(other[:4].argsort()[-2:]) == {1, 2}


def test_refusals() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3]])
    for options, said in (
        ({"samples": 1}, "at least two"),
        ({"width": 0}, "above 0"),
        ({"ridge": -1.0}, "at least 0"),
        ({"width": float("nan")}, "above 0"),
    ):
        with pytest.raises(BadInput, match=said):
            interp.trace(model, batch, "lime", **options)
    with pytest.raises(UnknownName, match="hide"):
        interp.trace(model, batch, "lime", by="hiding")
