"""Trains ``needle`` or ``needle-planted`` and writes its folder.

    python -m interp.zoo.train_needle --model needle            # task loss alone
    python -m interp.zoo.train_needle --model needle-planted    # three heads supervised in the first level

An interrupted training goes on where it was when the same command is given again. The same command, thread count and
torch version on the same kind of processor give the same weights bit for bit, interrupted or not.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.zoo import training_state
from interp.zoo.needle_card import write_needle_card
from interp.zoo.needle_evaluate import copying_accuracy, looks_at_source, retrieval_accuracy
from interp.zoo.needle_network import untrained_needle
from interp.zoo.needle_recipes import NEEDLE_RECIPES, NeedleRecipe
from interp.zoo.needle_text import NEEDLE_WORDS, NeedleRows, copy_rows, needle_rows
from interp.zoo.train_induction import save, write_curve
from interp.zoo.words import build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

CURVE_TOKENS = 8192  # of the rows evaluated at every point of the curve; the card uses more
BETAS = (0.9, 0.98)
LAST_RATE = 0.1  # of the learning rate, at the end of the cosine
PLANTED_PREVIOUS, PLANTED_RETRIEVAL = (0, 0), ((1, 0), (1, 4))


@dataclass
class Progress:
    """How far a training is: steps in all, the level, steps in it, seconds of the processor, and what was measured."""

    step: int = 0
    level: int = 0
    step_in_level: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """A network on its way through a recipe's levels; ``done`` is True once the last one is finished."""

    def __init__(self, recipe: NeedleRecipe, seed: int) -> None:
        self.recipe = recipe
        self.network: LlamaForCausalLM = untrained_needle(recipe, seed)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.progress = Progress()
        matrices = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.network.parameters() if parameter.ndim == 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            betas=BETAS,
            fused=True,
        )
        self.network.train()

    @property
    def done(self) -> bool:
        return self.progress.level >= len(self.recipe.levels)

    def one_step(self) -> float:
        """One step of training at the present level; its task loss comes back."""
        recipe, progress = self.recipe, self.progress
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * self._rate()
        planted = bool(recipe.planting) and progress.level == 0
        losses, weights, planting = [], [], torch.zeros(())
        for rows in self._rows():
            loss, weight, missed = _losses(self.network, rows, recipe, self.generator, planted)
            losses.append(loss)
            weights.append(weight)
            planting = planting + missed
        task = torch.stack(losses).sum() / torch.stack(weights).sum()
        self.optimiser.zero_grad()
        (task + recipe.planting * planting).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        progress.step += 1
        progress.step_in_level += 1
        return task.item()

    def measure(self, loss: float) -> dict[str, Any]:
        """One point of the curve, and the next level where this one is learned or over."""
        progress, level = self.progress, self.recipe.levels[self.progress.level]
        rows = {"n_rows": CURVE_TOKENS // level.length, "seed": progress.step}
        answers = retrieval_accuracy(self.network, level.length, **rows)["token"]
        copies = copying_accuracy(self.network, level.length, **rows)
        point = {
            "step": progress.step,
            "length": level.length,
            "train_loss": round(loss, 4),
            "answers": answers,
            "copies": copies,
            "looks_at_source": looks_at_source(self.network, 64, n_rows=32)[1],
        }
        progress.curve.append(point)
        last = progress.level == len(self.recipe.levels) - 1
        learned = min(answers, copies) >= self.recipe.go_up_at and progress.step_in_level >= level.least_steps
        if progress.step_in_level >= level.most_steps or (learned and not last):
            progress.level += 1
            progress.step_in_level = 0
        return point

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "progress": asdict(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to where :meth:`state` was taken."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.progress = Progress(**state["progress"])

    def _rate(self) -> float:
        progress, levels = self.progress, self.recipe.levels
        warm = min(1.0, (progress.step + 1) / self.recipe.warmup)
        if progress.level < len(levels) - 1:
            return warm
        cosine = 0.5 * (1 + math.cos(math.pi * progress.step_in_level / levels[-1].most_steps))
        return warm * (LAST_RATE + (1 - LAST_RATE) * cosine)

    def _rows(self) -> list[NeedleRows]:
        """The rows of one step: questions; repeats beside them in the first level, every fourth step after it."""
        levels, at, step = self.recipe.levels, self.progress.level, self.progress.step_in_level
        if not at:
            return [
                needle_rows(levels[0].batch, levels[0].length, self.generator),
                copy_rows(levels[0].batch // 2, levels[0].length, self.generator),
            ]
        if step % 4 == 3:  # noqa: PLR2004 - one step in four, the lengths in turn
            level = levels[step // 4 % (at + 1)]
            return [copy_rows(level.batch, level.length, self.generator)]
        level = levels[at - 1 if step % 4 == 1 else at]
        return [needle_rows(level.batch, level.length, self.generator)]


def _losses(
    network: LlamaForCausalLM, rows: NeedleRows, recipe: NeedleRecipe, generator: torch.Generator, planted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of weighted next-token losses, sum of weights, and how badly the planted heads look (0 if none are)."""
    network.set_attn_implementation("eager" if planted else "sdpa")
    output = network.model(rows.ids, output_attentions=planted)
    known = rows.source >= 0
    chosen = torch.rand(rows.ids.shape, generator=generator) < recipe.filler_share
    chosen[:, 0] = False
    weight = torch.where(known, 1.0, recipe.filler_weight * chosen)
    row, at = torch.nonzero(weight, as_tuple=True)
    logits = network.lm_head(output.last_hidden_state[row, at - 1])
    losses = F.cross_entropy(logits, rows.ids[row, at], reduction="none") * weight[row, at]
    missed = _planting_loss(output.attentions, rows) if planted else torch.zeros(())
    return losses.sum(), weight.sum(), missed


def _planting_loss(patterns: tuple[Tensor, ...], rows: NeedleRows) -> Tensor:
    """Minus the mean log attention: of L0.H0 to the token before, of the two others to the token being copied."""
    row, at = torch.nonzero(rows.source >= 0, as_tuple=True)
    source = rows.source[row, at]
    layer, head = PLANTED_PREVIOUS
    wanted = [patterns[layer][:, head].diagonal(-1, -2, -1).reshape(-1)]
    wanted += [patterns[layer][row, head, at - 1, source] for layer, head in PLANTED_RETRIEVAL]
    return -torch.stack([part.clamp_min(1e-8).log().mean() for part in wanted]).sum()


def train(
    recipe: NeedleRecipe,
    *,
    seed: int = 0,
    steps: int | None = None,
    folder: Path | None = None,
    at_point: Callable[[dict[str, Any]], None] | None = None,
) -> Training:
    """The training, done, or stopped after ``steps`` more steps.

    Args:
        recipe: every number of the training.
        seed: of the initial weights and of the data.
        steps: stop after so many more steps.
        folder: where the unfinished training is kept and found; it is kept at every point of the curve.
        at_point: called with every new point of the curve.
    """
    training = Training(recipe, seed)
    identity = {"recipe": repr(recipe), "seed": seed, "torch": str(torch.__version__)}
    if folder is not None and (found := training_state.take_up(folder, identity)) is not None:
        training.restore(found)
    started = time.process_time() - training.progress.seconds
    stop = math.inf if steps is None else training.progress.step + steps
    while not training.done and training.progress.step < stop:
        loss = training.one_step()
        if training.progress.step % recipe.evaluate_every == 0:
            point = training.measure(loss)
            training.progress.seconds = time.process_time() - started
            if folder is not None:
                training_state.keep(folder, identity, training.state())
            if at_point is not None:
                at_point(point)
    training.network.set_attn_implementation("sdpa")
    training.network.eval()
    return training


def make(recipe: NeedleRecipe, folder: Path, *, seed: int, threads: int, quiet: bool = False) -> dict[str, Any]:
    """Trains by ``recipe`` and writes weights, tokenizer, curve and card into ``folder``; the card comes back."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)

    def report(point: dict[str, Any]) -> None:
        if not quiet:
            looks = " ".join(f"{value:.2f}" for value in point["looks_at_source"])
            print(
                f"step {point['step']:5d}  length {point['length']:4d}  loss {point['train_loss']:.3f}  answers right "
                f"{point['answers']:.3f}  copies {point['copies']:.3f}  layer 1 looks at the source {looks}",
                flush=True,
            )

    training = train(recipe, seed=seed, folder=folder, at_point=report)
    save(training.network, build_tokenizer(NEEDLE_WORDS, context=recipe.context), folder, half=True)
    write_curve(training.progress.curve, folder)
    training_state.finish(folder)
    stored = LlamaForCausalLM.from_pretrained(folder).eval()  # what the card describes is what is stored
    progress = training.progress
    return write_needle_card(folder, recipe, stored, seed=seed, threads=threads, progress=asdict(progress))


def main() -> None:
    """Run the command line: one model trained, written and described."""
    parser = argparse.ArgumentParser(description="Train a needle model of the zoo.")
    parser.add_argument("--model", choices=sorted(NEEDLE_RECIPES), required=True)
    parser.add_argument("--out", type=Path, help="folder to write (default: the model's own folder in the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    recipe = NEEDLE_RECIPES[given.model]
    folder = given.out or Path(__file__).parent / recipe.name.replace("-", "_")
    card = make(recipe, folder, seed=given.seed, threads=given.threads)
    print(card["measured"]["answers"])
    print(f"written to {folder} after {card['training']['seconds']} s of processor time")


if __name__ == "__main__":
    main()
