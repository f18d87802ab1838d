"""Sinks at the card's corners, where queries see keys for a part of the prompt only, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal

import interp
from interp.address import At, Site
from interp.errors import BadInput, Unsupported
from interp.scores.sinks.sink_anatomy import sink_anatomy
from interp.scores.sinks.sinks import received, sink, sink_head, sink_profile, sink_rate

HARMONIC = sum(1 / i for i in range(1, 21))


def test_corners_at_twenty_tokens() -> None:
    """Uniform H_20 / 20 = 0.18; all on the first 1; previous token 2/20 = 0.1; identity 1/20, its own row alone."""
    assert reduced(sink(ask_for(20)), uniform_causal(20)).item() == pytest.approx(HARMONIC / 20, rel=1e-6)
    assert HARMONIC / 20 == pytest.approx(0.18, abs=1e-3)
    assert reduced(sink(ask_for(20)), all_on_first(20)).item() == 1
    assert reduced(sink(ask_for(20)), previous_map(20)).item() == pytest.approx(0.1)
    assert reduced(sink(ask_for(20)), torch.eye(20)).item() == pytest.approx(1 / 20)
    assert reduced(sink(ask_for(20), own_row=False), torch.eye(20)).item() == 0
    assert reduced(sink(ask_for(20), own_row=False), uniform_causal(20)).item() == pytest.approx((HARMONIC - 1) / 19)


@pytest.mark.parametrize("split", [1, 3, 50])
def test_the_profile_is_the_mean_over_the_queries_that_see_a_key(split: int) -> None:
    """``1 / (T - k + 1) sum_{i >= k} A[i, k]``, keys counted from 1."""
    draw = torch.Generator().manual_seed(0)
    pattern = torch.randn(2, 9, 9, generator=draw).masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf).softmax(-1)
    found = reduced(sink_profile(ask_for(9), first=6), pattern, rows_per_block=split)[0]
    expected = torch.stack([pattern[:, k:, k].sum(-1) / (9 - k) for k in range(6)], dim=-1)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-7)
    whole = received(pattern, torch.ones(9, 9).tril().bool())
    torch.testing.assert_close(whole[:, :6], expected)


@pytest.mark.parametrize("left", [True, False])
def test_padding_moves_the_first_token(left: bool) -> None:
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[0, slice(0, 3) if left else slice(4, 7)] = False
    start = 3 if left else 0
    wide = torch.zeros(1, 7, 7)
    wide[0, start : start + 4, start : start + 4] = uniform_causal(4)
    ask = ask_for(7, mask=mask)
    assert reduced(sink(ask), wide)[0].tolist() == pytest.approx([(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])
    profile = reduced(sink_profile(ask, first=6), wide)[0, 0]
    assert profile[:4].tolist() == pytest.approx([25 / 48, 13 / 36, 7 / 24, 1 / 4])
    assert profile[4:].isnan().all(), "the prompt has four tokens"


def test_a_window_hides_the_first_token() -> None:
    """Only the queries that see it count: with a window of 2 those are rows 0 and 1."""
    window = torch.ones(5, 5).tril().bool() & torch.ones(5, 5).triu(-1).bool()
    pattern = window / window.sum(-1, keepdim=True)
    assert reduced(sink(ask_for(5)), pattern[None], visible=window).item() == pytest.approx((1 + 0.5) / 2)


def test_a_left_out_column_has_no_score() -> None:
    dropped = torch.zeros(1, 6, dtype=torch.bool)
    dropped[0, 0] = True
    assert reduced(sink(ask_for(6, dropped=dropped)), uniform_causal(6)).isnan().all()
    profile = reduced(sink_profile(ask_for(6, dropped=dropped), first=2), uniform_causal(6))[0, 0]
    assert profile[0].isnan() and profile[1].item() == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)


def test_sink_heads_and_their_rate() -> None:
    """At 20 tokens uniform rows give 0.18: a threshold must lie above it."""
    maps = torch.stack([all_on_first(20), uniform_causal(20)])
    assert reduced(sink_head(ask_for(20)), maps)[0].tolist() == [1, 0]
    assert reduced(sink_head(ask_for(20), eps=0.1), maps)[0].tolist() == [1, 1]
    alpha = reduced(sink_profile(ask_for(20), first=2), maps)
    scores = interp.HeadScores.from_array(
        alpha[:, None].numpy(), name="sink_profile", sample_axis="prompt", positions=["0", "1"]
    )
    np.testing.assert_allclose(sink_rate(scores), [0.5, 0])
    np.testing.assert_allclose(sink_rate(scores, eps=0.1), [1, 0.5])
    first = interp.HeadScores.from_array(alpha[:, None, :, 0].numpy(), name="sink", sample_axis="prompt")
    assert sink_rate(first) == 0.5


@pytest.mark.parametrize("eps", [-0.1, 1, True, "0.3"])
def test_thresholds_that_are_none_are_refused(eps: Any) -> None:
    with pytest.raises(BadInput, match="from 0 on and below 1"):
        sink_head(ask_for(5), eps=eps)


@pytest.mark.parametrize("first", [0, 1.5, True])
def test_a_number_of_tokens_that_is_none_is_refused(first: Any) -> None:
    with pytest.raises(BadInput, match="from 1 on"):
        sink_profile(ask_for(5), first=first)


def test_the_sink_of_cross_attention_is_the_encoders_first_token(case_of: Callable[[str], Case]) -> None:
    case = case_of("bart")
    found = interp.score(case.model, case.batch(2, 6), "sink", stack="cross")["sink"]
    run = interp.run(case.model, case.batch(2, 6), read=[At(Site.PATTERN, stack="cross")])
    expected = run[At(Site.PATTERN, stack="cross")][..., 0].mean(-1).mean(1)  # [layer, batch, head, query]
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    with pytest.raises(BadInput, match="no keys"):
        interp.score(case.model, case.batch(), {"sink": {"own_row": False}}, stack="cross")


def test_anatomy_of_a_planted_sink() -> None:
    """Residual 10 times, key and value a tenth of the others'; queries along the first key, across the others."""
    residual = torch.ones(1, 5, 4)
    residual[:, 0] *= 10
    k = torch.zeros(1, 5, 2, 3)
    k[:, 0, :, 0], k[:, 1:, :, 1] = 0.1, 1.0
    q = torch.zeros(1, 5, 2, 3)
    q[..., 0] = 2.0
    v = torch.ones(1, 5, 2, 3)
    v[:, 0] *= 0.1
    seen = {Site.RESID_PRE: residual, Site.Q: q, Site.K: k, Site.V: v}
    found = reduced(sink_anatomy(ask_for(5)), torch.eye(5).expand(2, -1, -1), seen=seen)[0]
    torch.testing.assert_close(found, torch.tensor([[10, 0.1, 0.1, 1, 0]] * 2), check_dtype=False)


