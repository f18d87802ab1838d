"""The model is exactly as found: after success, after an error inside every hook, nested, repeated, interrupted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp import At, EditDidNotFire, Site

from .support import BYPASS, Case, differentiable, everything, families, fingerprint, output, plain, sites


def total(logits: Tensor, batch: interp.Batch) -> Tensor:
    return logits.flatten(1).sum(1)


class Broken(Exception):
    """Raised on purpose inside a hook."""


@families
def test_after_success(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch()
    expected = plain(case, batch)
    before = fingerprint(case.hf)
    edits = [interp.scale(At(site, stack=stack), 0.5) for stack, _, site in sites(case, edit=True)]
    first = output(interp.run(case.model, batch, everything(case), edits))
    assert fingerprint(case.hf) == before
    assert torch.equal(output(interp.run(case.model, batch, everything(case), edits)), first), "repeated use"
    with interp.edited(case.model, edits, batch=batch) as hf:
        assert hf is case.hf and fingerprint(hf) != before
        plain(case, batch)
    assert fingerprint(case.hf) == before
    assert torch.equal(plain(case, batch), expected)


@families
@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
def test_after_an_error_inside_every_hook(case_of: Callable[[str], Case], name: str, kind: type) -> None:
    """An edit that raises at each site of each layer, while everything is being read."""
    case = case_of(name)
    batch = case.batch()
    expected = plain(case, batch)
    before, rng = fingerprint(case.hf), torch.get_rng_state()

    def broken(x: Tensor, ctx: interp.edits.Context) -> Tensor:
        raise kind("on purpose")

    reads = everything(case)
    for stack, found, site in sites(case, edit=True):
        for layer in found.layers_of(At(site, stack=stack)):
            edit = interp.custom(At(site, layer, stack=stack), broken)
            with pytest.raises(kind):
                interp.run(case.model, batch, reads, [edit])
            assert fingerprint(case.hf) == before, (stack, site, layer)
        with (
            pytest.raises(kind),
            interp.edited(case.model, [interp.custom(At(site, stack=stack), broken)], batch=batch) as hf,
        ):
            hf(**batch.inputs)
        assert fingerprint(case.hf) == before, (stack, site)
    assert torch.equal(plain(case, batch), expected) and torch.equal(torch.get_rng_state(), rng)


@families
def test_after_an_error_of_the_model_itself(case_of: Callable[[str], Case], name: str) -> None:
    """Every output projection fails in turn, with everything read and edited."""
    case = case_of(name)
    batch = case.batch()
    expected = plain(case, batch)
    before = fingerprint(case.hf)
    edits = [interp.scale(At(site, stack=stack), 0.5) for stack, _, site in sites(case, edit=True)]

    def fail(module: torch.nn.Module, args: object) -> None:
        raise Broken("on purpose")

    for stack in case.model.stacks.values():
        for layer in stack.layers:
            assert layer is not None
            handle = layer.out.register_forward_pre_hook(fail)
            try:
                with pytest.raises(Broken):
                    interp.run(case.model, batch, everything(case), edits)
                with pytest.raises(Broken):
                    interp.run(case.model, batch, differentiable(case), grad=total)
            finally:
                handle.remove()
            assert fingerprint(case.hf) == before
    assert torch.equal(plain(case, batch), expected)


@families
def test_nested_use(case_of: Callable[[str], Case], name: str) -> None:
    """A run inside ``edited`` sees both sets of edits; leaving the inner one leaves the outer in force."""
    case = case_of(name)
    batch = case.batch()
    before = fingerprint(case.hf)
    outer, inner = interp.scale(At(Site.Z, 0), 0.5), interp.scale(At(Site.Z, 1), 0.3)
    both = output(interp.run(case.model, batch, edits=[outer, inner]))
    alone = output(interp.run(case.model, batch, edits=[outer]))
    with interp.edited(case.model, [outer]) as hf:
        within = fingerprint(hf)
        assert torch.equal(output(interp.run(case.model, batch, edits=[inner])), both)
        assert fingerprint(hf) == within
        assert torch.equal(plain(case, batch), alone)
        with interp.edited(case.model, [inner]):
            assert torch.equal(plain(case, batch), both)
        assert torch.equal(plain(case, batch), alone)
    assert fingerprint(case.hf) == before
    if name in BYPASS:
        return
    maps, keys = interp.uniform(At(Site.PATTERN, 0)), interp.scale(At(Site.K, 0), 0.5)
    with interp.edited(case.model, [maps]) as hf:
        within = fingerprint(hf)
        run = interp.run(case.model, batch, [At(Site.PATTERN, 0)], [keys])
        visible = interp.run(case.model, batch, [At(Site.SCORES, 0)], [maps])[At(Site.SCORES, 0)] > -torch.inf
        assert torch.equal(run[At(Site.PATTERN, 0)], visible / visible.sum(-1, keepdim=True).clamp(min=1))
        assert fingerprint(hf) == within
    assert fingerprint(case.hf) == before


@families
def test_an_edit_that_did_not_fire_is_an_error(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    before = fingerprint(case.hf)
    with pytest.raises(EditDidNotFire, match="zero"), interp.edited(case.model, [interp.zero(At(Site.Z, 1))]):
        pass
    assert fingerprint(case.hf) == before
    if case.tiny.kind == "vision-language" and name not in ("clip", "siglip"):
        text = interp.encode(case.model, torch.tensor([[5, 6, 7, 8]]))
        with pytest.raises(EditDidNotFire, match="vision"):
            interp.run(case.model, text, edits=[interp.zero(At(Site.Z, stack="vision"))])
        with pytest.raises(interp.RunFailed, match="vision"):
            interp.run(case.model, text, [At(Site.Z, stack="vision")])
        assert fingerprint(case.hf) == before


@families
def test_a_training_model_stays_one(case_of: Callable[[str], Case], name: str) -> None:
    """The run itself is in evaluation mode; each module's own flag is put back, also after an error."""
    case = case_of(name)
    batch = case.batch()
    expected = plain(case, batch)

    def broken(x: Tensor, ctx: interp.edits.Context) -> Tensor:
        raise Broken("on purpose")

    case.hf.train()
    try:
        before = fingerprint(case.hf)
        assert torch.equal(output(interp.run(case.model, batch)), expected)
        assert fingerprint(case.hf) == before
        with pytest.raises(Broken):
            interp.run(case.model, batch, edits=[interp.custom(At(Site.Z, 0), broken)])
        assert fingerprint(case.hf) == before
    finally:
        case.hf.eval()
