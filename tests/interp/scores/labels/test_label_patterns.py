"""What pattern tests of labels read, on planted maps: masses, places, and their nulls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import ask_for, reduced, uniform_causal
from planted_heads import NAMES, Job, name_prompts, planted_model

import interp
from interp.scores.labels.answers import places_of_others, read_rows
from interp.scores.labels.drawn import drawer_for
from interp.scores.labels.judging import judged, upper_quantile
from interp.scores.labels.masses import ColumnMasses, PairMasses
from interp.scores.labels.places import PlaceMasses, candidates, offsets
from interp.scores.labels.reading import PatternReading
from interp.scores.labels.repeats import copies

LENGTH = 8


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_masses_on_columns_are_means_over_the_rows_that_count(rows: int) -> None:
    pattern = torch.rand(2, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)).tril()
    columns = torch.eye(LENGTH)[None, :, [1, 3]]
    counted = torch.zeros(1, LENGTH, 2, dtype=torch.bool)
    counted[0, 4:, 0] = True
    counted[0, 7, 1] = True
    found = reduced(ColumnMasses(ask_for(LENGTH), columns, counted), pattern, rows_per_block=rows)
    expected = torch.stack([pattern[:, 4:, 1].mean(-1), pattern[:, 7, 3]], dim=-1)
    torch.testing.assert_close(found[0].float(), expected)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_masses_on_pairs_count_the_rows_that_have_one(rows: int) -> None:
    wanted = torch.stack([offsets(LENGTH, 1), offsets(LENGTH, 3)], dim=-1)
    pattern = uniform_causal(LENGTH)
    found = reduced(PairMasses(ask_for(LENGTH), wanted), pattern, rows_per_block=rows)
    assert found[0, 0].tolist() == pytest.approx(
        [np.mean([1 / (row + 1) for row in range(2, 8)]), np.mean([1 / (row + 1) for row in range(4, 8)])], rel=1e-6
    )


def test_masses_on_places_find_a_fixed_distance_and_lose_it_in_random_order() -> None:
    names, wanted = candidates(LENGTH)
    pattern = torch.eye(LENGTH).roll(-2, 1).tril(-1)
    pattern[:2] = torch.eye(LENGTH)[:2]
    pattern[2:] = torch.eye(LENGTH)[:-2]
    found = reduced(PlaceMasses(ask_for(LENGTH), wanted, 50, 0, [0]), pattern)[0, 0].view(51, len(names))
    assert names[int(found[0].argmax())] == "2 back" and found[0].max() == 1
    shuffled = found[1:, names.index("2 back")]
    expected = np.mean([1 / (row + 1) for row in range(3, LENGTH)])
    assert float(shuffled.mean()) == pytest.approx(expected, abs=0.06)


def test_the_places_of_copies_are_those_of_the_drawn_prompts() -> None:
    model = interp.load("handmade")
    drawer = drawer_for(model, 6, 3)
    ids = drawer.repeats(5).ids
    assert ids is not None
    for after in (0, 1):
        rows, keys, _ = copies(drawer.start, 6, after).nonzero(as_tuple=True)
        assert len(rows) == 6 - after
        for prompt in ids:
            assert [int(prompt[key - after]) for key in keys] == [int(prompt[row]) for row in rows]
    shuffled = drawer.repeats(5, shuffled=0).ids
    assert shuffled is not None
    assert torch.equal(shuffled[:, :7], ids[:, :7]) and torch.equal(
        shuffled[:, 7:].sort().values, ids[:, 7:].sort().values
    )
    assert not torch.equal(shuffled, ids)


def test_prompts_depend_on_the_seed_and_their_number_alone_and_the_task_has_others() -> None:
    model = interp.load("induction")
    drawer = drawer_for(model, None, 0)
    few, many = drawer.repeats(2).ids, drawer.repeats(4).ids
    assert few is not None and many is not None and torch.equal(few, many[:2])
    task = drawer.task(4)
    assert task.ids is not None and task.answers is not None
    segment = task.ids[:, 1:25]
    assert not set(map(tuple, segment.tolist())) & set(map(tuple, many[:, 1:25].tolist()))
    assert torch.equal(task.answers[:, 0], segment[:, 12]) and torch.equal(task.ids[:, 25:], segment[:, :12])
    for row, wrong in zip(segment, task.answers[:, 1], strict=True):
        assert int(wrong) in row.tolist() and int(wrong) != int(row[12])


def test_places_of_other_prompts_are_counted_from_each_prompts_first_token() -> None:
    model = interp.load("handmade")
    ids = torch.tensor([[0, 3, 4, 5, 6, 7], [1, 1, 0, 3, 4, 5]])
    mask = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    batch = interp.encode(model, ids, mask=mask, answers=[(4, 5), (4, 5)])
    assert batch.read_at.tolist() == [5, 5] and read_rows(batch).nonzero().tolist() == [[0, 5], [1, 5]]
    wanted = torch.zeros(2, 6, dtype=torch.bool)
    wanted[0, [1, 4]] = True  # the second place lies outside the shorter prompt
    wanted[1, 4] = True
    swapped = places_of_others(batch, wanted, torch.tensor([1, 0]))
    assert swapped.nonzero().tolist() == [[0, 2], [1, 3]]


def test_a_quantile_is_a_draw_that_at_most_the_level_exceeds() -> None:
    draws = np.arange(20.0)[:, None]
    assert upper_quantile(draws, 0.05).tolist() == [19.0]  # 19 of 20 lie below or at 18.05: the next draw
    assert upper_quantile(draws, 0.5).tolist() == [10.0]
    assert np.isnan(upper_quantile(np.full((3, 1), np.nan), 0.05)).all()


def reading(scores: list[float], null: float, prompts: int = 30) -> PatternReading:
    noise = np.random.default_rng(0).normal(0, 0.02, (prompts, 1, len(scores)))
    return PatternReading(np.array(scores)[None, None] + noise, np.full((20, 1, len(scores)), null))


def test_a_head_must_exceed_its_null_the_margin_and_the_other_heads() -> None:
    verdict = judged(reading([0.9, 0.35, 0.301, 0.05], 0.3), level=0.05, margin=0.1, seed=0)
    assert verdict.above_null.tolist() == [[True, False, False, False]] and verdict.passes.tolist()[0][0]
    assert verdict.rival[0, 0] == pytest.approx(0.35, abs=0.02)
    loose = judged(reading([0.9, 0.35, 0.301, 0.05], 0.3), level=0.05, margin=0.0, seed=0)
    assert loose.above_null.tolist() == [[True, True, False, False]]
    uneven = reading([0.5, 0.45], 0.0)
    uneven.null[:, 0, 1] = 0.6  # the other head fixes its eyes on the place whatever the tokens are
    close = judged(uneven, level=0.05, margin=0.1, seed=0)
    assert close.above_null.tolist() == [[True, False]] and close.passes.tolist() == [[True, False]]
    uneven.own[:, 0, 1] += 0.2
    assert not judged(uneven, level=0.05, margin=0.1, seed=0).passes.any()


def test_one_prompt_has_no_interval_and_nothing_passes() -> None:
    assert not judged(reading([0.9, 0.1], 0.0, prompts=1), level=0.05, margin=0.1, seed=0).passes.any()


def test_patterns_are_read_the_same_in_any_batches_and_padding() -> None:
    model = planted_model(Job(looks_at=NAMES, votes=10.0), Job(looks_at=NAMES), Job())
    batch = name_prompts(model, 24)
    found = [interp.label_heads(model, batch, types="name_mover", batch_size=size).rows for size in (5, 12)]
    np.testing.assert_allclose(found[0].score, found[1].score, atol=1e-6)
    np.testing.assert_allclose(found[0].threshold, found[1].threshold, atol=1e-6)
