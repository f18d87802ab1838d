"""Traces by taking away: blank-out, occlusion, leave-one-out, against brute force, closed forms and planted models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, fingerprint
from tiny_models import IMAGE_TOKEN
from torch import Tensor

import interp
from interp import BadInput, Batch, UnknownName, Unsupported
from interp.metrics.declare import declared
from interp.tracing.occlusion.pixels import PatchPixels, blurred
from interp.tracing.occlusion.replaced import replacement_id

CaseOf = Callable[[str], Case]
IDS = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11, 12]]


def worth_of(token: Tensor) -> Tensor:
    """What a token adds to the additive metric."""
    return torch.sin(token.double() * 1.7) * 3


@declared(positions="answers")
def additive(logits: Tensor, batch: Batch) -> Tensor:
    """A sum over the prompt's own tokens: taking one away costs just what it adds."""
    ids = batch.inputs["input_ids"]
    return (worth_of(ids) * batch.inputs["attention_mask"]).sum(-1)


def final(logits: Tensor, batch: Batch) -> Tensor:
    return logits[torch.arange(len(batch)), batch.read_at]


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_a_sum_over_tokens_is_found_exactly(side: str) -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, IDS, padding_side=side)
    gone = interp.trace(model, batch, "leave-one-out", metric=additive)
    blank = interp.trace(model, batch, "blank-out", metric=additive, replacement=12)
    size = interp.trace(model, batch, "blank-out", metric=additive, replacement=12, change="absolute")
    for row, prompt in enumerate(IDS):
        places = batch.mask[row].nonzero().flatten().tolist()
        exact = worth_of(torch.tensor(prompt)).numpy()
        np.testing.assert_allclose(gone.values[row, 0, places[:-1]], exact[:-1], atol=1e-9)
        assert math.isnan(gone.values[row, 0, places[-1]])  # the token that is read cannot go
        less = exact - float(worth_of(torch.tensor(12)))
        np.testing.assert_allclose(blank.values[row, 0, places], less, atol=1e-9)
        np.testing.assert_allclose(size.values[row, 0, places], np.abs(less), atol=1e-9)
        assert np.isnan(blank.values[row, 0, ~batch.mask[row].numpy()]).all()


def test_each_token_against_a_forward_of_its_own() -> None:
    """Blank-out: ids changed by hand. Occlusion: one knockout at a time. Leave-one-out: the prompt encoded again."""
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, IDS, answers=[(3, 4), (5, 6), (7, 8)], padding_side="left")
    traces = {
        name: interp.trace(model, batch, name, metric=interp.logit_difference, **options)
        for name, options in (("blank-out", {"replacement": 0}), ("occlusion", {}), ("leave-one-out", {}))
    }
    for row, prompt in enumerate(IDS):
        own = interp.encode(model, [prompt], answers=[batch.answers[row].tolist()])

        def difference(changed: Batch, *edits: interp.Edit) -> float:
            logits = interp.run(model, changed, edits=edits).logits
            assert logits is not None
            return float(interp.logit_difference(logits, changed)[0])

        whole, first = difference(own), int(batch.mask[row].long().argmax())
        for t in range(len(prompt)):
            ids = own.inputs["input_ids"].clone()
            ids[0, t] = 0
            blank = difference(replace(own, inputs={**own.inputs, "input_ids": ids}))
            assert traces["blank-out"].values[row, 0, first + t] == pytest.approx(whole - blank, abs=1e-4)
            if t == len(prompt) - 1:
                continue
            here = torch.zeros(1, len(prompt), dtype=torch.bool)
            here[0, t] = True
            hidden = difference(own, interp.knockout(~here, here))
            assert traces["occlusion"].values[row, 0, first + t] == pytest.approx(whole - hidden, abs=1e-4)
            shorter = interp.encode(model, [prompt[:t] + prompt[t + 1 :]], answers=own.answers)
            assert traces["leave-one-out"].values[row, 0, first + t] == pytest.approx(
                whole - difference(shorter), abs=1e-4
            )


