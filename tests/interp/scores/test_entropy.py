"""Entropy of rows and its lower bound: closed forms, classes of rows, and real maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal

import interp
from interp.errors import BadInput
from interp.scores.shape.entropy import entropy, normalised_entropy, row_entropy
from interp.scores.shape.entropy_bound import (
    centred_norm,
    entropy_bound,
    entropy_bound_of,
    weight_logit_norm,
)

SPLITS = (1, 3, 7, 64)


def random_map(length: int, heads: int = 2, seed: int = 0, size: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and their causal softmax."""
    scores = size * torch.randn(heads, length, length, generator=torch.Generator().manual_seed(seed))
    blocked = ~torch.ones(length, length).tril().bool()
    return scores, scores.masked_fill(blocked, -torch.inf).softmax(-1)


def test_uniform_rows_of_twenty_tokens() -> None:
    """ln(20!) / 20 = 2.117; every normalised row is 1."""
    found = reduced(entropy(ask_for(20)), uniform_causal(20))
    assert found.item() == pytest.approx(math.lgamma(21) / 20, abs=1e-6)
    assert found.item() == pytest.approx(2.117, abs=5e-4)
    assert reduced(normalised_entropy(ask_for(20)), uniform_causal(20)).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("planted", [all_on_first, previous_map, torch.eye])
def test_one_key_per_row_is_0(planted: Callable[[int], torch.Tensor]) -> None:
    assert reduced(entropy(ask_for(9)), planted(9)).item() == 0
    assert reduced(normalised_entropy(ask_for(9)), planted(9)).item() == 0


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("make", [entropy, normalised_entropy])
def test_the_reducer_is_the_mean_of_the_rows(make: Any, split: int) -> None:
    _, pattern = random_map(13)
    rows = row_entropy(pattern)
    n = torch.arange(1, 14).float()
    expected = rows.mean(-1) if make is entropy else (rows[:, 1:] / n[1:].log()).mean(-1)
    found = reduced(make(ask_for(13)), pattern, rows_per_block=split)[0]
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left", [True, False])
def test_padding_does_not_count(left: bool) -> None:
    _, pattern = random_map(6)
    mask = torch.ones(1, 9, dtype=torch.bool)
    start = 3 if left else 0
    mask[0, :3] = not left
    mask[0, 6:] = left
    wide = torch.zeros(2, 9, 9)
    wide[:, start : start + 6, start : start + 6] = pattern
    for make in (entropy, normalised_entropy):
        padded = reduced(make(ask_for(9, mask=mask)), wide)
        torch.testing.assert_close(padded, reduced(make(ask_for(6)), pattern))


def test_left_out_columns_and_rows_without_mass() -> None:
    """Without key 0 the rest is rescaled; row 0 has nothing left and is no row."""
    _, pattern = random_map(7)
    dropped = torch.zeros(1, 7, dtype=torch.bool)
    dropped[0, 0] = True
    rest = pattern[:, 1:, 1:]
    expected = row_entropy(rest / rest.sum(-1, keepdim=True)).mean(-1)
    found = reduced(entropy(ask_for(7, dropped=dropped)), pattern)[0]
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)
    assert reduced(entropy(ask_for(7, dropped=dropped)), all_on_first(7)).isnan().all()


def test_a_share_that_no_key_has_is_left_out() -> None:
    """A model's sink logit takes mass from every key alike: the distribution over keys is the same."""
    _, pattern = random_map(7)
    torch.testing.assert_close(row_entropy(pattern * 0.3), row_entropy(pattern), rtol=1e-5, atol=1e-6)
    assert row_entropy(torch.zeros(1, 4)).isnan().all()


def test_classes_of_queries() -> None:
    """Uniform rows: the entropy of row i is log(i + 1)."""
    ask = ask_for(8)
    found = reduced(
        entropy(ask, queries={"first": slice(0, 1), "late": slice(-2, None), "all": None}), uniform_causal(8)
    )
    assert found.shape == (1, 1, 3)
    np.testing.assert_allclose(found.flatten(), [0, (math.log(7) + math.log(8)) / 2, math.lgamma(9) / 8], atol=1e-6)
    one = reduced(entropy(ask, queries=slice(-1, None)), uniform_causal(8))
    assert one.shape == (1, 1) and one.item() == pytest.approx(math.log(8), abs=1e-6)


