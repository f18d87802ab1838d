"""Gradients of a metric at every site, against differences of the edited model, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import interp
from interp import At, Batch, Site

from .support import (
    BYPASS,
    Case,
    attention,
    close,
    counted_forwards,
    differentiable,
    double_batch,
    double_case,
    families,
    fingerprint,
    named,
    output,
    plain,
    random_like,
    sites,
)


def weighted(logits: Tensor, batch: Batch) -> Tensor:
    """``[batch]`` a fixed random mixture of each prompt's logits."""
    draw = torch.Generator().manual_seed(11)
    weights = torch.randn(logits.shape[1:], generator=draw, dtype=torch.float64).to(logits.dtype)
    return (logits * weights).flatten(1).sum(1)


class InDouble(TorchFunctionMode):
    """Inside, what the architecture does in float32 (norms, softmax) is done in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return func(*args, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


@families
def test_against_finite_differences(case_of: Callable[[str], Case], name: str) -> None:
    """In float64, along one random direction per site that reaches every entry of every layer."""
    case = double_case(case_of(name))
    with InDouble():
        named(wrong_slopes(case, double_batch(case)))


def wrong_slopes(case: Case, batch: Batch) -> list[str]:
    """The sites whose gradient is not the difference that an edit there makes."""
    run = interp.run(case.model, batch, differentiable(case), grad=weighted)
    assert run.grad is not None and run.metric is not None
    problems: list[str] = []
    for stack_name, stack, site in sites(case, edit=True):
        places = [At(site, layer, stack=stack_name) for layer in stack.layers_of(At(site, stack=stack_name))]
        directions = {at.layer: direction(run[at], site, seed) for seed, at in enumerate(places)}
        slope = sum(float((run.grad[at] * directions[at.layer]).sum()) for at in places)

        def shifted(step: float, site: Site = site, stack_name: str = stack_name, by: Any = directions) -> float:
            def shift(x: Tensor, ctx: interp.edits.Context) -> Tensor:
                return torch.where(torch.isneginf(x), x, x + step * by[ctx.layer])

            edit = interp.custom(At(site, stack=stack_name), shift)
            made = interp.run(case.model, batch, edits=[edit])
            assert made.logits is not None
            return float(weighted(made.logits, batch).sum())

        step = 1e-6
        difference = (shifted(step) - shifted(-step)) / (2 * step)
        if abs(slope - difference) > 1e-5 * max(1.0, abs(difference)):
            problems.append(f"{site} of {stack_name}: gradient {slope:.6f}, difference {difference:.6f}")
        if abs(difference) < 1e-3:
            problems.append(f"{site} of {stack_name}: the metric hardly depends on it ({difference:.1e})")
    return problems


def direction(x: Tensor, site: Site, seed: int) -> Tensor:
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    blocked = torch.isneginf(x) if site is Site.SCORES else torch.zeros_like(x, dtype=torch.bool)
    return drawn.masked_fill(blocked, 0.0)


@pytest.mark.parametrize("name", BYPASS)
def test_maps_beside_the_interface(case_of: Callable[[str], Case], name: str) -> None:
    """Where the model's own softmax makes the output, its maps have gradients; elsewhere they are refused."""
    case = case_of(name)
    batch = case.batch()
    maps = [At(Site.SCORES), At(Site.PATTERN)]
    if name.startswith("falcon"):
        with counted_forwards(case) as calls, pytest.raises(interp.Unsupported, match="eager"):
            interp.run(case.model, batch, maps, grad=weighted)
        assert not calls
    with attention(case, "eager"):
        run = interp.run(case.model, batch, maps, grad=weighted)
        assert torch.equal(output(run), plain(case, batch))
        assert run.grad is not None
        a, slope = run[maps[1]], run.grad[maps[1]]
        # d/ds = a (da - sum a da): the derivative of a softmax, row by row; blocked scores have none
        expected = a * (slope - (a * slope).sum(-1, keepdim=True))
        assert close(run.grad[maps[0]], expected, 1e-4)
        assert bool(slope.any()) and not bool(run.grad[maps[0]][torch.isneginf(run[maps[0]])].any())


