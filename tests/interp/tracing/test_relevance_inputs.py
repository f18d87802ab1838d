"""Gradients of the inputs, integrated gradients and class explanation maps: differences, closed forms, completeness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, fingerprint
from torch import Tensor

import interp
from interp import At, Batch, Model, Site
from interp.model.inputs import pad_id

IDS = torch.tensor([[1, 5, 3, 7, 2], [4, 4, 6, 1, 9]])
AT = At(Site.RESID_PRE, 0)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_gpt2(layers=2, dtype=torch.float64)


@pytest.fixture(scope="module")
def batch(model: Model) -> Batch:
    return interp.encode(model, IDS, answers=[(3, 4), (8, 2)])


def moved(model: Model, batch: Batch, change: Tensor) -> Tensor:
    """The answer's logit with something added to what enters the first block."""
    made = interp.run(model, batch, edits=[interp.custom(AT, lambda x, ctx: x + change)]).logits
    assert made is not None
    assert batch.answers is not None
    return made[:, -1].gather(1, batch.answers[:, :1])[:, 0]


def slopes_by_differences(model: Model, batch: Batch, size: float = 1e-5) -> Tensor:
    """``[batch, pos, d_model]`` central differences of the answer's logit."""
    x = interp.run(model, batch, [AT])[AT]
    found = torch.zeros_like(x)
    for place in range(x.shape[1]):
        for channel in range(x.shape[2]):
            change = torch.zeros_like(x)
            change[:, place, channel] = size
            up, down = moved(model, batch, change), moved(model, batch, -change)
            found[:, place, channel] = (up - down) / (2 * size)
    return found


def test_gradients_are_differences(model: Model, batch: Batch) -> None:
    truth = slopes_by_differences(model, batch)
    x = interp.run(model, batch, [AT])[AT]
    sizes = {"l2": truth.norm(dim=-1), "l1": truth.abs().sum(-1), "sum": truth.sum(-1).abs()}
    for norm, wanted in sizes.items():
        found = interp.trace(model, batch, "gradient", norm=norm)
        np.testing.assert_allclose(found.values[:, 0], wanted, rtol=1e-5, atol=1e-7)
    signed = interp.trace(model, batch, "gradient-input")
    np.testing.assert_allclose(signed.values[:, 0], (truth * x).sum(-1), rtol=1e-5, atol=1e-7)
    size = interp.trace(model, batch, "gradient-input", absolute=True)
    np.testing.assert_allclose(size.values, np.abs(signed.values))
    assert (signed.values < 0).any()


@pytest.mark.parametrize(("baseline", "steps"), [("zero", 200), ("pad", 30)])  # a norm turns fast next to zero
def test_integrated_gradients_are_complete(model: Model, batch: Batch, baseline: str, steps: int) -> None:
    found = interp.trace(model, batch, "integrated-gradients", steps=steps, baseline=baseline)
    x = interp.run(model, batch, [AT])[AT]
    start = torch.zeros_like(x)
    if baseline == "pad":
        wte, wpe = model.hf.transformer.wte, model.hf.transformer.wpe  # pyright: ignore[reportAttributeAccessIssue]
        start = (wte.weight[pad_id(model)] + wpe.weight[:5]).detach().expand_as(x)
    nothing = torch.zeros_like(x)
    change = moved(model, batch, nothing) - moved(model, batch, start - x)
    np.testing.assert_allclose(found.values[:, 0].sum(-1), change, rtol=1e-4, atol=1e-5)
    about = found.metadata["completeness"]
    np.testing.assert_allclose(about["difference"], change, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(about["sum"], found.values[:, 0].sum(-1), atol=1e-5)
    assert about["largest_gap"] < 1e-3


def test_integrated_gradients_are_the_integral(model: Model, batch: Batch) -> None:
    """Against the midpoint rule written out, with gradients by autograd through the plain Hugging Face model."""
    hf: Any = model.hf
    x = interp.run(model, batch, [AT])[AT]
    steps, total = 40, torch.zeros_like(x)
    wpe = hf.transformer.wpe.weight[:5].detach()
    for step in range(steps):
        point = ((step + 0.5) / steps * x).requires_grad_()
        logits = hf(inputs_embeds=point - wpe).logits[:, -1]  # the model adds its positions again
        (slope,) = torch.autograd.grad(logits[0, 3] + logits[1, 8], [point])
        total += slope / steps
    found = interp.trace(model, batch, "integrated-gradients", steps=steps, rule="midpoint")
    np.testing.assert_allclose(found.values[:, 0], (x * total).sum(-1), rtol=1e-8, atol=1e-10)


def test_without_answers_one_logit_is_followed(model: Model) -> None:
    plain = interp.encode(model, IDS)
    said = interp.run(model, plain).logits
    assert said is not None
    words = [(word,) for word in said[:, -1].argmax(-1).tolist()]
    named = interp.trace(model, interp.encode(model, IDS, answers=words), "integrated-gradients", steps=8)
    own = interp.trace(model, plain, "integrated-gradients", steps=8)
    np.testing.assert_allclose(own.values, named.values, rtol=1e-8)


def test_a_linear_metric_of_a_linear_way(model: Model, batch: Batch) -> None:
    """Gradient times input is integrated gradients where nothing bends: one step at the end of the way."""
    last = interp.trace(model, batch, "integrated-gradients", steps=1, rule="right")
    np.testing.assert_allclose(last.values, interp.trace(model, batch, "gradient-input").values, rtol=1e-8)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("gradient", {"norm": "max"}, "l2"),
        ("gradient", {"targets": 0}, "explains the answer"),
        ("gradient", {"each_layer": True}, "single layers"),
        ("integrated-gradients", {"steps": 0}, "steps=0"),
        ("integrated-gradients", {"rule": "simpson"}, "midpoint"),
        ("integrated-gradients", {"baseline": "black"}, "zero"),
        ("integrated-gradients", {"baseline": "mask"}, "mask token"),
        ("class-explanation", {}, "image"),
    ],
)
def test_refusals_come_before_a_forward(
    model: Model, batch: Batch, method: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.hf, "forward", lambda *a, **k: pytest.fail("a forward ran"))
    with pytest.raises(interp.HeadscopeError, match=message):
        interp.trace(model, batch, method, **options)


