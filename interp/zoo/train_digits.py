"""Trains ``digits-vit`` on scikit-learn's handwritten digits and writes its folder.

    python -m interp.zoo.train_digits

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
from interp.zoo.digits import SIDE, WHITE, Digits, all_digits, pixel_values, split_digits
from interp.zoo.digits_card import accuracy, write_digits_card
from interp.zoo.train_induction import save, write_curve

if TYPE_CHECKING:
    from transformers import ViTForImageClassification


@dataclass(frozen=True)
class DigitsRecipe:
    """Every number that the training depends on; one patch is one pixel."""

    layers: int = 3
    width: int = 64
    heads: int = 4
    hidden: int = 128
    initial_scale: float = 0.1
    epochs: int = 80
    batch: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 100
    last_rate: float = 0.02
    largest_shift: int = 1
    smoothing: float = 0.05
    n_test: int = 400
    n_validation: int = 200
    split_seed: int = 0


def untrained_vit(recipe: DigitsRecipe, seed: int) -> ViTForImageClassification:
    """The network before its first step, as ViT draws it, with weights as large as a network this narrow needs."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.hidden,
        initializer_range=recipe.initial_scale,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=SIDE,
        patch_size=1,
        num_channels=1,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    torch.manual_seed(seed)
    return ViTForImageClassification(config)


@dataclass
class Progress:
    """How far a training is, in epochs and seconds of the processor, and what was measured after each epoch."""

    epoch: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """A network on its way through the epochs of a recipe."""

    def __init__(self, recipe: DigitsRecipe, seed: int, training: Digits) -> None:
        self.recipe, self.digits = recipe, training
        self.network = untrained_vit(recipe, seed)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.progress = Progress()
        matrices = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.network.parameters() if parameter.ndim == 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            fused=True,
        )

    def one_epoch(self) -> float:
        """Every training image once, each shifted at random; the mean loss comes back."""
        recipe = self.recipe
        self.network.train()
        order = torch.randperm(len(self.digits.labels), generator=self.generator).split(recipe.batch)
        total = len(order) * recipe.epochs
        losses = []
        for index, chosen in enumerate(order):
            step = self.progress.epoch * len(order) + index
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            rate = min(1.0, (step + 1) / recipe.warmup) * (recipe.last_rate + (1 - recipe.last_rate) * cosine)
            for group in self.optimiser.param_groups:
                group["lr"] = recipe.learning_rate * rate
            images = shifted(self.digits.images[chosen], recipe.largest_shift, self.generator)
            logits = self.network(pixel_values=pixel_values(images)).logits
            loss = F.cross_entropy(logits, self.digits.labels[chosen], label_smoothing=recipe.smoothing)
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimiser.step()
            losses.append(loss.item())
        self.progress.epoch += 1
        self.network.eval()
        return sum(losses) / len(losses)

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


def shifted(images: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to ``largest`` pixels along both axes, paper moving in."""
    padded = F.pad(images, (largest,) * 4)
    rows, columns = torch.randint(0, 2 * largest + 1, (2, len(images)), generator=generator).tolist()
    cut = [image[row : row + SIDE, at : at + SIDE] for image, row, at in zip(padded, rows, columns, strict=True)]
    return torch.stack(cut)


def train(
    recipe: DigitsRecipe,
    digits: tuple[Digits, Digits],
    *,
    seed: int = 0,
    epochs: int | None = None,
    folder: Path | None = None,
    at_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Training:
    """The training, done, or stopped after ``epochs`` more epochs.

    Args:
        recipe: every number of the training.
        digits: training and validation images; the latter are only looked at.
        seed: of the initial weights and the order of the images.
        epochs: stop after so many more epochs.
        folder: where the unfinished training is kept and found, after every epoch.
        at_epoch: called with every new point of the curve.
    """
    training, validation = Training(recipe, seed, digits[0]), digits[1]
    identity = {"recipe": repr(recipe), "seed": seed, "torch": str(torch.__version__)}
    if folder is not None and (found := training_state.take_up(folder, identity)) is not None:
        training.restore(found)
    progress = training.progress
    started = time.process_time() - progress.seconds
    stop = recipe.epochs if epochs is None else min(recipe.epochs, progress.epoch + epochs)
    while progress.epoch < stop:
        loss = training.one_epoch()
        point = {
            "epoch": progress.epoch,
            "train_loss": round(loss, 4),
            "validation_accuracy": accuracy(training.network, validation),
        }
        progress.curve.append(point)
        progress.seconds = time.process_time() - started
        if folder is not None:
            training_state.keep(folder, identity, training.state())
        if at_epoch is not None:
            at_epoch(point)
    training.network.eval()
    return training


def make(recipe: DigitsRecipe, folder: Path, *, seed: int, threads: int, quiet: bool = False) -> dict[str, Any]:
    """Trains by ``recipe`` and writes weights, image processor, test images, curve and card; the card comes back."""
    from safetensors.torch import save_file
    from transformers import ViTForImageClassification, ViTImageProcessor

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    parts = split_digits(all_digits(), n_test=recipe.n_test, n_validation=recipe.n_validation, seed=recipe.split_seed)
    training = train(
        recipe, parts[:2], seed=seed, folder=folder, at_epoch=None if quiet else lambda point: print(point, flush=True)
    )
    processor = ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, rescale_factor=1 / WHITE, image_mean=[0.5], image_std=[0.5]
    )
    save(training.network, processor, folder)
    images, labels = parts[2]
    save_file({"images": images.contiguous(), "labels": labels.to(torch.uint8)}, folder / "test_digits.safetensors")
    (folder / "test_digits.safetensors").chmod(0o644)
    write_curve(training.progress.curve, folder)
    training_state.finish(folder)
    stored = ViTForImageClassification.from_pretrained(folder).eval()
    return write_digits_card(
        folder, asdict(recipe), stored, parts, seed=seed, threads=threads, seconds=training.progress.seconds
    )


def main() -> None:
    """Run the command line: the model trained, written and described."""
    parser = argparse.ArgumentParser(description="Train the digits model of the zoo.")
    parser.add_argument("--out", type=Path, help="folder to write (default: the model's own folder in the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    folder = given.out or Path(__file__).parent / "digits_vit"
    card = make(DigitsRecipe(), folder, seed=given.seed, threads=given.threads)
    print(card["measured"])
    print(f"written to {folder} after {card['training']['seconds']} s of processor time")


if __name__ == "__main__":
    main()
