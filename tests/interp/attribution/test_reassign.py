"""Reassigned answers: every arrangement by enumeration, clusters that move whole, and means against a plain loop."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from by_hand import batch_of, tiny_gpt2

import interp
from interp import BadInput
from interp.attribution.reassign import metric_of_rows, over_prompts, to_other_tokens


def rows_of(*labels: int) -> torch.Tensor:
    """Answers of prompts: a pair for each label."""
    return torch.tensor([[10 + label, 20 + label] for label in labels])


@pytest.mark.parametrize("labels", [(0, 0, 1), (0, 1, 2, 3), (0, 0, 1, 1, 2), (0, 0, 0, 0), (0, 1, 0, 1, 0, 1)])
def test_few_reassignments_are_all_of_them(labels: tuple[int, ...]) -> None:
    made = over_prompts(rows_of(*labels), draws=200)
    wanted = set(itertools.permutations(labels)) - {labels}
    assert made.exhaustive
    assert len(made.drawn) == len(wanted)
    assert {tuple(one) for one in made.drawn.tolist()} == wanted
    assert torch.equal(made.rows[made.own], rows_of(*labels))


def test_many_reassignments_are_drawn_from_the_seed_and_keep_every_answer() -> None:
    labels = [0, 1, 2, 3, 4, 5, 6, 7] * 3
    made = over_prompts(rows_of(*labels), draws=50, seed=3)
    assert not made.exhaustive and made.drawn.shape == (50, 24)
    assert (np.sort(made.drawn, axis=1) == np.sort(made.own)).all()
    assert (made.drawn == over_prompts(rows_of(*labels), draws=50, seed=3).drawn).all()
    assert (made.drawn != over_prompts(rows_of(*labels), draws=50, seed=4).drawn).any()


def test_each_prompt_gets_each_answer_equally_often() -> None:
    drawn = over_prompts(rows_of(*range(6)), draws=600, seed=0).drawn
    counts = np.array([[(drawn[:, prompt] == row).sum() for row in range(6)] for prompt in range(6)])
    assert abs(counts - 100).max() < 5 * math.sqrt(600 * 5 / 36)


def test_a_thousand_prompts_of_one_pair_have_no_other_arrangement() -> None:
    assert over_prompts(rows_of(*[0] * 1500), draws=2000).drawn.shape == (0, 1500)
    lone = over_prompts(rows_of(*[0] * 1100, 1), draws=2000)
    assert lone.exhaustive and lone.drawn.shape == (1100, 1101)


def test_clusters_with_one_pair_each_move_whole_whatever_their_size() -> None:
    made = over_prompts(rows_of(0, 0, 0, 1, 2, 2), draws=99, cluster=["a", "a", "a", "b", "c", "c"])
    blocks = [(row[0], row[3], row[4]) for row in made.drawn.tolist()]
    assert set(blocks) == set(itertools.permutations(range(3))) - {(0, 1, 2)}
    assert all(row[0] == row[1] == row[2] and row[4] == row[5] for row in made.drawn.tolist())
    assert "3 clusters of prompts" in made.words


def test_clusters_with_several_pairs_change_places_with_those_of_their_size() -> None:
    made = over_prompts(rows_of(0, 1, 2, 3, 4), draws=99, cluster=list("aabbc"))
    assert made.drawn.tolist() == [[2, 3, 0, 1, 4]]


def test_the_means_are_those_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    made = over_prompts(rows_of(*generator.integers(0, 5, 12).tolist()), draws=30)
    values = generator.normal(size=(3, 12, len(made.rows)))
    own, drawn = made.means(values)
    for head in range(3):
        assert own[head] == pytest.approx(np.mean([values[head, i, made.own[i]] for i in range(12)]))
        for draw in range(30):
            loop = np.mean([values[head, i, made.drawn[draw, i]] for i in range(12)])
            assert drawn[draw, head] == pytest.approx(loop)


@pytest.mark.parametrize("name", ["logit_difference", "answer_logprob", "rank", "own"])
def test_the_metric_of_rows_is_the_metric_of_a_batch_with_those_answers(name: str) -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), answers=[(1, 2, 3), (4, 5)])
    own = lambda logits, batch: logits[:, -1].gather(1, batch.answers[:, :1])[:, 0]  # noqa: E731
    metric = own if name == "own" else getattr(interp, name)
    rows = torch.tensor([[1, 2, 3], [4, 5, -1], [7, 8, 9]])
    logits = interp.run(model, batch).logits
    made = metric_of_rows(metric, rows)
    for place, row in enumerate(rows):
        alone = metric(logits, dataclasses.replace(batch, answers=row.expand(2, -1)))
        torch.testing.assert_close(made(logits, batch)[:, place], alone)
    assert getattr(made, "positions", None) == getattr(metric, "positions", None)


def test_other_tokens_are_of_the_same_kind_and_never_answers_or_special() -> None:
    ids = torch.arange(40).view(2, 20).tolist()
    batch = batch_of(ids, answers=torch.tensor([[5, 60], [5, 60]]))
    made = to_other_tokens(batch, range(100), draws=200, special=[0, 1])
    assert made.rows.shape == (201, 2) and made.rows[0].tolist() == [5, 60]
    right, wrong = made.rows[1:, 0].tolist(), made.rows[1:, 1].tolist()
    assert set(right) <= set(range(2, 40)) - {5} and len(set(right)) > 30
    assert set(wrong) <= set(range(40, 100)) - {60} and len(set(wrong)) > 40
    assert made.own.tolist() == [0, 0] and made.drawn[:3].tolist() == [[1, 1], [2, 2], [3, 3]]


def test_a_pair_in_both_orders_stays_one_pair() -> None:
    batch = batch_of([[1, 2]] * 2, answers=torch.tensor([[5, 6], [6, 5]]))
    made = to_other_tokens(batch, range(100), draws=20)
    own, turned = made.rows[made.drawn[:, 0]], made.rows[made.drawn[:, 1]]
    assert torch.equal(own, turned.flip(1)) and bool((own[:, 0] != own[:, 1]).all())
    with pytest.raises(BadInput, match="12 tokens to draw other answers from; give pool= at least 20"):
        to_other_tokens(batch, range(14), draws=20)
