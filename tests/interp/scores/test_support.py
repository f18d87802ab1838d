"""Effective support, top mass and keys for a mass: closed forms and brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal
from torch import Tensor

from interp.errors import BadInput
from interp.scores.shape.support import (
    effective_support,
    effective_support_of,
    keys_for_mass,
    participation_of,
    participation_ratio,
    top_mass,
)


def random_map(length: int, heads: int = 3, size: float = 2.0) -> Tensor:
    scores = size * torch.randn(heads, length, length, generator=torch.Generator().manual_seed(length))
    return scores.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf).softmax(-1)


@pytest.mark.parametrize("make", [effective_support, participation_ratio])
def test_uniform_and_one_hot_rows(make: Any) -> None:
    """Row i of a uniform map spreads over i + 1 keys, a one-hot row over 1."""
    assert reduced(make(ask_for(9)), uniform_causal(9)).item() == pytest.approx(5, rel=1e-5)
    assert reduced(make(ask_for(9), share=True), uniform_causal(9)).item() == pytest.approx(1, rel=1e-5)
    for planted in (all_on_first(9), previous_map(9), torch.eye(9)):
        assert reduced(make(ask_for(9)), planted).item() == pytest.approx(1)


def test_participation_never_exceeds_the_entropic_support() -> None:
    pattern = random_map(30)
    n = torch.arange(1, 31)
    participation, entropic = participation_of(pattern), effective_support_of(pattern)
    assert (participation >= 1 - 1e-5).all() and (participation <= entropic + 1e-4).all()
    assert (entropic <= n + 1e-3).all()
    torch.testing.assert_close(participation_of(pattern * 0.2), participation, rtol=1e-4, atol=0)


@pytest.mark.parametrize("split", [1, 4, 50])
@pytest.mark.parametrize("n", [1, 3, 0.25])
def test_top_mass_by_sorting(n: int | float, split: int) -> None:
    """Rows with more than n keys alone count; a share of the keys is rounded up."""
    pattern = random_map(14)
    rows = []
    for row in range(14):
        seen = row + 1
        k = n if isinstance(n, int) else max(-(-seen // 4), 1)
        if seen > (n if isinstance(n, int) else 1):
            rows.append(pattern[:, row].double().sort(-1, descending=True).values[:, :k].sum(-1))
    expected = torch.stack(rows).mean(0)
    found = reduced(top_mass(ask_for(14), n), pattern, rows_per_block=split)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_prompt_too_short_for_n_keys_is_nan() -> None:
    assert reduced(top_mass(ask_for(5), 5), uniform_causal(5)).isnan().all()
    assert reduced(top_mass(ask_for(5), 4), uniform_causal(5)).item() == pytest.approx(0.8)


@pytest.mark.parametrize("split", [1, 4, 50])
def test_keys_for_mass_by_sorting(split: int) -> None:
    pattern = random_map(14)
    held = pattern.double().sort(-1, descending=True).values.cumsum(-1)
    expected = ((held < 0.7 - 1e-9).sum(-1) + 1).double().mean(-1)
    found = reduced(keys_for_mass(ask_for(14), 0.7), pattern, rows_per_block=split)[0]
    torch.testing.assert_close(found, expected)


def test_keys_for_mass_in_corners() -> None:
    assert reduced(keys_for_mass(ask_for(6)), torch.eye(6)).item() == 1
    # uniform rows of 1..6 keys: 90 % needs 1, 2, 3, 4, 5, 6 keys
    assert reduced(keys_for_mass(ask_for(6)), uniform_causal(6)).item() == pytest.approx(3.5)
    # half of them: 1, 1, 2, 2, 3, 3
    assert reduced(keys_for_mass(ask_for(6), 0.5), uniform_causal(6)).item() == pytest.approx(2)


@pytest.mark.parametrize("n", [0, -1, 1.0, 0.0, 1.5, True, "5"])
def test_a_number_that_is_none_is_refused(n: Any) -> None:
    with pytest.raises(BadInput, match="number of keys from 1 on, or a share"):
        top_mass(ask_for(5), n)


@pytest.mark.parametrize("mass", [0, 1, 1.2, -0.1, float("nan"), True, "0.9"])
def test_a_share_that_is_none_is_refused(mass: Any) -> None:
    with pytest.raises(BadInput, match="above 0 and below 1"):
        keys_for_mass(ask_for(5), mass)
