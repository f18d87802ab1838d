"""Which position is which patch: found from models and pixels, said by the user, refused where it is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from planted_patches import vision_ask
from tiny_models import BEYOND, IMAGES, TINY, TOWER
from torch import nn

import interp
from interp.errors import BadInput, Unsupported
from interp.scores.grids.grid import given_grid, patch_grid

FOUND = {
    "vit": ("class",),
    "deit": ("class", "distillation"),
    "dinov2": ("class",),
    "clip": ("class",),
    "llava": ("class",),
    "siglip": (),
    "paligemma": (),
    "smolvlm": (),
    "idefics3": (),
}


@pytest.mark.parametrize("name", FOUND)
def test_known_towers(name: str) -> None:
    """2 x 2 patches after the special positions that the architecture has, in every tower."""
    tiny = {**TINY, **BEYOND}[name]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    grid = patch_grid(model, batch)
    assert (grid.rows, grid.columns, grid.special) == (2, 2, FOUND[name])
    first = len(FOUND[name])
    assert grid.skipped == tuple(range(first)) and grid.order.tolist() == list(range(first, first + 4))
    stack = next(name for name in model.stacks if name.startswith("vision"))
    seen = interp.run(model, batch, read=[interp.At(interp.Site.PATTERN, layer=0, stack=stack)])
    assert seen[interp.At(interp.Site.PATTERN, layer=0, stack=stack)].shape[-1] == grid.positions


def test_registers_come_between() -> None:
    config = hf.Dinov2WithRegistersConfig(**IMAGES, **SMALL, mlp_ratio=2, num_register_tokens=3, num_labels=2)
    model = interp.load(hf.Dinov2WithRegistersForImageClassification(config).eval())
    batch = interp.encode(model, inputs={"pixel_values": torch.randn(1, 3, 8, 8)})
    grid = patch_grid(model, batch)
    assert grid.special == ("class", "register", "register", "register") and grid.order.tolist() == [4, 5, 6, 7]
    found = interp.score(model, batch, "hop_profile")["hop_profile"]
    torch.testing.assert_close(torch.from_numpy(found.values).sum(-1), torch.ones(2, 3, dtype=torch.float64))


SMALL = {name: TOWER[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}


def test_rectangles_come_from_the_pixels() -> None:
    ask = vision_ask(3, 5)
    grid = patch_grid(ask.model, ask.batch)
    assert (grid.rows, grid.columns, grid.positions) == (3, 5, 16)
    assert grid.places[7].tolist() == [1, 2] and grid.coordinates[7].tolist() == [0.5, 0.5]
    assert grid.cells.tolist() == [-1, *range(15)]
    assert "3 x 5 patches" in repr(grid)


def test_a_larger_image_than_the_config_says() -> None:
    """With position embeddings interpolated a tower sees more patches than its config knows of."""
    tiny = TINY["dinov2"]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs={"pixel_values": torch.randn(1, 3, 12, 20)})
    grid = patch_grid(model, batch)
    assert (grid.rows, grid.columns) == (3, 5)
    assert interp.score(model, batch, "hop_centroid")["hop_centroid"].values.shape == (2, 3)


def test_packed_patches_come_in_squares_that_are_merged() -> None:
    """One image of Qwen's tower: the positions of four patches follow one another, whose cells form a square."""
    tiny = TINY["qwen2_vl"]()
    model = interp.load(tiny.hf)
    one = interp.encode(model, inputs=tiny.inputs(1))
    grid = patch_grid(model, one)
    assert grid.order.view(4, 4)[:2].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert grid.cells[:4].tolist() == [0, 1, 4, 5]
    with pytest.raises(BadInput, match=r"3 images .* packed into one sequence.*one image at a time"):
        patch_grid(model, interp.encode(model, inputs=tiny.inputs(3)))


