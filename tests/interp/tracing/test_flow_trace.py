"""Attention flow of runs of models: the flow of the maps that a run reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from conformance.support import Case
from transformers import BertConfig, BertForMaskedLM

import interp
from interp import At, SaturatedFlow, Site
from interp.errors import BadInput, UnknownName

LENGTH = 7


def maps_of(case: Case, batch: interp.Batch, stack: str | None = None) -> np.ndarray:
    """``[prompt, layer, head, query, key]``."""
    at = At(Site.PATTERN, stack=stack or case.model.default_stack)
    return interp.run(case.model, batch, read=[at])[at].double().transpose(0, 1).numpy()


def near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom", "bert", "modernbert", "vit", "llava"])
@pytest.mark.parametrize("options", [{}, {"heads": "max", "residual": 0.3, "normalise": True}, {"residual": None}])
def test_it_is_the_flow_of_the_maps(case_of: Callable[[str], Case], name: str, options: dict[str, Any]) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    found = interp.trace(case.model, batch, "flow", **options)
    for prompt, maps in enumerate(maps_of(case, batch)):
        near(found.values[prompt], interp.attention_flow(maps, targets=found.targets[prompt], **options))
    assert sum(found.metadata["settled"].values()) == found.values.size
    assert found.metadata["saturated"] == [False, False]


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_layers_and_all_targets(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    whole = interp.trace(case.model, batch, "flow", targets="all", each_layer=True)
    few = interp.trace(case.model, batch, "flow", targets=2, each_layer=True)
    assert whole.layers is not None and few.layers is not None
    for prompt, maps in enumerate(maps_of(case, batch)):
        truth = interp.attention_flow(maps, each_layer=True)
        near(whole.layers[:, prompt], truth)
        near(few.layers[:, prompt, 0], truth[:, 2])
        near(whole.values[prompt], truth[-1])
        assert whole.metadata["largest_row_spread"][prompt] == pytest.approx(np.nanmax(truth.spread), abs=1e-6)
    assert few.metadata["largest_row_spread"] == [None, None]


def test_options_reach_the_steps(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(1, LENGTH)
    maps = maps_of(case, batch)[0]
    weights = np.random.default_rng(0).random(maps.shape[:2])
    near(
        interp.trace(case.model, batch, "flow", heads=weights, targets="all").values[0],
        interp.attention_flow(maps, heads=weights),
    )
    shares = np.linspace(0.2, 0.8, len(maps))
    near(
        interp.trace(case.model, batch, "flow", residual=shares, targets="all").values[0],
        interp.attention_flow(maps, residual=shares),
    )
    measured = interp.trace(case.model, batch, "flow", residual="measured", targets="all")
    rollout = interp.trace(case.model, batch, "rollout", residual="measured", targets="all")
    assert (measured.values >= rollout.values - 1e-6).all()
    assert list(measured.metadata["measured"]) == [case.model.default_stack]
    dropped = interp.trace(case.model, batch, "flow", exclude_sinks="first", targets="all").values[0]
    left = maps.copy()
    left[..., 0] = 0
    sums = left.sum(-1, keepdims=True)
    near(dropped, interp.attention_flow(np.where(sums > 0, left / np.where(sums > 0, sums, 1), 0)))


def test_progress_counts_the_forward(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    seen: list[int] = []
    interp.trace(case.model, case.batch(2, LENGTH), "flow", progress=seen.append)
    assert seen == [1]


def test_mass_that_sink_logits_take_leaves_the_graph(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt_oss")
    batch = case.batch(1, LENGTH)
    maps = maps_of(case, batch)[0]
    assert maps.sum(-1).min() < 0.9
    for rule in (None, "sink", "self", "renormalise"):
        found = interp.trace(case.model, batch, "flow", targets="all", **({} if rule is None else {"missing": rule}))
        near(found.values[0], interp.attention_flow(maps, missing=rule or "sink"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_company_change_nothing(case_of: Callable[[str], Case], side: str) -> None:
    case = case_of("llama")
    ids = case.tiny.inputs(3, LENGTH, 0)["input_ids"]
    truth = interp.trace(case.model, interp.encode(case.model, ids[:1]), "flow", targets="all").values[0]
    padded = torch.zeros(2, LENGTH + 2, dtype=torch.long)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    real = slice(2, None) if side == "left" else slice(0, LENGTH)
    padded[0, real], mask[0, real] = ids[0], True
    padded[1], mask[1] = torch.cat([ids[1], ids[2, :2]]), True
    found = interp.trace(case.model, interp.encode(case.model, padded, mask=mask), "flow", targets="all").values[0]
    kept = found[np.isfinite(found).any(-1)]
    np.testing.assert_allclose(kept[:, real], truth, rtol=0, atol=1e-5)
    assert np.isnan(np.delete(kept, np.arange(LENGTH + 2)[real], axis=1)).all()


def dense(maps: np.ndarray) -> np.ndarray:
    """Heads' mean, each layer."""
    return maps.mean(1)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_a_decoder_is_traced_to_its_encoder(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    parts = [maps_of(case, batch, stack) for stack in ("decoder", "cross", "encoder")]
    found = interp.trace(case.model, batch, "flow", targets=torch.tensor([[0, 2]]), each_layer=True)
    assert found.layers is not None
    n_encoder, n_decoder = parts[2].shape[-1], parts[0].shape[-1]
    assert found.source_stacks == (("encoder", n_encoder), ("decoder", n_decoder))
    for prompt in range(2):
        own, cross, encoder = (dense(part[prompt]) for part in parts)
        graph = networkx.DiGraph()  # ("d", stage, token) and ("e", level, token)
        for layer, step in enumerate(encoder):
            for (query, key), weight in np.ndenumerate(0.5 * step + 0.5 * np.eye(n_encoder)):
                graph.add_edge(("e", layer + 1, query), ("e", layer, key), capacity=weight)
        for layer in range(len(own)):
            for (query, key), weight in np.ndenumerate(0.5 * own[layer] + 0.5 * np.eye(n_decoder)):
                graph.add_edge(("d", 2 * layer + 1, query), ("d", 2 * layer, key), capacity=weight)
            for (query, key), weight in np.ndenumerate(0.5 * cross[layer]):
                graph.add_edge(("d", 2 * layer + 2, query), ("e", len(encoder), key), capacity=weight)
            for query in range(n_decoder):
                graph.add_edge(("d", 2 * layer + 2, query), ("d", 2 * layer + 1, query), capacity=0.5)
        bottom = [("e", 0, token) for token in range(n_encoder)] + [("d", 0, token) for token in range(n_decoder)]
        for place, target in enumerate((0, 2)):
            for layer in range(len(own)):
                top = ("d", 2 * layer + 2, target)
                truth = [networkx.maximum_flow_value(graph, top, source) for source in bottom]
                near(found.layers[layer, prompt, place], truth)
    near(found.values, found.layers[-1])


def test_the_warning_reaches_who_asked() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    model = interp.load(BertForMaskedLM(config).eval(), check=False)
    batch = interp.encode(model, torch.randint(5, 50, (3, 8), generator=torch.Generator().manual_seed(0)))
    with pytest.warns(SaturatedFlow) as caught:
        found = interp.trace(model, batch, "flow", targets="all")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert found.metadata["saturated"] == [True, True, True]
    assert max(found.metadata["largest_row_spread"]) < 1e-6


def test_refusals(case_of: Callable[[str], Case]) -> None:
    case = case_of("t5")
    batch = case.batch(1, LENGTH)
    with pytest.raises(BadInput, match="cross-attention alone"):
        interp.trace(case.model, batch, "flow", stack="cross")
    with pytest.raises(UnknownName, match="fusion"):
        interp.trace(case.model, batch, "flow", heads="median")
    with pytest.raises(BadInput, match="rule"):
        interp.trace(case.model, batch, "flow", missing="gone")
    with pytest.raises(BadInput, match="residual"):
        interp.trace(case.model, batch, "flow", residual=2.0)
    with pytest.raises(BadInput, match="option"):
        interp.trace(case.model, batch, "flow", discard=0.5)