@families
def test_every_site_has_a_gradient_and_the_model_keeps_its_own(case_of: Callable[[str], Case], name: str) -> None:
    """Values and metric are those without gradients; ``.grad``, flags, modes, cache and RNG stay."""
    case = case_of(name)
    batch = case.batch()
    ats = differentiable(case)
    frozen = next(iter(case.hf.parameters()))
    frozen.requires_grad_(False)
    module = next(module for module in case.hf.modules() if isinstance(module, torch.nn.Linear))
    case.hf.train()
    module.eval()
    before, rng = fingerprint(case.hf), torch.get_rng_state()
    try:
        run = interp.run(case.model, batch, ats, grad=weighted)
        assert fingerprint(case.hf) == before and torch.equal(torch.get_rng_state(), rng)
    finally:
        case.hf.eval()
        frozen.requires_grad_(True)
    assert run.grad is not None and run.metric is not None and run.logits is not None
    assert run.metric.shape == (len(batch),) and not run.metric.requires_grad and not run.logits.requires_grad
    values = interp.run(case.model, batch, ats, kernels=run.kernels)
    assert torch.equal(output(run), output(values))
    for at, value in values.reads():
        gradient = run.grad[at]
        assert gradient.shape == value.shape and torch.isfinite(gradient).all(), at
        assert torch.equal(run[at], value), at
        unread = name == "llava" and at.stack == "vision" and at.layer == case.model.stacks["vision"].n_layers - 1
        first = at.site is Site.RESID_PRE
        assert bool(gradient.any()) != unread or (unread and first), at
    assert torch.equal(plain(case, batch), output(interp.run(case.model, batch)))


@families
def test_gradients_reach_the_values_of_edits(case_of: Callable[[str], Case], name: str) -> None:
    """d metric / d gate = sum of z times its gradient, head by head."""
    case = case_of(name)
    batch = case.batch()
    for stack_name, stack in case.model.stacks.items():
        at = At(Site.Z, stack=stack_name)
        gate = torch.ones(stack.n_layers, stack.n_heads(0), requires_grad=True)
        run = interp.run(case.model, batch, edits=[interp.gate(at, gate)], graph=True)
        assert run.logits is not None
        (found,) = torch.autograd.grad(weighted(run.logits, batch).sum(), [gate])
        reference = interp.run(case.model, batch, [at], grad=weighted)
        assert reference.grad is not None
        expected = (reference[at] * reference.grad[at]).sum((1, 2, 4))
        assert close(found, expected, 1e-4), stack_name
    assert all(parameter.grad is None for parameter in case.hf.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "gemma2"])
def test_gradients_under_an_edit(case_of: Callable[[str], Case], name: str) -> None:
    """Reads show, and are differentiated at, the values after the edits."""
    case = double_case(case_of(name))
    with InDouble():
        slopes_under_an_edit(case, double_batch(case))


def slopes_under_an_edit(case: Case, batch: Batch) -> None:
    at, edit = At(Site.Z, 1), interp.scale(At(Site.Z), 0.3)
    maps = At(Site.PATTERN, 0)
    patched = interp.patch(maps, random_like(interp.run(case.model, batch, [maps])[maps], Site.PATTERN))
    run = interp.run(case.model, batch, [at], [edit, patched], grad=weighted)
    assert run.grad is not None
    towards = torch.randn(run[at].shape, dtype=torch.float64)
    ends = []
    for step in (1e-6, -1e-6):
        shifted = interp.custom(at, lambda x, ctx, step=step: x + step * towards)
        made = interp.run(case.model, batch, edits=[edit, patched, shifted]).logits
        assert made is not None
        ends.append(float(weighted(made, batch).sum()))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((run.grad[at] * towards).sum()), rel=1e-5, abs=1e-6)
