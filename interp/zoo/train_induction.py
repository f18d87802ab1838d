"""Trains ``induction`` or ``induction-planted`` and writes its folder.

    python -m interp.zoo.train_induction --natural     # task loss alone
    python -m interp.zoo.train_induction --planted     # two heads supervised

The same command, thread count and torch version on the same kind of processor give the same weights bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.zoo.card import write_card
from interp.zoo.evaluate import evaluate
from interp.zoo.initialise import untrained
from interp.zoo.recipes import RECIPES, Recipe
from interp.zoo.repeats import Repeats, training_rows
from interp.zoo.words import build_tokenizer

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedModel

CURVE_ROWS = 16  # evaluation rows at every point of the curve; the card uses more
BETAS = (0.9, 0.98)
LAST_RATE = 0.1  # of the learning rate, at the end of the cosine


def train(
    recipe: Recipe,
    *,
    seed: int = 0,
    steps: int | None = None,
    at_step: Callable[[int, GPT2LMHeadModel, float | None], None] | None = None,
) -> GPT2LMHeadModel:
    """The trained network.

    Args:
        recipe: every number of the training.
        seed: of the initial weights and of the data.
        steps: stop after so many; the schedule stays that of the whole recipe.
        at_step: called before each step and once at the end with (steps done, network, loss of the last step).
    """
    network = untrained(recipe, seed)
    network.train()
    generator = torch.Generator().manual_seed(seed + 1)
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=BETAS,
        fused=True,
    )
    last: float | None = None
    total = recipe.steps if steps is None else min(steps, recipe.steps)
    for step in range(total):
        if at_step is not None:
            at_step(step, network, last)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step, recipe)
        rows = training_rows(recipe, generator)
        task, planted = _losses(network, rows, recipe)
        optimiser.zero_grad()
        (task + recipe.planting * planted).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        last = task.item()
    if at_step is not None:
        at_step(total, network, last)
    return network.eval()


def _rate(step: int, recipe: Recipe) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return min(1.0, (step + 1) / recipe.warmup) * (LAST_RATE + (1 - LAST_RATE) * cosine)


def _losses(network: GPT2LMHeadModel, rows: Repeats, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Weighted next-word loss, and how badly heads 0.0 and 1.0 attend to their planted targets (0 if none are)."""
    queries_and_keys: list[Tensor] = []
    handles = []
    if recipe.planting:
        blocks: Any = network.transformer.h
        for block in blocks:
            handles.append(block.attn.c_attn.register_forward_hook(lambda _m, _i, out: queries_and_keys.append(out)))
    try:
        hidden = network.transformer(rows.ids).last_hidden_state[:, :-1]
    finally:
        for handle in handles:
            handle.remove()
    losses = F.cross_entropy(network.lm_head(hidden).transpose(1, 2), rows.ids[:, 1:], reduction="none")
    weight = rows.weight[:, 1:]
    task = (losses * weight).sum() / weight.sum()
    if not recipe.planting:
        return task, torch.zeros(())
    return task, _planting_loss(queries_and_keys, rows, recipe)


def _planting_loss(queries_and_keys: list[Tensor], rows: Repeats, recipe: Recipe) -> Tensor:
    first, second = (_log_pattern(fused, recipe) for fused in queries_and_keys)
    previous = first.diagonal(-1, -2, -1).mean()
    # the query at t predicts t + 1, which stood at t + 1 - period: that is where head 1.0 should look
    batch, query = torch.nonzero(rows.predictable[:, 1:], as_tuple=True)
    target = query + 1 - rows.period[batch]
    return -(previous + second[batch, query, target].mean())


def _log_pattern(fused: Tensor, recipe: Recipe) -> Tensor:
    """Log attention of head 0 from GPT-2's fused projection: [batch, query, key]."""
    width = recipe.width // recipe.heads
    query, key = fused[..., :width], fused[..., recipe.width : recipe.width + width]
    scores = query @ key.transpose(1, 2) / math.sqrt(width)
    blocked = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(blocked, -math.inf).log_softmax(-1)


def make(recipe: Recipe, folder: Path, *, seed: int, threads: int, quiet: bool = False) -> dict[str, Any]:
    """Trains by ``recipe`` and writes weights, tokenizer, checkpoints, curve and card; the card comes back."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    tokenizer = build_tokenizer(context=recipe.context)
    curve: list[dict[str, Any]] = []
    started = time.perf_counter()

    def at_step(step: int, network: GPT2LMHeadModel, loss: float | None) -> None:
        if step % recipe.evaluate_every == 0:
            measured = evaluate(network, n_rows=CURVE_ROWS)
            curve.append({"step": step, "train_loss": None if loss is None else round(loss, 4), **measured})
            if not quiet and step % (10 * recipe.evaluate_every) == 0:
                print(
                    f"step {step:5d}  first half {measured['first_half_loss']:.3f}  second half "
                    f"{measured['second_half_loss']:.3f}  previous token {measured['previous_token'][0]}  "
                    f"induction {measured['induction'][1]}",
                    flush=True,
                )
        if step in recipe.checkpoints:
            save(network, tokenizer, folder / "checkpoints" / f"step-{step:05d}", half=True)

    network = train(recipe, seed=seed, at_step=at_step)
    seconds = time.perf_counter() - started
    save(network, tokenizer, folder)
    write_curve(curve, folder)
    return write_card(folder, recipe, network, seed=seed, threads=threads, seconds=seconds)


def write_curve(points: list[dict[str, Any]], folder: Path) -> None:
    """Writes what was measured during training into ``training_curve.json``, a point a line."""
    (folder / "training_curve.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in points) + "\n]\n")


def save(network: PreTrainedModel, tokenizer: Any, folder: Path, *, half: bool = False) -> None:
    """Writes a folder that ``from_pretrained`` reads: weights as safetensors (float16 if ``half``), no pickle."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if half:  # the config still says float32, so loading converts back
        tied = {name: value for name, value in network.state_dict().items() if name != "lm_head.weight"}
        weights = {name: value.half().contiguous() for name, value in tied.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # written for the owner only otherwise, and it is packaged


def main() -> None:
    """Run the command line: one model trained, written and described."""
    parser = argparse.ArgumentParser(description="Train a model of the zoo.")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--natural", action="store_true", help="the model `induction`, by its task loss alone")
    kind.add_argument("--planted", action="store_true", help="the model `induction-planted`, two heads supervised")
    parser.add_argument("--out", type=Path, help="folder to write (default: the model's own folder in the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    recipe = RECIPES["induction-planted" if given.planted else "induction"]
    folder = given.out or Path(__file__).parent / recipe.name.replace("-", "_")
    card = make(recipe, folder, seed=given.seed, threads=given.threads)
    print(json.dumps(card["measured"], indent=1))
    print(f"written to {folder} after {card['training']['seconds']} s")


if __name__ == "__main__":
    main()