def test_a_listed_grid() -> None:
    ask = vision_ask(2, 2)
    inputs = {"pixel_values": torch.zeros(2, 6, 12), "spatial_shapes": torch.tensor([[2, 3], [2, 3]])}
    grid = patch_grid(ask.model, replace(ask.batch, inputs=inputs))
    assert (grid.rows, grid.columns, grid.skipped) == (2, 3, ())
    inputs["spatial_shapes"] = torch.tensor([[2, 3], [3, 2]])
    with pytest.raises(BadInput, match="one size at a time"):
        patch_grid(ask.model, replace(ask.batch, inputs=inputs))


@pytest.mark.parametrize(
    ("grid", "order", "skipped"),
    [
        ((2, 2, 1), [1, 2, 3, 4], (0,)),
        ((2, 2, 0), [0, 1, 2, 3], ()),
        ((1, 3, [0, 4]), [1, 2, 3], (0, 4)),
        ([1, 2, (2,)], [0, 1], (2,)),
    ],
)
def test_a_given_grid(grid: Any, order: list[int], skipped: tuple[int, ...]) -> None:
    found = given_grid(grid)
    assert found.order.tolist() == order and found.skipped == skipped
    ask = vision_ask(2, 2)
    assert patch_grid(ask.model, ask.batch, grid=grid).order.tolist() == order


@pytest.mark.parametrize(
    "grid", [(2, 2), "2x2x1", (0, 2, 1), (2, 2.0, 1), (2, 2, -1), (2, 2, [9]), (2, 2, [-1]), 3, (2, 2, "1")]
)
def test_grids_that_are_none(grid: Any) -> None:
    ask = vision_ask(2, 2)
    with pytest.raises(BadInput, match=r"expected \(rows, columns, skip\)"):
        patch_grid(ask.model, ask.batch, grid=grid)


def test_a_grid_of_another_size_is_refused() -> None:
    ask = vision_ask(3, 3)
    with pytest.raises(BadInput, match=r"have 10 positions, and PatchGrid\(2 x 2 patches"):
        interp.score(ask.model, ask.batch, {"hop_profile": {"grid": (2, 2, 1)}})


def test_images_of_different_sizes_are_refused() -> None:
    ask = vision_ask(2, 2)
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    inputs = {**ask.batch.inputs, "pixel_attention_mask": mask}
    assert patch_grid(ask.model, replace(ask.batch, inputs=inputs)).size == 4
    inputs["pixel_attention_mask"] = mask.clone().index_fill(2, torch.tensor([3]), False)
    with pytest.raises(BadInput, match=r"different sizes.*one size at a time"):
        patch_grid(ask.model, replace(ask.batch, inputs=inputs))


def test_no_images_are_refused() -> None:
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4]]))
    with pytest.raises(Unsupported, match="no stack that sees images; its stacks are text"):
        patch_grid(model, batch)
    with pytest.raises(BadInput):
        interp.score(model, batch, "hop_profile")
    llava = interp.load(TINY["llava"]().hf)
    words = interp.encode(llava, torch.tensor([[5, 6, 7]]))
    with pytest.raises(BadInput, match="the prompts have no images"):
        interp.score(llava, words, "offset_local")
    with pytest.raises(Unsupported, match=r"stack 'text' sees none; score a vision stack \('vision'\)"):
        patch_grid(llava, words, "text")


def test_towers_that_are_not_understood_are_refused() -> None:
    """A position of unknown meaning, two convolutions, none: each with the way out."""
    tiny = TINY["vit"]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    embeddings = tiny.hf.vit.embeddings
    embeddings.detection_tokens = nn.Parameter(torch.zeros(1, 2, 24))
    with pytest.raises(Unsupported, match=r"'detection_tokens' adds .* grid=\(rows, columns, skip\)"):
        patch_grid(model, batch)
    del embeddings.detection_tokens
    embeddings.second = nn.Conv2d(3, 4, 2, stride=2)
    with pytest.raises(Unsupported, match="no single convolution that cuts patches"):
        patch_grid(model, batch)
    assert patch_grid(model, batch, grid=(2, 2, 1)).size == 4
    del embeddings.second
    assert patch_grid(model, batch).size == 4
    with pytest.raises(Unsupported, match="not as images"):
        patch_grid(model, replace(batch, inputs={"pixel_values": torch.zeros(2, 4, 12)}))
