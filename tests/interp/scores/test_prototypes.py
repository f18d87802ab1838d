"""Kinds of aligned maps: planted kinds are found again, whatever the order of heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted import reduced
from planted_patches import random_maps, seen_by_all, shifted, vision_ask, with_class

import interp
from interp import HeadScores
from interp.errors import BadInput
from interp.scores.grids.aligned import aligned_map
from interp.scores.grids.prototypes import MapPrototypes, map_prototypes

ROWS, COLUMNS = 4, 5
N = ROWS * COLUMNS
KINDS = {
    "right": (shifted(ROWS, COLUMNS, 0, 1), 5),
    "self": (torch.eye(N), 3),
    "anywhere": (torch.full((N, N), 1 / N), 2),
}


def planted(order: list[int]) -> HeadScores:
    """Ten heads in two layers: three kinds, each head with a little of its own."""
    maps = [
        0.9 * kind + 0.1 * random_maps(N, N, seed=10 * place + member)
        for place, (kind, number) in enumerate(KINDS.values())
        for member in range(number)
    ]
    whole = with_class(torch.stack([maps[place] for place in order]))[None]
    reducer = aligned_map(vision_ask(ROWS, COLUMNS))
    values = reduced(reducer, whole, **seen_by_all(whole))
    return HeadScores.from_array(
        values.view(1, 2, 5, -1), name="aligned_map", sample_axis="prompt", positions=reducer.measured().bins
    )


@pytest.mark.parametrize("order", [list(range(10)), [9, 0, 5, 1, 6, 2, 8, 3, 7, 4]])
def test_planted_kinds_are_found(order: list[int]) -> None:
    found = map_prototypes(planted(order), kinds=3, components=4)
    true = np.array([0] * 5 + [1] * 3 + [2] * 2)[order].reshape(2, 5)
    np.testing.assert_array_equal(found.labels, true)
    assert found.sizes == (5, 3, 2)
    for kind, head in enumerate(found.heads):
        assert true[head.layer, head.index] == kind, "the head that stands for a kind is of it"
    middle = found.maps[:, ROWS - 1, COLUMNS - 1]
    beside = found.maps[:, ROWS - 1, COLUMNS]
    assert beside[0] > 0.6 and middle[1] > 0.8 and max(beside[2], middle[2]) < 0.1
    np.testing.assert_allclose(found.maps.sum((1, 2)), 1)
    assert found.explained[:2].sum() > 0.9 and (np.diff(found.explained) <= 0).all()
    assert found.table()["heads"].tolist() == [5, 3, 2] and found.table()["layer 0"].sum() == 5
    assert repr(found).startswith("MapPrototypes(5 like ")


def test_on_a_model() -> None:
    ask = vision_ask(3, 3, batch_size=2)
    aligned = interp.score(ask.model, ask.batch, "aligned_map")["aligned_map"]
    found = map_prototypes(aligned, kinds=2)
    assert isinstance(found, MapPrototypes) and sorted(found.labels[0].tolist()) == [0, 1]
    assert found.maps.shape == (2, 5, 5)


@pytest.mark.parametrize("options", [{"kinds": 11}, {"kinds": 0}, {"components": 0}])
def test_impossible_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"for 10 heads, \d+ of them different"):
        map_prototypes(planted(list(range(10))), **options)


def test_other_scores_are_refused() -> None:
    with pytest.raises(BadInput, match="'hop_profile' is no aligned map"):
        map_prototypes(HeadScores.from_array(np.ones((1, 2, 2)), name="hop_profile", positions=["0", "1"]))


def test_equal_heads_are_one_kind() -> None:
    table = planted(list(range(10)))
    same = HeadScores.from_array(
        np.repeat(table.values[:, :1], 5, axis=1), name="aligned_map", positions=table.positions
    )  # two different heads, five times each
    assert map_prototypes(same, kinds=2).sizes == (5, 5)
    with pytest.raises(BadInput, match="10 heads, 2 of them different; expected 1 to that many"):
        map_prototypes(same, kinds=3)
