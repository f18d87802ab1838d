"""Gradient-weighted traces on models: gradients of maps by the values, against autograd through the maps themselves."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case, fingerprint
from torch import Tensor

import interp
from interp import At, Batch, Site
from interp.tracing.ask import TraceAsk
from interp.tracing.relevance.relevance import relevance
from interp.tracing.relevance.sequences import SequenceRelevance
from interp.tracing.relevance.slopes import map_slopes
from interp.tracing.transitions import discarded

LENGTH = 6
KINDS = ("gpt2", "llama", "bert", "vit", "bart", "deepseek_v3", "clip", "llava", "gpt_oss", "gemma2")
WHOLE = ("gptj", "bloom")  # values out of reach


def mixture(logits: Tensor, batch: Batch) -> Tensor:
    """A fixed random mixture of each prompt's logits."""
    weights = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(11))
    return (logits.float() * weights).flatten(1).sum(1)


def maps_and_slopes(case: Case, batch: Batch, metric: Any, stack: str) -> tuple[list[Tensor], list[Tensor]]:
    """Every layer's maps and their gradients, by autograd through the maps: ``[batch, head, query, key]`` each."""
    layers = [i for i in range(case.model.stack(stack).n_layers) if case.model.stack(stack).n_heads(i)]
    reads = [At(Site.PATTERN, layer, stack=stack) for layer in layers]
    seen = interp.run(case.model, batch, reads, grad=metric)
    assert seen.grad is not None
    return [seen[at].double() for at in reads], [seen.grad[at].double() for at in reads]


def asked(case: Case, batch: Batch, stack: str) -> TraceAsk:
    return TraceAsk("test", case.model, batch, case.model.stack(stack), torch.zeros(len(batch), 1, dtype=torch.long))


