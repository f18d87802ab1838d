"""Windowed distance and future influence: the card's four maps, loops over tokens, padding and left-out columns."""

from __future__ import annotations

import pytest
import torch
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal
from planted_texts import causal_ask, causal_maps, encoder_ask, own, padded
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.scores.positions.windowed import (
    WindowedDistance,
    future_influence,
    future_influences,
    windowed_distance,
    windowed_distances,
)

T, W = 16, 5
PLACES = torch.arange(T, dtype=torch.float32)
CURVES = {
    "identity": (torch.eye(T), torch.zeros(T)),
    "previous": (previous_map(T), torch.ones(T).index_fill(0, torch.tensor([0]), 0)),
    "first": (all_on_first(T), PLACES.clamp(max=W)),
}


@pytest.mark.parametrize("name", CURVES)
def test_windowed_distance_of_planted_maps(name: str) -> None:
    """0 for the identity, 1 for the previous token, min(t, W) for a head on BOS: pure function, mean and curve."""
    pattern, wanted = CURVES[name]
    torch.testing.assert_close(windowed_distances(pattern, W), wanted)
    for rows_per_block in (1, 4, T):
        score = WindowedDistance(ask_for(T), W, curves=True)
        mean = reduced(score, pattern, rows_per_block=rows_per_block)
        assert mean.item() == pytest.approx(wanted.mean().item(), abs=1e-6)
        assert score.curves is not None
        torch.testing.assert_close(score.curves[0][0, 0], wanted)


def test_a_uniform_head_looks_half_way_back() -> None:
    """WAAD_t = t / 2 for t <= W."""
    found = windowed_distances(uniform_causal(T), W)
    torch.testing.assert_close(found[: W + 1], PLACES[: W + 1] / 2)
    assert found[-1] < PLACES[-1] / 2


def test_influence_of_a_head_on_the_first_token() -> None:
    """FAI_0 = 1, 0 elsewhere, and no value for the last ``low`` tokens."""
    low, high = 3, 6
    found = future_influences(all_on_first(T), low, high)
    assert found[0] == 1 and (found[1 : T - low] == 0).all()
    assert found.isnan().sum() == low and found[T - low :].isnan().all()
    for rows_per_block in (1, 4, T):
        mean = reduced(future_influence(ask_for(T), low=low, high=high), all_on_first(T), rows_per_block=rows_per_block)
        assert mean.item() == pytest.approx(1 / (T - low))


def by_loops(maps: Tensor, low: int, high: int, rows: list[int]) -> Tensor:
    """``[head, key]`` the definition, token by token."""
    made = torch.full(maps.shape[:2], torch.nan, dtype=torch.float64)
    for key in range(maps.shape[-1]):
        later = [t for t in rows if key + low <= t <= key + high]
        for head in range(len(maps)):
            if later:
                made[head, key] = sum(float(maps[head, t, key]) for t in later) / len(later)
    return made


@pytest.mark.parametrize("rows_per_block", [1, 4, 30])
def test_influence_is_the_definition_token_by_token(rows_per_block: int) -> None:
    mask = padded()
    pattern = causal_maps(1, mask)
    score = future_influence(causal_ask(mask), low=1, high=4)
    found = reduced(score, pattern, rows_per_block=rows_per_block)
    for prompt, maps in enumerate(own(pattern, mask)):
        wanted = by_loops(maps, 1, 4, list(range(maps.shape[-1])))
        torch.testing.assert_close(score.curve(0)[prompt][:, mask[prompt]], wanted, equal_nan=True, atol=1e-6, rtol=0)
        torch.testing.assert_close(future_influences(maps, 1, 4).double(), wanted, equal_nan=True, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[prompt], wanted.nanmean(-1), equal_nan=True, atol=1e-6, rtol=0)
    assert score.curve(0)[~mask[:, None].expand(-1, 3, -1)].isnan().all(), "padding has no influence"
    assert found[3].isnan().all(), "one token: nobody stands behind it"


def test_only_rows_of_the_response_look_back() -> None:
    maps = causal_maps(2, torch.ones(1, T, dtype=torch.bool))
    score = future_influence(ask_for(T), low=2, high=5, queries=slice(8, None))
    reduced(score, maps)
    torch.testing.assert_close(score.curve(0)[0], by_loops(maps[0], 2, 5, list(range(8, T))), equal_nan=True)
    score = windowed_distance(ask_for(T), window=W, queries=slice(8, None))
    found = reduced(score, maps)
    torch.testing.assert_close(found[0], windowed_distances(maps[0], W)[:, 8:].mean(-1).double(), atol=1e-6, rtol=0)


def test_left_out_columns() -> None:
    """Without the sink, what it took is given back to the others."""
    mask = padded()
    pattern = causal_maps(3, mask)
    ask = causal_ask(mask, dropped=mask & (mask.cumsum(-1) == 1))
    waad, fai = reduced(windowed_distance(ask, window=3), pattern), future_influence(ask, low=1, high=3)
    reduced(fai, pattern)
    for prompt, maps in enumerate(own(pattern, mask)[:3]):
        rest = maps[:, 1:, 1:] / maps[:, 1:, 1:].sum(-1, keepdim=True)
        wanted = windowed_distances(rest, 3).mean(-1).double()
        torch.testing.assert_close(waad[prompt], wanted, atol=1e-5, rtol=0)
        curve = fai.curve(0)[prompt][:, mask[prompt]]
        torch.testing.assert_close(
            curve[:, 1:], future_influences(rest, 1, 3).double(), equal_nan=True, atol=1e-5, rtol=0
        )
        assert curve[:, 0].isnan().all()
    assert waad[3].isnan().all()


def test_refusals() -> None:
    ask = ask_for(6)
    with pytest.raises(BadInput, match="window=0; expected a whole number of at least 1"):
        windowed_distance(ask, window=0)
    with pytest.raises(BadInput, match="low=4, high=3; expected low <= high"):
        future_influence(ask, low=4, high=3)
    for make in (windowed_distance, future_influence):
        with pytest.raises(Unsupported, match="sees both ways; score a causal stack"):
            make(encoder_ask(4))