def test_images_in_a_prompt_have_no_token_baseline(case_of: Callable[[str], Case]) -> None:
    case = case_of("llava")
    batch = case.batch(2, 6)
    with pytest.raises(interp.BadInput, match="images"):
        interp.trace(case.model, batch, "integrated-gradients", baseline="pad", steps=2)
    assert interp.trace(case.model, batch, "integrated-gradients", steps=2).values.shape[2] == batch.width


def test_sources_of_cross_attention_are_the_encoders(case_of: Callable[[str], Case]) -> None:
    case = case_of("t5")
    batch = case.batch(2, 6)
    at = At(Site.RESID_PRE, 0, stack="encoder")

    def logit(logits: Tensor, batch: Batch) -> Tensor:
        return logits[:, -1, 5]

    seen = interp.run(case.model, batch, [at], grad=logit)
    assert seen.grad is not None
    found = interp.trace(case.model, batch, "gradient-input", stack="cross", metric=logit)
    np.testing.assert_allclose(found.values[:, 0], (seen[at] * seen.grad[at]).sum(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "digits"])
def test_class_maps_are_differences_of_what_a_block_writes(case_of: Callable[[str], Case], name: str) -> None:
    """One entry of a map is moved by hand; the class's log-probability in the block's own writing follows."""
    model = case_of("vit").model if name == "vit" else interp.load("digits-vit")
    hf: Any = model.hf
    size = hf.config.image_size
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, hf.config.num_channels, size, size, generator=draw)
    classes = torch.tensor([1, 0])
    batch = interp.encode(model, inputs={"pixel_values": pixels}, answers=classes[:, None])
    before = fingerprint(hf)
    trace = interp.trace(model, batch, "class-explanation", each_layer=True)
    assert fingerprint(hf) == before
    norm = next(
        module for label, module in hf.named_modules() if label.endswith("layernorm") and "encoder" not in label
    )

    def logs(layer: int, head: int, key: int, by: float) -> Tensor:
        def move(x: Tensor, ctx: Any) -> Tensor:
            made = x.clone()
            made[:, head, 0, key] += by
            return made

        at = At(Site.ATTN_OUT, layer)
        edit = interp.custom(At(Site.PATTERN, layer), move)
        written = interp.run(model, batch, [at], edits=[edit])[at][:, 0]
        made = hf.classifier(norm(written)) - hf.classifier.bias
        return torch.log_softmax(made, dim=-1).gather(1, classes[:, None])[:, 0].detach()

    assert trace.layers is not None
    step, n_heads = 0.05, model.stack().n_heads(0)
    for layer, key in ((0, 0), (0, 3), (1, 2)):
        slopes = [(logs(layer, h, key, step) - logs(layer, h, key, -step)) / (2 * step) for h in range(n_heads)]
        truth = torch.stack(slopes).mean(0)
        np.testing.assert_allclose(trace.layers[layer, :, 0, key], truth, rtol=2e-2, atol=2e-3)
    np.testing.assert_array_equal(trace.values, trace.layers[-1])
    said = interp.trace(model, batch, "class-explanation", of="predicted", layer=0)
    assert said.metadata["classes"] == interp.run(model, batch).logits.argmax(-1).tolist()  # pyright: ignore
