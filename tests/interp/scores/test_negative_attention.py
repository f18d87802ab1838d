"""The negative attention score on planted maps, by hand and by its reducer."""

from __future__ import annotations

import math

import pytest
import torch
from planted import ask_for, reduced, uniform_causal
from tiny_models import TINY
from torch import Tensor

import interp
from interp import BadAddress, BadInput, Unsupported
from interp.scores.writes.negative import negative_attention, negative_attention_score

LENGTH = 9


def leaning(yes: int, no: int, heavy: float, light: float) -> Tensor:
    """``[query, key]`` rows that give ``light`` to key ``yes``, ``heavy`` to key ``no``, the rest to key 0."""
    pattern = torch.zeros(LENGTH, LENGTH)
    pattern[:, 0] = 1 - heavy - light
    pattern[:, yes] += light
    pattern[:, no] += heavy
    return pattern


def by_hand(pattern: Tensor, yes: int, no: int, rows: range) -> float:
    total = 0.0
    for row in rows:
        a, b = float(pattern[row, yes]), float(pattern[row, no])
        total += (a + b) * math.log(b / a)
    return total


def test_it_is_0_where_both_masses_are_equal_and_turns_round_when_they_are_exchanged() -> None:
    even = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert negative_attention_score(even, even).abs().max() == 0
    other = torch.rand(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(negative_attention_score(even, other), -negative_attention_score(other, even))
    assert negative_attention_score(torch.tensor(0.1), torch.tensor(0.2)).item() == pytest.approx(0.3 * math.log(2))


def test_a_mass_of_0_gives_a_large_number_and_no_infinity() -> None:
    yes, no = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    assert negative_attention_score(yes, no).tolist() == pytest.approx([9 * math.log(10), -9 * math.log(10), 0.0])


@pytest.mark.parametrize("rows", [1, 3, 4, 20])
def test_the_reducer_sums_over_the_rows_behind_both_in_any_split(rows: int) -> None:
    pattern = leaning(2, 4, 0.3, 0.1)
    found = reduced(negative_attention(ask_for(LENGTH), yes=2, no=4), pattern, rows_per_block=rows)
    assert found.item() == pytest.approx(by_hand(pattern, 2, 4, range(5, LENGTH)), rel=1e-6)
    swapped = reduced(negative_attention(ask_for(LENGTH), yes=4, no=2), pattern, rows_per_block=rows)
    assert swapped.item() == pytest.approx(-found.item(), rel=1e-6)
    assert reduced(negative_attention(ask_for(LENGTH), yes=2, no=4), uniform_causal(LENGTH)).item() == 0


def test_it_does_not_change_when_sinks_are_left_out_only_their_share_does() -> None:
    dropped = torch.zeros(1, LENGTH, dtype=torch.bool)
    dropped[:, 0] = True
    pattern = leaning(2, 4, 0.3, 0.1)
    found = reduced(negative_attention(ask_for(LENGTH, dropped=dropped), yes=2, no=4), pattern)
    assert found.item() == pytest.approx((LENGTH - 5) * math.log(3), rel=1e-5)  # the rows now sum to 1 over the two


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_counts(side: str) -> None:
    padding = slice(0, 2) if side == "left" else slice(LENGTH - 2, LENGTH)
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    mask[:, padding] = False
    first, end = (2, LENGTH) if side == "left" else (0, LENGTH - 2)
    pattern = leaning(first + 1, first + 3, 0.3, 0.1)
    found = reduced(negative_attention(ask_for(LENGTH, mask=mask), yes=1, no=3), pattern)
    assert found.item() == pytest.approx(by_hand(pattern, first + 1, first + 3, range(first + 4, end)), rel=1e-5)


def test_without_a_row_behind_both_it_is_nan() -> None:
    assert reduced(negative_attention(ask_for(LENGTH), yes=0, no=-1), uniform_causal(LENGTH)).isnan().all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_it_is_the_sum_over_the_plain_maps_per_query_head(name: str) -> None:
    tiny = TINY[name]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs(3, 7, 0))
    found = interp.score(model, batch, {"nas": {"score": "negative_attention", "yes": 1, "no": slice(2, 4)}})["nas"]
    at = interp.At(interp.Site.PATTERN)
    pattern = interp.run(model, batch, read=[at])[at]  # [layer, batch, head, query, key]
    yes, no = pattern[..., 4:, 1], pattern[..., 4:, 2:4].sum(-1)
    expected = ((yes + no) * (no / yes).log()).sum(-1)
    torch.testing.assert_close(
        torch.tensor(found.per_prompt), expected.transpose(0, 1).double(), rtol=1e-5, atol=1e-6, check_dtype=False
    )


def test_rows_of_either_sign_cancel_in_double_precision() -> None:
    """In float32 the logarithm of a mass of 1e-8 is off by 1e-6, which is all that is left of two rows that cancel."""
    yes = torch.tensor([0.9999998807907104, 1e-8])
    no = yes.flip(0)
    assert negative_attention_score(yes, no).sum().item() == 0
    near = torch.tensor([0.9999997615814209, 1e-8])
    exact = sum((float(a) + float(b)) * math.log(float(b) / float(a)) for a, b in zip(near, no, strict=True))
    assert negative_attention_score(near, no).sum().item() == pytest.approx(exact, rel=1e-6)


def test_refusals_say_what_to_do() -> None:
    pair = TINY["t5"]()
    model = interp.load(pair.hf)
    batch = interp.encode(model, inputs=pair.inputs(2, 7, 0))
    with pytest.raises(Unsupported, match="a stack's attention to its own tokens"):
        interp.score(model, batch, {"negative_attention": {"yes": 0, "no": 1}}, stack="cross")
    with pytest.raises(BadInput, match="share tokens in prompts"):
        negative_attention(ask_for(LENGTH), yes=2, no=slice(1, 4))
    with pytest.raises(BadAddress, match="Unknown span 'yes'"):
        negative_attention(ask_for(LENGTH))
