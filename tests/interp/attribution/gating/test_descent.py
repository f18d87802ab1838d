"""The objective and its descent on losses whose answer is worked out on paper: no model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from interp.attribution.gating.descent import Descent, Objective, Slopes, descend, logits_of
from interp.attribution.gating.settings import SCHEDULES, rate_at

UPDATES = 500
STARTS = (0.37, 0.61, 0.52)
ALL = torch.ones(1, 3, dtype=torch.bool)


def logistic(votes: Sequence[float]) -> Slopes:
    """``nll = softplus(-sum_h g_h c_h)`` and its slope ``-(1 - sigmoid(sum)) c_h``."""
    weights = torch.tensor(votes)

    def slopes(gates: Tensor, update: int) -> tuple[Tensor, Tensor]:
        total = (gates * weights).sum((1, 2))
        return torch.nn.functional.softplus(-total), -(torch.sigmoid(-total)[:, None, None] * weights)

    return slopes


def fitted(slopes: Slopes, start: Tensor, lam: Sequence[float], rates: tuple[float, float]) -> Descent:
    descent = Descent.start(start)
    objective = Objective(torch.tensor(lam), ALL[:, : start.shape[2]])
    descend(descent, slopes, objective, lambda update: rate_at(rates, update, UPDATES), updates=UPDATES)
    return descent


def three_fits(votes: Sequence[float], starts: Sequence[float] = STARTS) -> tuple[Tensor, Tensor]:
    """``(G+, G-)`` of the toy, with the paper's schedule."""
    slopes, rates = logistic(votes), SCHEDULES["paper"]
    warm = fitted(slopes, logits_of(torch.tensor([[starts]])), [0.0], rates.warm)
    signed = fitted(slopes, torch.cat([warm.theta] * 2), [0.1, -0.1], rates.signed)
    return signed.gates[0, 0], signed.gates[1, 0]


@pytest.mark.parametrize(
    "votes, retain, remove",
    [
        ((1, -1, 0), (1, 0, 1), (1, 0, 0)),  # facilitating, interfering, irrelevant
        ((3, -3, 0), (1, 0.174, 1), (0.826, 0, 0)),
        ((10, -10, 0), (1, 0.572, 1), (0.428, 0, 0)),  # saturated: the regulariser wins, both thresholds fail
    ],
)
def test_the_logistic_toy_ends_where_the_card_derives(
    votes: tuple[float, ...], retain: tuple[float, ...], remove: tuple[float, ...]
) -> None:
    plus, minus = three_fits(votes)
    torch.testing.assert_close(plus, torch.tensor(retain, dtype=torch.float32), atol=0.02, rtol=0)
    torch.testing.assert_close(minus, torch.tensor(remove, dtype=torch.float32), atol=0.02, rtol=0)
    inside = [index for index, value in enumerate(retain) if 0 < value < 1]
    assert (plus[inside] - torch.tensor(retain)[inside]).abs().sum() < 0.01
    inside = [index for index, value in enumerate(remove) if 0 < value < 1]
    assert (minus[inside] - torch.tensor(remove)[inside]).abs().sum() < 0.01


def test_of_two_twins_one_survives_and_the_start_decides_which() -> None:
    first = three_fits((3, 3, 0))[1]
    second = three_fits((3, 3, 0), (0.61, 0.37, 0.52))[1]
    assert first.round().tolist() == [0, 1, 0]
    assert second.round().tolist() == [1, 0, 0]


def test_at_the_end_the_slope_of_the_loss_balances_the_pull() -> None:
    votes = torch.tensor([3.0, -3.0, 0.0])
    _, minus = three_fits(votes.tolist())
    gate = minus[0]
    slope = torch.sigmoid(-(minus * votes).sum()) * votes[0] * gate * (1 - gate)
    assert float(slope) == pytest.approx(0.1 / 3, rel=0.02)


