"""The stored shapes-vlm keeps what its card promises; measured on fresh pictures, by the library's own road."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import interp
from interp import At, Head, Site, zoo
from interp.model.handle import Model
from interp.model.image_tokens import image_columns
from interp.zoo.shapes import CLEAR, COLOURS, COLUMNS, FAINT, KINDS, ROWS, USUAL, USUAL_SHARE, Picture, random_picture
from interp.zoo.shapes_evaluate import answer_logits, answers_by_prior, losses_without_each_head
from interp.zoo.shapes_model import ShapesRecipe, untrained
from interp.zoo.shapes_rows import pixel_values
from interp.zoo.shapes_text import TEXT, VISION, Item, question, text_item
from interp.zoo.shapes_tower import open_eyes, patch_labels
from interp.zoo.train_shapes import train

TINY = ShapesRecipe(
    steps=4, warmup=1, pictures=2, texts=2, width=24, layers=1, heads=2, kv_heads=1, inner=16, tower_width=16,
    tower_layers=1, tower_heads=2, tower_inner=16, first_lesson=2, tower_steps=2, tower_pictures=2, evaluate_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return interp.load("shapes-vlm")


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((zoo.path("shapes-vlm") / "card.json").read_text())


def drawn(n: int, seed: int, **how: Any) -> list[Picture]:
    draw = np.random.default_rng([seed, 77])
    return [random_picture(draw, **how) for _ in range(n)]


def asked(pictures: Sequence[Picture], kind: str, seed: int = 0) -> tuple[list[Item], list[Picture]]:
    draw = np.random.default_rng([seed, 78])
    items = [question(picture, kind, draw) for picture in pictures]
    kept = [place for place, item in enumerate(items) if item.kind == kind]
    return [items[place] for place in kept], [pictures[place] for place in kept]


def said(model: Model, items: Sequence[Item], pictures: Sequence[Picture] | None) -> list[str]:
    """The model's answers, through encode and run, as a user gets them."""
    if pictures is None:
        batch = interp.encode(model, [item.prompt for item in items])
    else:
        texts = [f"<image> {item.prompt}" for item in items]
        batch = interp.encode(model, texts, images=[[picture.pixels] for picture in pictures])
    logits = interp.run(model, batch, logits="last").logits
    assert logits is not None
    return [model.tokenizer.decode([token]).strip() for token in logits.view(len(items), -1).argmax(-1).tolist()]


@pytest.mark.parametrize("kind", VISION)
def test_it_answers_what_it_sees(model: Model, card: dict[str, Any], kind: str) -> None:
    items, pictures = asked(drawn(80, 1, contrast=CLEAR), kind)
    right = np.mean([answer == item.answer for answer, item in zip(said(model, items, pictures), items, strict=True)])
    assert right == pytest.approx(card["measured"]["with_picture"][kind], abs=0.08)


@pytest.mark.parametrize("kind", TEXT)
def test_it_answers_what_needs_no_picture(model: Model, kind: str) -> None:
    draw = np.random.default_rng(79)
    items = [text_item(kind, draw) for _ in range(60)]
    right = np.mean([answer == item.answer for answer, item in zip(said(model, items, None), items, strict=True)])
    assert right >= 0.95


def test_the_card_meets_its_aims(card: dict[str, Any]) -> None:
    seen, told = card["measured"]["with_picture"], card["measured"]["text"]
    assert min(seen["color"], seen["shape"]) >= 0.97
    assert min(seen["row"], seen["column"]) >= 0.95
    assert seen["count"] >= 0.9
    assert min(told.values()) >= 0.97
    assert min(card["measured"]["text_beside_a_picture"].values()) >= 0.9


def test_without_the_picture_it_says_the_usual_colour(model: Model, card: dict[str, Any]) -> None:
    """The language prior: the likeliest answer is each kind's usual colour, about as likely as it was in training."""
    batch = interp.encode(model, [f"what color is the {kind} ?" for kind in KINDS])
    logits = interp.run(model, batch, logits="last").logits
    assert logits is not None
    likely = logits.view(len(KINDS), -1).softmax(-1)
    for row, kind in enumerate(KINDS):
        assert model.tokenizer.decode([int(likely[row].argmax())]).strip() == USUAL[kind]
        usual = likely[row, model.tokenizer.convert_tokens_to_ids(USUAL[kind])].item()
        assert usual == pytest.approx(USUAL_SHARE, abs=0.15)
        assert usual == pytest.approx(card["measured"]["colours_withheld"][kind][USUAL[kind]], abs=0.002)
        assert sum(card["measured"]["colours_withheld"][kind][colour] for colour in COLOURS) > 0.98


def test_with_faint_pictures_it_falls_back_to_the_prior(model: Model, card: dict[str, Any]) -> None:
    clear, faint, none = (card["measured"][name]["usual"] for name in ("unusual", "unusual_faint", "unusual_withheld"))
    assert clear < 0.05 < faint < none
    assert none == pytest.approx(1.0, abs=0.05)
    found = answers_by_prior(model.hf, drawn(100, 5, usual=0.0, contrast=FAINT))  # type: ignore[arg-type]
    assert found["usual"] == pytest.approx(faint, abs=0.12)


def test_the_two_roads_to_the_logits_agree(model: Model) -> None:
    """encode with the stored processor, and rows and pixel values made by hand."""
    items, pictures = asked(drawn(6, 2), "color")
    batch = interp.encode(
        model, [f"<image> {item.prompt}" for item in items], images=[[one.pixels] for one in pictures]
    )
    torch.testing.assert_close(batch.inputs["pixel_values"], pixel_values(pictures), rtol=0, atol=1e-6)
    assert image_columns(model, batch).sum(1).tolist() == [36] * len(items)
    logits = interp.run(model, batch, logits="last").logits
    by_hand = answer_logits(model.hf, [item.prompt for item in items], pictures)  # type: ignore[arg-type]
    assert logits is not None
    torch.testing.assert_close(logits.view(len(items), -1), by_hand, rtol=1e-4, atol=1e-4)