def test_anatomy_on_real_heads(case_of: Callable[[str], Case]) -> None:
    """Per query head under grouped keys, by hand."""
    case = case_of("llama")
    batch = case.batch(1, 6)
    found = interp.score(case.model, batch, "sink_anatomy")["sink_anatomy"].values
    sites = [At(site, layer=1) for site in (Site.RESID_PRE, Site.Q, Site.K, Site.V)]
    x, q, k, v = (interp.run(case.model, batch, read=sites)[at][0] for at in sites)
    for head in range(4):
        key, value = k[:, head // 2], v[:, head // 2]
        expected = [float(y.norm(dim=-1)[0] / y.norm(dim=-1)[1:].mean()) for y in (x, key, value)]
        cosines = torch.nn.functional.cosine_similarity(q[1:, None, head], key[None], dim=-1)
        expected += [float(cosines[:, 0].mean()), float(cosines[:, 1:].mean())]
        assert found[1, head].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    with pytest.raises(Unsupported, match="attention interface"):
        interp.score(case_of("bloom").model, case_of("bloom").batch(), "sink_anatomy")


def test_towers_of_images(case_of: Callable[[str], Case]) -> None:
    """The first key is CLS, on every image; a tower that packs its images has no first token of each."""
    case = case_of("vit")
    found = interp.score(case.model, case.batch(3), ["sink", "sink_anatomy"])
    pattern = interp.run(case.model, case.batch(3), read=[At(Site.PATTERN)])[At(Site.PATTERN)]
    np.testing.assert_allclose(found["sink"].samples, pattern[..., 0].mean(-1).transpose(0, 1), rtol=1e-5)
    alone = interp.score(case.model, case.batch(3).select([2]), "sink_anatomy")["sink_anatomy"]
    np.testing.assert_allclose(found["sink_anatomy"].samples[2], alone.samples[0], rtol=1e-4)
    packed = case_of("qwen2_vl")
    for name in ("sink", "sink_profile", "sink_anatomy", "secondary_sink_mass"):
        with pytest.raises(BadInput, match="first token of each image"):
            interp.score(packed.model, packed.batch(2), name, stack="vision")
