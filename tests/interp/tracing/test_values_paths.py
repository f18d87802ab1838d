"""Sums over paths against listing every path, and the distance to equal rows against its closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conformance.support import Case, fingerprint
from torch import Tensor

import interp
from interp import At, Head, Site
from interp.errors import BadInput, UnknownName, Unsupported
from interp.model.path_logits import length_logits
from interp.tracing.values.rank_collapse import relative_residual

LENGTH = 6


def random_layers(layers: int, heads: int, tokens: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=draw, dtype=torch.float64)
    maps = torch.randn(layers, heads, tokens, tokens, generator=draw, dtype=torch.float64).softmax(-1)
    weights = torch.randn(layers, heads, width, width, generator=draw, dtype=torch.float64) / width**0.5
    return x, maps, weights


def plain_layers(x: Tensor, maps: Tensor, weights: Tensor, *, skip: bool) -> Tensor:
    for own, matrices in zip(maps, weights, strict=True):
        written = torch.stack([a @ x @ w for a, w in zip(own, matrices, strict=True)]).sum(0)
        x = x + written if skip else written
    return x


@pytest.mark.parametrize("skip", [True, False])
def test_paths_sum_to_the_layers(skip: bool) -> None:
    x, maps, weights = random_layers(4, 3, 5, 7)
    found = interp.path_sums(x, maps, weights, skip=skip)
    truth = plain_layers(x, maps, weights, skip=skip)
    torch.testing.assert_close(found.total, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.up_to(4), truth, rtol=1e-12, atol=1e-12)
    if not skip:
        assert found.counts == (0, 0, 0, 0, 81)
        assert not found.by_length[:4].any()


def test_each_length_is_the_sum_of_its_listed_paths() -> None:
    x, maps, weights = random_layers(3, 2, 4, 5, seed=1)
    found = interp.path_sums(x, maps, weights)
    every = list(itertools.product((None, 0, 1), repeat=3))
    assert len(every) == interp.path_count(3, 2) == 27
    for length in range(4):
        mine = [path for path in every if sum(head is not None for head in path) == length]
        assert len(mine) == interp.path_count(3, 2, length) == found.counts[length]
        truth = torch.stack([interp.path_output(x, maps, weights, path) for path in mine]).sum(0)
        torch.testing.assert_close(found.by_length[length], truth, rtol=1e-12, atol=1e-12)
    assert [interp.path_count(5, 4, length) for length in range(2)] == [1, 20]


def test_random_paths_estimate_their_length() -> None:
    x, maps, weights = random_layers(3, 2, 4, 5, seed=2)
    paths = list(interp.sampled_paths(3, 2, 2, 4000, seed=3))
    assert set(paths) == {
        path for path in itertools.product((None, 0, 1), repeat=3) if sum(head is not None for head in path) == 2
    }
    assert paths == list(interp.sampled_paths(3, 2, 2, 4000, seed=3))
    made = torch.stack([interp.path_output(x, maps, weights, path) for path in paths])
    truth = interp.path_sums(x, maps, weights).by_length[2]
    error = made.std(0) * 12 / len(paths) ** 0.5
    assert bool(((made.mean(0) * 12 - truth).abs() <= 5 * error).all())


def test_bad_paths() -> None:
    x, maps, weights = random_layers(2, 2, 3, 4)
    with pytest.raises(BadInput, match="one entry for each of 2 layers"):
        interp.path_output(x, maps, weights, [0, 2])
    with pytest.raises(BadInput, match="expected"):
        interp.path_sums(x, maps[:, :, :2], weights)
    with pytest.raises(BadInput, match="0 to 2 heads"):
        list(interp.sampled_paths(2, 2, 3, 1))
    with pytest.raises(BadInput, match="0 or more"):
        interp.path_sums(x, maps, weights).up_to(-1)


def difference(logits: Tensor, batch: interp.Batch) -> Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, batch.read_at, 7] - logits[rows, batch.read_at, 5]


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "cohere"])
def test_lengths_and_heads_of_a_model(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    before = fingerprint(case.hf)
    batch = case.batch(2, LENGTH)
    found = interp.path_lengths(case.model, batch, difference)
    np.testing.assert_allclose(found.base + found.values.sum(1), found.whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.up_to[:, -1], found.whole, rtol=0, atol=1e-5)
    logits = interp.run(case.model, batch).logits
    assert logits is not None
    np.testing.assert_allclose(found.whole, difference(logits, batch), rtol=0, atol=1e-5)
    heads = [[Head(layer, head) for head in range(case.model.stack().n_heads(layer))] for layer in range(2)]
    assert found.counts == (1, len(heads[0]) + len(heads[1]), len(heads[0]) * len(heads[1]))
    single = interp.path_effects(case.model, batch, [[head] for layer in heads for head in layer], difference)
    np.testing.assert_allclose(single.sum(1), found.values[:, 1], rtol=0, atol=1e-5)
    direct = interp.path_effects(case.model, batch, [[]], difference)
    np.testing.assert_allclose(direct[:, 0], found.values[:, 0], rtol=0, atol=1e-5)
    pairs = interp.path_effects(case.model, batch, [[a, b] for a in heads[0] for b in heads[1]], difference)
    np.testing.assert_allclose(pairs.sum(1), found.values[:, 2], rtol=0, atol=1e-5)
    table = found.table()
    assert list(table.columns) == ["length", "paths", "value", "low", "high", "up_to"]
    assert fingerprint(case.hf) == before


def test_sources_add_up(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)
    whole = interp.path_lengths(case.model, batch, difference)
    apart = [interp.path_lengths(case.model, batch, difference, sources=[one]) for one in ("embeddings", "mlps")]
    apart.append(interp.path_lengths(case.model, batch, difference, sources="constants"))
    np.testing.assert_allclose(sum(part.values for part in apart), whole.values, rtol=0, atol=1e-5)


def test_paths_by_hand_without_mlps(case_of: Callable[[str], Case]) -> None:
    """gpt2 with blank MLPs and biases is attention alone: the pure sums, the norms' scales held by hand."""
    from copy import deepcopy

    hf = deepcopy(case_of("gpt2").hf).double()
    with torch.no_grad():
        for block in hf.transformer.h:
            block.mlp.c_proj.weight.zero_()
            for bias in (block.mlp.c_proj.bias, block.attn.c_proj.bias, block.attn.c_attn.bias):
                bias.zero_()
            block.ln_1.bias.zero_()
        hf.transformer.ln_f.bias.zero_()
    model = interp.load(hf, check=False)
    batch = interp.encode(model, case_of("gpt2").tiny.inputs(1, LENGTH, 0)["input_ids"])
    sites = [At(site, layer=layer) for layer in range(2) for site in (Site.PATTERN, Site.RESID_PRE)]
    run = interp.run(model, batch, read=[*sites, At(Site.RESID_POST, layer=1)])
    x = run[At(Site.RESID_PRE, layer=0)][0]
    states = [x]  # the norm's scale differs by token: it is a diagonal map, folded into the maps' columns
    maps, weights = [], []
    width = x.shape[1]
    centre = torch.eye(width, dtype=torch.float64) - 1 / width
    for layer, block in enumerate(hf.transformer.h):
        pre = run[At(Site.RESID_PRE, layer=layer)][0]
        scale = (pre.var(-1, correction=0) + block.ln_1.eps).rsqrt()
        n_heads = model.stack().n_heads(layer)
        value = block.attn.c_attn.weight[:, 2 * width :].view(width, n_heads, -1)
        out = block.attn.c_proj.weight.view(n_heads, -1, width)
        read = centre @ torch.diag(block.ln_1.weight)
        weights.append(torch.einsum("xm,mhd,hdn->hxn", read, value, out).detach())
        maps.append(run[At(Site.PATTERN, layer=layer)][0].double() * scale)
        states.append(pre)
    sums = interp.path_sums(x, torch.stack(maps), torch.stack(weights))
    torch.testing.assert_close(sums.total, run[At(Site.RESID_POST, layer=1)][0], rtol=0, atol=1e-6)
    norm = hf.transformer.ln_f
    top = run[At(Site.RESID_POST, layer=1)][0, -1]
    scale = (top.var(correction=0) + norm.eps).rsqrt()
    logits = (sums.by_length[:, -1] @ centre) * norm.weight * scale @ hf.lm_head.weight.T
    found = length_logits(model, batch)
    torch.testing.assert_close(found.parts[:, 0, 0], logits.detach(), rtol=0, atol=1e-6)


