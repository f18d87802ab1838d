"""Contrastive gates: the objective by brute force, pairs that do not pair, and a head told apart from another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp import At, BadInput, Site
from interp.attribution.gating.contrastive import ContrastiveGates, contrast
from interp.attribution.gating.likelihood import Likelihood
from interp.attribution.gating.settings import Settings
from interp.attribution.gating.targets import Targets

MODEL = interp.load("handmade")


def prompts(words: list[tuple[int, ...]]) -> interp.Batch:
    return interp.encode(MODEL, [[0, *row] for row in words], spans={"loss": range(len(words[0]), len(words[0]) + 1)})


# the induction head tells the last word of the one, and votes against the last word of the other
KEPT = prompts([(3, 4, 5, 3, 4), (6, 7, 8, 6, 7)])
LOST = prompts([(3, 4, 5, 5, 3, 4), (6, 7, 8, 8, 6, 7)])
OTHER = prompts([(3, 4, 5, 3, 9), (6, 7, 8, 6, 9)])


@pytest.mark.parametrize("lost", [LOST, OTHER], ids=["told as well", "voted against"])
def test_loss_and_slope_are_those_of_autograd_through_run(lost: interp.Batch) -> None:
    gates = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1))
    gates[2] = 1.0
    kept_targets = Targets.of(MODEL, KEPT)
    with Likelihood(MODEL, kept_targets) as likelihood:
        loss, slope = contrast(likelihood, kept_targets, Targets.of(MODEL, lost), Settings())(gates, 0)
    floors = 0
    for mask in range(3):
        leaf = gates[mask].clone().requires_grad_()
        logp = [
            -interp.loss(
                interp.run(MODEL, batch, edits=[interp.gate(At(Site.Z), leaf)], graph=True).logits, batch
            ).mean()
            for batch in (KEPT, lost)
        ]
        wanted = -logp[0] + torch.clamp(logp[1] - logp[0].detach(), min=-5)
        floors += bool(logp[1] - logp[0] < -5)
        (by_autograd,) = torch.autograd.grad(wanted, [leaf])
        torch.testing.assert_close(loss[mask], wanted.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(slope[mask], by_autograd, atol=1e-5, rtol=1e-4)
    assert floors == (lost is OTHER)  # with every gate open the other word is 10 nats less likely: no pull beyond 5


def test_a_head_that_both_need_is_kept_only_where_the_kept_one_wins() -> None:
    found = interp.fit_contrastive_gates(MODEL, KEPT, OTHER, seeds=2, updates=60)
    assert found.gates.values[0, 0] > 0.5 and found.gates.values[1, 0] > 0.5  # the induction circuit
    assert (found.closed.values[[0, 1], [1, 1]] > 0.7).all()  # nobody needs these, and lambda closes them
    open_ = interp.fit_contrastive_gates(MODEL, KEPT, OTHER, seeds=2, updates=60, lam=0.1)
    assert (open_.gates.values[[0, 1], [1, 1]] > 0.7).all()


def test_gates_come_back_from_a_file_and_draw(tmp_path: Path) -> None:
    found = interp.fit_contrastive_gates(MODEL, KEPT, LOST, seeds=2, updates=3)
    again = ContrastiveGates.open(found.save(tmp_path / "gates.safetensors"))
    np.testing.assert_array_equal(again.values, found.values)
    np.testing.assert_array_equal(again.history.loss, found.history.loss)
    assert again.metadata["lam"] == -0.1 and again.seeds == (0, 1) and "2 seeds" in repr(again)
    assert found.plot().data[0].z.shape == (2, 2) and found.plot("history").data
    assert found.closed.quantity == "gate" and found.closed.sample_axis == "seed"


@pytest.mark.parametrize(
    "forget, options, words",
    [
        (prompts([(3, 4, 5, 3, 4)]), {}, "2 prompts to retain and 1 to forget"),
        (LOST, {"items": (["a", "b"], ["b", "a"])}, "prompt 0 is item 'a' in one and 'b' in the other"),
        (LOST, {"items": (["a"], ["b"])}, "two lists of 2 names"),
        (LOST, {"lam": float("nan")}, "lam=nan"),
    ],
    ids=["count", "items", "names", "lambda"],
)
def test_sets_that_do_not_pair_are_refused(forget: interp.Batch, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        interp.fit_contrastive_gates(MODEL, KEPT, forget, seeds=1, updates=1, **options)