def test_without_a_loss_the_sign_of_lambda_decides() -> None:
    start = logits_of(torch.rand(2, 1, 3))
    ended = fitted(lambda gates, update: (torch.zeros(2), torch.zeros_like(gates)), start, [0.1, -0.1], (0.5, 0.1))
    closed = torch.sigmoid(torch.tensor(4.0))  # 0.982
    assert bool((ended.gates[0] >= closed - 1e-3).all())
    assert bool((ended.gates[1] <= 1 - closed + 1e-3).all())


@pytest.mark.parametrize("regulariser", ["mean", "sum"])
def test_the_slope_is_what_autograd_gives(regulariser: str) -> None:
    theta = (4 * torch.randn(2, 2, 3)).requires_grad_()
    exists = torch.tensor([[True, True, True], [True, True, False]])
    objective = Objective(torch.tensor([0.3, -0.2]), exists, regulariser, 4.0)  # type: ignore[arg-type]
    weights = torch.randn(2, 3)
    gates = torch.sigmoid(theta)
    nll = (gates * weights * exists).sum((1, 2)).sin()
    loss = objective.loss(nll, theta)
    share = 1 / 5 if regulariser == "mean" else 1.0
    by_hand = nll - objective.lam * share * (theta.clamp(-4, 4) * exists).sum((1, 2))
    torch.testing.assert_close(loss, by_hand)
    (by_gate,) = torch.autograd.grad(nll.sum(), [gates], retain_graph=True)
    (wanted,) = torch.autograd.grad(loss.sum(), [theta])
    torch.testing.assert_close(objective.slope(by_gate, theta.detach()), wanted)


def test_a_step_is_torch_adam_with_each_mask_clipped_alone() -> None:
    start = torch.randn(2, 2, 3)
    slopes = [torch.randn(2, 2, 3) * scale for scale in (0.1, 3.0, 1.0)]
    ours = Descent.start(start)
    for slope in slopes:
        ours.step(slope, 0.3, 1.0)
    for mask in range(2):
        theta = torch.nn.Parameter(start[mask].clone())
        adam = torch.optim.Adam([theta], lr=0.3)
        for slope in slopes:
            theta.grad = slope[mask].clone()
            torch.nn.utils.clip_grad_norm_([theta], 1.0)
            adam.step()
        torch.testing.assert_close(ours.theta[mask], theta.detach())


def test_an_irrelevant_head_moves_at_full_rate_though_its_slope_is_tiny() -> None:
    objective = Objective(torch.tensor([-0.1]), ALL)
    descent = Descent.start(torch.zeros(1, 1, 3))
    slope = objective.slope(torch.zeros(1, 1, 3), descent.theta)
    assert slope.flatten().tolist() == pytest.approx([0.1 / 3] * 3)
    descent.step(slope, 0.5, None)
    assert descent.theta.flatten().tolist() == pytest.approx([-0.5] * 3, rel=1e-4)


def test_cells_that_are_no_heads_never_move() -> None:
    exists = torch.tensor([[True, True, False]])
    descent = Descent.start(torch.zeros(1, 1, 3))
    objective = Objective(torch.tensor([0.1]), exists)
    descent.step(objective.slope(torch.ones(1, 1, 3), descent.theta), 0.5, 1.0)
    assert descent.theta[0, 0, 2] == 0 and bool((descent.theta[0, 0, :2] != 0).all())


def test_starting_gates_at_the_ends_stay_finite() -> None:
    assert bool(torch.isfinite(logits_of(torch.tensor([0.0, 1.0]))).all())


def test_the_trace_says_how_decided_the_gates_are() -> None:
    start = logits_of(torch.tensor([[[0.5, 0.5, 0.5]]]))
    descent = Descent.start(start)
    objective = Objective(torch.tensor([0.0]), ALL)
    trace = descend(descent, logistic((1, -1, 0)), objective, lambda update: 0.1, updates=2, keep_every=1)
    assert float(trace.entropy[0]) == pytest.approx(0.6931, abs=1e-4)
    assert float(trace.nll[0]) == pytest.approx(0.6931, abs=1e-4)  # softplus(0)
    assert float(trace.entropy[1]) < float(trace.entropy[0])
    assert trace.kept_at == [0, 1] and trace.kept[0].flatten().tolist() == [0.5] * 3
