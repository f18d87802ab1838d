"""On an accelerator: the same numbers as on the CPU, to rounding. Run with `-m gpu`."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

import interp
from interp import At, Site
from interp.scores import SCORES

from .support import load_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SHARED = [
    name
    for name, entry in SCORES.items()
    if entry.needs == "pass" and entry.prompts == "given" and not entry.options and entry.where in ("any", "text")
]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss", "bloom"])
def test_reads_effects_and_scores(name: str) -> None:
    case = load_case(name)
    moved = interp.load(deepcopy(case.hf).cuda())
    ids = case.tiny.inputs(3, 8, 0)["input_ids"]
    ids[:, 4:] = ids[:, :4]
    answers = torch.tensor([[7, 9]] * 3)
    here = interp.encode(case.model, ids, answers=answers)
    there = interp.encode(moved, ids.cuda(), answers=answers.cuda())
    plain, other = (interp.run(m, b, read=[At(Site.Z)]) for m, b in ((case.model, here), (moved, there)))
    torch.testing.assert_close(other[At(Site.Z)].cpu(), plain[At(Site.Z)], rtol=1e-3, atol=1e-3)
    effects = [interp.attribute(m, b, "mean").per_prompt for m, b in ((case.model, here), (moved, there))]
    np.testing.assert_allclose(effects[1], effects[0], rtol=1e-2, atol=1e-3)
    on_cpu, on_device = interp.score(case.model, here, SHARED), interp.score(moved, there, SHARED, block=1)
    for score in SHARED:
        np.testing.assert_allclose(on_device[score].samples, on_cpu[score].samples, rtol=1e-2, atol=1e-3, err_msg=score)