def test_what_is_no_sum_over_paths_is_refused(case_of: Callable[[str], Case]) -> None:
    for name, words in (
        ("bert", "normalise after adding"),
        ("gemma2", "capped"),
        ("t5", "encoder"),
        ("bloom", "Site.PATTERN"),
        ("deepseek_v3", "miss the logits"),
    ):
        case = case_of(name)
        with pytest.raises(Unsupported, match=words):
            interp.path_lengths(case.model, case.batch(1, 4))
    case = case_of("gpt2")
    with pytest.raises(BadInput, match="ascending"):
        interp.path_effects(case.model, case.batch(1, 4), [[Head(1, 0), Head(0, 0)]])
    with pytest.raises(BadInput, match="source of paths"):
        interp.path_lengths(case.model, case.batch(1, 4), sources=["mlp"])


# ---- distance to equal rows ------------------------------------------------------------------------------------------


def test_closed_forms_of_the_residual() -> None:
    draw = torch.Generator().manual_seed(0)
    same = torch.randn(1, 6, generator=draw).expand(5, 6)
    for norm in ("frobenius", "1-inf"):
        assert float(relative_residual(same, norm=norm)) < 1e-7
        x = torch.randn(5, 6, generator=draw, dtype=torch.float64)
        assert 0 < float(relative_residual(x, norm=norm)) <= 2
        scaled = float(relative_residual(-3 * x, norm=norm))
        assert scaled == pytest.approx(float(relative_residual(x, norm=norm)), abs=1e-12)
    assert float(relative_residual(x - x.mean(0))) == pytest.approx(1, abs=1e-12)
    assert float(relative_residual(torch.zeros(2, 3))) == 0
    # the mean row is the best one: no other is nearer
    best = float(relative_residual(x) * x.norm())
    for _ in range(20):
        other = x.mean(0) + 0.1 * torch.randn(6, generator=draw, dtype=torch.float64)
        assert float((x - other).norm()) > best
    # Pythagoras: what is left and what is taken off
    assert best**2 + 5 * float(x.mean(0).square().sum()) == pytest.approx(float(x.square().sum()), abs=1e-10)
    mask = torch.tensor([True, True, False, True, False])
    assert float(relative_residual(x, mask)) == pytest.approx(float(relative_residual(x[mask])), abs=1e-12)
    by_hand = x - x.mean(0)
    size = math.sqrt(float(by_hand.abs().sum(0).max()) * float(by_hand.abs().sum(1).max()))
    whole = math.sqrt(float(x.abs().sum(0).max()) * float(x.abs().sum(1).max()))
    assert float(relative_residual(x, norm="1-inf")) == pytest.approx(size / whole, abs=1e-12)
    long = torch.cat([x, 1e4 * x[:1]])
    rows = float(relative_residual(long, normalise_rows=True))
    assert rows == pytest.approx(float(relative_residual(torch.nn.functional.normalize(long))), abs=1e-12)
    with pytest.raises(UnknownName, match="frobenius"):
        relative_residual(x, norm="frobenious")


