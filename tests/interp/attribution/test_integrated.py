"""Integrated gradients over gates: quadrature, completeness, and minus the zero effect along one gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, double_case
from conformance.test_gradients import InDouble
from linear_model import linear_model, prompts

import interp
from interp.attribution.integrated import integrated_gradients
from interp.attribution.quadrature import RULES, quadrature
from interp.attribution.request import Request

IDS = ([3, 5, 2, 7, 4], [8, 2, 6, 9, 1], [4, 4, 5, 1, 2])


@pytest.mark.parametrize(
    ("rule", "degree"), [("left", 0), ("right", 0), ("midpoint", 1), ("trapezoid", 1), ("gauss-legendre", 7)]
)
def test_a_rule_is_exact_up_to_its_degree_and_not_beyond(rule: str, degree: int) -> None:
    points, weights = quadrature(rule, 4)
    assert weights.sum() == pytest.approx(1)
    for power in range(degree + 1):
        assert weights @ points**power == pytest.approx(1 / (power + 1), abs=1e-14)
    assert abs(weights @ points ** (degree + 1) - 1 / (degree + 2)) > 1e-6


def test_rules_at_their_points() -> None:
    assert quadrature("left", 4)[0].tolist() == [0, 0.25, 0.5, 0.75]
    assert quadrature("right", 4)[0].tolist() == [0.25, 0.5, 0.75, 1]
    assert [part.tolist() for part in quadrature("trapezoid", 3)] == [[0, 0.5, 1], [0.25, 0.5, 0.25]]
    with pytest.raises(interp.BadInput, match="Did you mean 'midpoint'"):
        quadrature("midpoints", 3)
    for rule, steps in (("trapezoid", 1), ("left", 0), ("left", 2.5), ("left", True)):
        with pytest.raises(interp.BadInput, match="an int of at least"):
            quadrature(rule, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
def test_contributions_sum_to_what_closing_all_gates_takes(rule: str) -> None:
    """The residual falls with the rule's order, and is the one that is reported."""
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    nothing = interp.run(model, batch, edits=[interp.zero(interp.At("z"))]).logits
    whole = interp.run(model, batch).logits
    assert nothing is not None and whole is not None
    difference = (interp.logit_difference(whole, batch) - interp.logit_difference(nothing, batch)).numpy()
    residuals = []
    for steps in (8, 16):
        found = integrated_gradients(model, batch, Request(options={"rule": rule, "steps": steps}))
        gap = np.abs(found.samples.sum((1, 2)) - difference).max()
        assert found.metadata["completeness"]["residual"] == pytest.approx(gap, rel=1e-6, abs=1e-12)
        assert found.metadata["completeness"]["difference"] == pytest.approx(difference.mean())
        assert (found.metadata["rule"], found.metadata["steps"]) == (rule, steps)
        residuals.append(gap)
    order = {"left": 1.6, "right": 1.6, "midpoint": 3.4, "trapezoid": 3.4, "gauss-legendre": 100}[rule]
    assert residuals[1] < residuals[0] / order
    assert np.abs(difference).min() > 0.01


@pytest.mark.parametrize("name", ["llama", "gptj", "bert"])
def test_complete_on_other_families(case_of: Callable[[str], Case], name: str) -> None:
    case = double_case(case_of(name))
    batch = replace(case.batch(2, 5), answers=torch.tensor([[7, 9], [11, 6]]))
    with InDouble():
        few, many = (
            integrated_gradients(case.model, batch, Request(options={"steps": steps})).metadata["completeness"]
            for steps in (8, 48)
        )
    assert many["residual"] < min(few["residual"] / 10, 1e-3), (few, many)


def test_where_the_norm_undoes_the_gates_the_residual_says_so(case_of: Callable[[str], Case]) -> None:
    """Gemma 2 normalises what attention writes: all gates at 0.01 are as good as at 1, and everything happens at 0."""
    case = double_case(case_of("gemma2"))
    batch = replace(case.batch(2, 5), answers=torch.tensor([[7, 9], [11, 6]]))
    with InDouble():
        done = integrated_gradients(case.model, batch, Request()).metadata["completeness"]
    assert done["residual"] > 0.5 * abs(done["difference"])


