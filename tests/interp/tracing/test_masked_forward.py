"""Masked forwards: independence of what is hidden, to the bit; the negative control; equalities of the three masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, fingerprint
from torch import Tensor

import interp
from interp import BadInput, Unsupported
from interp.tracing.protocols.pixel_test import leakage_by_layer, pixel_test

CaseOf = Callable[[str], Case]


def half(case: Case, batch: interp.Batch, seed: int = 0) -> Tensor:
    """A random mask that keeps half of the patches, another half for each image."""
    size = interp.patch_grid(case.model, batch, None).size
    draw = torch.Generator().manual_seed(seed)
    keep = torch.zeros(len(batch), size, dtype=torch.bool)
    for row in keep:
        row[torch.randperm(size, generator=draw)[: size // 2]] = True
    return keep


@pytest.mark.parametrize("name", ["vit", "dinov2", "deit"])
def test_all_kept_is_the_model_itself(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(3)
    keep = torch.ones(3, interp.patch_grid(case.model, batch).size, dtype=torch.bool)
    plain = interp.run(case.model, batch).logits
    same_kernels = interp.run(case.model, batch, kernels="eager").logits
    assert plain is not None and same_kernels is not None
    assert torch.equal(interp.masked_forward(case.model, batch, keep, drop=True).logits, plain)
    assert torch.equal(interp.masked_forward(case.model, batch, keep).logits, same_kernels)
    soft = interp.masked_forward(case.model, batch, keep, soft=True).logits
    torch.testing.assert_close(soft, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_the_pixels_of_dropped_patches_change_no_bit(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(3)
    keep = half(case, batch)
    dropped = pixel_test(case.model, batch, keep, drop=True)
    hidden = pixel_test(case.model, batch, keep)
    assert dropped.passed and hidden.passed and dropped.table()["passed"].all()
    above = pixel_test(case.model, batch, keep, layers=range(1, case.model.stack().n_layers))
    assert not above.passed and (above.leakage > 1e-3).all() and "failed in 3" in repr(above)
    assert (leakage_by_layer(case.model, batch, keep)["passed"]).tolist() == [True, False]


def test_a_model_that_pools_its_patches_needs_them_dropped(case_of: CaseOf) -> None:
    """DINOv2's classifier reads the mean of the patches besides CLS: a mask leaves them in that mean."""
    case = case_of("dinov2")
    batch = case.batch(3)
    keep = half(case, batch)
    assert pixel_test(case.model, batch, keep, drop=True).passed
    assert not pixel_test(case.model, batch, keep).passed


