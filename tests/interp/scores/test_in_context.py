"""The in-context learning score."""

from __future__ import annotations

import pytest
import torch

from interp.errors import BadInput
from interp.scores.positions.in_context import in_context_score


def test_is_late_minus_early_by_token_number() -> None:
    """Entry i of the losses is about token i + 1, so tokens 50 and 500 are entries 49 and 499."""
    losses = torch.arange(512.0).expand(2, -1).clone()
    losses[1, 499], losses[1, 49] = 0.25, 4.0
    assert in_context_score(losses).tolist() == [450.0, -3.75]


def test_a_prompt_that_is_too_short_is_nan() -> None:
    losses = torch.ones(2, 20)
    losses[1, 9:] = torch.nan
    found = in_context_score(losses, early=2, late=12)
    assert found[0] == 0 and found[1].isnan()


@pytest.mark.parametrize(("early", "late"), [(0, 5), (2, 20), (2, 500), (-1, 3)])
def test_tokens_that_nothing_predicts_are_refused(early: int, late: int) -> None:
    with pytest.raises(BadInput, match="choose positions inside them"):
        in_context_score(torch.ones(1, 20), early=early, late=late)


def test_padding_everywhere_is_refused() -> None:
    with pytest.raises(BadInput, match="padding in every prompt"):
        in_context_score(torch.full((2, 20), torch.nan), early=2, late=8)
