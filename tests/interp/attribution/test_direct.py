"""Direct attribution: the parts sum to the metric in every family, each by itself, and agree with frozen ablation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import BEYOND, ENCODERS, TINY, Case, load_case
from linear_model import EPSILON, GAIN, prompts
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp import At, Batch, Model, Site
from interp.attribution.direct import direct, direct_attribution
from interp.attribution.request import Request
from interp.model.direct_paths import direct_paths

IDS = ([3, 5, 2, 7, 4], [8, 2, 6, 9, 1], [4, 4, 5, 1, 2])
BENT = (*ENCODERS, "clip", "siglip", "electra", "esm", "gte")  # an activation in the head, or a similarity
MIXED = ("lfm2", "qwen3_next")
STRAIGHT = [name for name in (*TINY, *BEYOND) if name not in (*BENT, *MIXED)]


def weighted(logits: Tensor, batch: Batch) -> Tensor:
    """``[batch]`` a fixed random mixture of each prompt's logits."""
    weights = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (logits * weights.to(logits.dtype)).flatten(1).sum(1)


@pytest.mark.parametrize("name", STRAIGHT)
def test_the_parts_sum_to_the_metric(case_of: Callable[[str], Case], name: str) -> None:
    """Heads (of cross-attention too), MLPs, embeddings and biases, none of which is taken as what the others leave."""
    case = case_of(name) if name in TINY else load_case(name)
    batch = case.batch()
    found = direct_attribution(case.model, batch, weighted)
    plain = interp.run(case.model, batch).logits
    assert plain is not None
    np.testing.assert_allclose(found.metric, weighted(plain, batch).numpy(), rtol=1e-4, atol=1e-4)
    assert found.check(1e-5) < 1e-5
    size = sum(np.nansum(np.abs(part), axis=(1, 2)) for part in found.heads.data.values())
    assert (np.abs(found.nonlinear) < 1e-5 * size).all()
    assert all((np.abs(part[:, there]) > 0).any() for part, there in zip(*_tables(found.heads), strict=True))
    crosses = {stack for stack in case.model.stacks if stack.startswith("cross")}
    assert set(found.heads.stacks) == {case.model.default_stack, *crosses}


def _tables(heads: interp.HeadScores) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return list(heads.data.values()), list(heads.exists.values())


@pytest.mark.parametrize(("name", "none"), [("gemma2", True), ("t5", True), ("opt-post", False), ("bart", False)])
def test_biases_are_zero_where_a_family_has_none(case_of: Callable[[str], Case], name: str, none: bool) -> None:
    case = case_of(name)
    found = direct_paths(case.model, case.batch(), weighted)
    assert bool((found.biases == 0).all()) == none


def test_by_hand_on_gpt2() -> None:
    """``w W_U (gain * centred(write) / scale)`` for every writer, with the model's own weights."""
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    body, answers = model.hf.transformer, batch.answers
    assert answers is not None
    at_z, at_mlp = At(Site.Z), At(Site.MLP_OUT)
    seen = interp.run(model, batch, [at_z, at_mlp, At(Site.RESID_PRE, 0), At(Site.RESID_POST, 2)])
    last = torch.arange(3), batch.read_at
    final = seen[At(Site.RESID_POST, 2)][last]
    scale = (final.var(-1, correction=0, keepdim=True) + body.ln_f.eps).sqrt()
    unembed = model.hf.lm_head.weight[answers[:, 0]] - model.hf.lm_head.weight[answers[:, 1]]
    towards = unembed * body.ln_f.weight / scale  # [prompt, d_model]

    def written(x: Tensor) -> Tensor:
        return ((x - x.mean(-1, keepdim=True)) * towards).sum(-1)

    found = direct_attribution(model, batch)
    constant = (unembed * body.ln_f.bias).sum(-1)
    for layer, block in enumerate(body.h):
        z = seen[at_z][layer][last]
        for head in range(2):
            weight = block.attn.c_proj.weight[4 * head : 4 * head + 4]
            wanted = written(z[:, head] @ weight)
            np.testing.assert_allclose(found.heads.samples[:, layer, head], wanted.detach().numpy(), rtol=1e-8)
        wanted = written(seen[at_mlp][layer][last])
        np.testing.assert_allclose(found.mlps[:, layer], wanted.detach().numpy(), rtol=1e-8)
        constant = constant + written(block.attn.c_proj.bias.expand(3, -1))
    embedded = written(seen[At(Site.RESID_PRE, 0)][last])
    np.testing.assert_allclose(found.embeddings, embedded.detach().numpy(), rtol=1e-8)
    np.testing.assert_allclose(found.biases, constant.detach().numpy(), rtol=1e-8)
    np.testing.assert_allclose(found.total, found.metric, rtol=1e-10)


