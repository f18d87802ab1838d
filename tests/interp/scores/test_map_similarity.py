"""Similarity of maps across layers: identical, disjoint, permuted heads, sinks left out, rows in several forwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import all_on_first, ask_for, blocks_of, previous_map, uniform_causal
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput
from interp.scores.shape.map_pairs import ENTRIES, Measure, PairSums, best_matching, row_chunks
from interp.scores.shape.similarity import MapSimilarity, map_similarity

MEASURES: tuple[Measure, ...] = ("cosine", "jsd", "top_k")


def compared(first: Tensor, second: Tensor, measure: Measure, *, mean: bool = False, k: int = 1, **options: Any) -> Any:
    """``[place, place]`` of two layers' maps ``[head, query, key]``, shown a few rows at a time."""
    sums = PairSums(ask_for(first.shape[-1], **options), measure, k, mean=mean)
    for layer, pattern in enumerate((first, second)):
        for block in blocks_of(pattern, sums.ask, layer=layer):
            sums.block(block, None)
        sums.finish(layer, {})
    values, _ = sums.values()
    return MapSimilarity(values.numpy(), tuple(sums.places), measure)


@pytest.mark.parametrize("measure", MEASURES)
def test_identical_and_disjoint_maps(measure: Measure) -> None:
    """Rows 1 on of the previous-token map and of the identity share no key."""
    both = torch.stack([previous_map(8), torch.eye(8)])
    rows = compared(both, both, measure)
    np.testing.assert_allclose(rows.matrix(), np.ones((2, 2)), atol=1e-6)
    shared = 0 if measure == "top_k" else 1 / 8  # the first row, which sees one key
    np.testing.assert_allclose(rows.between(0, 1), [[1, shared], [shared, 1]], atol=1e-6)
    assert np.diagonal(rows.values[0]).tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_permutation_of_heads_is_undone_by_matching(measure: Measure) -> None:
    heads = torch.stack([previous_map(9), torch.eye(9)])
    found = compared(heads, heads.flip(0), measure)
    assert [pair[:2] for pair in found.matching(0, 1)] == [(0, 1), (1, 0)]
    assert found.matrix()[0, 1] == pytest.approx(1)
    assert found.table()["matched heads"].tolist() == ["0 -> 1, 1 -> 0"]
    assert found.heads[1] == interp.Head(0, 1)


def random_maps(length: int, seed: int) -> Tensor:
    scores = 2 * torch.randn(2, length, length, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf).softmax(-1)


def by_hand(p: Tensor, q: Tensor, measure: Measure, k: int) -> float:
    """Two maps, row by row."""
    if measure == "cosine":
        return float((p * q).sum() / (p.norm() * q.norm()))
    total = []
    for row in range(len(p)):
        a, b = p[row, : row + 1].double(), q[row, : row + 1].double()
        if measure == "top_k":
            if row + 1 > k:
                total.append(len(set(a.topk(k).indices.tolist()) & set(b.topk(k).indices.tolist())) / k)
            continue
        middle = (a + b) / 2
        divergence = (a * (a / middle).log() + b * (b / middle).log()).sum() / 2
        total.append(1 - float(divergence) / math.log(2))
    return sum(total) / len(total)


@pytest.mark.parametrize("measure", MEASURES)
def test_each_pair_by_hand(measure: Measure) -> None:
    first, second = random_maps(10, 0), random_maps(10, 1)
    found = compared(first, second, measure, k=3).between(0, 1)
    for a in range(2):
        for b in range(2):
            assert found[a, b] == pytest.approx(by_hand(first[a], second[b], measure, 3), rel=1e-5)
    mean = compared(first, second, measure, k=3, mean=True)
    assert mean.matrix()[0, 1] == pytest.approx(by_hand(first.mean(0), second.mean(0), measure, 3), rel=1e-5)
    assert mean.heads == () and mean.table()["matched heads"].tolist() == [""]


