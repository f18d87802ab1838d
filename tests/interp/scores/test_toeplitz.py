"""Toeplitz residual, positional share and score profile: planted scores, noise that is known, and real first layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from planted import ask_for, blocks_of
from tiny_models import TINY
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, Unsupported
from interp.scores.ask import Ask
from interp.scores.positions.toeplitz import (
    MeanScores,
    positional_share,
    random_prompts,
    score_profile,
    toeplitz_residual,
)
from interp.scores.positions.toeplitz import toeplitz_residual_of as residual_of
from interp.scores.prompts import ordinary_tokens

T = 12
PLACES = torch.arange(T, dtype=torch.float64)
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()
DISTANCE = PLACES[:, None] - PLACES
BY_KEY = PLACES.sin().expand(T, T)


def sums(scores: Tensor, *, rows_per_block: int = 5, skipped: int = 0) -> MeanScores:
    """The sums of planted scores ``[prompt, head, query, key]``, shown in blocks."""
    ask = ask_for(T, batch_size=len(scores))
    reducer = MeanScores(ask, T, skipped=skipped)
    for block in blocks_of(torch.zeros_like(scores), ask, scores=scores.float(), rows_per_block=rows_per_block):
        reducer.block(block, None)
    return reducer


def ratio(scores: Tensor, *, corrected: bool, **options: Any) -> Tensor:
    found = sums(scores, **options).diagonals[0]
    return found.residual(corrected=corrected) / found.total(corrected=corrected)


def test_a_function_of_the_distance_has_no_residual() -> None:
    for made in (DISTANCE, (DISTANCE / 3).cos(), (DISTANCE == 1).double()):
        assert residual_of(made, CAUSAL).item() == pytest.approx(0, abs=1e-12)
    assert residual_of(torch.ones(T, T), CAUSAL).isnan(), "nothing varies"


def test_by_hand() -> None:
    """Three tokens, entries 1 | 2 3 | 4 5 7: diagonals 1 3 7, 2 5 and 4."""
    scores = torch.tensor([[1.0, 9, 9], [2, 3, 9], [4, 5, 7]])
    entries = np.array([1, 2, 3, 4, 5, 7])
    residual = np.var([1, 3, 7]) * 3 + np.var([2, 5]) * 2
    wanted = residual / (np.var(entries) * 6)
    assert residual_of(scores, torch.ones(3, 3, dtype=torch.bool).tril()).item() == pytest.approx(wanted)


@pytest.mark.parametrize("rows_per_block", [1, 5, T])
@pytest.mark.parametrize("skipped", [0, 2])
def test_streamed_sums_equal_the_mean_matrix(rows_per_block: int, skipped: int) -> None:
    """The bare ratio of the mean over prompts, and the corrected one as a mean over pairs of different prompts."""
    scores = torch.randn(4, 2, T, T, generator=torch.Generator().manual_seed(0)).double().float().double() + BY_KEY
    scores = scores.float().double()
    visible = CAUSAL & (torch.arange(T) >= skipped)
    keep = {"rows_per_block": rows_per_block, "skipped": skipped}
    torch.testing.assert_close(ratio(scores, corrected=False, **keep), residual_of(scores.mean(0), visible))
    diagonals = sums(scores, **keep).diagonals[0]
    residual, total = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for p in range(4):
        for q in range(4):
            if p != q:
                product = (without_diagonals(scores[p], visible) * without_diagonals(scores[q], visible)).sum((-2, -1))
                residual += product / 12
                a, b = centred(scores[p], visible), centred(scores[q], visible)
                total += (a * b).sum((-2, -1)) / 12
    torch.testing.assert_close(diagonals.residual(corrected=True), residual)
    found = diagonals.total(corrected=True)
    torch.testing.assert_close(found[~found.isnan()], total[~found.isnan()])
    spread = centred(scores, visible, over=(0, -2, -1)).square().sum((0, -2, -1)) / 4
    torch.testing.assert_close(diagonals.spread(), spread)


def centred(scores: Tensor, visible: Tensor, over: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The scores less their mean over visible entries, 0 elsewhere."""
    held = scores * visible
    number = visible.sum() * (len(scores) if 0 in over else 1)
    return (scores - held.sum(over, keepdim=True) / number) * visible


def without_diagonals(scores: Tensor, visible: Tensor) -> Tensor:
    """The scores less their diagonal's mean over visible entries, 0 elsewhere."""
    made = torch.zeros_like(scores)
    for d in range(T):
        here = visible & (DISTANCE == d)
        if here.any():
            mean = (scores * here).sum((-2, -1), keepdim=True) / here.sum()
            made += (scores - mean) * here
    return made


