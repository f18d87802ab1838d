"""The split of heads by focus, and the curves over tokens that it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp import At, HeadScores, Site
from interp.errors import BadInput, Unsupported
from interp.scores.positions.focus import FocusSplit, focus_curves, focus_split, middle_layers, top_tokens
from interp.scores.positions.windowed import future_influences, windowed_distances


def table(values: list[list[float]]) -> HeadScores:
    return HeadScores.from_array(np.array(values), name="mean_distance")


def labels(heads: tuple[interp.Head, ...]) -> list[str]:
    return [str(head) for head in heads]


def test_thirty_per_cent_at_each_end() -> None:
    split = focus_split(table([[5, 1, 9, 3, 7], [2, 8, 4, 10, 6]]))
    assert labels(split.local_heads) == ["L0.H1", "L0.H3", "L1.H0"] and split.local_cut == 3
    assert labels(split.global_heads) == ["L0.H2", "L1.H1", "L1.H3"] and split.global_cut == 8


def test_heads_that_tie_with_the_cut_go_with_it() -> None:
    """The third of ten ties with the fourth and fifth: five are local, whatever the order of heads."""
    values = [[1.0, 2.0, 3.0, 3.0, 3.0], [6.0, 7.0, 8.0, 8.0, 9.0]]
    split = focus_split(table(values))
    assert labels(split.local_heads) == ["L0.H0", "L0.H1", "L0.H2", "L0.H3", "L0.H4"]
    assert labels(split.global_heads) == ["L1.H2", "L1.H3", "L1.H4"]
    turned = focus_split(table([row[::-1] for row in values]))
    assert len(turned.local_heads) == 5 and len(turned.global_heads) == 3


def test_a_head_without_a_value_is_in_neither() -> None:
    split = focus_split(table([[1.0, np.nan], [5.0, 9.0]]), share=0.4)
    assert labels(split.local_heads) == ["L0.H0"] and labels(split.global_heads) == ["L1.H1"]


def test_some_layers_alone() -> None:
    split = focus_split(table([[0.0, 100.0], [1.0, 2.0], [4.0, 3.0]]), layers=(1, 2))
    assert labels(split.local_heads) == ["L1.H0"] and labels(split.global_heads) == ["L2.H0"]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[1.0, 1.0], [1.0, 2.0]], {"share": 0.5}, "of which 3 have the distance 1 of the cut.*smaller share"),
        ([[1.0, 2.0]], {"share": 0.6}, r"share of the heads in \(0, 0.5\]"),
        ([[1.0, 2.0]], {"share": 0}, "share=0"),
        ([[1.0, 2.0]], {"layers": [3]}, r"layers=\[3\]; the table has layers 0 to 0"),
        ([[np.nan, 2.0]], {"layers": []}, "no head with a value"),
        ([[2.0]], {}, "there are no two ends"),
    ],
)
def test_splits_that_are_none_are_refused(values: list[list[float]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        focus_split(table(values), **options)


def test_profiles_are_no_distances() -> None:
    wrong = HeadScores.from_array(np.ones((1, 2, 3)), name="offset_profile", positions=["0", "1", "2"])
    with pytest.raises(BadInput, match="several numbers per head"):
        focus_split(wrong)


@pytest.mark.parametrize(
    ("n_layers", "wanted"), [(36, (12, 15, 18, 21, 24)), (6, (2, 3, 4)), (3, (1, 2)), (2, (1,)), (1, (0,))]
)
def test_five_layers_of_the_middle_third(n_layers: int, wanted: tuple[int, ...]) -> None:
    assert middle_layers(n_layers) == wanted
    assert all(0 <= layer < n_layers for layer in wanted)


def test_top_tokens_and_ties() -> None:
    """floor(0.4 x 5) = 2; of equal values the earlier token; per prompt, among members with a value."""
    values = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0], [torch.nan, 5.0, 1.0, 4.0, torch.nan], [torch.nan] * 5])
    member = torch.ones(3, 5, dtype=torch.bool)
    member[1, 1] = False
    found = top_tokens(values, member, 0.4).int().tolist()
    assert found == [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0] * 5]


@pytest.fixture(scope="module")
def induction() -> interp.Model:
    return interp.load("induction")


def whole_maps(model: interp.Model, batch: interp.Batch) -> Tensor:
    """``[layer, batch, head, query, key]`` read whole: the other road."""
    return interp.run(model, batch, read=[At(Site.PATTERN)])[At(Site.PATTERN)].float()


def by_hand(maps: Tensor, split: FocusSplit, window: int, ahead: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """WAAD and FAI of one prompt from the plain means of whole maps."""
    local = torch.stack([maps[head.layer, head.index] for head in split.local_heads]).mean(0)
    far = torch.stack([maps[head.layer, head.index] for head in split.global_heads]).mean(0)
    return windowed_distances(local, window), future_influences(far, *ahead)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sinks", [None, "first"])
def test_curves_are_those_of_whole_maps(induction: interp.Model, side: Any, sinks: str | None) -> None:
    ids = [[0, 9, 8, 7, 6, 9, 8, 7, 6, 9], [0, 5, 4, 3, 5, 4, 3]]
    batch = interp.encode(induction, ids, padding_side=side)
    found = focus_curves(induction, batch, window=3, ahead=(2, 4), exclude_sinks=sinks)
    scores = interp.score(induction, batch, "mean_distance", exclude_sinks=sinks)["mean_distance"]
    np.testing.assert_allclose(found.distances.values, scores.values, atol=1e-6)
    assert found.split == focus_split(scores)
    for prompt, tokens in enumerate(ids):
        alone = interp.encode(induction, [tokens])
        maps = whole_maps(induction, alone)[:, 0]
        if sinks:
            maps = maps * (torch.arange(len(tokens)) > 0)
            maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-30)
        waad, fai = by_hand(maps, found.split, 3, (2, 4))
        real = batch.mask[prompt].numpy()
        first = 1 if sinks else 0  # the first row saw the sink alone
        np.testing.assert_allclose(found.waad[prompt, real][first:], waad[first:], atol=1e-5)
        np.testing.assert_allclose(found.fai[prompt, real][first:], fai[first:], atol=1e-5)
        assert np.isnan(found.waad[prompt, ~real]).all() and np.isnan(found.fai[prompt, ~real]).all()
        change = (waad[:-1] - waad[1:]).abs()
        np.testing.assert_allclose(found.change[prompt, real][first:-1], change[first:], atol=1e-5)
        assert np.isnan(found.change[prompt, real][-1])
        wanted = np.sort(change[first:])[::-1][: int(0.4 * len(change[first:]))]
        np.testing.assert_allclose(np.sort(found.change[prompt][found.preplan[prompt]])[::-1], wanted, atol=1e-5)
        assert found.anchors[prompt].sum() == max(1, int(0.4 * (len(tokens) - 2 - first)))
    assert len(found.table()) == 17 and found.table().prompt.tolist().count(0) == 10
    assert "FocusCurves(2 prompts" in repr(found)


def test_the_response_alone(induction: interp.Model) -> None:
    """Distances, rows and sets are of the response; tokens before it can be looked at by it."""
    ids = torch.tensor([[0, 9, 8, 7, 6, 9, 8, 7, 6, 9, 8, 7]])
    batch = interp.encode(induction, ids, spans={"response": range(6, 12)})
    found = focus_curves(induction, batch, response="response", ahead=(2, 4))
    maps = whole_maps(induction, batch)[:, 0]
    places = torch.arange(12)
    distance = (maps * (places[:, None] - places).clamp(min=0)).sum(-1)[..., 6:].mean(-1)
    np.testing.assert_allclose(found.distances.values, distance, atol=1e-5)
    assert np.isnan(found.waad[0, :6]).all() and np.isfinite(found.waad[0, 6:]).all()
    assert np.isnan(found.change[0, :6]).all() and np.isnan(found.change[0, 11]) and found.preplan[0].sum() == 2
    assert np.isfinite(found.fai[0]).tolist() == [s + 4 >= 6 and s + 2 <= 11 for s in range(12)]
    assert not found.anchors[0, :6].any() and found.anchors[0].sum() == 1  # floor(0.4 x 4)


def test_a_split_made_elsewhere(induction: interp.Model) -> None:
    batch = interp.encode(induction, torch.tensor([[0, 9, 8, 7, 9, 8, 7]]))
    split = FocusSplit((interp.Head(0, 0),), (interp.Head(1, 0),), 1.0, 2.0, 0.3)
    found = focus_curves(induction, batch, split=split, window=4, ahead=(1, 3))
    waad, fai = by_hand(whole_maps(induction, batch)[:, 0], split, 4, (1, 3))
    np.testing.assert_allclose(found.waad[0], waad, atol=1e-5)
    np.testing.assert_allclose(found.fai[0], fai, atol=1e-5)


def test_curves_refuse(induction: interp.Model) -> None:
    batch = interp.encode(induction, torch.tensor([[0, 9, 8, 7]]))
    for options, message in (
        ({"window": 0}, "window=0"),
        ({"ahead": (5, 2)}, "expected \\(nearest, furthest\\)"),
        ({"top": 0}, "share of the tokens"),
        ({"response": slice(9, None)}, "response=slice.* means no token"),
    ):
        with pytest.raises(BadInput, match=message):
            focus_curves(induction, batch, **options)
    from tiny_models import TINY

    bert = interp.load(TINY["bert"]().hf)
    with pytest.raises(Unsupported, match="sees both ways"):
        focus_curves(bert, interp.encode(bert, torch.tensor([[5, 6, 7]])))