def test_sinks_make_everything_look_alike() -> None:
    """Nine tenths on the first token, the rest elsewhere: alike with the sink, unlike without."""
    first = 0.9 * all_on_first(12) + 0.1 * torch.eye(12)
    second = 0.9 * all_on_first(12) + 0.1 * previous_map(12)
    dropped = torch.zeros(1, 12, dtype=torch.bool)
    dropped[0, 0] = True
    both = [torch.stack([x, x]) for x in (first, second)]
    assert compared(both[0], both[1], "cosine").matrix()[0, 1] > 0.9
    assert compared(both[0], both[1], "cosine", dropped=dropped).matrix()[0, 1] == pytest.approx(0, abs=1e-6)
    assert compared(both[0], both[1], "jsd", dropped=dropped).matrix()[0, 1] == pytest.approx(0, abs=1e-6)


def test_chance_of_the_overlap() -> None:
    """Rows of 4, 5, ... 8 keys and k = 3: the mean of 3 / n."""
    sums = PairSums(ask_for(8), "top_k", 3, mean=True)
    for layer in (0, 1):
        for block in blocks_of(uniform_causal(8).expand(2, -1, -1), sums.ask, layer=layer):
            sums.block(block, None)
        sums.finish(layer, {})
    _, chance = sums.values()
    assert chance is not None and chance.item() == pytest.approx(sum(3 / n for n in range(4, 9)) / 5)


def test_matching_of_unequal_numbers() -> None:
    assert best_matching(torch.tensor([[0.1, 0.9, 0.5]])) == [(0, 1, pytest.approx(0.9))]
    assert best_matching(torch.tensor([[torch.nan]])) == []


def test_a_dead_head_stays_alone_and_the_others_are_matched() -> None:
    grid = torch.tensor([[0.2, torch.nan, 0.9], [torch.nan] * 3, [0.8, torch.nan, 0.95]])
    pairs = [(0, 2), (2, 0)]
    assert [pair[:2] for pair in best_matching(grid)] == pairs
    assert [value for _, _, value in best_matching(grid)] == [pytest.approx(0.9), pytest.approx(0.8)]
    partly = torch.tensor([[0.9, 0.1], [0.8, torch.nan]])  # two pairs that have a value, before one that is larger
    assert [pair[:2] for pair in best_matching(partly)] == [(0, 1), (1, 0)]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_layer_with_a_dead_head_is_compared_by_the_others(measure: Measure) -> None:
    """Head 0 holds everything on the first token, which is left out: nothing is left of it."""
    dropped = torch.zeros(1, 9, dtype=torch.bool)
    dropped[0, 0] = True
    first = torch.stack([all_on_first(9), torch.eye(9)])
    second = torch.stack([torch.eye(9), previous_map(9)])
    found = compared(first, second, measure, dropped=dropped)
    assert found.matching(0, 1) == [(1, 0, pytest.approx(1))]
    np.testing.assert_allclose(found.matrix(), np.ones((2, 2)), atol=1e-6)
    assert found.table()["matched heads"].tolist() == ["1 -> 0"]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("heads", ["matched", "mean"])
def test_rows_of_several_forwards_are_rows_of_one(case_of: Callable[[str], Case], measure: Measure, heads: Any) -> None:
    case = case_of("llama")
    batch = case.batch(2, 9)
    one = map_similarity(case.model, batch, measure, heads=heads, k=3)
    many = map_similarity(case.model, batch, measure, heads=heads, k=3, entries=2 * 8 * 9 * 2)
    assert one.metadata["forwards"] == 1 and many.metadata["forwards"] == 5
    np.testing.assert_allclose(many.values, one.values, rtol=1e-5, atol=1e-7)
    run = interp.run(case.model, batch, read=[At(Site.PATTERN)])[At(Site.PATTERN)]
    maps = run.clone()
    maps[..., 0] = 0
    maps = (maps / maps.sum(-1, keepdim=True)).nan_to_num(0.0)[:, :, :, 1:, 1:]
    if heads == "mean":
        expected = [by_hand(maps[0, i].mean(0), maps[1, i].mean(0), measure, 3) for i in range(2)]
        np.testing.assert_allclose(one.values[:, 0, 1], expected, rtol=1e-4)
    else:
        expected = [by_hand(maps[0, i, 1], maps[1, i, 2], measure, 3) for i in range(2)]
        np.testing.assert_allclose(one.values[:, 1, 4 + 2], expected, rtol=1e-4)


