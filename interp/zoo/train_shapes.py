"""Trains ``shapes-vlm`` and writes its folder.

    python -m interp.zoo.train_shapes

The same command, thread count and torch version on the same kind of processor give the same weights bit for bit.
Stopped, the same command goes on where the last point of the curve was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.zoo import training_state
from interp.zoo.shapes import CLEAR
from interp.zoo.shapes_card import write_shapes_card
from interp.zoo.shapes_evaluate import accuracies, text_accuracies
from interp.zoo.shapes_model import ShapesRecipe, processor, untrained
from interp.zoo.shapes_rows import Rows, training_rows
from interp.zoo.shapes_tower import open_eyes
from interp.zoo.train_induction import save, write_curve

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

BETAS = (0.9, 0.98)
LAST_RATE = 0.05  # of the learning rate, at the end of the cosine
CURVE_PROMPTS = 60  # of each kind at every point of the curve; the card uses more


class Training:
    """A training under way: the network, its optimiser, its curve, and where the data stands.

    Args:
        recipe: every number of the training.
        seed: of the initial weights and of the data.
    """

    def __init__(self, recipe: ShapesRecipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, Any]] = []
        self.network = untrained(recipe, seed)
        self.network.train()
        self.draw = np.random.default_rng(seed + 1)
        parameters = list(self.network.parameters())
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [one for one in parameters if one.ndim > 1], "weight_decay": recipe.weight_decay},
                {"params": [one for one in parameters if one.ndim == 1], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=BETAS,
            fused=True,
        )

    @property
    def done(self) -> bool:
        """Whether all steps of the recipe are."""
        return self.step >= self.recipe.steps

    def one_step(self) -> float:
        """Does one step; its loss comes back."""
        recipe = self.recipe
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / recipe.steps))
        rate = min(1.0, (self.step + 1) / recipe.warmup) * (LAST_RATE + (1 - LAST_RATE) * cosine)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * rate
        sums = [_weighted_loss(self.network, rows) for rows in training_rows(recipe, self.draw, self.step)]
        loss = torch.stack([total for total, _ in sums]).sum() / torch.stack([weight for _, weight in sums]).sum()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def measure(self, loss: float) -> dict[str, Any]:
        """A new point of the curve."""
        self.network.eval()
        point = {"step": self.step, "train_loss": round(loss, 4)}
        point |= accuracies(self.network, n=CURVE_PROMPTS, contrast=CLEAR)
        point |= text_accuracies(self.network, n=CURVE_PROMPTS)
        self.network.train()
        self.curve.append(point)
        return point

    def state(self) -> dict[str, Any]:
        """Everything that going on needs."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "draw": json.dumps(self.draw.bit_generator.state),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to where ``state`` was taken."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.draw.bit_generator.state = json.loads(state["draw"])
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def _weighted_loss(network: LlavaForConditionalGeneration, rows: Rows) -> tuple[Tensor, Tensor]:
    """Sum of the weighted next-word losses, and of the weights."""
    seen = {} if rows.pixels is None else {"pixel_values": rows.pixels}
    body: Any = network.model
    hidden = body(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False, **seen).last_hidden_state
    wanted = rows.weight[:, 1:] > 0
    losses = F.cross_entropy(network.lm_head(hidden[:, :-1][wanted]), rows.ids[:, 1:][wanted], reduction="none")
    weight = rows.weight[:, 1:][wanted]
    return (losses * weight).sum(), weight.sum()


def train(
    recipe: ShapesRecipe,
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
    started = time.perf_counter() - training.seconds
    if training.step == 0:
        open_eyes(training.network, recipe, seed)
    stop = math.inf if steps is None else training.step + steps
    losses: list[float] = []
    while not training.done and training.step < stop:
        losses.append(training.one_step())
        if training.step % recipe.evaluate_every == 0 or training.done:
            point = training.measure(float(np.mean(losses)))
            losses = []
            training.seconds = time.perf_counter() - started
            if folder is not None:
                training_state.keep(folder, identity, training.state())
            if at_point is not None:
                at_point(point)
    training.network.eval()
    return training


def make(recipe: ShapesRecipe, folder: Path, *, seed: int, threads: int, quiet: bool = False) -> dict[str, Any]:
    """Trains by ``recipe`` and writes weights, processor, curve and card into ``folder``; the card comes back."""
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)

    def report(point: dict[str, Any]) -> None:
        if not quiet:
            print("  ".join(f"{name} {value}" for name, value in point.items()), flush=True)

    training = train(recipe, seed=seed, folder=folder, at_point=report)
    save(training.network, processor(), folder, half=True)
    write_curve(training.curve, folder)
    stored = LlavaForConditionalGeneration.from_pretrained(folder).eval()  # what the card describes is what is stored
    card = write_shapes_card(folder, asdict(recipe), stored, seed=seed, threads=threads, seconds=training.seconds)
    training_state.finish(folder)
    return card


def main() -> None:
    """Run the command line: the model trained, written and described."""
    parser = argparse.ArgumentParser(description="Train shapes-vlm.")
    parser.add_argument("--out", type=Path, help="folder to write (default: the model's own folder in the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    folder = given.out or Path(__file__).parent / "shapes_vlm"
    card = make(ShapesRecipe(), folder, seed=given.seed, threads=given.threads)
    print(json.dumps(card["measured"], indent=1))
    print(f"written to {folder} after {card['training']['seconds']} s")


if __name__ == "__main__":
    main()
