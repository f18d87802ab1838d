"""The norm of what a head writes, and its direct effect on the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case

import interp
from interp import At, Site
from interp.errors import BadInput, UnknownName, Unsupported

CaseOf = Callable[[str], Case]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "deepseek_v3", "gptj", "bert", "vit", "t5"])
def test_result_norm_is_that_of_the_result_written_out(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 6)
    found = interp.score(
        case.model, batch, {"own": {"score": "result_norm"}, "share": {"score": "result_norm", "relative": True}}
    )
    stack = case.model.stack()
    for layer in range(stack.n_layers):
        seen = interp.run(case.model, batch, [At(Site.RESULT, layer), At(Site.RESID_PRE, layer)])
        result, resid = seen[At(Site.RESULT, layer)].double(), seen[At(Site.RESID_PRE, layer)].double()
        norms = result.norm(dim=-1)
        np.testing.assert_allclose(found["own"].per_prompt[:, layer], norms.mean(1), rtol=1e-5)
        share = (norms / resid.norm(dim=-1, keepdim=True)).mean(1)
        np.testing.assert_allclose(found["share"].per_prompt[:, layer], share, rtol=1e-5)


def test_result_norm_of_chosen_rows_and_of_silent_heads() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4], [5, 6]], padding_side="left", spans={"late": range(1, 2)})
    found = interp.score(model, batch, {"x": {"score": "result_norm", "queries": "late"}})["x"].per_prompt
    for row, ids in enumerate(([1, 2, 3, 4], [5, 6])):
        alone = interp.encode(model, [ids])
        each = interp.run(model, alone, [At(Site.RESULT)])[At(Site.RESULT)][:, 0, 1].norm(dim=-1)
        np.testing.assert_allclose(found[row], each, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.hf.transformer.h[0].attn.c_proj.weight[:4] = 0  # head 0 of layer 0: it writes nothing now
    silent = interp.score(model, batch, "result_norm")["result_norm"].values
    assert silent[0, 0] == 0 and silent[0, 1] > 0


def test_bad_norms_are_refused(case_of: CaseOf) -> None:
    case = case_of("t5")
    with pytest.raises(BadInput, match="relative='yes'"):
        interp.score(case.model, case.batch(2), {"x": {"score": "result_norm", "relative": "yes"}})
    with pytest.raises(Unsupported, match="cross-attention"):
        interp.score(case.model, case.batch(2), {"x": {"score": "result_norm", "relative": True}}, stack="cross")


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_direct_effect_is_direct_attribution(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = interp.encode(case.model, torch.tensor([[11, 12, 13, 14], [15, 16, 17, 18]]), answers=[(20, 21), (22, 23)])
    found = interp.score(case.model, batch, "direct_effect")["direct_effect"]
    expected = interp.direct_attribution(case.model, batch).heads
    np.testing.assert_allclose(found.per_prompt, expected.per_prompt, rtol=1e-6, atol=1e-9)
    assert found.sense == 1 and found.metadata["norms"] == "held at this run"
    last = interp.score(case.model, batch, {"x": {"score": "direct_effect", "pos": -1}})["x"].per_prompt
    np.testing.assert_allclose(last, found.per_prompt, rtol=1e-5, atol=1e-7)  # nothing else reaches the answer directly


def test_direct_effect_of_the_hand_built_model() -> None:
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
    found = interp.score(model, batch, "direct_effect")["direct_effect"].values
    np.testing.assert_allclose(found, [[0, 0], [10, 0]], atol=1e-3)


def test_direct_effect_refuses_what_it_cannot_split(case_of: CaseOf) -> None:
    case = case_of("gpt2")
    batch = interp.encode(case.model, torch.tensor([[11, 12, 13, 14]]))
    with pytest.raises(BadInput, match="logit_difference needs answers"):
        interp.score(case.model, batch, "direct_effect")
    answered = interp.encode(case.model, torch.tensor([[11, 12, 13, 14]]), answers=[(20, 21)])
    with pytest.raises(BadInput, match="linear in the logits"):
        interp.score(case.model, answered, {"x": {"score": "direct_effect", "metric": "probability"}})
    with pytest.raises(UnknownName, match="nonlinear"):
        interp.score(case.model, answered, {"x": {"score": "direct_effect", "nonlinear": "hide"}})
    bent = case_of("bert")
    masked = interp.encode(bent.model, torch.tensor([[11, 12, 13, 14]]), answers=[(20, 21)])
    with pytest.raises(Unsupported, match="is not linear"):
        interp.score(bent.model, masked, "direct_effect")
    told = interp.score(bent.model, masked, {"x": {"score": "direct_effect", "nonlinear": "report"}})["x"]
    assert abs(told.metadata["nonlinear"]) > 0
    vlm = case_of("llava")
    with pytest.raises(Unsupported, match="do not write to the stream"):
        interp.score(vlm.model, vlm.batch(2), "direct_effect", stack="vision")


@pytest.mark.parametrize("score", ["direct_effect", "sign_disagreement"])
def test_progress_tells_every_forward(case_of: CaseOf, score: str) -> None:
    case = case_of("gpt2")
    batch = replace(case.batch(2, 6), answers=torch.tensor([[3, 4], [5, 6]]))
    interp.score(case.model, batch, score)  # what is found out about a model once is no forward of the score
    run, told = [], []
    hook = case.hf.register_forward_pre_hook(lambda *_: run.append(1))
    interp.score(case.model, batch, score, progress=told.append)
    hook.remove()
    assert sum(told) == len(run) == 3
