"""Attention by relation and by graph distance: planted maps, loops over pairs, permuted labels, rewired graphs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from planted import ask_for, reduced, uniform_causal
from torch import Tensor

import interp
from interp.errors import BadInput, Unsupported
from interp.scores.ask import Ask
from interp.scores.groups.graph_distance import graph_distance, graph_distances, rewired
from interp.scores.groups.relation_attention import relation_attention, relation_log_ratio
from interp.scores.groups.relation_table import gathered, permuted
from interp.scores.groups.relations import (
    IGNORED,
    Relation,
    RelationSums,
    by_label,
    label_codes,
    mean_by_class,
    relation_of,
)

TOKENS = torch.tensor([[0, 3, 4, 3, 5, 2, 4, 5]])
TOPICS = torch.tensor([[IGNORED, 0, 0, 0, 1, 1, 0, 1]])


def soft(batch: int, heads: int, length: int, seed: int = 0, *, causal: bool = True) -> Tensor:
    scores = torch.randn(batch, heads, length, length, generator=torch.Generator().manual_seed(seed))
    return (scores.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf) if causal else scores).softmax(-1)


def by_loops(pattern: Tensor, relation: Tensor, n: int, mask: Tensor) -> Tensor:
    """``[batch, head, class]`` the definition, pair by pair; only pairs j <= i are visible."""
    made = torch.full((*pattern.shape[:2], n), torch.nan, dtype=torch.float64)
    for prompt in range(len(pattern)):
        for head in range(pattern.shape[1]):
            for kind in range(n):
                pairs = [
                    float(pattern[prompt, head, i, j])
                    for i in range(pattern.shape[-1])
                    for j in range(i + 1)
                    if mask[prompt, i] and mask[prompt, j] and relation[prompt, i, j] == kind
                ]
                if pairs:
                    made[prompt, head, kind] = sum(pairs) / len(pairs)
    return made


@pytest.mark.parametrize("rows_per_block", [1, 3, 50])
def test_equals_the_pairs_written_out(rows_per_block: int) -> None:
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[1, :2] = False
    mask[2, 5:] = False
    pattern = soft(3, 2, 8) * (mask[:, None, None] & mask[:, None, :, None])
    ids = TOKENS.repeat(3, 1)
    ask = ask_for(8, ids=ids, mask=mask)
    labels = TOPICS.repeat(3, 1)
    wanted = by_label(ids, mask, label_codes(ask, labels)).of_rows(torch.arange(8).expand(3, -1))
    found = reduced(relation_attention(ask, labels=labels), pattern, rows_per_block=rows_per_block)
    torch.testing.assert_close(found, by_loops(pattern, wanted, 4, mask), equal_nan=True, atol=1e-6, rtol=1e-5)
    custom = torch.randint(-1, 3, (8, 8), generator=torch.Generator().manual_seed(2))
    found = reduced(relation_attention(ask, relation=custom, classes="abc"), pattern, rows_per_block=rows_per_block)
    torch.testing.assert_close(
        found, by_loops(pattern, custom.expand(3, -1, -1), 3, mask), equal_nan=True, atol=1e-6, rtol=1e-5
    )


def test_classes_of_pairs() -> None:
    ask = ask_for(8, ids=TOKENS)
    labelled = relation_of(ask, labels=TOPICS)
    assert labelled.classes == ("itself", "same token", "same label", "different label")
    rows = labelled.of_rows(torch.arange(8)[None])[0]
    assert rows[3].tolist() == [-1, 1, 2, 0, 3, 3, 2, 3], "the token without a label counts with none"
    plain = relation_of(ask).of_rows(torch.tensor([[3]]))[0, 0]
    assert plain.tolist() == [2, 1, 2, 0, 2, 2, 2, 2]
    first_topic = {ask.batch.tokens[0][place] for place in (1, 2)}
    said = relation_of(ask, labels=lambda token: None if token == "<bos>" else token in first_topic)
    torch.testing.assert_close(said.of_rows(torch.arange(8)[None])[0], rows)
    lists = relation_of(ask, labels=[[None, "a", "a", "a", "b", "b", "a", "b"]])
    torch.testing.assert_close(lists.of_rows(torch.arange(8)[None])[0], rows)


def test_uniform_attention_has_log_ratio_zero() -> None:
    """Where every row sees every key. A causal mask breaks it: earlier rows give each key more."""
    ask = ask_for(8, ids=TOKENS)
    both_ways = torch.ones(8, 8, dtype=torch.bool)
    uniform = torch.full((8, 8), 1 / 8)
    found = reduced(relation_log_ratio(ask, labels=TOPICS), uniform, visible=both_ways)
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert reduced(relation_log_ratio(ask, labels=TOPICS), uniform_causal(8)).item() != pytest.approx(0, abs=1e-2)


def test_a_map_within_topics_goes_to_infinity_with_epsilon() -> None:
    ask = ask_for(8, ids=TOKENS)
    relation = relation_of(ask, labels=TOPICS).of_rows(torch.arange(8)[None])[0]
    block = ((relation == 2) | (relation == 0)).float()
    block[0, 0] = 1
    block = block / block.sum(-1, keepdim=True)
    both_ways = torch.ones(8, 8, dtype=torch.bool)
    found = {eps: reduced(relation_log_ratio(ask, labels=TOPICS, epsilon=eps), block, visible=both_ways).item()
             for eps in (1e-3, 1e-6)}  # fmt: skip
    assert found[1e-6] - found[1e-3] == pytest.approx(math.log(1000), rel=1e-2) and found[1e-6] > 10


def test_matched_distances_undo_a_head_that_only_looks_near() -> None:
    """Same label is near by construction; a head that only knows distance has a ratio, and none when matched."""
    length = 12
    labels = (torch.arange(length) // 3)[None]
    ids = torch.arange(length)[None] % 6
    place = torch.arange(length)
    apart = (place[:, None] - place).abs()
    near = 0.5 ** apart.float()
    both_ways = torch.ones(length, length, dtype=torch.bool)
    ask = ask_for(length, ids=ids)
    free = reduced(relation_log_ratio(ask, labels=labels), near, visible=both_ways).item()
    matched = reduced(relation_log_ratio(ask, labels=labels, stratify="distance"), near, visible=both_ways).item()
    assert free > 1 and matched == pytest.approx(0, abs=1e-6)
    coarse = reduced(relation_log_ratio(ask, labels=labels, stratify=[2]), near, visible=both_ways).item()
    assert 0 <= coarse < free
    means = reduced(relation_attention(ask, labels=labels, stratify="distance"), near, visible=both_ways)
    assert means[0, 0, :2].isnan().all() and means[0, 0, 2].item() == pytest.approx(means[0, 0, 3].item())
    expected = (6 * 0.5 + 8 * 0.25) / 14  # 16 and 6 pairs of distance 1 in and across labels, 8 and 12 of distance 2
    assert means[0, 0, 2].item() == pytest.approx(expected)


def test_weights_of_strata_are_the_smaller_number_of_pairs() -> None:
    sums = torch.tensor([[[4.0, 1.0], [1.0, 9.0]]])  # stratum x class
    pairs = torch.tensor([[[8.0, 4.0], [1.0, 3.0]]])
    first, second = mean_by_class(sums, pairs, (0, 1))[0].tolist()
    assert first == pytest.approx((4 * 0.5 + 1 * 1.0) / 5) and second == pytest.approx((4 * 0.25 + 1 * 3.0) / 5)


def test_pooled_is_sum_of_sums_over_sum_of_counts() -> None:
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 4:] = False
    pattern = soft(2, 2, 8) * (mask[:, None, None] & mask[:, None, :, None])
    ask = ask_for(8, ids=TOKENS.repeat(2, 1), mask=mask)
    relation = relation_of(ask, labels=TOPICS.repeat(2, 1))
    reducer = RelationSums(ask, [relation])
    per_prompt = relation_attention(ask, labels=TOPICS.repeat(2, 1))
    means = reduced(per_prompt, pattern)
    torch.testing.assert_close(reduced(reducer, pattern), means, equal_nan=True)
    sums, counts = reducer.sums[0][0].sum(-2), reducer.counts[0][0].sum(-2)
    pooled = sums.sum(0) / counts.sum(0)
    torch.testing.assert_close(means, sums / counts, equal_nan=True)
    weights = counts / counts.sum(0)
    torch.testing.assert_close((means.nan_to_num() * weights).sum(0), pooled)
    assert not torch.allclose(means.nanmean(0), pooled), "the mean of ratios is something else"


def test_permuted_labels_give_zero_on_average_and_a_uniform_p() -> None:
    """A head that ignores labels: p is not small more often than it should be; a head that follows them: p is."""
    model = interp.load("induction")
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(10, 300, (4, 24), generator=generator)
    labels = torch.randint(0, 3, (4, 24), generator=generator)
    found = interp.attention_by_relation(model, interp.encode(model, ids), labels, draws=59, seed=1)
    p = found.p()
    assert found.null_sums.shape[0] == 59 and p.shape == found.log_ratio().shape
    assert (p >= 1 / 60).all() and (p <= 1).all() and (p < 0.05).mean() < 0.35
    null = np.log(found.null_sums.sum((1, 4))[..., 2] / found.null_pairs.sum((1, 4))[..., 2])
    other = np.log(found.null_sums.sum((1, 4))[..., 3] / found.null_pairs.sum((1, 4))[..., 3])
    assert abs((null - other).mean()) < 0.1
    drawn = permuted(labels, 5, seed=0)
    assert all(sorted(one[0].tolist()) == sorted(labels[0].tolist()) for one in drawn)
    assert len({tuple(one[0].tolist()) for one in drawn}) > 1


def test_a_head_that_follows_labels_beats_every_permutation() -> None:
    ids, labels = TOKENS.repeat(3, 1), TOPICS.repeat(3, 1)
    ask = ask_for(8, ids=ids)
    relation = relation_of(ask, labels=labels)
    follow = (relation.of_rows(torch.arange(8).expand(3, -1)) == 2).float() + 0.01
    follow = follow.tril() / follow.tril().sum(-1, keepdim=True)

    class Planted(Ask):
        def stream(self, watchers, batch=None):  # type: ignore[no-untyped-def]
            for layer in range(2):
                reduced(watchers[0], follow[:, None].expand(-1, 2, -1, -1), layer=layer)

    planted = Planted(ask.name, ask.model, ask.batch, ask.stack)
    mask = ask.batch.mask
    others = [by_label(ids, mask, codes) for codes in permuted(label_codes(ask, labels), 39, 0)]
    table = gathered(planted, [relation, *others], None, None)
    assert (table.p() <= 0.1).all() and (table.log_ratio(epsilon=1e-9) > 1).all()
    rows = table.table()
    assert list(rows.columns[:3]) == ["label", "layer", "head"] and len(rows) == 4 and (rows["p"] <= 0.1).all()
    assert (rows["low"] <= rows["log ratio"] + 1e-9).all()


def test_a_function_may_say_the_relation() -> None:
    def sentence(batch: interp.Batch, rows: Tensor) -> Tensor:
        number = (batch.ids == 2).cumsum(-1)  # type: ignore[union-attr]
        return (number.gather(1, rows)[..., None] != number[:, None]).long()

    ask = ask_for(8, ids=TOKENS)
    found = reduced(relation_attention(ask, relation=sentence, classes=["same sentence", "other"]), soft(1, 2, 8))
    given = sentence(ask.batch, torch.arange(8)[None])
    torch.testing.assert_close(
        found, reduced(relation_attention(ask, relation=given, classes=["same sentence", "other"]), soft(1, 2, 8))
    )


def test_refusals_of_relations() -> None:
    ask = ask_for(8, ids=TOKENS)
    for options, message in (
        ({"labels": TOPICS, "relation": TOPICS}, "labels= or relation=, not both"),
        ({"labels": TOPICS[:, :4]}, r"labels= torch.int64 \[1, 4\]; expected whole numbers \[1, 8\]"),
        ({"labels": [["a"]]}, "give one label per token"),
        ({"relation": torch.zeros(8, 8).long()}, "name the classes"),
        ({"relation": torch.zeros(4, 4).long(), "classes": ["a"]}, r"expected whole numbers \[pos, pos\]"),
        ({"relation": torch.ones(8, 8).long(), "classes": ["a"]}, "has 2 classes and classes= names 1"),
        ({"classes": ["a"]}, "which was not given"),
        ({"labels": TOPICS, "compare": ["same label", "diferent label"]}, "Did you mean 'different label'"),
        ({"labels": TOPICS, "stratify": "distances"}, "expected None, 'distance'"),
        ({"labels": TOPICS, "stratify": [4, 2]}, "rising distances"),
    ):
        with pytest.raises(BadInput, match=message):
            relation_attention(ask, **options)
    with pytest.raises(BadInput, match="epsilon=0; expected a small number above 0"):
        relation_log_ratio(ask, epsilon=0)
    model = interp.load("induction")
    batch = interp.encode(model, torch.tensor([[5, 6, 7]]))
    with pytest.raises(BadInput, match="permutes labels; give labels="):
        interp.attention_by_relation(model, batch, draws=3)
    with pytest.raises(BadInput, match="ask for attention_by_relation"):
        interp.attention_by_relation(model, batch).log_ratio(matched=True)
    with pytest.raises(BadInput, match="there is no null"):
        interp.attention_by_relation(model, batch).p()


# ---- graphs ---------------------------------------------------------------------------------------------------------


def grid(side: int) -> Tensor:
    """``[node, node]`` a square grid."""
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    return (place[:, None] - place).abs().sum(-1) == 1


def test_distances_of_a_grid_are_manhattan() -> None:
    place = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), -1).view(-1, 2)
    torch.testing.assert_close(graph_distances(grid(3)), (place[:, None] - place).abs().sum(-1))
    apart = torch.zeros(4, 4, dtype=torch.bool)
    apart[0, 1] = True
    assert graph_distances(apart)[0].tolist() == [0, 1, -1, -1]


def test_a_one_hop_map_has_all_its_mass_in_bin_one() -> None:
    """And copies of a node add up in the mass, not in the density."""
    nodes = torch.tensor([[-1, 0, 1, 2, 3, 1, 0]])
    chain = torch.zeros(4, 4, dtype=torch.bool)
    chain[[0, 1, 2], [1, 2, 3]] = True
    ask = ask_for(7, ids=torch.tensor([[0, 3, 4, 5, 2, 4, 3]]))
    last = torch.zeros(7, 7)
    last[:, 0] = 1
    last[6] = torch.tensor([0, 0, 0.5, 0, 0, 0.5, 0])  # node 0 looks at both copies of node 1
    found = reduced(graph_distance(ask, nodes=nodes, adjacency=chain, queries=-1), last)
    assert found[0, 0].tolist() == [0, 1, 0, 0, 0]
    density = reduced(graph_distance(ask, nodes=nodes, adjacency=chain, queries=-1, density=True), last)
    assert density[0, 0, 1].item() == 0.5 and density[0, 0, 4].isnan()
    near = reduced(graph_distance(ask, nodes=nodes, adjacency=chain, queries=-1, furthest=1), last)
    assert near.shape[-1] == 3 and near[0, 0].tolist() == [0, 1, 0]


def test_mass_and_density_written_out() -> None:
    pattern = soft(1, 2, 8, seed=4)
    nodes = torch.tensor([[-1, 0, 4, 8, 2, 0, 7, 3]])
    steps = graph_distances(grid(3))
    ask = ask_for(8, ids=TOKENS)
    mass = reduced(graph_distance(ask, nodes=nodes, distances=steps), pattern, rows_per_block=2)
    density = reduced(graph_distance(ask, nodes=nodes, distances=steps, density=True), pattern, rows_per_block=5)
    for distance in range(5):
        pairs = [(i, j) for i in range(1, 8) for j in range(1, i + 1) if steps[nodes[0, i], nodes[0, j]] == distance]
        total = sum(pattern[0, :, i, j] for i, j in pairs)
        torch.testing.assert_close(mass[0, :, distance].float(), torch.as_tensor(total) / 7)
        torch.testing.assert_close(density[0, :, distance].float(), torch.as_tensor(total) / len(pairs))


def test_rewired_graphs_keep_degrees_and_lose_distances() -> None:
    near = grid(4)
    generator = torch.Generator().manual_seed(0)
    drawn = [rewired(near, generator) for _ in range(5)]
    for one in drawn:
        torch.testing.assert_close(one.sum(-1), near.sum(-1))
        assert bool((one == one.T).all()) and not bool(one.diagonal().any())
    assert any(not bool((one == near).all()) for one in drawn)
    torch.testing.assert_close(near, grid(4)), "the graph itself is left as it is"


def test_attention_vs_distance_on_a_model_and_its_null() -> None:
    model = interp.load("induction")
    ids = torch.randint(10, 300, (3, 17), generator=torch.Generator().manual_seed(1))
    nodes = torch.arange(17)[None].repeat(3, 1) - 1
    batch = interp.encode(model, ids)
    chain = (torch.arange(16)[:, None] - torch.arange(16)).abs() == 1
    found = interp.attention_vs_distance(model, batch, nodes, adjacency=chain, draws=19)
    previous = found.mass[0, 0]
    assert previous[1] / np.nansum(previous) > 0.5, "the previous-token head looks at neighbours on a line"
    assert found.p("1", "2")[0, 0] <= 0.1
    per_prompt = interp.score(model, batch, {"graph_distance": {"nodes": nodes, "adjacency": chain}})["graph_distance"]
    np.testing.assert_allclose(per_prompt.values, found.mass, atol=1e-6)
    with pytest.raises(BadInput, match="rewires a graph; give adjacency="):
        interp.attention_vs_distance(model, batch, nodes, distances=graph_distances(chain), draws=3)


def test_refusals_of_graphs() -> None:
    ask = ask_for(8, ids=TOKENS)
    nodes = torch.arange(8)[None]
    for options, message in (
        ({}, r"expected whole numbers \[1, 8\]"),
        ({"nodes": nodes}, "give adjacency= or distances="),
        ({"nodes": nodes, "adjacency": grid(2)}, "the graph has 0 to 3"),
        ({"nodes": nodes, "adjacency": torch.ones(8, 7)}, r"expected \[node, node\]"),
        ({"nodes": nodes, "adjacency": grid(3), "furthest": -1}, "furthest=-1"),
    ):
        with pytest.raises(BadInput, match=message):
            graph_distance(ask, **options)


def test_a_graph_has_no_pair_in_cross_attention(case_of: Callable[..., object]) -> None:
    case = case_of("t5")
    batch = case.batch(2, 8)  # type: ignore[attr-defined]
    nodes = torch.arange(batch.width).expand(2, -1)
    options = {"nodes": nodes, "adjacency": torch.eye(batch.width).bool()}
    with pytest.raises(Unsupported, match="the tokens of another stack"):
        interp.score(case.model, batch, {"graph_distance": options}, stack="cross")  # type: ignore[attr-defined]


def test_a_relation_names_every_class_it_gives() -> None:
    ask = ask_for(8, ids=TOKENS)
    reducer = RelationSums(ask, [Relation(("one",), lambda rows: torch.ones(1, rows.shape[1], 8).long())])
    with pytest.raises(BadInput, match="gave class 1 and classes= names 1"):
        reduced(reducer, soft(1, 1, 8))
