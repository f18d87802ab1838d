"""One update of four sets of gates, against the authors' package (nam-causal-head-gating). distilgpt2's shape.

Both see the same prompts and start from the same gates; an update is a forward, a backward and a step of Adam with
lambda 0.1 for four masks at once. The package's trainer takes the model as it is loaded, whose weights then gather
gradients that nobody asked for; its analyzer freezes them first, and that is measured beside it. On a CPU it runs in
bfloat16 by autocast: against our float32 it is held to float32, against our bfloat16 it runs as it comes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers as hf
from command import Action, Settings, main
from lines import Line
from models import random_ids
from pairs import median_interval, ratio, time_rounds

import interp
from interp.attribution.gating.descent import Descent, Objective, descend
from interp.attribution.gating.fit import sampled
from interp.attribution.gating.likelihood import Likelihood
from interp.attribution.gating.settings import Precision
from interp.attribution.gating.settings import Settings as FitSettings
from interp.attribution.gating.targets import Targets

MASKS, PROMPTS, LENGTH, ENDLESS = 4, 8, 32, 10**9


def distilgpt2(quick: bool) -> hf.GPT2LMHeadModel:
    """Random weights in distilgpt2's shape: 6 layers, 12 heads, d_model 768, vocabulary 50257."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 500} if quick else {"n_layer": 6}
    config = hf.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **small)
    config.architectures = ["GPT2LMHeadModel"]
    return hf.GPT2LMHeadModel(config).eval()


@contextmanager
def their_arithmetic(precision: Precision) -> Iterator[None]:
    """The package's autocast as it comes, or held to float32 (a dtype that autocast does not know turns it off)."""
    before = torch.get_autocast_dtype("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.set_autocast_dtype("cpu", torch.float32 if precision == "model" else torch.bfloat16)
            yield
        finally:
            torch.set_autocast_dtype("cpu", before)


class Rivals:
    """One update by either, from the same gates on the same prompts; ``close`` ends it."""

    def __init__(self, settings: Settings, precision: Precision, *, frozen: bool) -> None:
        from causal_head_gating import CHGTrainer, MaskedSequenceDataset

        network = distilgpt2(settings.quick)
        ids = random_ids(network, PROMPTS, LENGTH)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, -1] = True
        theirs = distilgpt2(settings.quick).requires_grad_(not frozen)
        data = MaskedSequenceDataset(pad_token_id=0, input_ids=ids, loss_masks=mask)
        self.trainer = CHGTrainer(
            theirs, data, num_masks=MASKS, batch_size=PROMPTS, lr_reg=0.5, grad_norm=None, device="cpu"
        )  # it clips the gradient of all masks together, so that they depend on one another; left out on both sides
        self.ids, self.mask, self.precision = ids, mask, precision
        self._open = ExitStack()
        self._updates = self.trainer.fit_stage("positive", ENDLESS, show_progress=False)
        model = interp.load(network, check=False)
        self.targets = Targets.of(model, interp.encode(model, ids, spans={"loss": mask}))
        self.likelihood = self._open.enter_context(Likelihood(model, self.targets, precision=precision))
        self.objective = Objective(torch.full((MASKS,), 0.1), self.likelihood.exists)
        with torch.no_grad():
            self.trainer.mask_logits_pos.copy_(torch.randn(self.trainer.mask_logits_pos.shape))
        self.descent = Descent.start(self.trainer.mask_logits_pos.detach())
        self.slopes = sampled(self.likelihood, FitSettings(batch_size=PROMPTS), self.targets)("signed")

    def ours(self) -> torch.Tensor:
        """The gates after an update."""
        updates = self.descent.updates + 1
        descend(self.descent, self.slopes, self.objective, lambda _: 0.5, updates=updates, grad_clip=None)
        return self.descent.gates

    def theirs(self) -> torch.Tensor:
        """The gates after an update."""
        with their_arithmetic(self.precision):
            return next(self._updates)[0]

    def losses(self) -> tuple[float, float]:
        """Both losses at the gates where each stands."""
        nll, _ = self.slopes(self.descent.gates, 0)
        with their_arithmetic(self.precision), torch.no_grad():
            theirs = self.trainer._get_loss(self.trainer.mask_logits_pos, self.ids, self.mask, 0.1)[0]
        return float(self.objective.loss(nll, self.descent.theta).mean()), float(theirs)

    def close(self) -> None:
        self._open.close()


def actions(settings: Settings, precision: Precision, *, frozen: bool) -> tuple[dict[str, Action], Rivals]:
    """Both updates, after a look that they give the same losses, and (in float32) the same gates three times."""
    rivals = Rivals(settings, precision, frozen=frozen)
    exact = precision == "model"
    torch.testing.assert_close(*map(torch.tensor, rivals.losses()), atol=1e-4 if exact else 0.1, rtol=0)
    for _ in range(3 if exact else 0):
        torch.testing.assert_close(rivals.ours(), rivals.theirs(), atol=2e-3, rtol=0)
    return {"ours": rivals.ours, "package": rivals.theirs}, rivals


def measure(settings: Settings) -> list[Line]:
    """As the package's trainer takes a model, and with its weights frozen; in float32 and in bfloat16."""
    lines = []
    words: dict[Precision, str] = {"model": "float32", "bfloat16": "bfloat16 by autocast"}
    for precision, arithmetic in words.items():
        for frozen in (False, True):
            both, rivals = actions(settings, precision, frozen=frozen)
            times = time_rounds(both, rounds=settings.rounds, warmups=1)
            rivals.close()
            seconds = {name: median_interval(values).median for name, values in times.items()}
            state = "frozen by hand" if frozen else "as loaded"
            claim = f"nam-causal-head-gating / ours, one update of {MASKS} masks, {arithmetic}, weights {state}"
            bound: Any = (None, None) if frozen else ("at least", 3.5)
            beside = f"ours {seconds['ours']:.2f} s, package {seconds['package']:.2f} s"
            lines.append(Line(claim, ratio(times, "package", "ours"), "x", *bound, beside))
    return lines


if __name__ == "__main__":
    main(__file__, measure)
