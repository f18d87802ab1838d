"""Types that nobody asked for by name, understood by structure: what they offer holds as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import BEYOND

import interp
from interp import At, Site

from .support import Case, everything, fingerprint, named, neutral_settings, output, plain, random_like, sites

# Something stands between the pattern and the projection there (a gate): z is the projection's input.
GATED = {"afmoe", "qwen3_next"}


@pytest.mark.parametrize("name", list(BEYOND))
def test_types_beyond_the_table(case_of: Callable[[str], Case], name: str) -> None:
    """Nothing moves without an edit; neutral edits are exact; patches are read back; real edits move the logits."""
    case = case_of(name)
    batch = case.batch()
    expected = plain(case, batch)
    before = fingerprint(case.hf)
    whole = interp.run(case.model, batch, everything(case))
    assert torch.equal(output(whole), expected)
    problems: list[str] = []
    for stack_name, stack, site in sites(case, edit=True):
        at = At(site, stack=stack_name)
        layers = stack.layers_of(at)
        kernels = interp.run(case.model, batch, edits=[interp.scale(at, 1.0)]).kernels
        unedited = interp.run(case.model, batch, [at], kernels=kernels)
        neutral = interp.run(case.model, batch, edits=list(neutral_settings(at, unedited[at]).values()))
        if not torch.equal(output(neutral), output(unedited)):
            problems.append(f"neutral edits at {at} move the logits")
        if torch.equal(
            output(interp.run(case.model, batch, edits=[interp.patch(at, random_like(unedited[at], site))])),
            output(unedited),
        ):
            problems.append(f"a patch at {at} moves nothing")
        last = at.with_(layer=layers[-1])
        value = random_like(unedited[last], site, 1)
        if not torch.equal(interp.run(case.model, batch, [last], [interp.patch(last, value)])[last], value):
            problems.append(f"a patch at {last} is not read back")
    named(problems)
    assert fingerprint(case.hf) == before and torch.equal(plain(case, batch), expected)


@pytest.mark.parametrize("name", list(BEYOND))
def test_their_z_is_the_pattern_times_v_or_the_card_says_so(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    for stack in case.model.stacks.values():
        if stack.family.interface:
            outcome = case.model.card.checks[f"z = pattern v ({stack.name})"]
            assert outcome.startswith("not checked" if name in GATED else "holds"), outcome
    blocks = [layer for layer in case.model.stack().layers if layer is None]
    assert bool(blocks) == (name in ("lfm2", "qwen3_next"))
    if blocks:
        missing = case.model.stack().layers.index(None)
        with pytest.raises(interp.BadAddress, match="no attention"):
            interp.run(case.model, case.batch(), [At(Site.Z, missing)])
