"""Rollout of runs of models: against the maps that a run reads, by whole matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from dense_rollout import block_rollout, dense_rollout

import interp
from interp import At, HeadScores, Site
from interp.errors import BadInput, UnknownName

LENGTH = 7


def maps_of(case: Case, batch: interp.Batch, stack: str | None = None) -> np.ndarray:
    """``[prompt, layer, head, query, key]``."""
    at = At(Site.PATTERN, stack=stack or case.model.default_stack)
    return interp.run(case.model, batch, read=[at])[at].double().transpose(0, 1).numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom", "bert", "modernbert", "vit", "llava", "clip"])
@pytest.mark.parametrize(
    "options", [{}, {"heads": "max"}, {"heads": "min", "residual": 0.2}, {"discard": 0.4}, {"residual": [0.1, 0.7]}]
)
def test_it_is_the_dense_product_of_the_maps(
    case_of: Callable[[str], Case], name: str, options: dict[str, Any]
) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    maps = maps_of(case, batch)
    if isinstance(options.get("residual"), list):
        options = {"residual": np.linspace(0.1, 0.9, maps.shape[1])}
    found = interp.trace(case.model, batch, "rollout", **options)
    for prompt, own in enumerate(maps):
        shares = options.get("residual", 0.5)
        if np.ndim(shares):
            truth = interp.rollout(own, residual=shares).numpy()
        else:
            truth = dense_rollout(own, **options)
        np.testing.assert_allclose(found.values[prompt], truth[found.targets[prompt]], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.values[prompt].sum(-1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_layers_and_all_targets(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    maps = maps_of(case, batch)
    whole = interp.trace(case.model, batch, "rollout", targets="all", each_layer=True)
    few = interp.trace(case.model, batch, "rollout", targets=2, each_layer=True)
    assert whole.layers is not None and few.layers is not None
    for prompt, own in enumerate(maps):
        for layer in range(len(own)):
            truth = dense_rollout(own[: layer + 1])
            np.testing.assert_allclose(whole.layers[layer, prompt], truth, rtol=0, atol=1e-6)
            np.testing.assert_allclose(few.layers[layer, prompt], truth[2:3], rtol=0, atol=1e-6)
    later = interp.trace(case.model, batch, "rollout", targets=2, each_layer=True, start=1)
    assert later.layers is not None
    np.testing.assert_array_equal(later.layers[0], np.eye(LENGTH)[None, 2:3].repeat(2, 0))
    np.testing.assert_allclose(later.values[1, 0], dense_rollout(maps[1, 1:])[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_a_decoder_is_traced_to_its_encoder(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    own, cross, encoder = (maps_of(case, batch, stack) for stack in ("decoder", "cross", "encoder"))
    found = interp.trace(case.model, batch, "rollout", targets=torch.tensor([[0, 2]]), each_layer=True)
    assert found.source_stacks == (("encoder", encoder.shape[-1]), ("decoder", own.shape[-1]))
    assert found.layers is not None
    for prompt in range(2):
        truth = block_rollout(own[prompt], cross[prompt], encoder[prompt])
        np.testing.assert_allclose(found.values[prompt], truth[[0, 2]], rtol=0, atol=1e-6)
        first = block_rollout(own[prompt, :1], cross[prompt, :1], encoder[prompt])
        np.testing.assert_allclose(found.layers[0, prompt], first[[0, 2]], rtol=0, atol=1e-6)
        given = interp.rollout(own[prompt], cross=cross[prompt], encoder=encoder[prompt])
        np.testing.assert_allclose(given, truth, rtol=0, atol=1e-6)
    with pytest.raises(BadInput, match="stack='decoder'"):
        interp.trace(case.model, batch, "rollout", stack="cross")
    alone = interp.trace(case.model, batch, "rollout", stack="encoder", targets=torch.tensor([[1]]))
    np.testing.assert_allclose(alone.values[0, 0], dense_rollout(encoder[0])[1], rtol=0, atol=1e-6)


def test_a_padded_encoder_and_a_left_out_decoder_token(case_of: Callable[[str], Case]) -> None:
    case = case_of("t5")
    inputs = case.tiny.inputs(2, 6, 0)
    truth = interp.trace(case.model, interp.encode(case.model, inputs=inputs), "rollout").values
    blank = torch.zeros(2, 2, dtype=torch.long)
    padded = inputs | {name: torch.cat([inputs[name], blank], dim=1) for name in ("input_ids", "attention_mask")}
    found = interp.trace(case.model, interp.encode(case.model, inputs=padded), "rollout").values
    np.testing.assert_allclose(np.delete(found, [6, 7], axis=-1), truth, rtol=1e-4, atol=1e-6)
    assert np.isnan(found[..., 6:8]).all()
    batch = interp.encode(case.model, inputs=inputs)
    left = interp.trace(case.model, batch, "rollout", exclude_sinks="first")
    assert not left.values[..., 6].any(), "the decoder's first token"
    np.testing.assert_allclose(left.values.sum(-1), 1, rtol=0, atol=1e-6)
    own, cross, encoder = (maps_of(case, batch, stack) for stack in ("decoder", "cross", "encoder"))
    own = own.copy()
    own[..., 0] = 0
    own[..., 1:, :] /= own[..., 1:, :].sum(-1, keepdims=True)
    hand = interp.rollout(own[0], cross=cross[0], encoder=encoder[0], missing="sink")
    np.testing.assert_allclose(left.values[0], hand[-1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"discard": 0.5}, {"residual": "measured"}, {"heads": "max"}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_company_change_nothing(case_of: Callable[[str], Case], side: str, options: dict[str, Any]) -> None:
    case = case_of("llama")
    ids = case.tiny.inputs(3, LENGTH, 0)["input_ids"]
    alone = [interp.trace(case.model, interp.encode(case.model, ids[i : i + 1]), **options).values for i in range(3)]
    blank = torch.zeros(3, 2, dtype=torch.long)
    parts, masks = [ids, blank], [torch.ones_like(ids), blank]
    if side == "left":
        parts, masks = parts[::-1], masks[::-1]
    order = torch.tensor([2, 0, 1])
    batch = interp.encode(case.model, torch.cat(parts, dim=1)[order], mask=torch.cat(masks, dim=1)[order].bool())
    found = interp.trace(case.model, batch, **options).values
    real = slice(2, None) if side == "left" else slice(0, -2)
    for row, prompt in enumerate(order.tolist()):
        np.testing.assert_allclose(found[row][:, real], alone[prompt][0], rtol=1e-3, atol=1e-5)


def test_left_out_sinks_get_nothing(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)
    maps = maps_of(case, batch).copy()
    maps[..., 0] = 0
    maps[..., 1:, :] /= maps[..., 1:, :].sum(-1, keepdims=True)  # the first row has nothing left and stays empty
    for options in ({}, {"heads": "max"}, {"discard": 0.3}):
        found = interp.trace(case.model, batch, exclude_sinks="first", **options)
        for prompt in range(2):
            truth = interp.rollout(maps[prompt], missing="sink", **options)
            np.testing.assert_allclose(found.values[prompt], truth[-1:], rtol=0, atol=1e-6)
        assert not found.values[..., 0].any()


def test_sink_logits_take_their_share(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt_oss")
    batch = case.batch(2, LENGTH)
    maps = maps_of(case, batch)
    assert (maps.sum(-1) < 0.999).any()
    found = interp.trace(case.model, batch, "rollout")
    assert found.metadata["missing"] == ["sink"]
    for missing in ("sink", "self", "renormalise"):
        given = interp.trace(case.model, batch, "rollout", missing=missing)
        for prompt in range(2):
            truth = interp.rollout(maps[prompt], missing=missing)
            np.testing.assert_allclose(given.values[prompt], truth[-1:], rtol=0, atol=1e-6)
        if missing == "sink":
            np.testing.assert_array_equal(given.values, found.values)
            assert (given.values.sum(-1) < 1).all()
        else:
            np.testing.assert_allclose(given.values.sum(-1), 1, rtol=0, atol=1e-6)


def test_rounded_maps_are_made_up(case_of: Callable[[str], Case]) -> None:
    """Eager attention in bfloat16 keeps maps whose rows miss 1 by rounding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager")
    model = interp.load(GPT2LMHeadModel(config).eval().bfloat16(), check=False)
    batch = interp.encode(model, torch.arange(40)[None])
    found = interp.trace(model, batch, "rollout")
    np.testing.assert_allclose(np.nansum(found.values, -1), 1, rtol=0, atol=1e-5)


