"""A sweep is the loop over ``interp.run`` that it stands for, on every family and stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import At, Site
from interp.edits import Edit
from interp.model.inputs import output_embeddings
from interp.model.licence import licence_of
from interp.model.stacks import Stack

from .support import Case, families

LACKS = {  # the first thing that a family's licence lacks
    "bloom": "from_z",  # its attention adds the residual after the projection
    "clip": "copies",  # its logits are texts by images: two copies of a batch are compared with each other
    "siglip": "copies",
    "qwen2_vl": "copies",  # the patches of all images are packed
}


def weighted(logits: Tensor, batch: interp.Batch) -> Tensor:
    """One number per prompt in which every logit counts, with another weight."""
    weights = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(3)).to(logits)
    return (logits * weights).flatten(1).sum(1) / weights.numel() ** 0.5


def variants_of(case: Case, stack: Stack, batch: interp.Batch) -> list[list[Edit]]:
    """Every head; two heads of far layers; an edit at other sites; chosen columns; nothing."""
    name = stack.name
    layers = [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]
    made: list[list[Edit]] = [
        [interp.zero(At(Site.Z, layer, heads=(head,), stack=name))]
        for layer in layers
        for head in range(stack.n_heads(layer))
    ]
    made.append([interp.scale(At(Site.Z, layer, heads=(0,), stack=name), 0.5) for layer in (layers[0], layers[-1])])
    made.append([])
    made += [[interp.noise(At(Site.Z, layer, stack=name), std=0.1, seed=1)] for layer in layers]
    if stack.refusal(Site.PATTERN, edit=True) is None and not stack.family.packed:
        made += [[interp.uniform(At(Site.PATTERN, layer, heads=(0,), stack=name))] for layer in layers]
        made += [[interp.scale(At(Site.V, layer, stack=name), 0.5)] for layer in layers]
    if not stack.cross:
        made += [[interp.scale(At(site, layers[-1], stack=name), 0.5)] for site in (Site.MLP_OUT, Site.RESID_PRE)]
    if name == case.model.default_stack and batch.row_mask(name) is not None:
        made += [
            [interp.zero(At(Site.Z, layer, heads=(0,), pos=column))]
            for layer in layers
            for column in (0, 3, batch.width - 1)
        ]
    return made


@families
@pytest.mark.parametrize("read", ["all", "last"])
def test_a_sweep_is_the_loop_it_stands_for(case_of: Callable[[str], Case], name: str, read: Any) -> None:
    case = case_of(name)
    if read == "last" and output_embeddings(case.model) is None:
        with pytest.raises(interp.BadInput, match="no unembedding"):
            interp.sweep(case.model, case.batch(), [[]], weighted, logits="last")
        return
    batch = case.batch()
    for stack in case.model.stacks.values():
        variants = variants_of(case, stack, batch)
        swept = interp.sweep(case.model, batch, variants, weighted, logits=read)
        for index, edits in enumerate(variants):
            alone = interp.run(case.model, batch, edits=edits, logits=read)
            base = interp.run(case.model, batch, logits=read, kernels=alone.kernels)
            for found, run in ((swept.values[index], alone), (swept.unedited[index], base)):
                assert run.logits is not None
                torch.testing.assert_close(found, weighted(run.logits, batch), atol=1e-5, rtol=1e-5, msg=str(edits))


@families
def test_what_is_left_out_of_a_forward(case_of: Callable[[str], Case], name: str) -> None:
    """The licence that each family gets: a slower sweep than before is a failure, and so is an unexplained one."""
    case = case_of(name)
    licence = licence_of(case.model, case.batch(), None)
    lacks = LACKS.get(name)
    held = {"copies": licence.copies, "replay": licence.replay, "from_z": bool(licence.from_z)}
    levels = list(held)
    expected = levels.index(lacks) if lacks else len(levels)
    assert list(held.values()) == [place < expected for place in range(len(levels))], licence
    assert bool(licence.notes) == (lacks == "copies")