def test_along_one_gate_it_is_minus_the_zero_effect() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    found = integrated_gradients(model, batch, Request(options={"path": "each"}))
    exact = interp.attribute(model, batch, "zero")
    np.testing.assert_allclose(found.samples, -exact.samples, rtol=1e-7, atol=1e-10)
    assert found.sense == 1 and exact.sense == -1 and found.quantity == "contribution"
    np.testing.assert_allclose(found.importance(), exact.importance(), rtol=1e-7, atol=1e-10)
    joint = integrated_gradients(model, batch, Request())
    assert np.abs(joint.samples - found.samples).max() > 1e-3  # heads interact, so the paths differ


def test_along_one_key_value_head_s_gate(case_of: Callable[[str], Case]) -> None:
    case = double_case(case_of("llama"))
    batch = replace(case.batch(2, 5), answers=torch.tensor([[7, 9], [11, 6]]))
    with InDouble():
        found = integrated_gradients(case.model, batch, Request(by="kv", options={"path": "each", "steps": 24}))
        exact = interp.attribute(case.model, batch, "zero", by="kv")
    assert found.unit == "kv"
    np.testing.assert_allclose(found.samples, -exact.samples, rtol=1e-4, atol=1e-7)


def test_on_a_linear_model_one_step_is_enough() -> None:
    model = linear_model()
    batch = prompts(model, *IDS)
    exact = interp.attribute(model, batch, "zero").samples
    for path in ("joint", "each"):
        for rule in ("left", "midpoint"):
            found = integrated_gradients(model, batch, Request(options={"path": path, "steps": 1, "rule": rule}))
            np.testing.assert_allclose(found.samples, -exact, rtol=1e-5, atol=1e-8)


def test_chosen_heads_are_the_gates_that_move() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    found = interp.attribute(model, batch, "integrated_gradients", heads=["L0.H1", "L2.H0"])
    assert np.isfinite(found.values).sum() == 2
    closed = interp.run(model, batch, edits=[interp.zero(interp.At("z", 0, 1)), interp.zero(interp.At("z", 2, 0))])
    assert closed.logits is not None
    wanted = interp.run(model, batch, grad=interp.logit_difference).metric
    assert wanted is not None
    missing = wanted - interp.logit_difference(closed.logits, batch)
    np.testing.assert_allclose(np.nansum(found.samples, axis=(1, 2)), missing.numpy(), rtol=1e-8)
    assert found.metadata["completeness"]["residual"] < 1e-8


def test_positions() -> None:
    """Gates per position move together: they sum to the head. At chosen positions only theirs move."""
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    whole = integrated_gradients(model, batch, Request())
    kept = integrated_gradients(model, batch, Request(by="position"))
    np.testing.assert_allclose(kept.samples.sum(-1), whole.samples, rtol=1e-9)
    last = integrated_gradients(model, batch, Request(pos=-1, options={"path": "each"}))
    exact = interp.attribute(model, batch, "zero", pos=-1)
    np.testing.assert_allclose(last.samples, -exact.samples, rtol=1e-6, atol=1e-9)


def test_chunks_of_any_size_change_nothing() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    for path in ("joint", "each"):
        options: dict[str, Any] = {"path": path, "steps": 3}
        whole = integrated_gradients(model, batch, Request(options=options)).samples
        for size in (1, 4, 50):
            found = integrated_gradients(model, batch, Request(options=options, batch_size=size)).samples
            np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-13)


def test_padding_never_counts() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    answers = [(3, 4), (5, 6)]
    mask = torch.tensor([[0, 1, 1, 1]] * 2)
    padded = interp.encode(model, torch.tensor([[0, 3, 5, 2], [0, 8, 2, 6]]), mask=mask, answers=answers)
    bare = interp.encode(model, torch.tensor([[3, 5, 2], [8, 2, 6]]), answers=answers)
    for by in ("head", "position"):
        found, wanted = (
            integrated_gradients(model, batch, Request(by=by, options={"steps": 4})).samples for batch in (padded, bare)
        )
        assert by == "head" or np.isnan(found[..., 0]).all()
        np.testing.assert_allclose(found if by == "head" else found[..., 1:], wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"options": {"path": "both"}}, "'joint' or 'each'"),
        ({"options": {"path": "each"}, "by": "position"}, "path='joint'"),
        ({"site": interp.Site.V}, "gate is on its output"),
        ({"freeze": "patterns"}, "exact interventions"),
        ({"metric": interp.accuracy}, "no gradient"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], message: str) -> None:
    model = tiny_gpt2()
    with pytest.raises(interp.BadInput, match=message):
        integrated_gradients(model, prompts(model, *IDS), Request(method="integrated_gradients", **asked))
