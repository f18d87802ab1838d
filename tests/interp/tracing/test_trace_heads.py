"""How much of a trace passes through each head: against rollouts with the head's map replaced, one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case

import interp
from interp import At, Site
from interp.errors import BadAddress, BadInput, UnknownName

LENGTH = 6


def maps_of(case: Case, batch: interp.Batch, stack: str | None = None) -> np.ndarray:
    """``[prompt, layer, head, query, key]``."""
    at = At(Site.PATTERN, stack=stack or case.model.default_stack)
    return interp.run(case.model, batch, read=[at])[at].double().transpose(0, 1).numpy()


def replaced(maps: np.ndarray, target: int, **options: Any) -> np.ndarray:
    """``[layer, head, source]`` the target's row as it is, minus with each head's map set to the identity."""
    layers, heads, tokens, _ = maps.shape
    whole = interp.rollout(maps, **options).numpy()[target]
    made = np.empty((layers, heads, tokens))
    for layer in range(layers):
        for head in range(heads):
            changed = maps.copy()
            changed[layer, head] = np.eye(tokens)
            made[layer, head] = whole - interp.rollout(changed, **options).numpy()[target]
    return made


OPTIONS: list[dict[str, Any]] = [
    {},
    {"residual": 0.2},
    {"heads": "max"},
    {"heads": "min"},
    {"discard": 0.4},
    {"start": 1},
    {"normalise": False},
    {"heads": "weights"},
]


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bert"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_heads_of_a_rollout_by_replacing_each(
    case_of: Callable[[str], Case], name: str, options: dict[str, Any]
) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    maps = maps_of(case, batch)
    if options.get("heads") == "weights":
        options = {"heads": np.random.default_rng(0).random(maps.shape[1:3])}
    brings = np.stack([replaced(own, -1, **{k: v for k, v in options.items() if k != "start"}) for own in maps])
    if "start" in options:
        brings = np.stack([replaced(own[1:], -1) for own in maps])
        brings = np.concatenate([np.full_like(brings[:, :1], np.nan), brings], axis=1)
    moved = interp.trace_heads(case.model, batch, targets=-1, **options)
    np.testing.assert_allclose(moved.per_prompt, np.abs(brings).sum(-1) / 2, rtol=0, atol=1e-6)
    for sources in (0, slice(1, 3), torch.tensor([[0, 4]])):
        led = interp.trace_heads(case.model, batch, targets=-1, sources=sources, **options)
        columns = sources[0].tolist() if isinstance(sources, torch.Tensor) else sources
        hand = brings[..., columns] if isinstance(columns, int) else brings[..., columns].sum(-1)
        np.testing.assert_allclose(led.per_prompt, hand, rtol=0, atol=1e-6)
    everything = interp.trace_heads(case.model, batch, targets=-1, sources=slice(None), **options)
    np.testing.assert_allclose(everything.per_prompt, brings.sum(-1), rtol=0, atol=1e-6)


def test_several_targets_are_averaged(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)
    maps = maps_of(case, batch)
    found = interp.trace_heads(case.model, batch, targets=slice(2, 5))
    hand = np.stack([[np.abs(replaced(own, target)).sum(-1) / 2 for target in (2, 3, 4)] for own in maps]).mean(1)
    np.testing.assert_allclose(found.per_prompt, hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("missing", [None, "sink", "self", "renormalise"])
def test_heads_beside_sink_logits(case_of: Callable[[str], Case], missing: Any) -> None:
    case = case_of("gpt_oss")
    batch = case.batch(2, LENGTH)
    brings = np.stack([replaced(own, -1, missing=missing or "sink") for own in maps_of(case, batch)])
    found = interp.trace_heads(case.model, batch, missing=missing)
    np.testing.assert_allclose(found.per_prompt, np.abs(brings).sum(-1) / 2, rtol=0, atol=1e-6)
    first = interp.trace_heads(case.model, batch, missing=missing, sources=0)
    np.testing.assert_allclose(first.per_prompt, brings[..., 0], rtol=0, atol=1e-6)


def decoder_row(parts: dict[str, np.ndarray], without: tuple[str, int, int] | None, heads: str) -> np.ndarray:
    """The last decoder token's row by (E + D) x (E + D) matrices, one head's mass left on the token itself."""
    fuse = {"mean": np.mean, "max": np.max}[heads]
    n_encoder, n_decoder = parts["encoder"].shape[-1], parts["decoder"].shape[-1]
    state = np.eye(n_encoder + n_decoder)

    def wide(stack: str, layer: int) -> np.ndarray:
        maps = parts[stack][layer]
        made = np.zeros((len(maps), n_encoder + n_decoder, n_encoder + n_decoder))
        made[:, range(len(made[0])), range(len(made[0]))] = 1
        rows = slice(0, n_encoder) if stack == "encoder" else slice(n_encoder, None)
        columns = slice(n_encoder, None) if stack == "decoder" else slice(0, n_encoder)
        made[:, rows] = 0
        made[:, rows, columns] = maps
        if without is not None and without[:2] == (stack, layer):
            made[without[2]] = np.eye(n_encoder + n_decoder)
        mixed = fuse(made, axis=0) / 2 + np.eye(n_encoder + n_decoder) / 2
        return mixed / mixed.sum(-1, keepdims=True)

    for layer in range(len(parts["encoder"])):
        state = wide("encoder", layer) @ state
    for layer in range(len(parts["decoder"])):
        state = wide("cross", layer) @ wide("decoder", layer) @ state
    return state[-1]


@pytest.mark.parametrize("heads", ["mean", "max"])
def test_heads_of_a_decoder_its_cross_attention_and_its_encoder(case_of: Callable[[str], Case], heads: str) -> None:
    case = case_of("t5")
    batch = case.batch(1, LENGTH)
    parts = {stack: maps_of(case, batch, stack)[0] for stack in ("decoder", "cross", "encoder")}
    n_encoder = parts["encoder"].shape[-1]
    whole = decoder_row(parts, None, heads)
    moved = interp.trace_heads(case.model, batch, heads=heads)
    first = interp.trace_heads(case.model, batch, heads=heads, sources=1)
    second = interp.trace_heads(case.model, batch, heads=heads, sources=1, source_stack="decoder")
    assert set(moved.stacks) == {"decoder", "cross", "encoder"}
    for stack, own in parts.items():
        for layer in range(own.shape[0]):
            for head in range(own.shape[1]):
                brings = whole - decoder_row(parts, (stack, layer, head), heads)
                at = [table.of(stack).per_prompt[0, layer, head] for table in (moved, first, second)]
                hand = [np.abs(brings).sum() / 2, brings[1], brings[n_encoder + 1]]
                np.testing.assert_allclose(at, hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"residual": 0.3}])
def test_both_roads_to_a_head_agree(case_of: Callable[[str], Case], options: dict[str, Any]) -> None:
    """Maps made anew for each head (discarding next to nothing) against what heads share of one pass."""
    for name in ("t5", "llama"):
        case = case_of(name)
        batch = case.batch(2, LENGTH)
        shared = interp.trace_heads(case.model, batch, **options)
        recomputed = interp.trace_heads(case.model, batch, discard=1e-6, **options)
        for stack in shared.stacks:
            np.testing.assert_allclose(recomputed.of(stack).per_prompt, shared.of(stack).per_prompt, rtol=0, atol=1e-6)


def flow_row(maps: np.ndarray, target: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", interp.SaturatedFlow)
        return interp.attention_flow(maps, targets=[target]).numpy()[0]


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_heads_of_a_flow_by_replacing_each(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 5)
    maps = maps_of(case, batch)
    moved = interp.trace_heads(case.model, batch, "flow", targets=-1)
    led = interp.trace_heads(case.model, batch, "flow", targets=-1, sources=slice(0, 2))
    for prompt, own in enumerate(maps):
        whole = flow_row(own, -1)
        for layer in range(own.shape[0]):
            for head in range(own.shape[1]):
                changed = own.copy()
                changed[layer, head] = np.eye(5)
                brings = whole - flow_row(changed, -1)
                at = [table.per_prompt[prompt, layer, head] for table in (moved, led)]
                np.testing.assert_allclose(at, [np.abs(brings).sum() / 2, brings[:2].sum()], rtol=0, atol=1e-6)


def test_heads_of_a_flow_through_an_encoder(case_of: Callable[[str], Case]) -> None:
    """Heads of all three maps are there; a padded prompt gives the same."""
    case = case_of("t5")
    inputs = case.tiny.inputs(1, 4, 0)
    found = interp.trace_heads(case.model, interp.encode(case.model, inputs=inputs), "flow")
    assert set(found.stacks) == {"decoder", "cross", "encoder"}
    blank = torch.zeros(1, 2, dtype=torch.long)
    padded = inputs | {name: torch.cat([inputs[name], blank], dim=1) for name in ("input_ids", "attention_mask")}
    again = interp.trace_heads(case.model, interp.encode(case.model, inputs=padded), "flow")
    for stack in found.stacks:
        assert np.isfinite(found.of(stack).per_prompt).all()
        # what reaches the decoder's own tokens is cut off at the cross-attention's residual, whatever their heads do
        assert (found.of(stack).per_prompt.max() > 0.01) == (stack != "decoder")
        np.testing.assert_allclose(again.of(stack).per_prompt, found.of(stack).per_prompt, rtol=0, atol=1e-5)


def test_flows_of_long_prompts_are_refused_per_head(
    case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.tracing.heads.flow_heads.MOST_TOKENS", 4)
    case = case_of("llama")
    with pytest.raises(BadInput, match=r"5 tokens.*at most 4"):
        interp.trace_heads(case.model, case.batch(1, 5), "flow")


def test_a_head_that_attends_to_itself_brings_nothing(case_of: Callable[[str], Case]) -> None:
    """The first token of a causal model attends to itself alone in every head."""
    case = case_of("gpt2")
    found = interp.trace_heads(case.model, case.batch(2, LENGTH), targets=0)
    np.testing.assert_allclose(found.per_prompt, 0, rtol=0, atol=1e-7)


def test_tables_can_be_compared(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = interp.encode(case.model, case.tiny.inputs(4, LENGTH, 0)["input_ids"], answers=[(7, 9)] * 4)
    moved = interp.trace_heads(case.model, batch)
    led = interp.trace_heads(case.model, batch, sources=0)
    effects = interp.attribute(case.model, batch, method="zero")
    assert (moved.quantity, moved.sense, led.quantity, led.sense) == ("score", 0, "contribution", 1)
    assert ((moved.per_prompt >= 0) & (moved.per_prompt <= 1)).all()
    assert moved.metadata["method"] == "rollout"
    interp.agreement(led, effects)
    interp.agreement(moved, effects, by="abs")
    interp.agreement(moved, interp.score(case.model, batch, ["entropy"])["entropy"])
    with pytest.raises(BadInput, match="by='abs'"):
        interp.agreement(moved, effects)


def test_padding_and_company_change_nothing(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    ids = case.tiny.inputs(3, LENGTH, 0)["input_ids"]
    blank = torch.zeros(3, 2, dtype=torch.long)
    alone = interp.trace_heads(case.model, interp.encode(case.model, ids), sources=1).per_prompt
    for side in ("left", "right"):
        parts, masks = [ids, blank], [torch.ones_like(ids), blank]
        if side == "left":
            parts, masks = parts[::-1], masks[::-1]
        batch = interp.encode(case.model, torch.cat(parts, dim=1).flip(0), mask=torch.cat(masks, dim=1).bool())
        found = interp.trace_heads(case.model, batch, sources=1).per_prompt
        np.testing.assert_allclose(found[::-1], alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "raw"}, "form per head"),
        ({"depth": 1}, "option of 'rollout'"),
        ({"sources": "nowhere"}, "nowhere"),
        ({"sources": 99}, "outside"),
        ({"source_stack": "encoder", "sources": 0}, "stack of sources"),
        ({"heads": "median"}, "fusion"),
    ],
)
def test_what_cannot_be_is_refused(case_of: Callable[[str], Case], given: dict[str, Any], said: str) -> None:
    case = case_of("gpt2")
    with pytest.raises((BadInput, BadAddress, UnknownName), match=said):
        interp.trace_heads(case.model, case.batch(1, LENGTH), **given)


def test_forms_have_the_options_that_they_say() -> None:
    import importlib
    import inspect

    from interp.tracing.heads import HEAD_FORMS

    for form in HEAD_FORMS.values():
        module, name = form.function.split(":")
        taken = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        assert taken[:2] == ["ask", "sources"]
        assert taken[2:] == list(form.options)
