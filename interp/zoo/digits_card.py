"""The card of the digits model: card.json for programs, README.md for people, from the same measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.zoo.digits import Digits, pixel_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA = (
    "Handwritten digits from 0 to 9, 8 x 8 grey pixels: the 1797 images that scikit-learn brings with it, which are "
    "the test part of 'Optical Recognition of Handwritten Digits' (E. Alpaydin and C. Kaynak, UCI Machine Learning "
    "Repository, 1998, CC BY 4.0; written by 13 people, blocks of 4 x 4 bits counted). Split at random; so the same "
    "people wrote training and test images. In training every image is shifted by up to one pixel. The test images "
    "are stored beside the weights."
)


def accuracy(network: PreTrainedModel, digits: Digits) -> float:
    """Share of images whose digit is the largest logit."""
    return round(_right(network, digits).float().mean().item(), 4)


def _right(network: PreTrainedModel, digits: Digits) -> torch.Tensor:
    with torch.no_grad():
        return network(pixel_values=pixel_values(digits.images)).logits.argmax(-1) == digits.labels


def write_digits_card(
    folder: Path,
    recipe: dict[str, Any],
    network: PreTrainedModel,
    parts: tuple[Digits, Digits, Digits],
    *,
    seed: int,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Measures the stored network, writes ``card.json`` and ``README.md`` beside it; the card comes back."""
    import transformers

    training, validation, test = parts
    right = _right(network, test)
    card = {
        "name": "digits-vit",
        "architecture": {
            "family": "vit",
            "layers": recipe["layers"],
            "heads": recipe["heads"],
            "d_model": recipe["width"],
            "grid": [8, 8],
            "positions": "a class token, then 64 patches of one pixel, row by row",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        },
        "data": DATA,
        "images": {"training": len(training.labels), "validation": len(validation.labels), "test": len(test.labels)},
        "initialisation": f"As ViT draws it, with standard deviation {recipe['initial_scale']} in place of 0.02.",
        "supervision": "None: no head was told where to attend. Only the class's cross-entropy was minimised.",
        "training": {
            "command": f"python -m interp.zoo.train_digits --seed {seed} --threads {threads}",
            "recipe": recipe,
            "seed": seed,
            "threads": threads,
            "seconds": round(seconds),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
        "measured": {
            "training_accuracy": accuracy(network, training),
            "validation_accuracy": accuracy(network, validation),
            "test_accuracy": accuracy(network, test),
            "test_accuracy_by_digit": {
                str(digit): round(right[test.labels == digit].float().mean().item(), 4) for digit in range(10)
            },
        },
        "heads": {},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(_page(card))
    return card


def _page(card: dict[str, Any]) -> str:
    measured, training, shape, images = card["measured"], card["training"], card["architecture"], card["images"]
    by_digit = measured["test_accuracy_by_digit"]
    return f"""# {card["name"]}

A ViT of {shape["layers"]} layers, {shape["heads"]} heads, width {shape["d_model"]} and {shape["parameters"]:,} \
parameters. It reads 8 x 8 grey pixels as {shape["positions"]}.

**Data.** {card["data"]} {images["training"]} images for training, {images["validation"]} for validation, \
{images["test"]} for the test.

**Initialisation.** {card["initialisation"]}

**Supervision of heads.** {card["supervision"]}

**Training.** `{training["command"]}`: {training["recipe"]["epochs"]} epochs in {training["seconds"]} s of \
processor time on {training["threads"]} thread(s), torch {training["torch"]}. No epoch \
was chosen: the weights are those of the last.

**Measured.** Accuracy {measured["test_accuracy"]:.3f} on the test images ({measured["validation_accuracy"]:.3f} on \
validation, {measured["training_accuracy"]:.3f} on training images).

| {" | ".join(by_digit)} |
|{"---|" * len(by_digit)}
| {" | ".join(f"{value:.2f}" for value in by_digit.values())} |
"""