@pytest.mark.parametrize("name", [*KINDS, *WHOLE])
def test_gradients_of_maps_are_autograds(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    before = fingerprint(case.hf)
    for stack in case.model.stacks:
        found = map_slopes(asked(case, batch, stack), mixture)
        assert len(found.whole_layers) == (0 if name in KINDS else len(found.held.layers()))
        maps, slopes = maps_and_slopes(case, batch, mixture, stack)
        for layer, pattern, slope in zip(found.held.layers(), maps, slopes, strict=True):
            truth = pattern * slope
            made = torch.zeros_like(truth)
            for block in found.blocks(layer):
                n_keys = block.weighted.shape[-1]
                index = block.rows[:, None, :, None].expand(-1, made.shape[1], -1, n_keys)
                made[..., :n_keys].scatter_(2, index, block.weighted.double())
            torch.testing.assert_close(made, truth, rtol=1e-4, atol=1e-5 * max(1.0, float(truth.abs().max())))
    assert fingerprint(case.hf) == before


def test_the_gate_of_a_map_is_no_gradient_of_its_values() -> None:
    """Between map and projection something may stand: then whole maps are recorded, and the check says so."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=["full_attention", "full_attention"], num_experts=0,
        mlp_only_layers=[0, 1], linear_num_key_heads=2, linear_num_value_heads=2,
    )  # fmt: skip
    model = interp.load(Qwen3NextForCausalLM(config).eval())
    batch = interp.encode(model, torch.randint(5, 50, (2, 5), generator=torch.Generator().manual_seed(0)))
    case: Any = type("Loaded", (), {"model": model})
    found = map_slopes(asked(case, batch, "text"), mixture)
    assert found.whole_layers == (("text", 0), ("text", 1))
    maps, slopes = maps_and_slopes(case, batch, mixture, "text")
    trace = interp.trace(model, batch, "chefer2021b", metric=mixture)
    for prompt in range(2):
        truth = relevance([one[prompt] for one in maps], [one[prompt] for one in slopes], targets=[-1])
        np.testing.assert_allclose(trace.values[prompt], truth, rtol=1e-4, atol=1e-5)


def test_a_fused_attention_is_refused(case_of: Callable[[str], Case]) -> None:
    case = case_of("falcon")
    with pytest.raises(interp.Unsupported, match=r"PATTERN|map"):
        interp.trace(case.model, case.batch(2, LENGTH), "chefer2021b")


def test_packed_images_are_refused(case_of: Callable[[str], Case]) -> None:
    case = case_of("qwen2_vl")
    where = torch.zeros(2, 1, dtype=torch.long)
    for method in ("chefer2021b", "gradient"):
        with pytest.raises(interp.Unsupported, match="packs the rows"):
            interp.trace(case.model, case.batch(2, LENGTH), method, stack="vision", targets=where)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "gpt_oss"])
def test_traces_are_the_pure_rules(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    stack = case.model.default_stack
    maps, slopes = maps_and_slopes(case, batch, mixture, stack)
    size = maps[0].shape[-1]
    targets = torch.tensor([[size - 1, 0, size - 1], [1, 2, 3]])
    rules: tuple[tuple[str, Any], ...] = (
        ("chefer2021b", "chefer2021b"),
        ("gradient-rollout", "vit-explain-gradient"),
        ("gradient-attention", "gradient-attention"),
    )
    for method, rule in rules:
        trace = interp.trace(case.model, batch, method, targets=targets, metric=mixture, each_layer=True)
        for prompt in range(2):
            each = [one[prompt] for one in maps], [one[prompt] for one in slopes]
            truth = relevance(*each, rule=rule, targets=targets[prompt], each_layer=True)
            np.testing.assert_allclose(trace.values[prompt], truth[-1], rtol=2e-4, atol=1e-5)
            np.testing.assert_allclose(trace.layers[:, prompt], truth, rtol=2e-4, atol=1e-5)
        if stack == "text" and name == "llama":
            later = np.arange(size)[None, :] > targets.numpy()[..., None]
            assert not trace.values[np.broadcast_to(later, trace.values.shape)].any()
    assert trace.metadata["metric"] == "mixture"


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_the_fast_kernel_stays(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    assert interp.trace(case.model, case.batch(2, LENGTH), "chefer2021b").metadata["kernels"] == "sdpa"


def test_options_of_the_traces(case_of: Callable[[str], Case]) -> None:
    case = case_of("bert")
    batch = case.batch(2, LENGTH)
    maps, slopes = maps_and_slopes(case, batch, mixture, "text")
    alone = interp.trace(case.model, batch, "gradient-attention", layer=1, metric=mixture, targets="all")
    np.testing.assert_allclose(alone.values, (maps[1] * slopes[1]).mean(1), rtol=1e-4, atol=1e-5)
    late = interp.trace(case.model, batch, "chefer2021b", start=1, metric=mixture, targets="all", each_layer=True)
    truth = [relevance([maps[1][p]], [slopes[1][p]]) for p in range(2)]
    np.testing.assert_allclose(late.values, torch.stack(truth), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(late.layers[0], np.eye(LENGTH)[None].repeat(2, 0))
    some = interp.trace(case.model, batch, "gradient-rollout", discard=0.5, metric=mixture, targets="all")
    for prompt in range(2):
        made = torch.eye(LENGTH, dtype=torch.float64)
        for pattern, slope in zip(maps, slopes, strict=True):
            step = discarded((pattern[prompt] * slope[prompt]).mean(0).clamp(min=0)[None], 0.5, keep_first=False)[0]
            step = step + torch.eye(LENGTH)
            made = step / step.sum(-1, keepdim=True) @ made
        np.testing.assert_allclose(some.values[prompt], made, rtol=1e-4, atol=1e-5)
    for call, message in (
        ({"method": "chefer2021b", "start": 2}, "2 layers"),
        ({"method": "gradient-rollout", "discard": 1.0}, "discard"),
        ({"method": "gradient-attention", "layer": 5}, "layers with attention"),
    ):
        with pytest.raises(interp.BadInput, match=message):
            interp.trace(case.model, batch, **call)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_across_an_encoder_decoder(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    trace = interp.trace(
        case.model, batch, "chefer2021b", stack="cross", targets="all", metric=mixture, each_layer=True
    )
    own, cross, coded = (maps_and_slopes(case, batch, mixture, stack) for stack in ("decoder", "cross", "encoder"))
    height, width = cross[0][0].shape[2:]
    assert trace.source_stacks == (("encoder", width), ("decoder", height))
    same = interp.trace(case.model, batch, "chefer2021b", targets="all", metric=mixture)
    np.testing.assert_allclose(same.values, trace.values, rtol=1e-5, atol=1e-7)
    dropped = torch.zeros(2, width, dtype=torch.bool)
    dropped[:, 1] = True
    gone = interp.trace(case.model, batch, "chefer2021b", stack="cross", metric=mixture, exclude_sinks=dropped)
    assert np.isfinite(gone.values).all() and not np.allclose(gone.values, trace.values[:, -1:])
    for prompt in range(2):
        found = SequenceRelevance.of({"encoder": width, "decoder": height}, dtype=torch.float64)
        for pattern, slope in zip(*coded, strict=True):
            found = found.after_self("encoder", pattern[prompt], slope[prompt])
        for layer in range(len(own[0])):
            found = found.after_self("decoder", own[0][layer][prompt], own[1][layer][prompt])
            found = found.after_cross("decoder", "encoder", cross[0][layer][prompt], cross[1][layer][prompt])
            truth = torch.cat([found["decoder", "encoder"], found["decoder", "decoder"]], dim=1)
            np.testing.assert_allclose(trace.layers[layer, prompt], truth, rtol=5e-4, atol=1e-5)
        np.testing.assert_allclose(trace.values[prompt], truth, rtol=5e-4, atol=1e-5)
    late = interp.trace(case.model, batch, "chefer2021b", stack="cross", metric=mixture, start=1, each_layer=True)
    assert late.layers.shape[0] == trace.layers.shape[0] and not late.layers[0, ..., :width].any()
    with pytest.raises(interp.BadInput, match="another sequence"):
        interp.trace(case.model, batch, "gradient-rollout", stack="cross")


@pytest.mark.parametrize("method", ["chefer2021b", "gradient-rollout"])
def test_nothing_to_explain(case_of: Callable[[str], Case], method: str) -> None:
    case = case_of("gpt2")

    def nothing(logits: Tensor, batch: Batch) -> Tensor:
        return 0.0 * logits.flatten(1).sum(1)

    trace = interp.trace(case.model, case.batch(2, LENGTH), method, metric=nothing, targets="all")
    np.testing.assert_array_equal(trace.values, np.eye(LENGTH)[None].repeat(2, 0))


def test_the_default_is_the_logit_of_the_answer(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    ids = case.tiny.inputs(2, LENGTH, 0)["input_ids"]
    answered = interp.encode(case.model, ids, answers=[(7, 8), (9, 8)])

    def logit(logits: Tensor, batch: Batch) -> Tensor:
        return torch.stack([logits[0, -1, 7], logits[1, -1, 9]])

    for method in ("chefer2021b", "gradient-attention", "gradient", "gradient-input"):
        own = interp.trace(case.model, answered, method)
        np.testing.assert_allclose(
            own.values, interp.trace(case.model, answered, method, metric=logit).values, rtol=1e-4, atol=1e-6
        )
        best = interp.run(case.model, answered).logits[:, -1].argmax(-1).tolist()
        said = interp.trace(case.model, interp.encode(case.model, ids), method)
        again = interp.encode(case.model, ids, answers=[(word,) for word in best])
        np.testing.assert_allclose(said.values, interp.trace(case.model, again, method).values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["gradient-attention", "gradient-input", "integrated-gradients"])
def test_signs_turn_with_the_metric(case_of: Callable[[str], Case], method: str) -> None:
    case = case_of("llama")
    batch = case.batch(2, LENGTH)
    there = interp.trace(case.model, batch, method, metric=mixture)
    back = interp.trace(case.model, batch, method, metric=lambda logits, batch: -mixture(logits, batch))
    assert there.signed
    np.testing.assert_allclose(back.values, -there.values, rtol=1e-5, atol=1e-7)


def test_left_out_sinks_get_nothing(case_of: Callable[[str], Case]) -> None:
    case = case_of("bert")
    trace = interp.trace(case.model, case.batch(2, LENGTH), "chefer2021b", exclude_sinks="first", targets=slice(2, 4))
    assert not trace.values[..., 0].any()


@pytest.mark.parametrize(("name", "stack"), [("llava", "vision"), ("llava", "text"), ("clip", "vision")])
def test_each_stack_of_one_forward(case_of: Callable[[str], Case], name: str, stack: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    where = torch.zeros(2, 1, dtype=torch.long)
    trace = interp.trace(case.model, batch, "chefer2021b", stack=stack, targets=where + 3, metric=mixture)
    maps, slopes = maps_and_slopes(case, batch, mixture, stack)
    for prompt in range(2):
        truth = relevance([one[prompt] for one in maps], [one[prompt] for one in slopes], targets=[3])
        np.testing.assert_allclose(trace.values[prompt], truth, rtol=5e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_heads_bring_the_trace_together(case_of: Callable[[str], Case], name: str) -> None:
    """Over all rows and sources the signed form is the slope of the head's gate; over a target's row, the trace."""
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    every = interp.trace_heads(case.model, batch, "gradient-attention", sources=slice(0, None), metric=mixture)
    effects = interp.attribute(case.model, batch, method="gradient", metric=mixture)
    np.testing.assert_allclose(every.per_prompt, -effects.per_prompt, rtol=1e-3, atol=1e-5)
    row = interp.trace_heads(case.model, batch, "gradient-attention", sources=1, metric=mixture, rows="targets")
    trace = interp.trace(case.model, batch, "gradient-attention", metric=mixture)
    n_heads = case.model.stack().n_heads(0)
    np.testing.assert_allclose(row.per_prompt.sum((1, 2)) / n_heads, trace.values[:, 0, 1], rtol=1e-4, atol=1e-6)
    size = interp.trace_heads(case.model, batch, "gradient-attention", metric=mixture)
    assert (size.per_prompt >= np.abs(every.per_prompt) - 1e-6).all() and size.sense == 0 and every.sense == 1
    maps, slopes = maps_and_slopes(case, batch, mixture, "text")
    truth = torch.stack([(a * g).abs().sum((2, 3)) for a, g in zip(maps, slopes, strict=True)], dim=1)
    np.testing.assert_allclose(size.per_prompt, truth, rtol=1e-4, atol=1e-5)
    with pytest.raises(interp.BadInput, match="targets"):
        interp.trace_heads(case.model, batch, "gradient-attention", rows="last")


def test_heads_of_a_decoder_take_from_their_own_stack(case_of: Callable[[str], Case]) -> None:
    case = case_of("t5")
    with pytest.raises(interp.BadInput, match="source_stack"):
        interp.trace_heads(case.model, case.batch(2, LENGTH), "gradient-attention", sources=0)
    own = {"sources": 0, "source_stack": "decoder"}
    assert interp.trace_heads(case.model, case.batch(2, LENGTH), "gradient-attention", **own).stacks == ("decoder",)


@pytest.mark.parametrize("method", ["chefer2021b", "chefer2021a", "gradient-rollout", "integrated-gradients"])
def test_half_precision_stays_near(case_of: Callable[[str], Case], method: str) -> None:
    case = case_of("bert")
    ids = case.tiny.inputs(2, LENGTH, 0)["input_ids"]
    half = interp.load(deepcopy(case.hf).bfloat16(), check=False)
    truth = interp.trace(case.model, interp.encode(case.model, ids, answers=[(7,), (8,)]), method)
    found = interp.trace(half, interp.encode(half, ids, answers=[(7,), (8,)]), method)
    np.testing.assert_allclose(found.values, truth.values, atol=0.05 * max(1.0, float(np.abs(truth.values).max())))
    assert not found.metadata.get("whole_maps")