def test_the_cls_row_alone_leaks(case_of: CaseOf) -> None:
    """Hiding patches from the CLS row only is no mask: what the others read of them comes back."""
    case = case_of("vit")
    batch = case.batch(2)
    keep = half(case, batch)
    gone = torch.cat([torch.zeros(2, 1, dtype=torch.bool), ~keep], dim=1)
    cls = torch.zeros_like(gone)
    cls[:, 0] = True
    edit = interp.knockout(cls, gone)
    noise = torch.randn(batch.inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(1))
    patches = keep.view(2, 1, *(2 * [int(keep.shape[1] ** 0.5)])).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = replace(batch, inputs={"pixel_values": torch.where(patches, batch.inputs["pixel_values"], noise)})
    found = [interp.run(case.model, one, edits=[edit]).logits for one in (batch, other)]
    assert found[0] is not None and found[1] is not None
    assert float((found[0] - found[1]).abs().max()) > 1e-3
    everywhere = interp.masked_forward(case.model, batch, keep).logits
    assert torch.equal(everywhere, interp.masked_forward(case.model, other, keep).logits)


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_hard_soft_and_dropped_agree(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(3)
    keep = half(case, batch)
    keep[1] = True  # another number of patches
    hard = interp.masked_forward(case.model, batch, keep).logits
    soft = interp.masked_forward(case.model, batch, keep.float(), soft=True).logits
    dropped = interp.masked_forward(case.model, batch, keep, drop=True).logits
    torch.testing.assert_close(soft, hard, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(dropped, hard, atol=1e-5, rtol=1e-5)
    plain = interp.run(case.model, batch).logits
    assert plain is not None and float((hard[0] - plain[0]).abs().max()) > 1e-2


def test_a_soft_mask_by_hand(case_of: CaseOf) -> None:
    """Adding log(m) to scores multiplies weights by m and rescales the row: the same by an edit of the pattern."""
    case = case_of("vit")
    batch = case.batch(2)
    keep = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    factor = torch.cat([torch.ones(2, 1), keep + 1e-10], dim=1)[:, None, None]

    def weigh(pattern: Tensor, ctx: object) -> Tensor:
        made = pattern * factor
        return made / made.sum(-1, keepdim=True)

    exact = interp.run(case.model, batch, edits=[interp.custom(interp.At(interp.Site.PATTERN), weigh)]).logits
    assert exact is not None
    found = interp.masked_forward(case.model, batch, keep, soft=True).logits
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)


def test_the_patches_of_a_language_model(case_of: CaseOf) -> None:
    """Hidden in the tower and, as image tokens, from the text; in the tower alone they would come in by their token."""
    case = case_of("llava")
    batch = case.batch(2, 5)
    keep = torch.tensor([[True, False, True, False], [False, True, True, True]])
    assert pixel_test(case.model, batch, keep, stack="vision").passed
    one = interp.masked_forward(case.model, batch, keep, stack="vision")
    gone = torch.cat([torch.zeros(2, 1, dtype=torch.bool), ~keep], dim=1)  # CLS stays
    pixels = torch.randn(batch.inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(1))
    patches = keep.view(2, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    mixed = torch.where(patches, batch.inputs["pixel_values"], pixels)
    other = replace(batch, inputs={**batch.inputs, "pixel_values": mixed})
    tower = [interp.run(case.model, x, edits=[interp.knockout(None, gone, stack="vision")]).logits
             for x in (batch, other)]  # fmt: skip
    assert tower[0] is not None and tower[1] is not None
    assert float((tower[0] - tower[1])[:, -1].abs().max()) > 1e-3  # in the tower alone it is no mask
    text = torch.ones(2, batch.width, dtype=torch.bool)
    text[:, 2] = False
    assert interp.masked_forward(case.model, batch, text).logits.shape == one.logits.shape
    with pytest.raises(Unsupported, match="image classifier"):
        interp.masked_forward(case.model, batch, keep, stack="vision", drop=True)


def test_tokens_of_a_text(case_of: CaseOf) -> None:
    case = case_of("bert")
    batch = case.batch(2, 6)
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[:, 3] = False
    found = interp.masked_forward(case.model, batch, keep)
    exact = interp.run(case.model, batch, edits=[interp.knockout(None, ~keep)]).logits
    assert torch.equal(found.logits, exact)
    ids = batch.inputs["input_ids"].clone()
    ids[:, 3] = 7
    other = replace(batch, inputs={**batch.inputs, "input_ids": ids})
    masked = interp.masked_forward(case.model, other, keep).logits
    assert torch.equal(masked[:, [0, 1, 2, 4, 5]], found.logits[:, [0, 1, 2, 4, 5]])
    with pytest.raises(Unsupported, match="leave-one-out"):
        interp.masked_forward(case.model, batch, keep, drop=True)


def test_refusals_and_the_model_as_found(case_of: CaseOf) -> None:
    case = case_of("vit")
    batch = case.batch(2)
    good = torch.ones(2, 4, dtype=torch.bool)
    before = fingerprint(case.hf)
    for keep, options, said in (
        (good[:, :3], {}, r"expected \[2, 4\]"),
        (torch.zeros(2, 4, dtype=torch.bool), {}, "nothing is kept"),
        (good * 0.5, {}, "soft=True"),
        (good * 1.5, {"soft": True}, "from 0 to 1"),
        (good, {"drop": True, "soft": True}, "leave soft="),
        (good, {"drop": True, "layers": [1]}, "layers= out"),
        (good, {"layers": "upper"}, "'all'"),
        (good, {"layers": []}, "is empty"),
        (good, {"layers": [9]}, "Layer 9"),
    ):
        with pytest.raises(BadInput, match=said):
            interp.masked_forward(case.model, batch, keep, **options)
    tower = case_of("qwen2_vl")
    with pytest.raises((BadInput, Unsupported)):
        interp.masked_forward(tower.model, tower.batch(1, 4), torch.ones(1, 16, dtype=torch.bool), stack="vision",
                              drop=True)  # fmt: skip
    assert fingerprint(case.hf) == before


@pytest.mark.parametrize("contrast", [1.0, 0.0])
def test_positions_that_attention_knows_cannot_be_taken_out(contrast: float) -> None:
    """A tower whose blocks are told rows and columns gives another answer for turned patches: it is refused.

    Those of an empty image are all the same: nothing could be learnt from turning them.
    """
    from transformers import BeitConfig, BeitForImageClassification

    torch.manual_seed(0)
    config = BeitConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8,
                        patch_size=4, num_labels=3, use_relative_position_bias=True, initializer_range=1.0)  # fmt: skip
    network = BeitForImageClassification(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model = interp.load(network, check=False)
    batch = interp.encode(model, inputs={"pixel_values": contrast * torch.randn(1, 3, 8, 8)})
    with pytest.raises(Unsupported, match="know where a position is"):
        interp.masked_forward(model, batch, torch.tensor([[True, True, False, True]]), drop=True)


def test_the_gap_of_what_suffices_is_nothing() -> None:
    """The digit model sees the ink alone and says the same; on paper alone it does not."""
    from interp.zoo.digits import digit_images, pixel_values

    model = interp.load("digits-vit")
    images = digit_images(8).images
    batch = interp.encode(model, inputs={"pixel_values": pixel_values(images)})
    ink = images.flatten(1) > 0
    everything = torch.ones_like(ink)
    found = interp.faithfulness_gap(model, batch, {"all": everything, "ink": ink, "paper": ~ink}, drop=True, draws=20)
    table = found.table().set_index("explanation")
    assert table.loc["all", "gap"] < 1e-6 and table.loc["paper", "gap"] > table.loc["ink", "gap"]
    assert table.loc["paper", "p"] > 0.5 and table.loc["ink", "gap"] < table.loc["ink", "random"]
    assert found.random["ink"].shape == (20, 8) and "drop" in repr(found)
    order = [3, 1, 0, 2, 4, 5, 6, 7]
    turned = interp.faithfulness_gap(model, batch.select(order), {"ink": ink[order]}, drop=True, draws=3)
    np.testing.assert_allclose(turned.gaps["ink"], found.gaps["ink"][order], atol=1e-4)
    np.testing.assert_allclose(turned.random["ink"], found.random["ink"][:3, order], atol=1e-4)


def test_the_gap_of_traces_keeps_their_foremost_share() -> None:
    from interp.zoo.digits import digit_images, pixel_values

    model = interp.load("digits-vit")
    batch = interp.encode(model, inputs={"pixel_values": pixel_values(digit_images(3).images)})
    trace = interp.trace(model, batch, "occlusion")
    numbers = torch.from_numpy(trace.values[:, 0, 1:])
    best = numbers.argsort(dim=-1, descending=True, stable=True)[:, :16]
    mask = torch.zeros(3, 64, dtype=torch.bool).scatter(1, best, True)
    found = interp.faithfulness_gap(model, batch, {"trace": trace, "numbers": numbers}, share=0.25, draws=0)
    exact = interp.faithfulness_gap(model, batch, mask, draws=0).gaps["explanation"]
    np.testing.assert_allclose(found.gaps["trace"], exact)
    np.testing.assert_allclose(found.gaps["numbers"], exact)
    for share in (None, 0, 1.5, True):
        with pytest.raises(BadInput, match="give a share"):
            interp.faithfulness_gap(model, batch, trace, share=share)
    with pytest.raises(BadInput, match="no explanation"):
        interp.faithfulness_gap(model, batch, {})
    with pytest.raises(BadInput, match="draws=-1"):
        interp.faithfulness_gap(model, batch, mask, draws=-1)


def test_the_gap_of_tokens_keeps_padding_and_the_reading_token(case_of: CaseOf) -> None:
    model = tiny_gpt2(check=True)
    ids, numbers = [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9]], [[5.0, 0, 4, 0, 3, 0], [0.0, 2, 1, 0]]
    found = {}
    for side in ("left", "right"):
        batch = interp.encode(model, ids, answers=[3, 4], padding_side=side)
        weights = torch.zeros(batch.mask.shape)
        weights[batch.mask] = torch.tensor([x for row in numbers for x in row])
        found[side] = interp.faithfulness_gap(model, batch, weights, share=0.4, draws=6)
    np.testing.assert_allclose(found["left"].gaps["explanation"], found["right"].gaps["explanation"], atol=1e-4)
    np.testing.assert_allclose(found["left"].random["explanation"], found["right"].random["explanation"], atol=1e-4)
    for row, kept in enumerate(([0, 2, 5], [1, 3])):  # two of five and one of three free tokens, and the last
        own = interp.encode(model, [ids[row]], answers=[3 + row])
        gone = torch.ones(1, len(ids[row]), dtype=torch.bool)
        gone[0, kept] = False
        values = []
        for edits in ([], [interp.knockout(None, gone)]):
            logits = interp.run(model, own, edits=edits).logits
            assert logits is not None
            values.append(float(interp.answer_logprob(logits, own)[0]))
        assert found["left"].gaps["explanation"][row] == pytest.approx(abs(values[0] - values[1]), abs=1e-4)
    with pytest.raises(BadInput, match="stack='text'"):
        vlm = case_of("llava")
        trace = interp.trace(vlm.model, vlm.batch(2, 5), "raw")
        interp.faithfulness_gap(vlm.model, vlm.batch(2, 5), trace, share=0.5, stack="vision")