def test_positive_speaks_for_the_answer() -> None:
    """Hand-built: after ``a b c a`` the induction head reads a's successor; without b or the a before, it is lost."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
    found = interp.trace(model, batch, "occlusion", metric=interp.logit_difference)
    assert found.signed and found.values[0, 0].round(1)[[1, 2, 3]].tolist() == pytest.approx([10, 10, 0])
    turned = replace(batch, answers=torch.tensor([[5, 4]]))
    other = interp.trace(model, turned, "occlusion", metric=interp.logit_difference)
    np.testing.assert_allclose(other.values, -found.values, atol=1e-4)


def test_the_protocol_of_agreement_by_hand() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4]], answers=[(5, 6)])
    found = interp.trace(model, batch, "blank-out", replacement=0, change="sva")

    def gap(ids: Tensor) -> float:
        logits = interp.run(model, interp.encode(model, ids)).logits
        assert logits is not None
        p = logits[0, -1].double().softmax(-1)
        return float(p[5] - p[6])

    ids = torch.tensor([[1, 2, 3, 4]])
    for t in range(4):
        other = ids.clone()
        other[0, t] = 0
        assert found.values[0, 0, t] == pytest.approx(abs(gap(ids) - gap(other)), abs=1e-6)
    with pytest.raises(BadInput, match="right and a wrong"):
        interp.trace(model, interp.encode(model, ids), "blank-out", replacement=0, change="sva")
    with pytest.raises(BadInput, match="metric= out"):
        interp.trace(model, batch, "blank-out", replacement=0, change="sva", metric=interp.loss)


def test_without_answers_the_answer_of_the_whole_prompt_is_explained() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4]])
    logits = interp.run(model, batch).logits
    assert logits is not None
    said = interp.encode(model, [[1, 2, 3, 4]], answers=[int(logits[0, -1].argmax())])
    for name, options in (("blank-out", {"replacement": 0}), ("occlusion", {})):
        found = interp.trace(model, batch, name, **options)
        np.testing.assert_array_equal(found.values, interp.trace(model, said, name, **options).values)
        assert found.metadata["metric"] == "log-probability of what the model says of the whole prompt"


@pytest.mark.parametrize("method", ["blank-out", "occlusion", "leave-one-out", "lime"])
def test_the_order_and_size_of_batches_change_nothing(method: str) -> None:
    model = tiny_gpt2(check=True)
    own = {"blank-out": {"replacement": 0}, "lime": {"samples": 12}}.get(method, {})
    batch = interp.encode(model, IDS, answers=[(3, 4), (5, 6), (7, 8)], padding_side="left")
    found = interp.trace(model, batch, method, **own).values
    order = [2, 0, 1]
    turned = interp.trace(model, batch.select(order), method, **own).values
    np.testing.assert_allclose(turned, found[order], atol=1e-4)
    small = interp.trace(model, batch, method, batch_size=1 if method in ("blank-out", "leave-one-out") else 3, **own)
    np.testing.assert_allclose(small.values, found, atol=1e-4)
    right = interp.encode(model, IDS, answers=[(3, 4), (5, 6), (7, 8)], padding_side="right")
    other = interp.trace(model, right, method, **own).values
    np.testing.assert_allclose(other[right.mask[:, None]], found[batch.mask[:, None]], atol=1e-3)
    counted: list[int] = []
    interp.trace(model, batch, method, progress=counted.append, **own)
    assert sum(counted) > 0


def test_what_stands_in_the_place_of_a_token() -> None:
    bert = interp.load("induction")
    assert replacement_id(bert, "unk") == replacement_id(bert, None) == bert.tokenizer.unk_token_id
    assert replacement_id(bert, bert.tokenizer.convert_ids_to_tokens(5)) == 5
    with pytest.raises(BadInput, match="no mask token"):
        replacement_id(bert, "mask")
    with pytest.raises(BadInput, match=r"Unknown token .*'nosuchtoken'"):
        replacement_id(bert, "nosuchtoken")
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3]])
    with pytest.raises(BadInput, match="give replacement="):
        interp.trace(model, batch, "blank-out")
    with pytest.raises(BadInput, match="0 to 12"):
        interp.trace(model, batch, "blank-out", replacement=13)
    with pytest.raises(BadInput, match="expected an id"):
        interp.trace(model, batch, "blank-out", replacement=1.5)
    with pytest.raises(UnknownName, match="change"):
        interp.trace(model, batch, "occlusion", change="sizes")
    with pytest.raises(BadInput, match="batch_size=0"):
        interp.trace(model, batch, "blank-out", replacement=0, batch_size=0)
    with pytest.raises(BadInput, match="explains the answer's metric"):
        interp.trace(model, batch, "occlusion", targets="all")
    found = interp.trace(model, interp.encode(model, [[1, 2, 1]]), "blank-out", replacement=1)
    assert found.metadata["already_the_replacement"] == 2
    assert found.values[0, 0, [0, 2]].tolist() == [0, 0] and found.values[0, 0, 1] != 0


@pytest.mark.parametrize("fill", ["mean", "zero", "blur", 0.5])
def test_patches_covered_in_the_pixels(case_of: CaseOf, fill: str | float) -> None:
    case = case_of("vit")
    batch = case.batch(2)
    pixels = batch.inputs["pixel_values"]
    found = interp.trace(case.model, batch, "blank-out", fill=fill)
    grid = interp.patch_grid(case.model, batch)
    assert np.isnan(found.values[:, 0, list(grid.skipped)]).all() and found.values.shape[2] == grid.positions
    base = torch.log_softmax(case.hf(**batch.inputs).logits, -1)
    said = base.argmax(-1)
    side = pixels.shape[-1] // grid.columns
    filling = {
        "mean": pixels.mean((-2, -1), keepdim=True).expand_as(pixels),
        "zero": torch.zeros_like(pixels),
        "blur": blurred(pixels, side),
        0.5: torch.full_like(pixels, 0.5),
    }[fill]
    for cell, (row, column) in enumerate(grid.places.tolist()):
        other = pixels.clone()
        part = (..., slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
        other[part] = filling[part]
        with torch.no_grad():
            less = torch.log_softmax(case.hf(pixel_values=other).logits, -1)
        exact = (base - less)[torch.arange(2), said].detach()
        np.testing.assert_allclose(found.values[:, 0, int(grid.order[cell])], exact, atol=1e-5)


def test_a_blurred_image_by_hand() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    made = blurred(point, 1.0)[0, 0]
    step = torch.arange(-4, 5)
    line = torch.exp(-0.5 * step**2)
    line = line / torch.exp(-0.5 * torch.arange(-4.0, 5) ** 2).sum()
    torch.testing.assert_close(made, line[:, None] * line, atol=1e-6, rtol=1e-4)
    grid = interp.scores.grids.grid.given_grid((3, 3, 0))
    cells = torch.zeros(1, 9, dtype=torch.bool)
    cells[0, 5] = True
    covered = PatchPixels(grid, 3, 3, 7.0).covered(point, cells)[0, 0]
    assert bool((covered[3:6, 6:9] == 7).all()) and int((covered == 7).sum()) == 9


def test_image_tokens_of_a_text_are_covered_where_they_are_made(case_of: CaseOf) -> None:
    """A vision-language model: word columns by their ids, image columns by the pixels of their patch."""
    case = case_of("llava")
    batch = case.batch(2, 5)
    found = interp.trace(case.model, batch, "blank-out", replacement=7)
    ids, pixels = batch.inputs["input_ids"], batch.inputs["pixel_values"]
    images = (ids[0] == IMAGE_TOKEN).nonzero().flatten().tolist()
    with torch.no_grad():
        base = torch.log_softmax(final(case.hf(**batch.inputs).logits, batch), -1)
        said = base.argmax(-1)
        for column in range(batch.width):
            inputs = dict(batch.inputs)
            if column in images:
                row, place = divmod(images.index(column), 2)
                other = pixels.clone()
                other[..., row * 4 : row * 4 + 4, place * 4 : place * 4 + 4] = pixels.mean((-2, -1), keepdim=True)
                inputs["pixel_values"] = other
            else:
                inputs["input_ids"] = ids.clone().index_fill_(1, torch.tensor([column]), 7)
            less = torch.log_softmax(final(case.hf(**inputs).logits, batch), -1)
            exact = (base - less)[torch.arange(2), said]
            np.testing.assert_allclose(found.values[:, 0, column], exact, atol=1e-5)
    hidden = interp.trace(case.model, batch, "occlusion").values
    assert np.isfinite(hidden[:, 0, images]).all()
    tower = interp.trace(case.model, batch, "blank-out", stack="vision").values
    cells = interp.patch_columns(case.model, batch, "vision")[0].tolist()
    np.testing.assert_allclose(tower[:, 0, cells], found.values[:, 0, images], atol=1e-5)
    gone = interp.trace(case.model, batch, "leave-one-out").values
    assert np.isnan(gone[:, 0, images]).all() and np.isfinite(gone[:, 0, 0]).all()


def test_encoder_and_decoder_tokens(case_of: CaseOf) -> None:
    case = case_of("t5")
    batch = case.batch(2, 6)
    source, target = batch.inputs["input_ids"], batch.inputs["decoder_input_ids"]
    with torch.no_grad():
        base = torch.log_softmax(final(case.hf(**batch.inputs).logits, batch), -1)
        said = base.argmax(-1)
        for stack, name, ids in (("cross", "input_ids", source), (None, "decoder_input_ids", target)):
            found = interp.trace(case.model, batch, "blank-out", stack=stack, replacement=7).values
            assert found.shape[2] == ids.shape[1]
            for column in range(ids.shape[1]):
                other = {**batch.inputs, name: ids.clone().index_fill_(1, torch.tensor([column]), 7)}
                less = torch.log_softmax(final(case.hf(**other).logits, batch), -1)
                np.testing.assert_allclose(found[:, 0, column], (base - less)[torch.arange(2), said], atol=1e-5)
    assert np.isfinite(interp.trace(case.model, batch, "leave-one-out", stack="cross").values).all()
    assert np.isfinite(interp.trace(case.model, batch, "occlusion", stack="cross").values).all()
    assert np.isfinite(interp.trace(case.model, batch, "occlusion").values[:, 0, :-1]).all()
    with pytest.raises(Unsupported, match="stack='cross'"):
        interp.trace(case.model, batch, "leave-one-out")


def test_sounds_packed_images_and_attention_out_of_reach(case_of: CaseOf) -> None:
    speech = case_of("whisper")
    batch = speech.batch(2, 4)
    found = interp.trace(speech.model, batch, "occlusion", stack="cross").values
    assert found.shape == (2, 1, 8) and np.isfinite(found).all() and (found != 0).any()
    blank = interp.trace(speech.model, batch, "blank-out", stack="cross", fill="zero").values
    sounds = batch.inputs["input_features"].clone()
    sounds[:, :, 6:8] = 0  # two frames make a position
    with torch.no_grad():
        base = torch.log_softmax(final(speech.hf(**batch.inputs).logits, batch), -1)
        less = torch.log_softmax(final(speech.hf(**{**batch.inputs, "input_features": sounds}).logits, batch), -1)
    exact = (base - less)[torch.arange(2), base.argmax(-1)]
    np.testing.assert_allclose(blank[:, 0, 3], exact, atol=1e-5)
    packed = case_of("qwen2_vl")
    batch = packed.batch(2, 5)
    found = interp.trace(packed.model, batch, "blank-out", replacement=7)
    images = batch.inputs["input_ids"] == IMAGE_TOKEN
    assert "left out" in found.metadata["images"] and np.isnan(found.values[:, 0][images.numpy()]).all()
    assert np.isfinite(found.values[:, 0][~images.numpy()]).all()
    bypass = case_of("gptj")
    with pytest.raises(Unsupported):
        interp.trace(bypass.model, bypass.batch(), "occlusion")
    assert np.isfinite(interp.trace(bypass.model, bypass.batch(), "leave-one-out").values[:, 0, :-1]).all()
    llava = case_of("llava")
    with pytest.raises(Unsupported, match="blank-out"):
        interp.trace(llava.model, llava.batch(), "leave-one-out", stack="vision")


@pytest.mark.parametrize("name", ["vit", "dinov2", "deit"])
def test_patches_taken_out_one_by_one(case_of: CaseOf, name: str) -> None:
    """The same as a forward that drops all patches but those, and nothing of the model is left changed by an error."""
    case = case_of(name)
    batch = case.batch(2)
    found = interp.trace(case.model, batch, "leave-one-out").values[:, 0]
    columns = interp.patch_columns(case.model, batch)
    logits = interp.run(case.model, batch).logits
    assert logits is not None
    said = logits.argmax(-1)
    for cell in range(columns.shape[1]):
        keep = torch.ones(columns.shape, dtype=torch.bool)
        keep[:, cell] = False
        less = interp.masked_forward(case.model, batch, keep, drop=True).logits
        exact = (logits.log_softmax(-1) - less.log_softmax(-1))[torch.arange(2), said]
        np.testing.assert_allclose(found[torch.arange(2), columns[:, cell]], exact, atol=1e-5)
    small = interp.trace(case.model, batch, "leave-one-out", batch_size=1).values[:, 0]
    np.testing.assert_allclose(small, found, atol=1e-5)
    before = fingerprint(case.hf)

    def broken(logits: Tensor, own: Batch) -> Tensor:
        if case.hf.vit_is_cut:
            raise RuntimeError("in the middle")
        return logits[:, 0]

    case.hf.vit_is_cut = False
    try:
        interp.trace(case.model, batch, "leave-one-out", metric=broken)
        case.hf.vit_is_cut = True
        with pytest.raises(RuntimeError, match="in the middle"):
            interp.trace(case.model, batch, "leave-one-out", metric=broken)
    finally:
        del case.hf.vit_is_cut
    assert fingerprint(case.hf) == before


def test_masked_language_models_and_sinks_that_stay(case_of: CaseOf) -> None:
    case = case_of("bert")
    batch = case.batch(2, 6)
    found = interp.trace(case.model, batch, "occlusion", exclude_sinks="first").values
    assert np.isnan(found[:, 0, 0]).all() and np.isfinite(found[:, 0, 1:-1]).all()
    before = fingerprint(case.hf)
    interp.trace(case.model, batch, "blank-out", replacement=7)
    assert fingerprint(case.hf) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "mistral",
                                  "roberta", "distilbert", "modernbert", "bart", "paligemma", "smolvlm", "idefics3",
                                  "dinov2", "bloom", "falcon"])  # fmt: skip
def test_families(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 6)
    vision = case.tiny.kind == "vision"
    blank = interp.trace(case.model, batch, "blank-out", **({} if vision else {"replacement": 7})).values
    assert np.isfinite(blank).any() and np.nanmax(np.abs(blank)) > 0
    small = interp.trace(case.model, batch, "blank-out", batch_size=1, **({} if vision else {"replacement": 7})).values
    np.testing.assert_allclose(small, blank, atol=2e-4)
    if case.tiny.name not in ("bloom", "falcon"):
        hidden = interp.trace(case.model, batch, "occlusion").values
        assert np.isfinite(hidden).any() and np.nanmax(np.abs(hidden)) > 0


def test_two_towers_are_asked_one_pair_at_a_time(case_of: CaseOf) -> None:
    """Their logits compare every image of a batch with every text: in a batch of copies prompts would mix."""
    case = case_of("clip")
    both = case.batch(2, 6)

    def similarity(logits: Tensor, batch: Batch) -> Tensor:
        return logits[:, 0]

    for method, options in (("blank-out", {"replacement": 7}), ("occlusion", {}), ("leave-one-out", {})):
        with pytest.raises(BadInput, match="one image and one text at a time"):
            interp.trace(case.model, both, method, **options)
        with pytest.raises(BadInput, match="one image and one text at a time"):
            interp.trace(case.model, both, method, metric=similarity, **options)
    one = both.select([1])
    found = interp.trace(case.model, one, "blank-out", replacement=7, metric=similarity).values[0, 0]
    ids = one.inputs["input_ids"]
    with torch.no_grad():
        whole = case.hf(**one.inputs).logits_per_image[0, 0]
        for column in range(ids.shape[1]):
            other = {**one.inputs, "input_ids": ids.clone().index_fill_(1, torch.tensor([column]), 7)}
            assert found[column] == pytest.approx(float(whole - case.hf(**other).logits_per_image[0, 0]), abs=1e-4)
    tower = interp.trace(case.model, one, "occlusion", stack="vision", metric=similarity).values[0, 0]
    assert np.isfinite(tower[1:]).all() and np.nanmax(np.abs(tower)) > 0


def test_what_cannot_be_is_refused_before_any_forward(case_of: CaseOf, monkeypatch: pytest.MonkeyPatch) -> None:
    case, bypass, t5 = case_of("gpt2"), case_of("gptj"), case_of("t5")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forward ran")

    for one in (case, bypass, t5):
        monkeypatch.setattr(type(one.hf), "forward", never)
    for one, method, options in (
        (case, "blank-out", {}),
        (case, "blank-out", {"replacement": 10_000}),
        (case, "blank-out", {"replacement": 7, "fill": "red"}),
        (case, "lime", {"by": "replace"}),
        (bypass, "occlusion", {}),
        (t5, "leave-one-out", {}),
    ):
        with pytest.raises(BadInput):
            interp.trace(one.model, one.batch(2, 5), method, **options)


def test_half_precision_is_held_against_whole_prompts_of_the_same_batch() -> None:
    """Rounding depends on the rows beside a row: a token replaced by itself must still cost exactly nothing."""
    model = tiny_gpt2(dtype=torch.bfloat16, check=True)
    batch = interp.encode(model, [[1, 2, 3, 4, 5], [6, 3, 8, 9, 3]], answers=[(3, 4), (5, 6)])
    found = interp.trace(model, batch, "blank-out", replacement=3).values[:, 0]
    same = batch.inputs["input_ids"].numpy() == 3
    assert (found[same] == 0).all() and (found[~same] != 0).all()
    exact = interp.trace(tiny_gpt2(), batch, "blank-out", replacement=3).values[:, 0]
    np.testing.assert_allclose(found, exact, atol=0.25)