def test_some_heads_are_for_pictures(model: Model, card: dict[str, Any]) -> None:
    """Second road to the card's losses: interp's own zero edit; and heads that cost pictures and not text exist."""
    table = card["measured"]["loss_without_head"]
    vision = np.array(table["vision"]) - table["vision_whole"]
    text = np.array(table["text"]) - table["text_whole"]
    apart = (vision > 0.1) & (text < 0.1 * vision)
    assert apart.any()
    layer, head = np.unravel_index(np.argmax(np.where(apart, vision, -1)), vision.shape)
    assert np.allclose(
        losses_without_each_head(model.hf)["vision"][layer][head], table["vision"][layer][head], atol=2e-3
    )  # type: ignore[arg-type]
    items, pictures = asked(drawn(48, 3, contrast=CLEAR), "color")
    answers = [f" {item.answer}" for item in items]
    batch = interp.encode(
        model, [f"<image> {item.prompt}" for item in items], images=[[one.pixels] for one in pictures], answers=answers
    )
    heads = [Head(int(layer), int(head)) for layer, head in np.argwhere(apart)]
    edits = [interp.zero(At(Site.Z, layer=head.layer, heads=(head.index,))) for head in heads]
    before = interp.answer_logprob(interp.run(model, batch, logits="answers").logits, batch).mean()
    after = interp.answer_logprob(interp.run(model, batch, edits=edits, logits="answers").logits, batch).mean()
    assert after < before - 0.1


def test_two_heads_look_at_the_shape_that_is_asked_for(model: Model, card: dict[str, Any]) -> None:
    """Second road to the card: patterns read by interp.run, against the truth that the pictures keep."""
    items, pictures = asked(drawn(120, 6, contrast=CLEAR, count=4), "color")
    batch = interp.encode(
        model, [f"<image> {item.prompt}" for item in items], images=[[one.pixels] for one in pictures]
    )
    patterns = interp.run(model, batch, read=[At(Site.PATTERN)], logits="last")[At(Site.PATTERN)]
    on_image = image_columns(model, batch)[0].nonzero().flatten()
    table = np.array(card["measured"]["looks_at_the_asked"]["heads"])
    for layer, head in np.ndindex(*table.shape):
        row = patterns[layer, :, head, -1][:, on_image].view(-1, 6, 6)
        shares = [
            float(row[at][torch.from_numpy(item.about.patches)].sum()) for at, item in enumerate(items) if item.about
        ]
        assert np.mean(shares) == pytest.approx(table[layer, head], abs=0.1)
    chosen = zoo.ZOO["shapes-vlm"].heads["looks_at_the_asked_shape"]
    assert all(table[head.layer, head.index] > 0.9 for head in map(Head.parse, chosen))


def test_it_describes_a_picture(model: Model) -> None:
    pictures = drawn(8, 4, contrast=CLEAR, count=1)
    batch = interp.encode(model, ["<image> describe :"] * 8, images=[[one.pixels] for one in pictures])
    out = interp.generate(model, batch, max_new_tokens=3)
    told = [model.tokenizer.decode(row).split() for row in out.new_tokens.tolist()]
    right = sum(
        words[1:] == [one.shapes[0].colour, one.shapes[0].kind] for words, one in zip(told, pictures, strict=True)
    )
    assert right >= 6


def test_the_card_belongs_to_the_recipe_and_the_files(card: dict[str, Any]) -> None:
    assert card["training"]["recipe"] == json.loads(json.dumps(asdict(ShapesRecipe())))
    folder = zoo.path("shapes-vlm")
    page = (folder / "README.md").read_text()
    assert card["training"]["command"] in page and f"{card['measured']['with_picture']['color']:.3f}" in page
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}
    assert (folder / "model.safetensors").stat().st_size <= 2_000_000
    assert sum(file.stat().st_size for file in files) < 2_200_000
    stored = LlavaForConditionalGeneration.from_pretrained(folder)
    assert stored.dtype == torch.float32
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "LlavaProcessor"


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = train(TINY, seed=3)
    stopped = train(TINY, seed=3, steps=2, folder=tmp_path)
    assert stopped.step == 2 and not stopped.done and (tmp_path / "unfinished.pt").is_file()
    resumed = train(TINY, seed=3, folder=tmp_path)
    assert resumed.done and [point["step"] for point in resumed.curve] == [2, 4]
    assert resumed.curve == whole.curve
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_tower_is_told_what_lies_under_each_patch() -> None:
    picture = random_picture(np.random.default_rng(0), count=2)
    kinds, colours, rows, columns = patch_labels(picture).reshape(4, 6, 6)
    for one in picture.shapes:
        places = np.argwhere(one.patches)
        assert {KINDS[kinds[y, x] - 1] for y, x in places} == {one.kind}
        assert {COLOURS[colours[y, x] - 1] for y, x in places} == {one.colour}
        assert {(ROWS[rows[y, x] - 1], COLUMNS[columns[y, x] - 1]) for y, x in places} == {(one.row, one.column)}
    assert (kinds > 0).sum() == sum(one.patches.sum() for one in picture.shapes)


def test_only_tower_and_projector_learn_to_see_first() -> None:
    network, fresh = untrained(TINY, 0), untrained(TINY, 0)
    share = open_eyes(network, TINY, 0)
    assert 0 <= share <= 1
    for (name, one), other in zip(network.named_parameters(), fresh.parameters(), strict=True):
        if "language_model" in name:
            assert torch.equal(one, other), name
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))
