"""Gradient descent on the logits of gates: the objective, one Adam per mask, and what is recorded on the way.

It knows no model: what is minimised besides the regulariser is a function from gates to a loss and its slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.attribution.gating.settings import Regulariser

# (gates [mask, layer, head], update) -> (loss [mask], its slope by each gate [mask, layer, head])
Slopes = Callable[[Tensor, int], tuple[Tensor, Tensor]]

_NEAREST = 1e-6  # how near a starting gate may be to 0 or 1
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of Adam (Kingma and Ba, 2015)


def logits_of(gates: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """``log(g / (1 - g))`` of gates held between 1e-6 and 1 - 1e-6, float32."""
    return torch.logit(gates.float().clamp(_NEAREST, 1 - _NEAREST))


@dataclass(frozen=True)
class Objective:
    """``loss_m(theta) = nll_m(sigmoid(theta_m)) - lam_m * reduce over heads of clamp(theta_m, -clip, clip)``.

    ``lam > 0`` pulls gates towards 1 (retention), ``lam < 0`` towards 0 (removal); Nam et al. 2025, arXiv 2505.13737.

    Attributes:
        lam: ``[mask]``.
        exists: ``[layer, head]`` which cells are heads; the others have no say and never move.
        regulariser: ``mean`` or ``sum`` over the heads of a mask.
        clip: logits beyond it are not pulled any further.
    """

    lam: Float[Tensor, " mask"]
    exists: Bool[Tensor, "layer head"]
    regulariser: Regulariser = "mean"
    clip: float = 4.0

    @property
    def _share(self) -> float:
        return 1 / int(self.exists.sum()) if self.regulariser == "mean" else 1.0

    def loss(self, nll: Float[Tensor, " mask"], theta: Float[Tensor, "mask layer head"]) -> Float[Tensor, " mask"]:
        """``[mask]`` what is minimised."""
        pull = theta.clamp(-self.clip, self.clip)[:, self.exists].sum(1) * self._share
        return nll - self.lam * pull

    def slope(
        self, by_gate: Float[Tensor, "mask layer head"], theta: Float[Tensor, "mask layer head"]
    ) -> Float[Tensor, "mask layer head"]:
        """``d loss / d theta`` where ``d nll / d gate`` is ``by_gate``.

        ``by_gate * g (1 - g) - lam * share * [|theta| <= clip]``; the second part is ``lam / (layers * heads)`` for the
        mean.
        """
        gates = torch.sigmoid(theta)
        inside = (theta.abs() <= self.clip) * self._share * self.lam[:, None, None]
        return (by_gate * gates * (1 - gates) - inside) * self.exists


@dataclass
class Descent:
    """Logits on their way down, each mask on its own.

    Attributes:
        theta: ``[mask, layer, head]`` logits of the gates, float32.
        first, second: Adam's running means of the gradient and of its square.
        updates: how many were made.
    """

    theta: Float[Tensor, "mask layer head"]
    first: Float[Tensor, "mask layer head"]
    second: Float[Tensor, "mask layer head"]
    updates: int = 0

    @classmethod
    def start(cls, theta: Float[Tensor, "mask layer head"]) -> Descent:
        """Fresh moments at ``theta``."""
        return cls(theta.detach().clone().float(), torch.zeros_like(theta).float(), torch.zeros_like(theta).float())

    @property
    def gates(self) -> Float[Tensor, "mask layer head"]:
        """``sigmoid(theta)``."""
        return torch.sigmoid(self.theta)

    def step(self, slope: Float[Tensor, "mask layer head"], rate: float, grad_clip: float | None) -> None:
        """One update by Adam; a mask's gradient is first scaled to a norm of ``grad_clip`` at most, alone."""
        if grad_clip is not None:
            norm = slope.flatten(1).norm(dim=1)[:, None, None]
            slope = slope * (grad_clip / (norm + _NEAREST)).clamp(max=1.0)
        self.updates += 1
        self.first = _BETAS[0] * self.first + (1 - _BETAS[0]) * slope
        self.second = _BETAS[1] * self.second + (1 - _BETAS[1]) * slope**2
        first = self.first / (1 - _BETAS[0] ** self.updates)
        second = self.second / (1 - _BETAS[1] ** self.updates)
        self.theta = self.theta - rate * first / (second.sqrt() + _EPSILON)


@dataclass
class Trace:
    """What was seen before each update; one number per mask.

    Attributes:
        loss, nll: with and without the regulariser.
        mean: of the gates over heads.
        entropy: mean over heads of ``-g log g - (1-g) log(1-g)``, in nats: 0 where every gate is open or shut.
        kept: the gates themselves at some updates.
        kept_at: which updates those are.
    """

    loss: list[Tensor] = field(default_factory=list)
    nll: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    kept_at: list[int] = field(default_factory=list)

    def note(self, update: int, nll: Tensor, descent: Descent, objective: Objective, *, keep: bool) -> None:
        """Add what is seen before an update."""
        gates = descent.gates[:, objective.exists]
        shut = 1 - gates
        self.loss.append(objective.loss(nll, descent.theta))
        self.nll.append(nll)
        self.mean.append(gates.mean(1))
        self.entropy.append(-(torch.xlogy(gates, gates) + torch.xlogy(shut, shut)).mean(1))
        if keep:
            self.kept.append(descent.gates)
            self.kept_at.append(update)


def descend(
    descent: Descent,
    slopes: Slopes,
    objective: Objective,
    rates: Callable[[int], float],
    *,
    updates: int,
    grad_clip: float | None = 1.0,
    trace: Trace | None = None,
    keep_every: int = 10,
    after: Callable[[Descent, Trace], bool] | None = None,
) -> Trace:
    """The trace of ``descent``, which is brought to ``updates`` updates.

    Args:
        descent: where it stands; changed in place.
        slopes: the loss of each mask and its slope by each gate.
        objective: what is minimised.
        rates: learning rate of each update, counted from 0.
        updates: how many in all.
        grad_clip: the largest norm of one mask's gradient.
        trace: what was seen so far, to go on with.
        keep_every: how often the gates themselves are kept.
        after: called after each update; ``True`` stops.
    """
    trace = trace if trace is not None else Trace()
    while descent.updates < updates:
        update = descent.updates
        nll, by_gate = slopes(descent.gates, update)
        trace.note(update, nll, descent, objective, keep=update % keep_every == 0)
        descent.step(objective.slope(by_gate, descent.theta), rates(update), grad_clip)
        if after is not None and after(descent, trace):
            break
    return trace
