"""The digits model reads what its card says, through its processor and without it, and its script is reproducible."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import interp
from interp import zoo
from interp.errors import BadInput
from interp.model.handle import Model
from interp.zoo.digits import all_digits, digit_images, pixel_values, split_digits
from interp.zoo.train_digits import DigitsRecipe, shifted, train, untrained_vit

RECIPE = DigitsRecipe()


def logits_of(model: Model, batch: interp.Batch) -> torch.Tensor:
    logits = interp.run(model, batch).logits
    assert logits is not None
    return logits


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((zoo.path("digits-vit") / "card.json").read_text())


def test_it_reads_the_test_digits_as_well_as_the_card_says(card: dict[str, Any]) -> None:
    model, digits = interp.load("digits-vit"), digit_images()
    batch = interp.encode(model, inputs={"pixel_values": pixel_values(digits.images)})
    right = logits_of(model, batch).argmax(-1) == digits.labels
    measured = card["measured"]
    assert right.float().mean().item() == pytest.approx(measured["test_accuracy"], abs=1e-4)
    assert measured["test_accuracy"] >= 0.96 and len(digits.labels) == card["images"]["test"] == 400
    for digit, share in measured["test_accuracy_by_digit"].items():
        assert right[digits.labels == int(digit)].float().mean().item() == pytest.approx(share, abs=1e-4)


def test_pictures_go_in_as_pictures() -> None:
    """By way of the image processor, at their own size and larger."""
    model, digits = interp.load("digits-vit"), digit_images(24)
    pictures = [Image.fromarray(image.numpy()) for image in digits.images]
    batch = interp.encode(model, images=pictures, answers=digits.labels[:, None].tolist())
    torch.testing.assert_close(batch.inputs["pixel_values"], pixel_values(digits.images))
    assert float(interp.accuracy(logits_of(model, batch), batch).mean()) > 0.9
    large = [picture.resize((32, 32), Image.Resampling.BICUBIC) for picture in pictures]
    logits = logits_of(model, interp.encode(model, images=large))
    assert float((logits.argmax(-1) == digits.labels).float().mean()) > 0.7


def test_maps_are_a_grid_behind_a_class_token() -> None:
    model, digits = interp.load("digits-vit"), digit_images(2)
    batch = interp.encode(model, inputs={"pixel_values": pixel_values(digits.images)})
    at = interp.At(interp.Site.PATTERN, layer=0)
    assert interp.run(model, batch, read=[at])[at].shape == (2, RECIPE.heads, 65, 65)
    assert len(model.heads()) == RECIPE.layers * RECIPE.heads


def test_the_stored_images_are_scikit_learns_and_were_held_out() -> None:
    parts = split_digits(all_digits(), n_test=RECIPE.n_test, n_validation=RECIPE.n_validation, seed=RECIPE.split_seed)
    stored = digit_images()
    assert torch.equal(stored.images, parts[2].images) and torch.equal(stored.labels, parts[2].labels)
    assert sum(len(part.labels) for part in parts) == 1797
    everything = {image.numpy().tobytes() for image in torch.cat([parts[0].images, parts[1].images])}
    assert not everything & {image.numpy().tobytes() for image in stored.images}, "no test image stands elsewhere"
    assert set(np.unique(stored.images.numpy())) <= {round(level * 255 / 16) for level in range(17)}


def test_card_recipe_registry_and_files(card: dict[str, Any]) -> None:
    folder = zoo.path("digits-vit")
    assert card["training"]["recipe"] == asdict(RECIPE) and card["name"] in zoo.ZOO
    page = (folder / "README.md").read_text()
    assert card["training"]["command"] in page and f"{card['measured']['test_accuracy']:.3f}" in page
    assert f"{RECIPE.initial_scale}" in card["initialisation"] and card["architecture"]["grid"] == [8, 8]
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 800_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}
    weights = load_file(folder / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == card["architecture"]["parameters"]


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=3, batch=16, layers=1, width=16, hidden=16)
    training, validation, _ = split_digits(all_digits(), n_test=1000, n_validation=700, seed=0)
    whole = train(recipe, (training, validation), seed=2)
    train(recipe, (training, validation), seed=2, epochs=1, folder=tmp_path)
    resumed = train(recipe, (training, validation), seed=2, folder=tmp_path)
    assert resumed.progress.curve == whole.progress.curve and resumed.progress.epoch == 3
    expected = whole.network.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in resumed.network.state_dict().items())
    start = untrained_vit(recipe, 2).state_dict()
    assert not torch.equal(start["classifier.weight"], expected["classifier.weight"])
    with pytest.raises(BadInput, match="belongs to another training"):
        train(recipe, (training, validation), seed=3, folder=tmp_path)


def test_shifts_move_whole_images() -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8)
    seen = {
        tuple(shifted(image, 1, torch.Generator().manual_seed(seed))[0, 3:5, 3:5].flatten().tolist())
        for seed in range(40)
    }
    middle = image[0]
    assert seen == {
        tuple(middle[3 + down : 5 + down, 3 + across : 5 + across].flatten().tolist())
        for down in (-1, 0, 1)
        for across in (-1, 0, 1)
    }