def test_padding_does_not_count(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    ids = case.batch(1, 9).ids
    assert ids is not None
    for side in ("left", "right"):
        batch = interp.encode(case.model, [ids[0].tolist(), ids[0, :6].tolist()], padding_side=side)
        found = map_similarity(case.model, batch).values[1]
        alone = map_similarity(case.model, interp.encode(case.model, ids[:, :6])).values[0]
        np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-4)


def test_some_rows_alone(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(1, 9)
    ask = ask_for(9)
    (rows,) = row_chunks(ask, 3, 10**6)
    assert rows is not None and rows.tolist() == [[0, 4, 8]]
    few, every = (map_similarity(case.model, batch, queries=n).values for n in (4, 9))
    assert not np.allclose(few, every) and few.shape == every.shape
    np.testing.assert_allclose(every, map_similarity(case.model, batch).values, rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_prompt_do_not_depend_on_the_others(case_of: Callable[[str], Case], side: Any) -> None:
    case = case_of("llama")
    ids = case.batch(2, 12).ids
    assert ids is not None
    long, short = ids[0].tolist(), ids[1, :3].tolist()
    both = interp.encode(case.model, [long, short], padding_side=side)
    for queries in (1, 2, 5):
        found = map_similarity(case.model, both, "jsd", queries=queries).values
        for prompt, alone in enumerate((long, short)):
            own = map_similarity(case.model, interp.encode(case.model, [alone]), "jsd", queries=queries).values[0]
            np.testing.assert_allclose(found[prompt], own, rtol=1e-3, atol=1e-4)
    mask = torch.tensor([[True] * 6, [False] * 3 + [True] * 3])
    (rows,) = row_chunks(ask_for(6, batch_size=2, mask=mask), 4, 10**6)
    assert rows is not None and rows.tolist() == [[0, 2, 3, 5], [3, 4, 5, 0]]


def test_one_row_is_the_last(case_of: Callable[[str], Case]) -> None:
    """The first row sees one key, which makes any two heads alike."""
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    (rows,) = row_chunks(ask_for(6, batch_size=2, mask=mask), 1, 10**6)
    assert rows is not None and rows.tolist() == [[5], [3]]
    case = case_of("llama")
    values = map_similarity(case.model, case.batch(2, 9), "jsd", queries=1, exclude_sinks=None).values
    assert values.min() < 0.999


def test_the_forwards_are_few_copies_and_said(case_of: Callable[[str], Case], caplog: Any) -> None:
    assert ENTRIES <= 2**23
    case = case_of("llama")
    batch = case.batch(2, 9)
    with caplog.at_level("INFO", logger="interp.scores"):
        made = interp.score(case.model, batch, {"layer_similarity": {"entries": 2 * 8 * 9 * 2}})
    assert made["layer_similarity"].metadata["forwards"] == 5
    assert any("layer_similarity: 5 forwards" in record.getMessage() for record in caplog.records)
    assert "2**23" in str(made.plan) and "square of the length" in str(made.plan)


def test_the_score_of_a_head_and_its_partner(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = case.batch(2, 8)
    found = interp.score(case.model, batch, "layer_similarity", exclude_sinks="first")["layer_similarity"]
    assert np.isnan(found.values[0]).all()
    for prompt in range(2):
        alone = map_similarity(case.model, batch.select([prompt]))
        expected = {b: value for _, b, value in alone.matching(0, 1)}
        np.testing.assert_allclose(found.samples[prompt, 1], [expected[h] for h in range(4)], rtol=1e-5)
    images = interp.score(case_of("vit").model, case_of("vit").batch(2), "layer_similarity")["layer_similarity"]
    assert np.isfinite(images.values[1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measure": "cosin"}, "Did you mean 'cosine'"),
        ({"heads": "all"}, "matched"),
        ({"k": 0}, "from 1 on"),
        ({"queries": 0}, "from 1 on"),
        ({"entries": 1.5}, "from 1 on"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], words: str) -> None:
    model = interp.load("handmade")
    with pytest.raises(BadInput, match=words):
        map_similarity(model, interp.encode(model, torch.tensor([[0, 3, 4]])), **options)


def test_a_layer_that_was_not_compared() -> None:
    found = compared(torch.eye(4).expand(2, -1, -1), torch.eye(4).expand(2, -1, -1), "cosine")
    with pytest.raises(BadInput, match=r"layers \[0, 1\]"):
        found.between(0, 5)
    assert "2 layers" in repr(found)
