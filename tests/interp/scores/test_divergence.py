"""Divergence of a head's output with a part of the input and without it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.errors import BadAddress, BadInput, Unsupported
from interp.scores.divergence.divergence import aware_divergence, head_divergence, outlier_heads, top_sum
from interp.scores.divergence.token_divergence import token_divergence

CaseOf = Callable[[str], Case]
VLMS = ["llava", "paligemma", "qwen2_vl", "smolvlm", "idefics3"]


def plain_z(case: Case, inputs: dict[str, Tensor]) -> list[Tensor]:
    """``[layer][batch, head, d_head]`` at the last column, by hooks on the Hugging Face modules alone."""
    stack = case.model.stack()
    seen: list[Tensor] = []
    hooks = [
        layer.out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for layer in stack.layers
        if layer
    ]
    with torch.no_grad():
        case.hf(**inputs)
    for hook in hooks:
        hook.remove()
    return [z[:, -1].view(len(z), stack.n_heads(i), -1) for i, z in enumerate(seen)]


@pytest.mark.parametrize("name", VLMS)
def test_vision_divergence_by_two_plain_forwards(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(3, 6)
    ids = batch.inputs["input_ids"]
    words = ids[:, [0, *range(ids.shape[1] - 5, ids.shape[1])]]  # what is neither image nor the edge of one
    with_image = plain_z(case, batch.inputs)
    without = plain_z(case, {"input_ids": words, "attention_mask": torch.ones_like(words)})
    found = interp.score(
        case.model,
        batch,
        {
            "plain": {"score": "vision_divergence", "outliers": False},
            "relative": {"score": "vision_divergence", "outliers": False, "relative": True},
            "own": {"score": "vision_divergence"},
        },
    )
    for layer, (a, b) in enumerate(zip(with_image, without, strict=True)):
        gap = (a - b).norm(dim=-1)
        np.testing.assert_allclose(found["plain"].per_prompt[:, layer], gap, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(
            found["relative"].per_prompt[:, layer], gap / (a.norm(dim=-1) + b.norm(dim=-1)), rtol=2e-4, atol=1e-5
        )
        large = gap > gap.mean(-1, keepdim=True) + gap.std(-1, correction=0, keepdim=True)
        square = b.square().sum(-1)
        large &= square > square.mean(-1, keepdim=True) + square.std(-1, correction=0, keepdim=True)
        np.testing.assert_allclose(found["own"].per_prompt[:, layer], gap.masked_fill(large, 0), rtol=2e-4, atol=1e-5)
    assert (found["plain"].per_prompt > 0.01).all()


def test_the_rule_for_outliers_needs_both() -> None:
    """Zeroed iff VHD > mean + std and ||z(without)||^2 > mean + std, over the heads of one layer."""
    vhd = torch.tensor([10.0, 1.0, 1.0, 1.0])
    large, small = torch.tensor([[9.0], [1.0], [1.0], [1.0]]), torch.tensor([[1.0], [9.0], [1.0], [1.0]])
    assert outlier_heads(vhd, large).tolist() == [True, False, False, False]
    assert not outlier_heads(vhd, small).any()  # another head is large
    assert not outlier_heads(torch.ones(4), large).any()
    # 10 of (10, 1, 1, 1): mean 3.25, std 3.9 with 4 and 4.5 with 3 in the denominator; 7.6 lies between
    between = torch.tensor([7.6, 7.0, 1.0, 1.0])
    wide = between.double()
    assert wide[0] > wide.mean() + wide.std(correction=0) and wide[0] < wide.mean() + wide.std(correction=1)
    assert outlier_heads(between, large, ddof=0)[0] and not outlier_heads(between, large, ddof=1)[0]


def test_norms_are_not_squared() -> None:
    """With squares the rule would name another set of heads."""
    without = torch.tensor([[3.0], [0.1], [0.1]])
    vhd = torch.tensor([4.0, 3.9, 0.1])
    assert not outlier_heads(vhd, without)[0]  # 4 < 2.67 + 1.82
    assert vhd.square()[0] > vhd.square().mean() + 0.5 * vhd.square().std(correction=0)
    with_part = without + torch.tensor([[4.0], [3.9], [0.1]])
    torch.testing.assert_close(head_divergence(with_part, without), vhd.double(), rtol=1e-5, atol=1e-6)


def test_identical_inputs_diverge_by_nothing() -> None:
    z = torch.randn(5, 3, 4)
    assert aware_divergence(z, z).abs().max() == 0
    assert torch.isnan(head_divergence(torch.zeros(2, 3), torch.zeros(2, 3), relative=True)).all()
    opposite = head_divergence(z, -2 * z, relative=True)
    torch.testing.assert_close(opposite, torch.ones_like(opposite))


def test_a_span_that_nobody_sees_changes_nothing() -> None:
    """A causal head at token 1 does not know what stands behind it."""
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4, 5]], spans={"later": range(3, 4), "earlier": range(0, 1)})
    found = interp.score(
        model,
        batch,
        {
            "later": {"score": "context_divergence", "span": "later", "at": 1},
            "earlier": {"score": "context_divergence", "span": "earlier", "at": 1},
        },
    )
    assert np.abs(found["later"].values).max() == 0
    assert (found["earlier"].values > 0.01).all()


def test_context_divergence_at_several_tokens_is_their_mean() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]], spans={"context": range(1, 2)})
    one = [
        interp.score(model, batch, {"x": {"score": "context_divergence", "at": at}})["x"].per_prompt for at in (3, 4)
    ]
    both = interp.score(model, batch, {"x": {"score": "context_divergence", "at": slice(3, 5)}})["x"].per_prompt
    np.testing.assert_allclose(both, np.mean(one, axis=0), rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_padding_order_and_parts_change_nothing(case_of: CaseOf, name: str, side: str) -> None:
    case = case_of(name)
    rows = [[11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24, 25]]
    wanted = {"x": {"score": "context_divergence", "span": slice(1, 3)}}
    batch = interp.encode(case.model, rows, padding_side=side)
    together = interp.score(case.model, batch, wanted)["x"].per_prompt
    turned = interp.score(case.model, batch.select([1, 0]), wanted)["x"].per_prompt
    np.testing.assert_allclose(turned[::-1], together, atol=1e-5)
    parts = interp.score(case.model, batch, wanted, batch_size=1)["x"].per_prompt
    np.testing.assert_allclose(parts, together, atol=2e-5)
    for row in range(2):
        alone = interp.encode(case.model, rows[row : row + 1])
        np.testing.assert_allclose(
            together[row], interp.score(case.model, alone, wanted)["x"].per_prompt[0], atol=5e-5, rtol=1e-4
        )


def test_encoder_decoders_lose_tokens_of_the_encoder(case_of: CaseOf) -> None:
    case = case_of("t5")
    batch = case.batch(2, 6)
    found = interp.score(case.model, batch, {"x": {"score": "context_divergence", "span": slice(1, 3)}})["x"]
    assert np.abs(found.values[0]).max() == 0  # the decoder's first self-attention has not seen the encoder yet
    assert (found.values[1] > 0.01).all()


def test_token_divergence_sums_the_largest_of_each_layer(case_of: CaseOf) -> None:
    case = case_of("llava")
    batch = case.batch(2, 6)
    each = interp.score(case.model, batch, "vision_divergence")["vision_divergence"].per_prompt
    for k in (1, 2, 9):
        found = token_divergence(case.model, batch, k=k)
        expected = np.sort(each, axis=-1)[..., ::-1][..., :k].sum((1, 2))
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)
    several = token_divergence(case.model, batch, k=2, at=slice(-3, None))
    assert several.shape == (2, 3)
    np.testing.assert_allclose(several[:, -1], token_divergence(case.model, batch, k=2)[:, 0], rtol=1e-5)
    assert top_sum(torch.tensor([[1.0, 5.0, 2.0]]), 2).tolist() == [7.0]
    with pytest.raises(BadInput, match="k=0"):
        token_divergence(case.model, batch, k=0)
    with pytest.raises(BadInput, match="ddof=2"):
        token_divergence(case.model, batch, k=1, ddof=2)


def test_models_without_images_are_refused(case_of: CaseOf) -> None:
    for name in ("gpt2", "bert", "vit"):
        case = case_of(name)
        with pytest.raises(Unsupported, match="takes no images among its tokens"):
            interp.score(case.model, case.batch(2), "vision_divergence")
    vlm = case_of("llava")
    with pytest.raises(Unsupported, match="take stack 'text'"):
        interp.score(vlm.model, vlm.batch(2), "vision_divergence", stack="vision")


def test_a_layer_of_one_head_has_no_unbiased_spread() -> None:
    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=13, n_positions=16, bos_token_id=0, eos_token_id=0)
    model = interp.load(GPT2LMHeadModel(config).eval(), check=False)
    batch = interp.encode(model, torch.tensor([[1, 2, 3, 4]]))
    options = {"span": slice(1, 2), "outliers": True}
    assert interp.score(model, batch, {"context_divergence": options})["context_divergence"].values.item() > 0
    with pytest.raises(BadInput, match="ddof=1 divides by 0 in a layer of one head"):
        interp.score(model, batch, {"context_divergence": {**options, "ddof": 1}})


def test_bad_requests_are_refused() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4]], spans={"end": range(3, 4)})

    def ask(**options: object) -> None:
        interp.score(model, batch, {"x": {"score": "context_divergence", **options}})

    with pytest.raises(BadAddress, match="Unknown span 'context'"):
        ask()
    with pytest.raises(BadInput, match="hold the position that is read"):
        ask(span="end")
    with pytest.raises(BadInput, match="a position at which heads are compared lies in the tokens taken out"):
        ask(span=slice(1, 3), at=1)
    with pytest.raises(BadInput, match="ddof=2"):
        ask(span=slice(1, 2), ddof=2)
    with pytest.raises(BadInput, match="outliers=1"):
        ask(span=slice(1, 2), outliers=1)
    with pytest.raises(BadInput, match="span is missing"):
        ask(span=None)