def test_noise_is_residual_unless_corrected() -> None:
    """A relative part of variance 1 under noise of variance 25: the bare ratio of 16 prompts reads mostly noise."""
    draw = torch.Generator().manual_seed(3)
    relative = (DISTANCE * 0.9).cos() * 2**0.5
    noise = 5 * torch.randn(16, 8, T, T, generator=draw)
    bare = ratio(relative + noise, corrected=False)
    assert (bare > 0.4).all()
    mean = ratio(relative + noise, corrected=True)
    assert mean[~mean.isnan()].mean().abs() < 0.2
    by_key = ratio(2 * BY_KEY + noise, corrected=True)
    wanted = residual_of(BY_KEY, CAUSAL).item()
    assert by_key[~by_key.isnan()].mean().item() == pytest.approx(wanted, abs=0.15) and wanted > 0.7


def test_what_is_noise_alone_has_no_ratio() -> None:
    """Of 200 heads without any position, at most a few have a variance beyond two standard errors."""
    noise = torch.randn(12, 200, T, T, generator=torch.Generator().manual_seed(1))
    found = sums(noise).diagonals[0].total(corrected=True)
    assert found.isnan().float().mean() > 0.95
    assert (ratio(noise, corrected=False) > 0.5).all(), "the bare protocol gives each of them a ratio"


@pytest.fixture(scope="module")
def handmade() -> interp.Model:
    return interp.load("handmade")


def test_known_heads(handmade: interp.Model) -> None:
    """L0.H0 asks for the place before: all position, all of it distance; L1.H1 has no scores.

    L0.H1 scores 30 at its own place and 60 at copies, which a place before has with chance c = 1 / vocabulary: its
    share is the variance of 30 and 60 c over the entries, beside 3600 c (1 - c) of tokens.
    """
    batch = interp.encode(handmade, torch.tensor([[0, 3, 4]]))
    found = interp.score(handmade, batch, ["positional_share", "toeplitz_residual", "score_profile"])
    share, residual = found["positional_share"].values, found["toeplitz_residual"].values
    assert share[0, 0] == pytest.approx(1) and residual[0, 0] == pytest.approx(0, abs=1e-6)
    own, chance = 32 / 528, 1 / len(ordinary_tokens(handmade))
    between = own * (1 - own) * (30 - 60 * chance) ** 2
    wanted = between / (between + (1 - own) * 3600 * chance * (1 - chance))
    assert residual[0, 1] < 0.02 and share[0, 1] == pytest.approx(wanted, rel=0.1)
    assert np.isnan(residual[1, 1]) and np.isnan(share[1, 1])
    profile = found["score_profile"].values[0, 0]
    assert profile.argmax() == 1 and np.allclose(profile[[0, 2, 3]], profile[0])
    assert profile[1] - profile[0] == pytest.approx(60, abs=1e-3)
    assert found["toeplitz_residual"].sample_axis is None
    assert found["score_profile"].metadata["length"] == 32, "the context of this model"


def rope(bias: float) -> interp.Model:
    """One Qwen2 layer: RoPE, and biases of q and k that give every token a common part."""
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = hf.Qwen2Config(vocab_size=80, num_key_value_heads=2, **sizes)
    torch.manual_seed(0)
    model = hf.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for projection in (model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj):
            projection.bias.normal_(0, bias)
    return interp.load(model)


def test_the_first_layer_with_rope_is_relative() -> None:
    """Its tokens have no place but by rotation: 0 in expectation, while the bare mean keeps its noise."""
    model = rope(1.0)
    batch = interp.encode(model, torch.tensor([[5, 6, 7]]))
    wanted = {
        "toeplitz_residual": {},
        "bare": {"score": "toeplitz_residual", "corrected": False},
        "positional_share": {},
    }
    found = interp.score(model, batch, wanted)
    assert (found["positional_share"].values > 0.5).all()
    assert (found["toeplitz_residual"].values < 1e-3).all()
    assert (found["toeplitz_residual"].values <= found["bare"].values).all() and (found["bare"].values < 0.1).all()


def test_learned_places_are_not_relative() -> None:
    tiny = TINY["gpt2"]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    assert np.nanmin(interp.score(model, batch, "toeplitz_residual")["toeplitz_residual"].values[0]) > 0.8