def deep_linear_norms() -> Model:
    """GPT-2 of two layers whose norms only centre, and whose MLPs write a constant."""
    torch.manual_seed(2)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=4, vocab_size=13, n_positions=16, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, initializer_range=0.4, layer_norm_epsilon=EPSILON,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter.fill_(GAIN)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
        for block in hf.transformer.h:
            block.mlp.c_proj.weight.zero_()
    return interp.load(hf.double(), check=False)


def test_the_direct_effect_of_removing_a_head_where_the_norm_is_linear() -> None:
    """With all other heads held, removing a head takes away exactly what it contributes directly."""
    model = deep_linear_norms()
    batch = prompts(model, *IDS)
    found = direct(model, batch, Request())
    held = interp.attribute(model, batch, "zero", freeze="other_heads")
    np.testing.assert_allclose(found.samples, -held.samples, rtol=1e-5, atol=1e-7)
    free = interp.attribute(model, batch, "zero")
    assert np.abs(free.samples[:, 0] - held.samples[:, 0]).max() > 1e-2  # layer 1 reads layer 0


def test_positions_heads_and_key_value_heads(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = replace(case.batch(2, 5), answers=torch.tensor([[7, 9], [11, 6]]))
    whole, kept, grouped = (direct(case.model, batch, Request(by=by)).samples for by in ("head", "position", "kv"))
    np.testing.assert_allclose(kept[..., -1], whole, rtol=1e-6)  # a direct path leads to the answer's row alone
    assert (kept[..., :-1] == 0).all()
    np.testing.assert_allclose(grouped, whole.reshape(2, 2, 2, 2).sum(-1), rtol=1e-6)
    one = interp.attribute(case.model, batch, "direct", heads=["L1.H2"])
    assert np.isfinite(one.values).sum() == 1 and one.values[1, 2] == pytest.approx(whole.mean(0)[1, 2])
    assert one.quantity == "contribution" and one.sense == 1


def test_soft_capped_logits_are_split_with_the_cap_held(case_of: Callable[[str], Case]) -> None:
    """cap(u)/u held: each part is that of the uncapped model times the ratio at the answers."""
    case = case_of("gemma2")
    batch = case.batch()
    chosen = 17

    def one_logit(logits: Tensor, batch: Batch) -> Tensor:
        return logits[:, -1, chosen]

    config, cap = case.hf.config, 2.0
    before = config.final_logit_softcapping
    try:
        config.final_logit_softcapping = cap
        capped = direct_paths(case.model, batch, one_logit)
        config.final_logit_softcapping = None
        free = direct_paths(case.model, batch, one_logit)
    finally:
        config.final_logit_softcapping = before
    ratio = capped.metric / free.metric
    assert torch.allclose(capped.metric, cap * torch.tanh(free.metric / cap), rtol=1e-5)
    assert capped.soft_capped and not free.soft_capped and float((ratio - 1).abs().max()) > 0.1
    for layer, cells in free.heads["text"].items():
        assert torch.allclose(capped.heads["text"][layer], cells * ratio[:, None, None], rtol=1e-4, atol=1e-6)
    assert torch.allclose(capped.mlps, free.mlps * ratio[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BENT)
def test_what_bends_is_refused_or_reported_by_name(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name) if name in TINY else load_case(name)
    batch = case.batch()
    with pytest.raises(interp.Unsupported, match="nonlinear='report'"):
        direct_attribution(case.model, batch, weighted)
    found = direct_attribution(case.model, batch, weighted, nonlinear="report")
    assert np.abs(found.nonlinear).max() > 0.1
    np.testing.assert_allclose(found.total + found.nonlinear, found.metric, rtol=1e-6, atol=1e-6)
    with pytest.raises(interp.RunFailed, match=r"in \.nonlinear"):
        found.check()
    rows = found.table().set_index("component")["value"]
    assert rows["nonlinear"] == pytest.approx(found.nonlinear.mean())
    assert rows.sum() == pytest.approx(found.metric.mean(), rel=1e-5)


@pytest.mark.parametrize("name", MIXED)
def test_other_token_mixers_are_refused(name: str) -> None:
    case = load_case(name)
    with pytest.raises(interp.Unsupported, match="mix tokens without attention"):
        direct_attribution(case.model, case.batch(), weighted)


@pytest.mark.parametrize("metric", [interp.answer_logprob, interp.probability, lambda x, batch: x[:, -1, 3] + 1])
def test_a_metric_that_is_not_linear_in_the_logits_is_refused(metric: Any) -> None:
    model = tiny_gpt2()
    with pytest.raises(interp.BadInput, match=r"<dm/dlogits, logits> misses m"):
        direct_attribution(model, prompts(model, *IDS), metric)


def test_other_refusals(case_of: Callable[[str], Case]) -> None:
    model = tiny_gpt2()
    batch = prompts(model, *IDS)
    with pytest.raises(interp.BadInput, match="no gradient"):
        direct_attribution(model, batch, interp.accuracy)
    with pytest.raises(interp.BadInput, match="one number per prompt"):
        direct_attribution(model, batch, lambda logits, batch: logits[:, -1])
    with pytest.raises(interp.BadInput, match="'refuse' or 'report'"):
        direct_attribution(model, batch, nonlinear="ignore")  # type: ignore[arg-type]
    case = case_of("t5")
    with pytest.raises(interp.BadInput, match="do not write to the stream"):
        direct(case.model, case.batch(), Request(stack="encoder", metric=weighted))


def test_chunks_padding_and_what_is_left_of_the_model() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    whole = direct_attribution(model, batch, cluster=["a", "a", "b"])
    parts = direct_attribution(model, batch, batch_size=2)
    np.testing.assert_allclose(parts.heads.samples, whole.heads.samples, rtol=1e-9)
    np.testing.assert_allclose(parts.biases, whole.biases, rtol=1e-9)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]] * 3)
    padded = interp.encode(model, torch.tensor([[0, *row] for row in IDS]), mask=mask, answers=batch.answers)
    np.testing.assert_allclose(direct_attribution(model, padded).heads.samples, whole.heads.samples, rtol=1e-8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_the_table_names_every_component_once() -> None:
    model = tiny_gpt2()
    found = direct_attribution(model, prompts(model, *IDS))
    table = found.table()
    assert table["component"].tolist() == [
        "embeddings", "L0.H0", "L0.H1", "L0.MLP", "L1.H0", "L1.H1", "L1.MLP", "L2.H0", "L2.H1", "L2.MLP", "biases",
        "nonlinear",
    ]  # fmt: skip
    assert table["value"].sum() == pytest.approx(found.metric.mean(), rel=1e-5)
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert repr(found).startswith("DirectAttribution(metric ")
    broken = replace(found, biases=found.biases + 1)
    with pytest.raises(interp.RunFailed, match="miss the metric"):
        broken.check()


def test_in_half_precision() -> None:
    """bfloat16: the parts still sum to the metric within its rounding."""
    torch.manual_seed(0)
    tiny = tiny_gpt2()
    model = interp.load(tiny.hf.to(torch.bfloat16), check=False)
    found = direct_attribution(model, prompts(model, *IDS))
    assert found.check(5e-2) >= 0
    wanted = direct_attribution(interp.load(tiny.hf.float(), check=False), prompts(tiny, *IDS))
    assert np.abs(found.heads.samples - wanted.heads.samples).max() < 0.1 * np.abs(wanted.heads.samples).max()