def test_measured_shares_are_norms_of_the_run(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)
    reads = [At(Site.RESID_PRE), At(Site.ATTN_OUT)]
    run = interp.run(case.model, batch, read=reads)
    before, written = (run[at].double().norm(dim=-1).numpy() for at in reads)  # [layer, batch, pos]
    shares = before / (before + written)
    maps = maps_of(case, batch)
    found = interp.trace(case.model, batch, "rollout", residual="measured")
    for prompt in range(2):
        truth = interp.rollout(maps[prompt], residual=shares[:, prompt])
        np.testing.assert_allclose(found.values[prompt], truth[-1:], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.metadata["measured"]["text"], shares.mean((1, 2)), rtol=0, atol=1e-3)
    assert np.abs(shares - 0.5).max() > 0.05, "otherwise this says nothing"


def test_measured_shares_of_a_decoder(case_of: Callable[[str], Case]) -> None:
    case = case_of("bart")
    batch = case.batch(1, LENGTH)
    places = {
        "decoder": (At(Site.RESID_PRE, stack="decoder"), At(Site.ATTN_OUT, stack="decoder")),
        "cross": (At(Site.RESID_MID, stack="decoder"), At(Site.ATTN_OUT, stack="cross")),
        "encoder": (At(Site.RESID_PRE, stack="encoder"), At(Site.ATTN_OUT, stack="encoder")),
    }
    run = interp.run(case.model, batch, read=[at for pair in places.values() for at in pair])
    shares = {}
    for stack, (first, second) in places.items():
        before, written = run[first].double().norm(dim=-1), run[second].double().norm(dim=-1)
        shares[stack] = (before / (before + written))[:, 0]
    own, cross, encoder = (maps_of(case, batch, stack)[0] for stack in places)
    truth = interp.rollout(own, cross=cross, encoder=encoder, residual=shares)
    found = interp.trace(case.model, batch, "rollout", residual="measured")
    np.testing.assert_allclose(found.values[0], truth[-1:], rtol=0, atol=1e-6)


