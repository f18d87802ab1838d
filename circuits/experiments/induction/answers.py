"""How well the second copy is foreseen: the loss on it, and a logit difference that answers can be reassigned in.

The logit difference at a position is the logit of the right token minus that of the token that another prompt has
there. Reassigned, both tokens come from other prompts, and nothing that a head knows about its own prompt can move
their difference to one side: what still moves it is the null for "this head matters".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.experiments.repeated import Repeated
from circuits.units import fingerprint_of


@dataclass(frozen=True, eq=False)
class Answers:
    """Right and wrong tokens of the second copy, as they are and reassigned.

    Attributes:
        right: ``[prompt, pos, 1 + draw]``; the first is the prompt's own, the others are those of another prompt.
        wrong: the same shape; the token to compare with.
    """

    right: np.ndarray
    wrong: np.ndarray

    def select(self, rows: slice) -> Answers:
        """Those of some prompts."""
        return Answers(self.right[rows], self.wrong[rows])

    @property
    def fingerprint(self) -> str:
        """Hash of both."""
        return fingerprint_of(self.right, self.wrong)


def assign_answers(prompts: Repeated, *, draws: int, seed: int) -> Answers:
    """The answers of ``prompts`` with ``draws`` reassignments.

    Each prompt gets the wrong tokens of a fixed other prompt. A reassignment gives each prompt the pair (right, wrong)
    of another one; no prompt keeps its own.

    Args:
        prompts: at least two.
        draws: how many reassignments.
        seed: which ones.
    """
    own = prompts.ids[:, prompts.second]
    n = len(own)
    generator = np.random.default_rng([seed, int(prompts.fingerprint, 16) % 2**32])
    partner = _cycle(n, generator)
    orders = [np.arange(n), *(_cycle(n, generator) for _ in range(draws))]
    right = np.stack([own[order] for order in orders], axis=-1)
    wrong = np.stack([own[partner][order] for order in orders], axis=-1)
    return Answers(right, wrong)


def _cycle(n: int, generator: np.random.Generator) -> np.ndarray:
    """A random permutation of one cycle: nobody keeps its own place."""
    order = generator.permutation(n)
    moved = np.empty(n, dtype=np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def second_copy_columns(prompts: Repeated) -> Int[Tensor, "batch pos"]:
    """The columns whose logits predict the second copy."""
    row = torch.arange(prompts.queries.start, prompts.queries.stop)
    return row.expand(len(prompts), -1).clone()


def measure(logits: Float[Tensor, "batch pos vocab"], answers: Answers) -> dict[str, np.ndarray]:
    """``loss`` ``[batch]`` in nats, and ``lead`` ``[1 + draw]`` summed over the prompts; both are means over positions.

    The lead is the logit of the right token minus that of the wrong one: first with the prompts' own answers, then
    with each reassignment.

    Args:
        logits: at the columns that predict the second copy.
        answers: the tokens there; only their logits are looked at for ``lead``.
    """
    exact = logits.float()
    right, wrong = (torch.from_numpy(ids).to(exact.device) for ids in (answers.right, answers.wrong))
    own = exact.gather(-1, right)
    lead = (own - exact.gather(-1, wrong)).mean(1)
    loss = (torch.logsumexp(exact, dim=-1) - own[..., 0]).mean(-1)
    return {"loss": loss.cpu().numpy(), "lead": lead.cpu().double().sum(0).numpy()}


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What :func:`measure` gives for all prompts, from what it gave for parts of them."""
    return {
        "loss": np.concatenate([part["loss"] for part in parts]),
        "lead": np.sum([part["lead"] for part in parts], axis=0),
    }
