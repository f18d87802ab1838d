"""The same prompts with some tokens taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case
from tiny_models import FIRST_WORD, IMAGE_TOKEN

import interp
from interp.errors import BadInput, Unsupported
from interp.model.image_tokens import image_columns, image_token_ids
from interp.model.shortening import shortened

CaseOf = Callable[[str], Case]


def test_tokens_close_up_and_what_belongs_to_them_moves() -> None:
    model = tiny_gpt2()
    batch = interp.encode(
        model, [[1, 2, 3, 4], [5, 6, 7]], padding_side="left", answers=[1, 2], spans={"kept": range(2, 3)}
    )
    removed = torch.tensor([[False, True, True, False], [False, False, True, False]])
    parts = shortened(model, batch, removed)
    assert sorted(row for part in parts for row in part.rows.tolist()) == [0, 1]
    for part in parts:
        for row, prompt in enumerate(part.rows.tolist()):
            assert part.batch.ids is not None and part.batch.answers is not None
            kept = part.batch.ids[row][part.batch.mask[row]].tolist()
            assert kept == [[1, 4], [5, 7]][prompt]
            assert part.batch.read_at[row] == part.batch.mask[row].nonzero().max()
            assert part.batch.answers[row].tolist() == [[1], [2]][prompt]
            assert part.batch.spans["kept"][row].sum() == [0, 1][prompt]  # of the first prompt the span is gone
            columns = part.moved[row][batch.mask[prompt]].tolist()
            assert [place >= 0 for place in columns] == [[True, False, False, True], [True, False, True]][prompt]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_shortened_prompt_is_the_prompt_encoded_alone(side: str) -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, [[1, 2, 3, 4, 5], [5, 6, 7]], padding_side=side)
    member = torch.zeros_like(batch.mask)
    for row, place in enumerate((1, 0)):
        member[row, batch.mask[row].nonzero()[place]] = True
    for part in shortened(model, batch, member):
        logits = interp.run(model, part.batch, logits="last").logits
        assert logits is not None
        for row, prompt in enumerate(part.rows.tolist()):
            alone = interp.encode(model, torch.tensor([[[1, 3, 4, 5], [6, 7]][prompt]]))
            own = interp.run(model, alone, logits="last").logits
            assert own is not None
            torch.testing.assert_close(logits[row, 0], own[0, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava", "paligemma", "qwen2_vl", "smolvlm", "idefics3"])
def test_images_go_with_their_tokens(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 5)
    images = image_columns(case.model, batch)
    assert batch.ids is not None and bool((batch.ids[images] == IMAGE_TOKEN).all())
    edges = image_columns(case.model, batch, edges=True)
    assert int((edges & ~images).sum()) == (4 if name == "qwen2_vl" else 0)  # where an image begins and ends
    (part,) = shortened(case.model, batch, edges)
    assert not [key for key in part.batch.inputs if "pixel" in key or "grid" in key]
    assert part.batch.ids is not None and bool((part.batch.ids < IMAGE_TOKEN).all())
    assert part.batch.width == batch.width - int(edges[0].sum())
    some = images & (images.cumsum(-1) == 1)
    if int(images[0].sum()) > 1:
        with pytest.raises(BadInput, match="image tokens would be taken out"):
            shortened(case.model, batch, some)
    words = torch.zeros_like(images)
    words[:, -2] = True
    (part,) = shortened(case.model, batch, words)
    assert [key for key in part.batch.inputs if "pixel" in key], "a word that goes leaves the image"


def test_unequal_images_are_run_by_length(case_of: CaseOf) -> None:
    """Padding that was never checked is not brought in: prompts of one length run together."""
    case = case_of("llava")
    batch = case.batch(3, 6)
    member = image_columns(case.model, batch)
    member[1, -2] = True
    parts = shortened(case.model, batch, member)
    assert [part.rows.tolist() for part in parts] == [[1], [0, 2]]
    assert all(bool(part.batch.mask.all()) for part in parts)


def test_what_cannot_be_shortened_is_refused(case_of: CaseOf) -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3]])
    everything = torch.ones_like(batch.mask)
    with pytest.raises(BadInput, match="Nothing is left of prompts \\[0\\]"):
        shortened(model, batch, everything)
    last = torch.tensor([[False, False, True]])
    with pytest.raises(BadInput, match="hold the position that is read in prompts \\[0\\]"):
        shortened(model, batch, last)
    vit = case_of("vit")
    with pytest.raises(BadInput, match="token ids alone"):
        shortened(vit.model, vit.batch(2), torch.zeros(2, 1, dtype=torch.bool))
    assert image_token_ids(model) == ()
    with pytest.raises(Unsupported, match="takes no images among its tokens"):
        image_columns(model, batch)
    llava = case_of("llava")
    own = llava.batch(2, 4)
    assert own.ids is not None
    blind = own.ids.clone()
    blind[1] = FIRST_WORD
    with pytest.raises(BadInput, match="Prompts \\[1\\] have no image token"):
        image_columns(llava.model, replace(own, ids=blind))