def test_another_road_on_a_real_model() -> None:
    """Mean scores of whole matrices read from the model: the bare ratio and the profile."""
    model = interp.load(TINY["llama"]().hf)
    ask = Ask("planted", model, interp.encode(model, torch.tensor([[5, 6]])), model.stack(), seed=4)
    drawn = random_prompts(ask, 6, 10)
    at = At(Site.SCORES, layer=1)
    scores = interp.run(model, drawn, read=[at])[at].double().mean(0)  # [head, query, key]
    visible = torch.ones(10, 10, dtype=torch.bool).tril()
    keep = {"prompts": 6, "length": 10}
    wanted = residual_of(scores, visible)
    torch.testing.assert_close(
        toeplitz_residual(ask, **keep, corrected=False).by_layer[1][0], wanted, atol=1e-5, rtol=1e-5
    )
    assert positional_share(ask, **keep, corrected=False).by_layer[1].shape == (1, 4)
    profile = score_profile(ask, **keep, upto=3).by_layer[1][0]
    entries = scores.masked_fill(~visible, 0)
    for d in range(4):
        mean = entries.diagonal(-d, -2, -1).mean(-1) - entries.sum((-2, -1)) / visible.sum()
        torch.testing.assert_close(profile[:, d], mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [None, 1, 700])
def test_block_size_and_given_prompts_change_nothing(handmade: interp.Model, block: int | None) -> None:
    batch = interp.encode(handmade, torch.tensor([[0, 3, 4], [0, 5, 4]]))
    wanted = interp.score(handmade, batch.select([0]), "toeplitz_residual")["toeplitz_residual"].values
    found = interp.score(handmade, batch, "toeplitz_residual", block=block, batch_size=1)["toeplitz_residual"]
    np.testing.assert_allclose(found.values, wanted, atol=1e-9)


def test_drawn_prompts_are_ordinary_tokens(handmade: interp.Model) -> None:
    ask = Ask("planted", handmade, interp.encode(handmade, torch.tensor([[0, 3]])), handmade.stack(), seed=1)
    ids = random_prompts(ask, 40, 20).ids
    assert ids is not None and set(ids.unique().tolist()) == set(ordinary_tokens(handmade))
    assert torch.equal(ids, random_prompts(ask, 40, 20).ids)
    llava = interp.load(TINY["llava"]().hf)
    assert not {0, 1, 2, 98} & set(ordinary_tokens(llava)), "padding, BOS, EOS and the place of an image are left out"


def test_without_the_first_columns(handmade: interp.Model) -> None:
    """``exclude_sinks`` as a number of first tokens means the columns of the drawn prompts; other columns do not."""
    batch = interp.encode(handmade, torch.tensor([[0, 3, 4, 5]]))
    found = interp.score(handmade, batch, {"score_profile": {"length": 8, "upto": 7}}, exclude_sinks=2)["score_profile"]
    assert np.isnan(found.values[..., 6:]).all() and np.isfinite(found.values[..., :6]).all()
    columns = torch.tensor([[False, True, False, False]])
    with pytest.raises(BadInput, match="'first' or a number of first tokens"):
        interp.score(handmade, batch, "toeplitz_residual", exclude_sinks=columns)
    with pytest.raises(BadInput, match="fewer than 3 of 4 tokens"):
        interp.score(handmade, batch, {"toeplitz_residual": {"length": 4}}, exclude_sinks=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 1}, "prompts=1; expected a whole number of at least 2"),
        ({"length": 2}, "length=2; expected a whole number of at least 3"),
        ({"length": 64}, "length=64, and the context of 'handmade' holds 32"),
    ],
)
def test_refusals(handmade: interp.Model, options: dict[str, int], message: str) -> None:
    batch = interp.encode(handmade, torch.tensor([[0, 3]]))
    with pytest.raises(BadInput, match=message):
        interp.score(handmade, batch, {"toeplitz_residual": options})


@pytest.mark.parametrize(("family", "stack"), [("clip", "text"), ("whisper", "decoder"), ("bart", "cross")])
def test_stacks_that_read_no_random_tokens(family: str, stack: str) -> None:
    tiny = TINY[family]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    with pytest.raises(Unsupported, match="draws random tokens"):
        interp.score(model, batch, "positional_share", stack=stack)


def test_both_stacks_of_an_encoder_decoder() -> None:
    """T5 adds a bias by distance, the same for all prompts: where scores depend on places, they do so by distance."""
    tiny = TINY["t5"]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    for stack in ("encoder", "decoder"):
        found = interp.score(model, batch, ["positional_share", "toeplitz_residual"], stack=stack)
        assert found["positional_share"].stacks == (stack,) and (found["positional_share"].values >= 0).all()
        known = found["toeplitz_residual"].values[0][np.isfinite(found["toeplitz_residual"].values[0])]
        assert (known < 0.5).all()
