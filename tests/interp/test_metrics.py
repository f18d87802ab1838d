"""Metrics against closed forms and numbers worked out by hand."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from by_hand import batch_of
from scipy import stats as scipy_stats

import interp
from interp import (
    BadInput,
    Batch,
    UnknownName,
    accuracy,
    answer_logprob,
    kl_divergence,
    logit_difference,
    loss,
    probability,
    rank,
    sequence_logprob,
)
from interp.metrics import METRICS, answer_logits, metric_for, metric_named, token_losses

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


@pytest.mark.parametrize("metric", [logit_difference, answer_logprob, accuracy, probability, rank])
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


def test_probability_is_the_softmax_of_the_right_answer() -> None:
    at_answer = torch.stack([LOGITS[0, 2], LOGITS[1, 1]])
    wanted = torch.softmax(at_answer, -1)[[0, 1], [2, 1]]
    torch.testing.assert_close(probability(LOGITS, BATCH), wanted)
    assert probability(torch.zeros(2, 3, 4), BATCH).tolist() == pytest.approx([0.25, 0.25])


def test_rank_counts_the_larger_logits() -> None:
    assert rank(LOGITS, BATCH).tolist() == [0.0, 1.0]  # of prompt 1, logit 2.0 stands above 0.5
    assert rank(torch.zeros(2, 3, 4), BATCH).tolist() == [0.0, 0.0]  # ties are no larger
    torch.manual_seed(0)
    logits = torch.randn(5, 50)
    batch = batch_of([[1]] * 5, answers=torch.arange(5)[:, None])
    order = logits.argsort(-1, descending=True)
    assert rank(logits, batch).tolist() == [float((order[i] == i).nonzero()) for i in range(5)]
    assert ((rank(logits, batch) == 0).float() == accuracy(logits, batch)).all()


@pytest.mark.parametrize("place", [0, 2])
def test_a_broken_logit_has_no_rank(place: int) -> None:
    logits = LOGITS.clone()
    logits[0, 2, place] = math.nan
    assert math.isnan(rank(logits, BATCH)[0]) and rank(logits, BATCH)[1] == 1


IDS = [[1, 2, 3, 0], [3, 1, 2, 2]]
SPAN = torch.tensor([[False, True, True, False], [False, False, False, True]])
ANSWERED = batch_of(IDS, [[1, 1, 1, 0], [1, 1, 1, 1]], spans={"answer": SPAN})


def test_the_logprob_of_a_sequence_is_the_sum_over_its_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5)
    logp = torch.log_softmax(logits, -1)
    wanted = [float(logp[0, 0, 2] + logp[0, 1, 3]), float(logp[1, 2, 2])]
    assert sequence_logprob(logits, ANSWERED).tolist() == pytest.approx(wanted)


def test_the_logprob_of_a_sequence_is_the_chain_of_single_answers() -> None:
    model = interp.load("induction")
    ids = torch.tensor([[1, 20, 30, 40, 20, 30, 40]])
    whole = interp.encode(model, ids, spans={"answer": range(4, 7)})
    chained = [
        answer_logprob(interp.run(model, part).logits, part)
        for n in (4, 5, 6)
        for part in [interp.encode(model, ids[:, :n], answers=[int(ids[0, n])])]
    ]
    torch.testing.assert_close(sequence_logprob(interp.run(model, whole).logits, whole), sum(chained))


def test_a_sequence_that_nothing_predicts_is_refused() -> None:
    logits = torch.zeros(2, 4, 5)
    with pytest.raises(BadInput, match=r"spans=\{'answer': ...\}.* \(the batch has the spans none\)"):
        sequence_logprob(logits, batch_of(IDS))
    first = batch_of(IDS, spans={"answer": torch.tensor([[True, True, False, False], [False, True, False, False]])})
    with pytest.raises(BadInput, match="answer of prompt 0 holds the prompt's first token"):
        sequence_logprob(logits, first)
    none = batch_of(IDS, spans={"answer": SPAN & torch.tensor([[True], [False]])})
    with pytest.raises(BadInput, match="prompt 1 has no token in the span 'answer'"):
        sequence_logprob(logits, none)


def test_the_divergence_against_scipy_and_zero_from_itself() -> None:
    torch.manual_seed(0)
    clean, other = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    metric = kl_divergence(clean, BATCH)
    assert metric(clean, BATCH).tolist() == [0.0, 0.0]
    p, q = (torch.softmax(x[[0, 1], BATCH.read_at], -1).numpy() for x in (clean, other))
    np.testing.assert_allclose(metric(other, BATCH).numpy(), scipy_stats.entropy(p, q, axis=1), rtol=1e-9)
    over_tokens = kl_divergence(clean, BATCH, at="tokens")(other, BATCH)
    every = scipy_stats.entropy(torch.softmax(clean, -1).numpy(), torch.softmax(other, -1).numpy(), axis=2)
    np.testing.assert_allclose(over_tokens.numpy(), [every[0].mean(), every[1, :2].mean()], rtol=1e-9)
    assert (metric.positions, metric.sense) == ("answers", -1)  # type: ignore[attr-defined]
    assert not hasattr(kl_divergence(clean, BATCH, at="tokens"), "positions")


def test_the_divergence_finds_its_prompts_again_and_refuses_strangers() -> None:
    torch.manual_seed(0)
    clean, other = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    metric = kl_divergence(clean, BATCH)
    turned = BATCH.select([1, 0, 1])
    torch.testing.assert_close(metric(other[[1, 0, 1]], turned), metric(other, BATCH)[[1, 0, 1]])
    with pytest.raises(BadInput, match=r"kl: the prompts \[1\] were not in the clean run"):
        metric(other, batch_of([[1, 2, 3], [3, 2, 1]]))
    with pytest.raises(BadInput, match="at='somewhere'; expected 'answer' or 'tokens'"):
        kl_divergence(clean, BATCH, at="somewhere")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="expected a Run with logits, or logits and the batch"):
        kl_divergence(clean)
    with pytest.raises(BadInput, match="needs every position"):
        kl_divergence(clean[:, -1:], BATCH, at="tokens")


def test_a_token_that_the_clean_run_rules_out_adds_nothing_to_the_divergence() -> None:
    clean = torch.tensor([[[0.0, -math.inf]]])
    batch = batch_of([[1]])
    assert kl_divergence(clean, batch)(torch.tensor([[[0.0, 0.0]]]), batch).tolist() == pytest.approx([math.log(2)])


def test_every_metric_is_found_by_its_name_and_says_what_the_registry_says() -> None:
    for name, entry in METRICS.items():
        module, function = entry.function.split(":")
        found = getattr(importlib.import_module(module), function)
        if name == "kl":
            found = found(torch.zeros(1, 1, 2), batch_of([[1]]))
        else:
            assert metric_named(name) is found
        assert found.sense == entry.sense, name
        assert str(entry) == entry.summary
    with pytest.raises(UnknownName, match="Did you mean 'probability'"):
        metric_named("probabilty")
    with pytest.raises(BadInput, match=r"kl.* measured from a clean run: use interp\.kl_divergence"):
        metric_named("kl")


def test_a_metric_for_a_model_may_be_a_name_or_any_callable() -> None:
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
    divergence = metric_for("kl", model, batch)
    logits = interp.run(model, batch, logits="answers").logits
    assert divergence(logits, batch).tolist() == [0.0]
    without = interp.run(model, batch, edits=[interp.zero(interp.At("z", 1, heads=(0,)))]).logits
    # from (e^10, 1 x 15) / Z to uniform: log 16 - H
    share = math.exp(10) / (math.exp(10) + 15)
    entropy = -share * math.log(share) - (1 - share) * math.log((1 - share) / 15)
    assert divergence(without, batch).tolist() == pytest.approx([math.log(16) - entropy], rel=1e-4)
    own = lambda logits, batch: logits[:, -1, 0]  # noqa: E731
    assert metric_for(own, model, batch) is own and metric_for("rank", model, batch) is rank
    with pytest.raises(BadInput, match="metric=3: expected a metric"):
        metric_for(3, model, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_new_metrics_are_taken_in_float32_at_least(dtype: torch.dtype) -> None:
    logits = LOGITS.clamp(max=100).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for metric in (probability, rank, kl_divergence(logits, BATCH), kl_divergence(logits, BATCH, at="tokens")):
        assert metric(logits, BATCH).dtype == wide