def test_heads_weighted_by_what_they_do(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = case.batch(2, LENGTH)
    maps = maps_of(case, batch)
    table = interp.score(case.model, batch, ["entropy"])["entropy"]
    weights = table.values
    for heads in (table, weights, weights.tolist()):
        found = interp.trace(case.model, batch, "rollout", heads=heads)
        truth = interp.rollout(maps[1], heads=weights)
        np.testing.assert_allclose(found.values[1], truth[-1:], rtol=0, atol=1e-6)
    raw = interp.trace(case.model, batch, "raw", heads=table, layer=0)
    share = weights[0] / weights[0].sum()
    np.testing.assert_allclose(raw.values[0, 0], np.tensordot(share, maps[0, 0, :, -1], axes=1), rtol=0, atol=1e-6)
    assert raw.metadata["heads"] == "weights"
    with pytest.raises(BadInput, match="stack"):
        interp.trace(case.model, batch, "rollout", heads=HeadScores.from_array(weights, name="other", stack="vision"))


def test_parts_of_a_decoder_are_weighted_by_their_own_tables(case_of: Callable[[str], Case]) -> None:
    case = case_of("t5")
    batch = case.batch(1, LENGTH)
    draw = np.random.default_rng(0)
    maps = {stack: maps_of(case, batch, stack)[0] for stack in ("decoder", "cross", "encoder")}
    weights = {stack: draw.random(own.shape[:2]) for stack, own in maps.items()}
    tables = [HeadScores.from_array(w, name="w", stack=stack) for stack, w in weights.items()]
    whole = HeadScores.concat(tables)
    truth = interp.rollout(maps["decoder"], cross=maps["cross"], encoder=maps["encoder"], heads=weights)
    for heads in (whole, weights):
        found = interp.trace(case.model, batch, "rollout", heads=heads)
        np.testing.assert_allclose(found.values[0], truth[-1:], rtol=0, atol=1e-6)
    with pytest.raises(BadInput, match="cross"):
        interp.trace(case.model, batch, "rollout", heads=tables[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": "median"}, "fusion of heads"),
        ({"heads": [[1.0]]}, "layer, head"),
        ({"residual": "guessed"}, "measured"),
        ({"residual": 1.2}, "0 to 1"),
        ({"residual": [0.5]}, "layer"),
        ({"discard": 1}, r"\[0, 1\)"),
        ({"start": 99}, "layers with attention"),
        ({"missing": "lost"}, "missing mass"),
        ({"depth": 3}, "option of 'rollout'"),
    ],
)
def test_refused_before_any_forward(
    case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    case = case_of("gpt2")
    batch = case.batch(1, LENGTH)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward ran")

    monkeypatch.setattr(type(case.hf), "forward", never)
    with pytest.raises((BadInput, UnknownName), match=said):
        interp.trace(case.model, batch, "rollout", **options)
