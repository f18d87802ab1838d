"""Normalised mutual information of maps: extremes, invariances, the uniform map's own, and the three types."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal

from interp.errors import BadInput
from interp.results import HeadScores
from interp.scores.shape.map_types import map_types
from interp.scores.shape.mutual_information import nmi, nmi_above_uniform, normalised_information


def by_sums(pattern: torch.Tensor) -> float:
    """The definition, entry by entry."""
    rows = len(pattern)
    joint = pattern.double() / rows
    of_key = joint.sum(0)
    information = sum(
        float(p * math.log(p / (of_key[k] / rows))) for row in joint for k, p in enumerate(row.tolist()) if p > 0
    )
    entropy = -sum(p * math.log(p) for p in of_key.tolist() if p > 0)
    return information / math.sqrt(math.log(rows) * entropy)


def test_extremes() -> None:
    """Identity and any permutation 1, uniform 0, a single column 0 by convention."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([torch.eye(12), torch.eye(12)[order], torch.full((12, 12), 1 / 12), all_on_first(12)])
    torch.testing.assert_close(normalised_information(maps), torch.tensor([1.0, 1, 0, 0]), atol=1e-6, rtol=0)
    assert normalised_information(torch.ones(1, 1)).isnan()


def test_the_definition_and_its_invariance() -> None:
    draw = torch.Generator().manual_seed(1)
    pattern = (2 * torch.randn(10, 10, generator=draw)).softmax(-1)
    assert normalised_information(pattern).item() == pytest.approx(by_sums(pattern), rel=1e-5)
    order = torch.randperm(10, generator=draw)
    assert normalised_information(pattern[:, order]).item() == pytest.approx(by_sums(pattern), rel=1e-5)


@pytest.mark.parametrize("split", [1, 3, 50])
def test_the_reducer(split: int) -> None:
    draw = torch.Generator().manual_seed(2)
    blocked = ~torch.ones(11, 11).tril().bool()
    pattern = torch.randn(2, 11, 11, generator=draw).masked_fill(blocked, -torch.inf).softmax(-1)
    found = reduced(nmi(ask_for(11)), pattern, rows_per_block=split)[0]
    assert found.tolist() == pytest.approx([by_sums(one) for one in pattern], rel=1e-4)
    uniform = by_sums(uniform_causal(11))
    above = reduced(nmi_above_uniform(ask_for(11)), pattern, rows_per_block=split)[0]
    assert above.tolist() == pytest.approx([by_sums(one) - uniform for one in pattern], rel=1e-3)


def test_the_triangle_makes_some_by_itself() -> None:
    found = reduced(nmi(ask_for(16)), uniform_causal(16)).item()
    assert found > 0.1
    assert abs(reduced(nmi_above_uniform(ask_for(16)), uniform_causal(16)).item()) < 1e-6
    assert reduced(nmi_above_uniform(ask_for(16)), all_on_first(16)).item() == pytest.approx(-found, abs=1e-6)
    assert reduced(nmi(ask_for(16)), previous_map(16)).item() > 0.9


def test_without_the_first_column() -> None:
    """A head that looks at the first token and, a little, at itself is global with it and local without."""
    pattern = 0.9 * all_on_first(12) + 0.1 * torch.eye(12)
    dropped = torch.zeros(1, 12, dtype=torch.bool)
    dropped[0, 0] = True
    assert reduced(nmi(ask_for(12)), pattern).item() < 0.4
    assert reduced(nmi(ask_for(12, dropped=dropped)), pattern).item() == pytest.approx(1, abs=1e-5)
    with_uniform = reduced(nmi_above_uniform(ask_for(12, dropped=dropped)), uniform_causal(12)).item()
    assert abs(with_uniform) < 1e-6


def test_types_have_no_cut_points_of_their_own() -> None:
    scores = HeadScores.from_array(np.array([[0.1, 0.9, 0.4], [0.3, 0.2, np.nan]]), name="nmi")
    thirds = map_types(scores)
    assert thirds.type.tolist() == ["global", "local", "hybrid", "hybrid", "global"]
    assert set(thirds["cut"]) == {"thirds of these heads"}
    given = map_types(scores, cuts=(0.15, 0.4))
    assert given.type.tolist() == ["global", "local", "local", "hybrid", "hybrid"]
    for cuts in ((0.4,), (0.5, 0.1)):
        with pytest.raises(BadInput, match="the smaller first"):
            map_types(scores, cuts=cuts)
