"""Maps held after a forward are the maps of the forward, on every stack of every family, for any rows and any order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import interp
from interp import At, Site
from interp.model.held_maps import hold_maps

from .support import Case, differentiable, families, fingerprint

LENGTH = 6


def stacks_of(case: Case) -> list[str]:
    return [name for name, stack in case.model.stacks.items() if stack.refusal(Site.PATTERN, False) is None]


@families
def test_held_maps_are_the_maps(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    names = stacks_of(case)
    before = fingerprint(case.hf)
    held = hold_maps(case.model, batch, stacks=names)
    assert fingerprint(case.hf) == before
    for stack in names:
        for layer in reversed(held.layers(stack)):
            at = At(Site.PATTERN, layer=layer, stack=stack)
            truth = interp.run(case.model, batch, read=[at])[at].float()
            assert held.shape(layer, stack) == tuple(truth.shape)
            torch.testing.assert_close(held.whole(layer, stack), truth, rtol=1e-5, atol=1e-6)
            some = torch.tensor([[truth.shape[2] - 1, 0]]).expand(len(truth), -1)
            (block,) = held.blocks(layer, rows=some, stack=stack)
            wanted = truth[:, :, [truth.shape[2] - 1, 0], : block.n_keys]
            torch.testing.assert_close(block.pattern, wanted, rtol=1e-5, atol=1e-6)
            parts = [one.pattern.shape[2] for one in held.blocks(layer, stack=stack, entries=1)]
            assert parts == [1] * truth.shape[2]


@families
def test_a_gradient_comes_with_the_maps_through_the_fast_kernel(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    reads = [at for at in differentiable(case) if at.site is Site.Z and at.stack in stacks_of(case)]
    if not reads:
        pytest.skip("no z that a gradient reaches")

    def metric(logits: torch.Tensor, batch: interp.Batch) -> torch.Tensor:
        return logits.flatten(1)[:, :7].sum(-1)

    held = hold_maps(case.model, batch, stacks=stacks_of(case), read=reads, grad=metric)
    truth = interp.run(case.model, batch, read=reads, grad=metric)
    assert held.run.grad is not None and truth.grad is not None
    for at in reads:
        assert torch.equal(held.run.grad[at], truth.grad[at])
    packed = {stack for stack in stacks_of(case) if case.model.stacks[stack].family.packed}  # whole maps, eager
    fast = {key: kernel for key, kernel in truth.kernels.items() if key[0] not in packed}
    assert {key: held.run.kernels[key] for key in fast} == fast


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_oss", "bloom"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_and_dropped_columns_are_blank(case_of: Callable[[str], Case], name: str, side: str) -> None:
    case = case_of(name)
    ids = case.tiny.inputs(2, LENGTH, 0)["input_ids"]
    blank = torch.zeros(2, 3, dtype=torch.long)
    parts, masks = [ids, blank], [torch.ones_like(ids), blank]
    if side == "left":
        parts, masks = parts[::-1], masks[::-1]
    batch = interp.encode(case.model, torch.cat(parts, dim=1), mask=torch.cat(masks, dim=1).bool())
    alone = hold_maps(case.model, interp.encode(case.model, ids))
    real = slice(3, None) if side == "left" else slice(0, -3)
    padding = slice(0, 3) if side == "left" else slice(-3, None)
    held = hold_maps(case.model, batch)
    dropped = torch.zeros_like(batch.mask)
    dropped[:, 3 if side == "left" else 0] = True
    without = hold_maps(case.model, batch, dropped=dropped)
    for layer in held.layers():
        found, truth = held.whole(layer), alone.whole(layer)
        torch.testing.assert_close(found[:, :, real, real], truth, rtol=1e-4, atol=1e-5)
        assert not found[:, :, padding].any() and not found[..., padding].any()
        left = without.whole(layer)[:, :, real, real]
        assert not left[..., 0].any()
        torch.testing.assert_close(left[:, :, 1:].sum(-1), torch.ones_like(left[:, :, 1:, 0]), rtol=0, atol=1e-5)


def test_a_stack_that_is_not_held_is_refused(case_of: Callable[[str], Case]) -> None:
    case = case_of("t5")
    held = hold_maps(case.model, case.batch(1, 4), stacks=["encoder"])
    with pytest.raises(interp.BadInput, match="encoder"):
        held.stack("decoder")


def test_nothing_is_left_behind_by_an_error(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    before = fingerprint(case.hf)

    def broken(logits: torch.Tensor, batch: interp.Batch) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hold_maps(case.model, case.batch(1, 4), read=[Site.Z], grad=broken)
    assert fingerprint(case.hf) == before
