"""Massive dimensions: planted constants before and after rotary embeddings, counts per head, edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import ask_for, reduced
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, Unsupported
from interp.scores.sinks.massive import (
    dimension_norms,
    massive_dimensions,
    massive_k,
    massive_q,
    massive_v,
    pair_norms,
    ratios,
)

LENGTH, WIDTH = 256, 32


def rotated(x: Tensor, pairs: str) -> Tensor:
    """``x [batch, pos, head, d]`` after a rotary embedding of base 10000."""
    half = x.shape[-1] // 2
    speed = 10000.0 ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[1])[:, None] * speed
    first, second = (x[..., :half], x[..., half:]) if pairs == "half" else (x[..., 0::2], x[..., 1::2])
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    turned = first * cosine - second * sine, first * sine + second * cosine
    return torch.cat(turned, -1) if pairs == "half" else torch.stack(turned, -1).flatten(-2)


def planted(dimension: int, size: float = 20.0) -> Tensor:
    x = torch.randn(1, LENGTH, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    x[..., dimension] += size
    return x


@pytest.mark.parametrize(("pairs", "slow", "fast"), [("half", 15, 0), ("interleaved", 30, 0)])
def test_a_planted_constant_before_and_after_the_rotation(pairs: Any, slow: int, fast: int) -> None:
    """On a slow dimension it is found on both sides; a fast one is split between its pair, whose norm still has it."""
    for dimension, kept in ((slow, True), (fast, False)):
        x = planted(dimension)
        before = ratios(dimension_norms(x))[0, 0]
        after = ratios(dimension_norms(rotated(x, pairs)))[0, 0]
        assert before.argmax() == dimension and before[dimension] > 5
        partner = (dimension + WIDTH // 2) % WIDTH if pairs == "half" else dimension ^ 1
        if kept:
            assert after[dimension] > 5 and after[partner] < 5
        else:
            assert after[dimension] < 0.8 * before[dimension] and after[partner] > 3, "split"
        of_pairs = pair_norms(dimension_norms(rotated(x, pairs)), pairs)
        torch.testing.assert_close(of_pairs, pair_norms(dimension_norms(x), pairs), rtol=1e-4, atol=1e-4)
        found = ratios(of_pairs)[0, 0]
        assert found[dimension] == found[partner] == found.max()


def test_no_ratio_exceeds_the_number_of_dimensions() -> None:
    one = torch.zeros(1, 5, 1, WIDTH)
    one[..., 3] = 1
    assert ratios(dimension_norms(one)).max().item() == pytest.approx(WIDTH)
    seen = {Site.Q: one.expand(-1, -1, 2, -1)}
    assert reduced(massive_q(ask_for(5), factor=WIDTH - 1), torch.eye(5), seen=seen)[0].tolist() == [1, 1]
    assert reduced(massive_q(ask_for(5), factor=WIDTH + 1), torch.eye(5), seen=seen)[0].tolist() == [0, 0]
    assert ratios(torch.zeros(4)).tolist() == [0, 0, 0, 0]


def test_padding_is_no_token() -> None:
    x = torch.randn(1, 6, 2, 4)
    mask = torch.tensor([[False, False, True, True, True, True]])
    torch.testing.assert_close(dimension_norms(x, mask), dimension_norms(x[:, 2:]))
    huge = x.clone()
    huge[:, 0] = 1e6
    ask = ask_for(6, mask=mask)
    found = reduced(massive_k(ask, 1.5), torch.eye(6), seen={Site.K: huge})
    torch.testing.assert_close(found, reduced(massive_k(ask_for(4), 1.5), torch.eye(4), seen={Site.K: x[:, 2:]}))


def test_pairs_of_some_dimensions() -> None:
    norms = torch.tensor([3.0, 4.0, 7.0, 8.0])
    assert pair_norms(norms, "half", rotary=2).tolist() == [5, 5, 7, 8]
    assert pair_norms(norms, "interleaved", rotary=2).tolist() == [5, 5, 7, 8]
    for rotary in (3, 6, 0):
        with pytest.raises(BadInput, match="even number"):
            pair_norms(norms, "half", rotary=rotary)
    with pytest.raises(BadInput, match="half"):
        pair_norms(norms, "halves")  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0, -1, True, "5"])
def test_a_factor_that_is_none_is_refused(factor: Any) -> None:
    with pytest.raises(BadInput, match="above 0"):
        massive_v(ask_for(4), factor)


def test_counts_are_per_query_head_and_per_key_head(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = case.batch(2, 7)
    asked = {name: {"factor": 1.2} for name in ("massive_q", "massive_k", "massive_v")}
    found = interp.score(case.model, batch, asked)
    assert [scores.values.shape for scores in found.values()] == [(2, 4), (2, 2), (2, 2)]
    assert [scores.unit for scores in found.values()] == ["query", "kv", "kv"]
    for name, site in (("massive_q", Site.Q), ("massive_k", Site.K), ("massive_v", Site.V)):
        x = interp.run(case.model, batch, read=[At(site)])[At(site)]
        norms = x.square().sum(2).sqrt()  # [layer, batch, head, d_head]
        counts = (norms > 1.2 * norms.mean(-1, keepdim=True)).sum(-1).transpose(0, 1)
        np.testing.assert_array_equal(found[name].samples, counts)
    assert sum(float(scores.values.sum()) for scores in found.values()) > 10


def test_the_result_and_its_edits(case_of: Callable[[str], Case]) -> None:
    """Disrupting replaces the top dimension by its mean over tokens, and no other."""
    case = case_of("llama")
    batch = case.batch(2, 7)
    found = massive_dimensions(case.model, batch, 1.2)
    assert found.count("Q") == sum(found.mask("Q", layer).sum() for layer in (0, 1))
    table = found.table()
    assert len(table) == sum(found.count(site) for site in "QKV") and (table["ratio"].diff().dropna() <= 0).all()
    assert "Q" in repr(found)
    plain = interp.run(case.model, batch, read=[At(Site.K, layer=0)])[At(Site.K, layer=0)]
    for smallest in (False, True):
        edits = found.edits("K", smallest=smallest)
        changed = interp.run(case.model, batch, read=[At(Site.K, layer=0)], edits=edits)[At(Site.K, layer=0)]
        ratio = torch.as_tensor(found.ratio("K", 0))
        top = ratio.argmin(-1) if smallest else ratio.argmax(-1)
        expected = plain.clone()
        for head, dimension in enumerate(top.tolist()):
            expected[:, :, head, dimension] = plain[:, :, head, dimension].mean(1, keepdim=True)
        torch.testing.assert_close(changed, expected)
    with pytest.raises(BadInput, match="expected 'Q' or 'K'"):
        found.edits("V")
    with pytest.raises(BadInput, match="12 dimensions"):
        found.edits("Q", top=13)
    with pytest.raises(Unsupported, match="attention interface"):
        massive_dimensions(case_of("bloom").model, case_of("bloom").batch())


def test_padded_rows_are_no_part_of_the_mean(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    ids = case.batch(1, 7).ids
    assert ids is not None
    batch = interp.encode(case.model, [ids[0].tolist(), ids[0, :4].tolist()])
    edits = massive_dimensions(case.model, batch, 1.2).edits("Q")
    alone = massive_dimensions(case.model, batch.select([1]), 1.2)
    assert np.allclose(massive_dimensions(case.model, batch).norms["Q"][0][1], alone.norms["Q"][0][0], atol=1e-5)
    padded = interp.run(case.model, batch, edits=edits).logits
    short = interp.run(case.model, interp.encode(case.model, ids[:, :4]), edits=edits).logits
    assert padded is not None and short is not None
    torch.testing.assert_close(padded[1, :4], short[0], rtol=1e-3, atol=1e-4)
