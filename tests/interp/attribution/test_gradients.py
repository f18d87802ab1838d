"""Gradients along the gates, against differences of scaled heads, the paper's toy and models that are linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, double_case
from conformance.test_gradients import InDouble
from linear_model import linear_model, prompts
from torch import Tensor

import interp
from interp import At, Batch, Model, Site
from interp.attribution.gradients import gate_gradient_abs, gate_products, gate_slope_sizes, gradient
from interp.attribution.request import Request

IDS = ([3, 5, 2, 7, 4], [8, 2, 6, 9, 1], [4, 4, 5, 1, 2])


def test_the_card_s_toy() -> None:
    """z = [[1, -2], [.5, 1]], slope = [[.3, .1], [-.4, -.2]]: products .1 and -.4, paper .3, released code .5."""
    z = torch.tensor([[1.0, -2.0], [0.5, 1.0]]).view(1, 2, 1, 2)
    slope = torch.tensor([[0.3, 0.1], [-0.4, -0.2]]).view(1, 2, 1, 2)
    products = gate_products(z, slope)
    assert products.flatten().tolist() == pytest.approx([0.1, -0.4])
    assert gate_slope_sizes(products, "example").item() == pytest.approx(0.3)
    assert gate_slope_sizes(products, "token").item() == pytest.approx(0.5)


def difference(model: Model, batch: Batch, request: Request, at: At) -> Tensor:
    """Minus the central difference of the metric along a scale on what ``at`` addresses, in float64."""
    step = 1e-5
    factors = torch.tensor([1 + step, 1 - step], dtype=torch.float64)
    ends = interp.sweep(model, batch, [[interp.scale(at, factor)] for factor in factors], request.metric)
    return -(ends.values[0] - ends.values[1]) / (2 * step)


@pytest.mark.parametrize(
    ("name", "stack"), [("llama", "text"), ("gemma2", "text"), ("bert", "text"), ("t5", "cross"), ("t5", "encoder")]
)
def test_gradient_is_the_slope_of_the_gate(case_of: Callable[[str], Case], name: str, stack: str) -> None:
    case = double_case(case_of(name))
    model = case.model
    batch = replace(case.batch(2, 5), answers=torch.tensor([[7, 9], [11, 6]]))
    with InDouble():
        request = Request(stack=stack)
        found = gradient(model, batch, request)
        assert found.quantity == "effect" and found.sense == -1 and found.samples.shape[0] == 2
        for layer, head in [(0, 0), (0, 2), (1, 1), (1, 3)]:
            wanted = difference(model, batch, request, At(Site.Z, layer, heads=(head,), stack=stack))
            assert found.samples[:, layer, head] == pytest.approx(wanted.tolist(), rel=1e-6, abs=1e-8)
        assert np.abs(found.samples).min() > 1e-9


def test_a_key_value_head_is_the_gate_on_its_values(case_of: Callable[[str], Case]) -> None:
    """All query heads of a key/value head fade together exactly as its values do."""
    case = double_case(case_of("llama"))
    batch = replace(case.batch(2, 5), answers=torch.tensor([[7, 9], [11, 6]]))
    with InDouble():
        request = Request(by="kv")
        found = gradient(case.model, batch, request)
        assert found.unit == "kv" and found.values.shape == (2, 2)
        for layer, head in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            wanted = difference(case.model, batch, request, At(Site.V, layer, heads=(head,)))
            assert found.samples[:, layer, head] == pytest.approx(wanted.tolist(), rel=1e-6, abs=1e-8)
    by_head = gradient(case.model, batch, Request()).samples
    np.testing.assert_allclose(found.samples, by_head.reshape(2, 2, 2, 2).sum(-1), rtol=1e-5, atol=1e-9)


def test_exact_where_the_metric_is_linear_in_the_gate() -> None:
    model = linear_model()
    batch = prompts(model, *IDS)
    np.testing.assert_allclose(
        gradient(model, batch, Request()).samples, interp.attribute(model, batch, "zero").samples, rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(
        gradient(model, batch, Request(by="position")).samples,
        interp.attribute(model, batch, "zero", by="position").samples,
        rtol=1e-6,
        atol=1e-9,
    )


def test_positions_sum_to_the_head_and_can_be_chosen() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    whole = gradient(model, batch, Request())
    kept = gradient(model, batch, Request(by="position"))
    assert kept.positions == ("0", "1", "2", "3", "4")
    np.testing.assert_allclose(kept.samples.sum(-1), whole.samples, rtol=1e-12)
    np.testing.assert_allclose(gradient(model, batch, Request(pos=-2)).samples, kept.samples[..., 3], rtol=1e-12)
    np.testing.assert_allclose(
        gradient(model, batch, Request(pos=slice(1, 3))).samples, kept.samples[..., 1:3].sum(-1), rtol=1e-12
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_counts(side: str) -> None:
    model = tiny_gpt2(dtype=torch.float64)
    blank = [0, 0]
    rows = [blank + row[:3] if side == "left" else row[:3] + blank for row in IDS[:2]]
    mask = [[0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0]] * 2
    answers = [(3, 4), (5, 6)]
    padded = interp.encode(model, torch.tensor(rows), mask=torch.tensor(mask), answers=answers)
    bare = interp.encode(model, torch.tensor([row[:3] for row in IDS[:2]]), answers=answers)
    for method in (gradient, gate_gradient_abs):
        for options in ({}, {"abs": "token"}) if method is gate_gradient_abs else ({},):
            request = Request(options=options)
            np.testing.assert_allclose(
                method(model, padded, request).samples, method(model, bare, request).samples, rtol=1e-9, atol=1e-12
            )
    kept = gradient(model, padded, Request(by="position")).samples
    assert (np.isnan(kept) == ~np.array(mask, dtype=bool)[:, None, None]).all()


def test_a_head_that_writes_nothing_has_no_slope() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    weight = model.hf.transformer.h[1].attn.c_proj.weight
    with torch.no_grad():
        weight[4:].zero_()  # head 1 of layer 1
    for found in (gradient(model, batch, Request()), gate_gradient_abs(model, batch, Request())):
        assert (found.samples[:, 1, 1] == 0).all() and (np.delete(found.samples.reshape(3, 6), 3, axis=1) != 0).all()


def test_heads_in_another_order_get_the_same_numbers() -> None:
    """Swapping the weights of the two heads of a layer swaps their scores and leaves the others."""
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    before = gate_gradient_abs(model, batch, Request()).values
    attention = model.hf.transformer.h[0].attn
    swapped = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    columns = torch.cat([swapped, 8 + swapped, 16 + swapped])
    with torch.no_grad():
        attention.c_attn.weight.copy_(attention.c_attn.weight[:, columns].clone())
        attention.c_attn.bias.copy_(attention.c_attn.bias[columns].clone())
        attention.c_proj.weight.copy_(attention.c_proj.weight[swapped].clone())
    after = gate_gradient_abs(model, batch, Request()).values
    np.testing.assert_allclose(after[0], before[0][::-1], rtol=1e-10)
    np.testing.assert_allclose(after[1:], before[1:], rtol=1e-10)


def test_absolute_values_are_taken_per_prompt_and_layers_normalised() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    signed, kept = (gradient(model, batch, Request(by=by)).samples for by in ("head", "position"))
    by_example = gate_gradient_abs(model, batch, Request())
    by_token = gate_gradient_abs(model, batch, Request(options={"abs": "token"}))
    np.testing.assert_allclose(by_example.samples, np.abs(signed), rtol=1e-12)
    np.testing.assert_allclose(by_token.samples, np.abs(kept).sum(-1), rtol=1e-12)
    assert by_example.sense == 0 and by_example.quantity == "contribution"
    assert np.abs(signed.mean(0)).max() < np.abs(signed).mean(0).max()  # signs differ, so the two means do
    options = {"normalise_layers": True}
    normalised = gate_gradient_abs(model, batch, Request(options=options))
    np.testing.assert_allclose((normalised.values**2).sum(1), 1.0, rtol=1e-12)
    ratio = normalised.values / by_example.values
    np.testing.assert_allclose(ratio[:, 0], ratio[:, 1], rtol=1e-12)


def test_a_layer_without_slopes_stays_zero_when_normalised() -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        model.hf.transformer.h[2].attn.c_proj.weight.zero_()
    found = gate_gradient_abs(model, prompts(model, *IDS), Request(options={"normalise_layers": True}))
    assert found.values[2].tolist() == [0.0, 0.0] and (found.values[:2] > 0).all()


def test_chunks_change_nothing_and_report_progress() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = prompts(model, *IDS)
    seen: list[int] = []
    found = gradient(model, batch, Request(batch_size=2, progress=seen.append))
    np.testing.assert_allclose(found.samples, gradient(model, batch, Request()).samples, rtol=1e-10)
    assert seen == [1, 1]


def test_one_forward_for_all_heads() -> None:
    model = tiny_gpt2()
    calls: list[int] = []
    with_hook = model.hf.register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        gradient(model, prompts(model, *IDS), Request())
    finally:
        with_hook.remove()
    assert len(calls) == 1


def test_a_loss_turns_the_sense_and_heads_can_be_chosen() -> None:
    model = tiny_gpt2()
    batch = prompts(model, *IDS)
    found = interp.attribute(model, batch, "gradient", metric=interp.loss, heads=["L1.H0"], cluster=["a", "a", "b"])
    assert found.sense == 1 and found.cluster == ("a", "a", "b")
    assert np.isfinite(found.values).sum() == 1 and np.isfinite(found.values[1, 0])
    whole = interp.attribute(model, batch, "gradient", metric=interp.loss)
    assert found.values[1, 0] == pytest.approx(whole.values[1, 0])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"site": Site.Q}, "gate is on its output"),
        ({"freeze": "norms"}, "exact interventions"),
        ({"metric": interp.accuracy}, "no gradient"),
        ({"metric": lambda logits, batch: logits.sum()}, "one number per prompt"),
        ({"metric": lambda logits, batch: logits[:, 0, :2]}, "one number per prompt"),
    ],
)
def test_what_has_no_gradient_is_refused(asked: dict[str, Any], message: str) -> None:
    model = tiny_gpt2()
    with pytest.raises(interp.BadInput, match=message):
        gradient(model, prompts(model, *IDS), Request(method="gradient", **asked))


def test_unknown_options_are_refused() -> None:
    model = tiny_gpt2()
    batch = prompts(model, *IDS)
    with pytest.raises(interp.BadInput, match="'example' or 'token'"):
        gate_gradient_abs(model, batch, Request(options={"abs": "batch"}))
    with pytest.raises(interp.BadInput, match="True or False"):
        gate_gradient_abs(model, batch, Request(options={"normalise_layers": 1}))
    with pytest.raises(interp.BadInput, match="keeps the sign"):
        gate_gradient_abs(model, batch, Request(by="position"))


def test_packed_images_are_refused(case_of: Callable[[str], Case]) -> None:
    case = case_of("qwen2_vl")
    with pytest.raises(interp.Unsupported, match="without a batch axis"):
        gradient(case.model, case.batch(), Request(stack="vision"))


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "attribution_patching", "direct"])
def test_estimates_take_their_gradients_in_a_block_that_keeps_none(method: str) -> None:
    model = tiny_gpt2()
    batch = prompts(model, *IDS)
    source: dict[str, Any] = {"source": prompts(model, *IDS[1:], IDS[0])} if method == "attribution_patching" else {}
    outside = interp.attribute(model, batch, method, **source)
    with torch.no_grad():
        inside = interp.attribute(model, batch, method, **source)
    np.testing.assert_array_equal(inside.samples, outside.samples)
    with torch.inference_mode(), pytest.raises(interp.BadInput, match="inference_mode"):
        interp.attribute(model, batch, method, **source)
