"""Metrics against closed forms and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import batch_of

from interp import BadInput, Batch, accuracy, answer_logprob, logit_difference, loss
from interp.metrics import answer_logits, token_losses

ANSWERS = torch.tensor([[2, 0, 1], [1, 3, -1]])
BATCH = batch_of([[1, 2, 3], [3, 1, 0]], [[1, 1, 1], [1, 1, 0]], answers=ANSWERS)  # read at columns 2 and 1
LOGITS = torch.zeros(2, 3, 4)
LOGITS[0, 2] = torch.tensor([1.0, 2.0, 5.0, -1.0])
LOGITS[1, 1] = torch.tensor([0.0, 0.5, 0.0, 2.0])
LOGITS[1, 2] = 1e4  # at padding


def test_answer_logits_are_those_of_the_answers_position() -> None:
    wanted = torch.stack([LOGITS[0, 2], LOGITS[1, 1]])
    assert torch.equal(answer_logits(LOGITS, BATCH), wanted)
    assert torch.equal(answer_logits(wanted[:, None], BATCH), wanted)
    assert torch.equal(answer_logits(wanted, BATCH), wanted)  # a classifier's
    with pytest.raises(BadInput, match="The logits hold 2 positions, the batch 3"):
        answer_logits(LOGITS[:, :2], BATCH)


def test_logit_difference_is_right_minus_the_mean_of_the_wrong_ones() -> None:
    assert logit_difference(LOGITS, BATCH).tolist() == [5.0 - (1.0 + 2.0) / 2, 0.5 - 2.0]


def test_an_absent_wrong_answer_counts_for_nothing_even_where_logits_are_infinite() -> None:
    logits = LOGITS.clone()
    logits[1, 1, 0] = -math.inf  # the id that stands in for "none" while gathering
    assert logit_difference(logits, BATCH).tolist() == [3.5, -1.5]


def test_answer_logprob_is_the_log_softmax() -> None:
    wanted = [5 - math.log(math.e + math.e**2 + math.e**5 + math.e**-1), 0.5 - math.log(2 + math.e**0.5 + math.e**2)]
    assert answer_logprob(LOGITS, BATCH).tolist() == pytest.approx(wanted)
    uniform = torch.zeros(2, 3, 4)
    assert answer_logprob(uniform, BATCH).tolist() == pytest.approx([-math.log(4)] * 2)


def test_accuracy_is_one_where_the_right_answer_is_largest() -> None:
    assert accuracy(LOGITS, BATCH).tolist() == [1.0, 0.0]


def test_token_losses_by_hand_with_nan_where_nothing_is_predicted() -> None:
    losses = token_losses(LOGITS, BATCH)
    first = math.log(4)  # uniform rows
    assert losses[0, :2].tolist() == pytest.approx([first, first])
    assert losses[1, 0].item() == pytest.approx(first)
    assert torch.isnan(losses).tolist() == [[False, False, True], [False, True, True]]


def test_loss_is_the_mean_over_real_tokens_and_over_its_span() -> None:
    logits = LOGITS.clone()
    logits[0, 0] = torch.tensor([0.0, 0.0, math.log(3.0), 0.0])  # token 2 follows: probability 3 / 6
    wanted = (math.log(2) + math.log(4)) / 2
    assert loss(logits, BATCH).tolist() == pytest.approx([wanted, math.log(4)])
    span = torch.tensor([[False, False, True], [False, True, False]])
    spanned = batch_of([[1, 2, 3], [3, 1, 0]], [[1, 1, 1], [1, 1, 0]], spans={"loss": span})
    assert loss(logits, spanned).tolist() == pytest.approx([math.log(4), math.log(4)])


def test_left_and_right_padding_give_one_loss() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4)
    garbage = torch.full((1, 1, 4), math.nan)
    right = batch_of([[1, 2, 3, 0]], [[1, 1, 1, 0]])
    left = batch_of([[0, 1, 2, 3]], [[0, 1, 1, 1]])
    a = loss(torch.cat([logits, garbage], 1), right)
    b = loss(torch.cat([garbage, logits], 1), left)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, torch.nn.functional.cross_entropy(logits[0, :2], torch.tensor([2, 3]))[None])


def test_a_broken_logit_of_a_real_token_is_not_left_out_of_the_mean() -> None:
    logits = LOGITS.clone()
    logits[0, 0, 1] = math.nan
    assert math.isnan(loss(logits, BATCH)[0]) and not math.isnan(loss(logits, BATCH)[1])


def test_gradients_of_the_loss_are_finite_beside_padding() -> None:
    logits = LOGITS.clone()
    logits[1, 2] = math.nan
    logits.requires_grad_()
    loss(logits, BATCH).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    probability = torch.softmax(logits[0, 0].detach(), -1)
    probability[2] -= 1
    torch.testing.assert_close(logits.grad[0, 0], probability / 2)


@pytest.mark.parametrize("metric", [logit_difference, answer_logprob, accuracy])
def test_metrics_of_answers_need_answers(metric: object) -> None:
    with pytest.raises(BadInput, match=r"needs answers; give encode\(\.\.\., answers="):
        metric(LOGITS, batch_of([[1, 2, 3], [3, 1, 0]]))  # type: ignore[operator]


def test_what_cannot_be_measured_is_refused() -> None:
    alone = batch_of([[1, 2, 3], [3, 1, 0]], answers=torch.tensor([[2], [1]]))
    some = batch_of([[1, 2, 3], [3, 1, 0]], answers=torch.tensor([[2, 1], [1, -1]]))
    for batch in (alone, some):
        with pytest.raises(BadInput, match="needs a wrong answer beside each right one"):
            logit_difference(LOGITS, batch)
    with pytest.raises(BadInput, match="needs every position: run with logits='all'"):
        loss(LOGITS[:, -1:], BATCH)
    with pytest.raises(BadInput, match="prompt 1 holds no token to predict"):
        loss(torch.zeros(2, 2, 4), batch_of([[1, 2], [3, 0]], [[1, 1], [1, 0]]))
    pictures = Batch(inputs={}, mask=BATCH.mask, ids=None, read_at=BATCH.read_at)
    with pytest.raises(BadInput, match="needs token ids"):
        loss(LOGITS, pictures)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_taken_in_float32_at_least(dtype: torch.dtype) -> None:
    logits = LOGITS.clamp(max=100).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for metric in (logit_difference, answer_logprob, loss):
        assert metric(logits, BATCH).dtype == wide


def test_metrics_that_read_one_position_say_so() -> None:
    assert {getattr(metric, "positions", None) for metric in (logit_difference, answer_logprob, accuracy)} == {
        "answers"
    }
    assert getattr(loss, "positions", None) is None
