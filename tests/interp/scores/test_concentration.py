"""Concentration and head diversity at the card's corners, and by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal

from interp.scores.shape.concentration import concentration, diversity_of, frobenius, head_diversity


def test_the_norm_at_twenty_tokens() -> None:
    """Identity sqrt(20) = 4.472; uniform causal sqrt(H_20) = 1.897; one-hot rows whatever their key."""
    harmonic = sum(1 / i for i in range(1, 21))
    assert reduced(concentration(ask_for(20)), torch.eye(20)).item() == pytest.approx(4.472, abs=5e-4)
    found = reduced(concentration(ask_for(20)), uniform_causal(20)).item()
    assert found == pytest.approx(math.sqrt(harmonic), rel=1e-6) == pytest.approx(1.897, abs=5e-4)
    assert reduced(concentration(ask_for(20)), previous_map(20)).item() == pytest.approx(math.sqrt(20))
    assert reduced(concentration(ask_for(20), share=True), all_on_first(20)).item() == pytest.approx(1)


@pytest.mark.parametrize("split", [1, 3, 50])
def test_concentration_of_random_maps(split: int) -> None:
    pattern = torch.randn(3, 11, 11, generator=torch.Generator().manual_seed(0)).tril().abs()
    found = reduced(concentration(ask_for(11)), pattern, rows_per_block=split)[0]
    torch.testing.assert_close(found, frobenius(pattern).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(frobenius(pattern), pattern.square().sum((1, 2)).sqrt())


def test_diversity_at_twenty_tokens() -> None:
    """Identical heads 0; half identity, half all on the first token: 19 rows of two entries of 1/2 each, 0.0905."""
    half = torch.stack([torch.eye(20), torch.eye(20), all_on_first(20), all_on_first(20)])
    found = reduced(head_diversity(ask_for(20)), half)[0]
    assert found.tolist() == pytest.approx([2 / (20 * 21) * 19 * 2 * 0.5] * 2, abs=1e-7)
    assert found[0].item() == pytest.approx(0.09, abs=1e-3)
    assert reduced(head_diversity(ask_for(20)), uniform_causal(20).expand(4, -1, -1)).abs().max().item() < 1e-7


@pytest.mark.parametrize("split", [1, 3, 50])
def test_diversity_of_random_maps(split: int) -> None:
    pattern = torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(1)).masked_fill(
        ~torch.ones(9, 9).tril().bool(), -torch.inf
    ).softmax(-1)  # fmt: skip
    total = sum(
        float(torch.stack([pattern[h, i, j] for h in range(4)]).std(correction=0))
        for i in range(9)
        for j in range(i + 1)
    )
    found = reduced(head_diversity(ask_for(9)), pattern, rows_per_block=split)[0]
    assert found.tolist() == pytest.approx([2 / 90 * total] * 2, rel=1e-5)


def test_padding_counts_in_neither() -> None:
    mask = torch.tensor([[False, False, True, True, True, True]])
    wide = torch.zeros(2, 6, 6)
    wide[0, 2:, 2:] = torch.eye(4)
    wide[1, 2:, 2:] = uniform_causal(4)
    small = wide[:, 2:, 2:]
    for make in (concentration, head_diversity):
        torch.testing.assert_close(reduced(make(ask_for(6, mask=mask)), wide), reduced(make(ask_for(4)), small))


def test_one_head_has_no_diversity() -> None:
    assert diversity_of(torch.eye(3)[None, None], torch.ones(1, 3, 3).tril().bool()).isnan().all()