def attention_alone(x: Tensor, layers: int, size: float, draw: torch.Generator, *, skip: bool) -> list[float]:
    """The residuals of random one-head attention layers whose maps are their own."""
    found = [float(relative_residual(x))]
    width = x.shape[1]
    for _ in range(layers):
        qk, v = (torch.randn(width, width, generator=draw, dtype=torch.float64) * size / width**0.5 for _ in range(2))
        maps = (x @ qk @ x.T / width**0.5).softmax(-1)
        x = (x if skip else 0) + maps @ x @ v
        found.append(float(relative_residual(x)))
    return found


def test_attention_alone_collapses_doubly_exponentially() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(12, 16, generator=draw, dtype=torch.float64)
    without = attention_alone(x, 4, 1.0, draw, skip=False)
    assert 0.85 < without[0] <= 1 and without[4] < 1e-6
    drops = -np.diff(np.log(without))
    assert (np.diff(drops[1:]) > 0).all()  # each layer takes off more orders of magnitude than the one before
    with_skip = attention_alone(x, 4, 1.0, torch.Generator().manual_seed(1), skip=True)
    assert min(with_skip) > 0.3


def test_the_bound_holds_and_is_its_closed_form() -> None:
    """Layers with ``||W_QK||_1 ||W_V||_{1,inf} = beta`` so small that the bound says something."""
    draw = torch.Generator().manual_seed(2)
    width, tokens = 4, 5
    x = torch.randn(tokens, width, generator=draw, dtype=torch.float64) * 0.2

    def size(matrix: Tensor) -> float:
        return math.sqrt(float(matrix.abs().sum(0).max()) * float(matrix.abs().sum(1).max()))

    start = size(x - x.mean(0))
    beta = 0.2
    for layers in (1, 2):
        state = x
        for _ in range(layers):
            qk, v = (torch.randn(width, width, generator=draw, dtype=torch.float64) for _ in range(2))
            qk = qk / float(qk.abs().sum(0).max())
            v = v / size(v) * beta
            state = (state @ qk @ state.T / width**0.5).softmax(-1) @ state @ v
        bound = interp.collapse_bound(start, beta=beta, heads=1, d_qk=width, layers=layers)
        closed = (4 * beta / width**0.5) ** ((3**layers - 1) / 2) * start ** (3**layers)
        assert bound == pytest.approx(closed, rel=1e-9)
        assert size(state - state.mean(0)) <= bound
    assert interp.collapse_bound(2.0, beta=1.0, heads=8, d_qk=1, layers=12) == math.inf
    assert interp.collapse_bound(0.0, beta=1.0, heads=8, d_qk=1, layers=12) == 0
    with pytest.raises(BadInput, match="heads=0"):
        interp.collapse_bound(1.0, beta=1.0, heads=0, d_qk=1, layers=1)


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit", "t5"])
def test_collapse_of_a_model(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    found = interp.rank_collapse(case.model, batch, rank_tolerance=0.5)
    stack = case.model.stack()
    for depth in range(stack.n_layers + 1):
        at = At(Site.RESID_PRE, layer=depth) if depth < stack.n_layers else At(Site.RESID_POST, layer=depth - 1)
        x = interp.run(case.model, batch, read=[at])[at].double()
        truth = torch.linalg.matrix_norm(x - x.mean(1, keepdim=True)) / torch.linalg.matrix_norm(x)
        np.testing.assert_allclose(found.values[:, depth], truth, rtol=0, atol=1e-6)
        assert found.ranks is not None
        np.testing.assert_array_equal(found.ranks[:, depth], torch.linalg.matrix_rank(x, atol=0.5, rtol=0))
    assert list(found.table().columns) == ["depth", "value", "low", "high", "rank"]


def test_collapse_counts_real_tokens_and_leaves_sinks_out(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    ids = case.tiny.inputs(2, LENGTH, 0)["input_ids"]
    alone = interp.rank_collapse(case.model, interp.encode(case.model, ids)).values
    blank = torch.zeros(2, 2, dtype=torch.long)
    mask = torch.cat([blank, torch.ones_like(ids)], dim=1).bool()
    padded = interp.encode(case.model, torch.cat([blank, ids], dim=1), mask=mask)
    np.testing.assert_allclose(interp.rank_collapse(case.model, padded).values, alone, rtol=0, atol=1e-6)
    batch = interp.encode(case.model, ids)
    left = interp.rank_collapse(case.model, batch, exclude_sinks="first").values
    x = interp.run(case.model, batch, read=[At(Site.RESID_PRE, layer=1)])[At(Site.RESID_PRE, layer=1)][:, 1:]
    np.testing.assert_allclose(left[:, 1], relative_residual(x), rtol=0, atol=1e-6)
    same = interp.rank_collapse(case.model, interp.encode(case.model, ids[:, :1]))
    assert np.abs(same.values).max() < 1e-6  # one token is equal to itself
    with pytest.raises(BadInput, match="without any key"):
        interp.rank_collapse(case.model, interp.encode(case.model, ids[:, :1]), exclude_sinks="first")
    with pytest.raises(BadInput, match="positive number"):
        interp.rank_collapse(case.model, batch, rank_tolerance=0)
