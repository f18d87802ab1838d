"""Adversarial attention: other weights, as different as can be, under which the model says the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.edits.activations import custom
from interp.edits.base import Context, Edit
from interp.errors import BadInput
from interp.model.run import run
from interp.model.sweep import logits_for
from interp.scores.ask import Ask
from interp.scores.audits.answer_change import answer_distribution, jensen_shannon, total_variation
from interp.scores.audits.row_edits import Targets

_TOKENS = 1 << 14  # of all copies in one forward
_INSIDE, _PENALTY = 0.01, 500.0  # the optimiser's own bound on the change of the answer, and the price of crossing it
_SPREAD, _RATE = 3.0, 0.01  # of the starts, and of Adam


@dataclass(frozen=True)
class Search:
    """How adversarial attention is searched for; the defaults are those of Jain and Wallace, 2019.

    Attributes:
        eps: the largest change of the answer (total variation) that still counts as the same answer.
        starts: how many searches from random weights.
        steps: of Adam each.
    """

    eps: float = 0.05
    starts: int = 5
    steps: int = 500

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            BadInput: with what is expected.
        """
        if not 0 <= self.eps <= 1:
            raise BadInput(f"adversarial attention: eps={self.eps}; expected a total variation in [0, 1].")
        for name in ("starts", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadInput(f"adversarial attention: {name}={value!r}; expected a whole number of at least 1.")


def largest_divergence(
    ask: Ask,
    targets: Sequence[Targets],
    columns: Tensor,
    rows: dict[int, Float[Tensor, "batch _ key"]],
    valid: dict[int, Bool[Tensor, "batch _ key"]],
    search: Search,
) -> Float[Tensor, "target batch"]:
    """``[target, batch]`` the largest JSD between a row and another under which the answer changes by at most ``eps``.

    From each start, log-uniform weights plus ``3 N(0, 1)`` over the visible keys, Adam (0.01, amsgrad) minimises
    ``-JSD(a', a) + 500 relu(TVD - min(eps, 0.01)) - mean pairwise JSD of the starts``. What is reported is the best
    weights met on the way with TVD at most ``eps``, the head's own (JSD 0) among them: a lower bound of the maximum,
    at most ln 2 = 0.693. Heads that are edited together share one new row.

    Args:
        ask: what is scored.
        targets: heads that are edited together, one search each.
        columns: ``[batch, 1]`` the row that is replaced.
        rows: layer -> the rows as they are.
        valid: layer -> keys that may get weight.
        search: how.
    """
    search.check()
    copies = max(1, _TOKENS // (len(ask.batch) * search.starts * ask.batch.width))
    found = []
    for first in range(0, len(targets), copies):
        some = targets[first : first + copies]
        found.append(_Searches(ask, some, columns, rows, valid, search).best())
    return torch.cat(found)


class _Searches:
    """Searches of several targets, prompts and starts side by side in one batch: ``[target, start, prompt]``."""

    def __init__(
        self,
        ask: Ask,
        targets: Sequence[Targets],
        columns: Tensor,
        rows: dict[int, Tensor],
        valid: dict[int, Tensor],
        search: Search,
    ) -> None:
        self.ask, self.targets, self.search = ask, targets, search
        n, self.shape = len(ask.batch), (len(targets), search.starts, len(ask.batch))
        order = torch.arange(n).repeat(len(targets) * search.starts)
        self.batch = ask.batch.select(order)
        self.columns = columns.to(ask.model.device).repeat(len(targets) * search.starts, 1)[:, 0]
        own, seen = [], []
        for target in targets:
            parts = [rows[layer][:, list(heads)] for layer, heads in target.items()]
            own.append(torch.cat(parts, dim=1).mean(1))
            seen.append(torch.cat([valid[layer][:, list(heads)] for layer, heads in target.items()], dim=1).any(1))
        self.own = torch.stack(own).float()[:, None]  # [target, 1, prompt, key]
        self.valid = torch.stack(seen)[:, None]
        self.mass = (self.own * self.valid).sum(-1, keepdim=True)

    def best(self) -> Float[Tensor, "target batch"]:
        """Run every search; the largest divergence met within the bound."""
        free = self._starts().requires_grad_()
        adam = torch.optim.Adam([free], lr=_RATE, amsgrad=True)
        plain = run(self.ask.model, self.ask.batch, logits=self._logits, kernels=self._kernels()).logits
        assert plain is not None
        before = answer_distribution(plain, self.ask.batch).detach()
        best = torch.zeros(self.shape[0], self.shape[2], dtype=torch.float64, device=free.device)
        inside = min(self.search.eps, _INSIDE)
        for _ in range(self.search.steps):
            row = self._row(free)
            change = total_variation(self._answer(row), before)
            apart = jensen_shannon(row / self.mass.clamp(min=1e-12), self.own / self.mass.clamp(min=1e-12))
            allowed = torch.where(change.detach() <= self.search.eps, apart.detach(), 0.0)
            best = torch.maximum(best, allowed.double().amax(1))
            loss = (-apart + _PENALTY * torch.relu(change - inside)).sum() - self._spread(row).sum()
            (slope,) = torch.autograd.grad(loss, [free])
            free.grad = slope
            adam.step()
        return best

    def _starts(self) -> Tensor:
        """Weights before the softmax, drawn for each prompt by its content and for each target and start apart."""
        shape = self.own.shape[-1]
        drawn = torch.empty(*self.shape, shape)
        keys = self.ask.batch.content_keys.tolist()
        for start in range(self.shape[1]):
            for prompt, key in enumerate(keys):
                generator = torch.Generator().manual_seed((key ^ (self.ask.seed * 1_000_003 + start)) % 2**63)
                here = self.valid[:, 0, prompt].cpu()
                noise = _SPREAD * torch.randn(int(here.sum(-1).max()), generator=generator)
                for target in range(self.shape[0]):
                    count = int(here[target].sum())
                    drawn[target, start, prompt, here[target]] = noise[:count] - math.log(max(count, 1))
        return drawn.to(self.own.device)

    def _row(self, free: Tensor) -> Tensor:
        return torch.softmax(free.masked_fill(~self.valid, -torch.inf), dim=-1).nan_to_num(0.0) * self.mass

    def _spread(self, row: Tensor) -> Tensor:
        """Mean divergence between the rows of two starts, ``[target, prompt]``, so that starts stay apart."""
        n = self.shape[1]
        if n < 2:  # noqa: PLR2004 - one start has no pair
            return row.new_zeros(1)
        share = row / self.mass.clamp(min=1e-12)
        pairs = [jensen_shannon(share[:, i], share[:, j]) for i in range(n) for j in range(i)]
        return torch.stack(pairs).mean(0)

    def _answer(self, row: Tensor) -> Tensor:
        made = run(self.ask.model, self.batch, edits=self._edits(row), logits=self._logits, graph=True).logits
        assert made is not None
        return answer_distribution(made, self.batch).view(*self.shape, -1)

    def _edits(self, row: Tensor) -> list[Edit]:
        flat = row.reshape(-1, row.shape[-1])
        per_target = self.shape[1] * self.shape[2]
        layers = sorted({layer for target in self.targets for layer in target})

        def edit_of(layer: int) -> Edit:
            concerned = torch.zeros(len(flat), self.ask.stack.n_heads(layer), dtype=torch.bool)
            for number, target in enumerate(self.targets):
                concerned[number * per_target : (number + 1) * per_target, list(target.get(layer, ()))] = True

            def replace_row(x: Tensor, ctx: Context) -> Tensor:
                place = torch.nn.functional.one_hot(self.columns, x.shape[2]).bool()  # [batch, query]
                where = concerned.to(x.device)[:, :, None, None] & place[:, None, :, None]
                return torch.where(where, flat.to(x.dtype)[:, None, None, : x.shape[-1]], x)

            return custom(At(Site.PATTERN, layer, stack=self.ask.stack.name), replace_row, name="adversarial")

        return [edit_of(layer) for layer in layers]

    def _kernels(self) -> dict[tuple[str, int], str]:
        return {(self.ask.stack.name, layer): "eager" for target in self.targets for layer in target}

    @property
    def _logits(self) -> Literal["answers", "all"]:
        return logits_for(answer_distribution, self.ask.model)