@pytest.mark.parametrize(("queries", "words"), [({}, "names no class of rows"), ({"x": "nowhere"}, "nowhere")])
def test_impossible_classes_are_refused(queries: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        entropy(ask_for(8), queries=queries)


def test_copies_of_a_piece_add_the_logarithm_of_their_number() -> None:
    """Mass uniform over copies of identical keys: the entropy over P copies is that over one plus log P."""
    row = torch.tensor([0.5, 0.3, 0.2])
    torch.testing.assert_close(row_entropy(row.repeat(6) / 6), row_entropy(row) + math.log(6))


def attained(norm: float, n: int) -> torch.Tensor:
    """The logits of the given norm whose softmax has the least entropy."""
    logits = torch.full((n,), -norm / math.sqrt(n * (n - 1)), dtype=torch.float64)
    logits[0] = norm * math.sqrt((n - 1) / n)
    return logits


@pytest.mark.parametrize("n", [2, 5, 100])
@pytest.mark.parametrize("norm", [0.0, 0.5, 3.0, 12.0])
def test_the_bound_is_attained(n: int, norm: float) -> None:
    logits = attained(norm, n)
    assert float(logits.norm()) == pytest.approx(norm)
    bound = entropy_bound_of(torch.tensor(norm, dtype=torch.float64), torch.tensor(n))
    assert float(row_entropy(logits.softmax(-1))) == pytest.approx(float(bound), abs=1e-12)


def test_the_bound_is_never_exceeded() -> None:
    draw = torch.Generator().manual_seed(0)
    for n in (2, 3, 17):
        logits = torch.randn(500, n, generator=draw, dtype=torch.float64) * 10 ** torch.rand(500, 1, generator=draw)
        seen = torch.ones(500, n, dtype=torch.bool)
        found = row_entropy(logits.softmax(-1))
        tight = entropy_bound_of(centred_norm(logits, seen), seen.sum(-1))
        loose = entropy_bound_of(logits.norm(dim=-1), seen.sum(-1))
        assert (tight <= found + 1e-12).all() and (loose <= tight + 1e-12).all()


def test_the_bound_is_log_n_without_logits_and_0_for_one_key() -> None:
    found = entropy_bound_of(torch.tensor([0.0, 1e-6, 5.0, 1e9]), torch.tensor([7, 7, 1, 7]))
    torch.testing.assert_close(found, torch.tensor([math.log(7), math.log(7), 0.0, 0.0]), atol=1e-5, rtol=0)


def test_the_ladder_of_norms() -> None:
    """A row's own norm <= scale ||Q|| ||K|| <= scale ||W_Q W_K^T|| ||X X^T||."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(9, 16, generator=draw)
    w_query, w_key = (torch.randn(16, 4, generator=draw) for _ in range(2))
    q, k, scale = x @ w_query, x @ w_key, 0.5
    whole = weight_logit_norm(w_query, w_key, x, scale)
    direct = scale * torch.linalg.matrix_norm(w_query @ w_key.T, ord=2) * torch.linalg.matrix_norm(x @ x.T, ord=2)
    torch.testing.assert_close(whole, direct)
    middle = scale * torch.linalg.matrix_norm(scale * q @ k.T / scale, ord=2)
    rows = (scale * q @ k.T).norm(dim=-1)
    assert (rows <= middle + 1e-4).all() and middle <= whole


@pytest.mark.parametrize("split", SPLITS)
def test_the_reducer_of_the_bound(split: int) -> None:
    scores, pattern = random_map(11)
    seen = torch.ones(11, 11).tril().bool().expand(2, -1, -1)
    expected = entropy_bound_of(centred_norm(scores, seen), seen.sum(-1)).mean(-1)
    found = reduced(entropy_bound(ask_for(11)), pattern, scores=scores[None], rows_per_block=split)[0]
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)


def test_another_version_is_refused() -> None:
    with pytest.raises(BadInput, match="rows"):
        entropy_bound(ask_for(4), version="row")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss", "t5"])
def test_the_bounds_lie_below_the_entropy_of_real_maps(case_of: Callable[[str], Case], name: str) -> None:
    """Also with soft-caps (gemma2), sink logits (gpt_oss) and position biases (t5)."""
    case = case_of(name)
    asked: dict[str, dict[str, Any]] = {
        "entropy": {},
        "rows": {"score": "entropy_bound"},
        "matrix": {"score": "entropy_bound", "version": "matrix"},
        "classes": {"score": "entropy_bound", "version": "matrix", "queries": {"late": slice(-2, None), "all": None}},
    }
    batch = case.batch(2, 9)
    for block in (None, 1):
        found = interp.score(case.model, batch, asked, block=block)
        samples = {label: scores.samples for label, scores in found.items()}
        assert (samples["rows"] <= samples["entropy"] + 1e-5).all()
        assert (samples["matrix"] <= samples["rows"] + 1e-5).all() and (samples["matrix"] >= 0).all()
        np.testing.assert_allclose(samples["classes"][..., 1], samples["matrix"], rtol=1e-5, atol=1e-7)


def test_the_matrix_bound_uses_the_scale_of_the_model(case_of: Callable[[str], Case]) -> None:
    """Where logits are scale q.k it is the bound by scale ||Q||_2 ||K||_2, per query head under grouped keys."""
    case = case_of("llama")
    batch = case.batch(1, 7)
    found = interp.score(case.model, batch, {"entropy_bound": {"version": "matrix"}})["entropy_bound"]
    run = interp.run(case.model, batch, read=[interp.Site.Q, interp.Site.K])
    for layer in range(2):
        q, k = (run[interp.At(site, layer=layer)][0] for site in (interp.Site.Q, interp.Site.K))
        for head in range(4):
            own, key = q[:, head], k[:, head // 2]
            norm = torch.linalg.matrix_norm(own, ord=2) * torch.linalg.matrix_norm(key, ord=2) / math.sqrt(12)
            n = torch.arange(1, 8)
            expected = entropy_bound_of(norm.expand(7), n).mean()
            assert found.values[layer, head] == pytest.approx(float(expected), rel=1e-4, abs=1e-7)
