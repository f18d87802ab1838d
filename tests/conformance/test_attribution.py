"""Every attribution method on every family and stack: a number per head and prompt, by two roads where they exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import interp
from interp import At, Site
from interp.attribution.methods import METHODS
from interp.errors import HeadscopeError

from .support import BYPASS, Case, families
from .test_sweep import weighted

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "noise": {"std": 0.1},
    "integrated_gradients": {"steps": 3},
    "shapley": {"permutations": 2},
}
# What a family cannot offer, by method, with a word of the reason that it is refused with.
REFUSED: dict[tuple[str, str], str] = {("uniform", name): "attention interface" for name in BYPASS}


def attributed(case: Case, batch: interp.Batch, source: interp.Batch, method: str, stack: str) -> interp.HeadScores:
    """The method's result with everything that it needs."""
    more: dict[str, Any] = dict(OPTIONS.get(method, {}))
    if METHODS[method].needs == "source":
        more["source"] = source
    return interp.attribute(case.model, batch, method, metric=weighted, stack=stack, **more)


def may_be_refused(case: Case, method: str, stack: str) -> bool:
    """Whether a refusal is expected rather than numbers."""
    found = case.model.stacks[stack]
    if (method, case.tiny.name) in REFUSED:
        return True
    if found.family.packed:  # prompts cannot be told apart in its rows
        return METHODS[method].kind != "exact" or METHODS[method].needs is None
    linear = stack == case.model.default_stack and not found.cross
    capped = getattr(found.config, "final_logit_softcapping", None)
    return method == "direct" and (not linear or bool(capped) or case.tiny.name in NOT_LINEAR)


# the logits of these are no linear function of the last residual stream, or the stack makes no logits of its own
NOT_LINEAR = ("clip", "siglip", "distilbert", "bert", "roberta", "modernbert", "vit", "dinov2")


@families
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_gives_every_head_a_number(case_of: Callable[[str], Case], name: str, method: str) -> None:
    case = case_of(name)
    batch, source = case.batch(3), case.batch(3, seed=1)
    for stack_name, stack in case.model.stacks.items():
        try:
            found = attributed(case, batch, source, method, stack_name)
        except HeadscopeError as error:
            assert may_be_refused(case, method, stack_name), f"{stack_name}: {error}"
            assert len(str(error)) > 30, error
            continue
        widest = max(stack.n_heads(layer) for layer in range(stack.n_layers))
        samples = 2 if method == "shapley" else len(batch)
        assert found.samples.shape == (samples, stack.n_layers, widest)
        there = np.array([[head < stack.n_heads(layer) for head in range(widest)] for layer in range(stack.n_layers)])
        assert np.isfinite(found.samples[:, there]).all() and np.isnan(found.samples[:, ~there]).all()
        assert found.metadata["method"] == method


@families
def test_zero_and_patch_are_the_runs_that_they_stand_for(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch, source = case.batch(2), case.batch(2, seed=1)
    for stack_name, stack in case.model.stacks.items():
        if stack.family.packed:
            continue
        zeroed = attributed(case, batch, source, "zero", stack_name).samples
        patched = attributed(case, batch, source, "patch", stack_name).samples
        base = value(case, batch, [])
        for layer in range(stack.n_layers):
            for head in range(stack.n_heads(layer)):
                at = At(Site.Z, layer, heads=(head,), stack=stack_name)
                for found, edit in ((zeroed, interp.zero(at)), (patched, interp.patch(at, source))):
                    expected = value(case, batch, [edit]) - base
                    np.testing.assert_allclose(found[:, layer, head], expected.numpy(), atol=2e-5, rtol=1e-5)


def value(case: Case, batch: interp.Batch, edits: list[interp.Edit]) -> Tensor:
    """The metric of one plain run."""
    run = interp.run(case.model, batch, edits=edits)
    assert run.logits is not None
    return weighted(run.logits, batch)


@families
def test_the_gradient_is_the_slope_of_the_zero_effect(case_of: Callable[[str], Case], name: str) -> None:
    """-d m / d gate at 1, by a central difference of gates."""
    case = case_of(name)
    batch = case.batch(2)
    for stack_name, stack in case.model.stacks.items():
        if stack.family.packed:
            continue
        slopes = attributed(case, batch, batch, "gradient", stack_name).samples
        layer = max(layer for layer in range(stack.n_layers) if stack.n_heads(layer))
        at = At(Site.Z, layer, heads=(0,), stack=stack_name)
        step = 0.002
        ends = [value(case, batch, [interp.scale(at, 1 + sign * step)]).double() for sign in (1, -1)]
        expected = -(ends[0] - ends[1]) / (2 * step)
        slope = slopes[:, layer, 0]
        if name in ("clip", "siglip"):  # a prompt's logits are of all images: a head acts on every prompt's metric
            slope, expected = slope.sum(), expected.sum()
        scale = float(expected.abs().max().clamp(min=0.2))
        np.testing.assert_allclose(slope / scale, expected.numpy() / scale, atol=0.02)
