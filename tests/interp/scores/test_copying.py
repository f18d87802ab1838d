"""The copying score on heads whose output is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.scores.positions.copying import bounded_copying, copying_ratio

VOCABULARY = 10
IDS = torch.tensor([[0, 4, 7, 2]])  # a start token and three tokens
SAMPLE = torch.tensor([[False, True, True, True]])


def identity(x: Tensor) -> Tensor:
    return x


def ratio_of(pattern: Tensor, result: Tensor) -> float:
    return copying_ratio(pattern[None, None], result[None, :, None], IDS, SAMPLE, identity).item()


def test_a_perfect_copier_has_ratio_1() -> None:
    """Orthonormal embeddings, W_V W_O = 1, W_U = E^T and one-hot attention: only the attended token is raised."""
    pattern = torch.eye(4)
    assert ratio_of(pattern, torch.eye(VOCABULARY)[IDS[0]]) == pytest.approx(1, abs=1e-6)


def test_an_anticopier_raises_everything_else() -> None:
    assert ratio_of(torch.eye(4), -torch.eye(VOCABULARY)[IDS[0]]) == 0


def test_two_attended_tokens_by_hand() -> None:
    """Row 2 gives 0.7 to token 4 and 0.3 to token 7: centred by 1/10 they are raised by 0.6 and 0.2."""
    pattern = torch.zeros(4, 4)
    pattern[0, 0] = pattern[1, 1] = pattern[3, 3] = 1
    pattern[2, 1], pattern[2, 2] = 0.7, 0.3
    result = pattern @ torch.eye(VOCABULARY)[IDS[0]]
    row = (0.7 * 0.6 + 0.3 * 0.2) / 0.8
    assert ratio_of(pattern, result) == pytest.approx((1 + row + 1) / 3, abs=1e-6)


def test_attention_to_the_start_token_is_no_part_of_the_sample() -> None:
    """A row with 0.6 on the start token is judged by its other 0.4; a row with nothing else is left out."""
    pattern = torch.zeros(4, 4)
    pattern[:, 0] = 1
    pattern[2, 0], pattern[2, 1] = 0.6, 0.4
    result = torch.eye(VOCABULARY)[[0, 0, 4, 0]]
    assert ratio_of(pattern, result) == pytest.approx(1, abs=1e-6)
    pattern[2] = torch.tensor([1.0, 0, 0, 0])
    assert torch.tensor(ratio_of(pattern, result)).isnan()


def test_a_constant_added_to_every_logit_changes_nothing() -> None:
    pattern = torch.rand(4, 4).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    result = torch.randn(4, VOCABULARY)
    assert ratio_of(pattern, result + 3) == pytest.approx(ratio_of(pattern, result), abs=1e-5)


def test_the_map_is_cut_at_a_half() -> None:
    ratios = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    torch.testing.assert_close(bounded_copying(ratios), torch.tensor([[-1.0, 0.0, 1.0, 1.0]]))
