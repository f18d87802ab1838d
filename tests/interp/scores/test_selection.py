"""Thresholds by bisection against sorting, with ties, zeros and every number of entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.scores.shape.selection import keys_holding, largest, threshold_of, top_mass_of


def rows(kind: str, width: int, dtype: torch.dtype) -> Tensor:
    """Rows that sum to 1 (or less) of one kind."""
    draw = torch.Generator().manual_seed(width)
    drawn = torch.randn(40, width, generator=draw, dtype=torch.float64)
    if kind == "uniform":
        return torch.full((40, width), 1 / width, dtype=dtype)
    if kind == "one-hot":
        return torch.eye(width, dtype=dtype)[torch.arange(40) % width]
    if kind == "short":
        made = drawn.softmax(-1)
        made[:, width // 3 :] = 0
        return made.to(dtype)
    if kind == "tied":
        return ((drawn.softmax(-1) * 4 * width).round() / (4 * width)).to(dtype)
    return (drawn * {"flat": 0.1, "normal": 2.0, "steep": 20.0}[kind]).softmax(-1).to(dtype)


KINDS = ("uniform", "one-hot", "short", "tied", "flat", "normal", "steep")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 7, 64, 333])
@pytest.mark.parametrize("kind", KINDS)
def test_top_mass_is_that_of_sorting(kind: str, width: int, dtype: torch.dtype) -> None:
    values = rows(kind, width, dtype)
    falling = values.double().sort(-1, descending=True).values
    for n in sorted({0, 1, 2, 5, width // 2, width - 1, width}):
        if n > width:
            continue
        wanted = falling[:, :n].sum(-1)
        torch.testing.assert_close(top_mass_of(values, torch.tensor(n)).double(), wanted, rtol=1e-6, atol=1e-7)
        chosen = largest(values, torch.tensor(n))
        assert (chosen.sum(-1) == n).all()
        torch.testing.assert_close((values * chosen).sum(-1).double(), wanted, rtol=1e-6, atol=1e-7)
        threshold = threshold_of(values, torch.tensor(n)).unsqueeze(-1)
        assert ((values > threshold).sum(-1) <= n).all()
        assert n == 0 or ((values >= threshold).sum(-1) >= n).all()


@pytest.mark.parametrize("width", [64, 333])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_its_own_number(kind: str, width: int) -> None:
    values = rows(kind, width, torch.float32).view(2, 20, width)
    n = torch.randint(0, width + 1, (2, 20), generator=torch.Generator().manual_seed(1))
    n[0, :15] = 3
    falling = torch.nn.functional.pad(values.double().sort(-1, descending=True).values.cumsum(-1), (1, 0))
    wanted = falling.gather(-1, n.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(top_mass_of(values, n).double(), wanted, rtol=1e-6, atol=1e-7)


def test_among_equal_entries_the_first_are_chosen() -> None:
    values = torch.tensor([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25]])
    assert largest(values, torch.tensor(2)).tolist() == [[False, True, True, False], [True, True, False, False]]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("width", [1, 7, 64, 333])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_hold_a_share(kind: str, width: int, share: float) -> None:
    """As many as cumulated sorting says; where a sum stands at the share but for rounding, either neighbour."""
    values = rows(kind, width, torch.float64)
    total = values.sum(-1)
    falling = values.sort(-1, descending=True).values.cumsum(-1)
    found = keys_holding(values, share * total)
    fewest = (falling < share * total.unsqueeze(-1) - 1e-7).sum(-1) + 1
    most = (falling < share * total.unsqueeze(-1) + 1e-7).sum(-1) + 1
    assert ((found >= fewest) & (found <= most)).all()
    single = keys_holding(values.float(), (share * total).float())
    assert ((single >= fewest) & (single <= most)).all()


def test_by_hand() -> None:
    values = torch.tensor([[0.5, 0.2, 0.2, 0.1, 0.0]])
    assert [int(keys_holding(values, torch.tensor(p))) for p in (0.1, 0.5, 0.6, 0.75, 0.95, 2.0)] == [1, 1, 2, 3, 4, 4]
    assert top_mass_of(values, torch.tensor(2)).item() == pytest.approx(0.7)
