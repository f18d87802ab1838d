"""Layer-wise relevance propagation: rules by hand, a whole model written out, sums that are kept; Chefer's 2021a."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, fingerprint
from torch import Tensor
from torch.nn import functional as F

import interp
from interp import At, Batch, Site
from interp.model.relevance_pass import relevance_run
from interp.model.relevance_rules import RelevanceRules
from interp.tracing.relevance.relevance import relevance

IDS = torch.tensor([[1, 5, 3, 7, 2], [4, 4, 6, 1, 9]])
KEPT = ("gpt2", "llama", "gemma2", "bert", "t5", "bart", "vit", "opt", "qwen3_moe", "clip", "llava", "qwen2_vl")


def passed(make: Callable[..., Tensor], *inputs: Tensor, given: Tensor) -> list[Tensor]:
    """The relevance of each input where the output's is ``given``."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    with RelevanceRules():
        made = make(*leaves)
    assert torch.equal(made, make(*inputs))
    slopes = torch.autograd.grad(made, leaves, given / made.detach(), allow_unused=True)
    return [x * (torch.zeros_like(x) if slope is None else slope) for x, slope in zip(inputs, slopes, strict=True)]


def test_only_positive_contributions_count() -> None:
    """The alpha-beta rule with alpha = 1, entry by entry: the bias has no share."""
    x = torch.tensor([[1.0, -2.0, 3.0]])
    weight = torch.tensor([[2.0, 1.0, -1.0], [1.0, -3.0, 0.0]])
    bias = torch.tensor([10.0, -1.0])
    given = torch.tensor([[4.0, 7.0]])
    # contributions of x to output 0: 2, -2, -3: all of its 4 to x_0; to output 1: 1, 6, 0: 1 and 6 of its 7
    wanted = torch.tensor([[4.0 + 1.0, 6.0, 0.0]])
    (found,) = passed(lambda x: F.linear(x, weight, bias), x, given=given)
    torch.testing.assert_close(found, wanted)
    (found,) = passed(lambda x: torch.addmm(bias, x, weight.T), x, given=given)
    torch.testing.assert_close(found, wanted)
    (found,) = passed(lambda x: x @ weight.T, x, given=given)
    torch.testing.assert_close(found, wanted)


def test_the_other_rules_by_hand() -> None:
    x, y = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[3.0, 2.5, -1.0]])
    given = torch.tensor([[4.0, 8.0, 2.0]])
    for make in (F.gelu, torch.tanh, lambda x: F.layer_norm(x, (3,), None, torch.ones(3))):
        torch.testing.assert_close(passed(make, x, given=given)[0], given)
    first, second = passed(lambda x, y: x + y, x, y, given=given)
    torch.testing.assert_close(first, given * torch.tensor([[1 / 4, 2 / 4.5, 3 / 4]]))
    torch.testing.assert_close(first + second, given)
    first, second = passed(lambda x, y: x * y, x, y, given=given)
    torch.testing.assert_close(first, given / 2)
    torch.testing.assert_close(second, given / 2)
    first, second = passed(lambda x, y: x / y, x, y, given=given)
    torch.testing.assert_close(first, given)
    assert not second.any()
    first, second = passed(lambda x, y: torch.softmax(x, dim=-1) * y, x, y, given=given)
    torch.testing.assert_close(second, given)
    assert not first.any()
    (found,) = passed(lambda x: 3 * x, x, given=given)
    torch.testing.assert_close(found, given)


def test_attention_gives_all_to_the_values_that_are_weighed() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 3, generator=draw) for _ in range(3))
    given = torch.randn(1, 2, 4, 3, generator=draw)
    found = passed(F.scaled_dot_product_attention, q, k, v, given=given)
    maps = torch.softmax(q @ k.mT / 3**0.5, dim=-1)
    wanted = torch.einsum("bhij,bhjd,bhid->bhjd", maps, v, given / (maps @ v))
    torch.testing.assert_close(found[2], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2].sum(), given.sum(), rtol=1e-4, atol=1e-4)
    assert not found[0].any() and not found[1].any()


def test_what_paused_rules_leave_is_the_gradient() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rules = RelevanceRules()
    rules.paused = 1
    with rules:
        (found,) = torch.autograd.grad((torch.tanh(x) * x).sum(), [x])
    (truth,) = torch.autograd.grad((torch.tanh(x) * x).sum(), [x])
    assert torch.equal(found, truth)


def positive(x: Tensor, weight: Tensor, given: Tensor) -> Tensor:
    """The alpha-beta rule with alpha = 1 over every pair of entries."""
    each = (x[:, :, None] * weight[None]).clamp(min=0)
    sums = each.sum(1, keepdim=True)
    return (torch.where(sums == 0, torch.zeros_like(each), each / sums) * given[:, None]).sum(-1)


def gpt2_by_hand(hf: Any, ids: Tensor, token: int) -> tuple[Tensor, list[Tensor]]:
    """Relevance of what enters the first block, and of each layer's maps, of one prompt's logit at its last token."""
    body = hf.transformer
    place = torch.arange(len(ids))
    x = body.wte(ids) + body.wpe(place)
    heads, kept = hf.config.n_head, []
    for block in body.h:
        normed = block.ln_1(x)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in block.attn.c_attn(normed).chunk(3, -1))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(place[:, None] < place, -torch.inf)
        maps = torch.softmax(scores, dim=-1)
        z = maps @ v
        attn = block.attn.c_proj(z.transpose(0, 1).flatten(1))
        mid = x + attn
        wide = block.mlp.c_fc(block.ln_2(mid))
        mlp = block.mlp.c_proj(block.mlp.act(wide))
        kept.append((x, normed, v, maps, z, attn, mid, wide, mlp))
        x = mid + mlp
    given = torch.zeros(len(ids), hf.config.vocab_size, dtype=x.dtype)
    given[-1, token] = 1.0
    given = positive(body.ln_f(x), hf.lm_head.weight.T, given)
    of_maps = []
    for block, (x, normed, v, maps, z, attn, mid, wide, mlp) in zip(reversed(body.h), reversed(kept), strict=True):
        share = given * mlp.abs() / (mid.abs() + mlp.abs())
        given = given - share
        share = positive(block.mlp.act(wide), block.mlp.c_proj.weight, share)
        given = given + positive(block.ln_2(mid), block.mlp.c_fc.weight, share)
        share = given * attn.abs() / (x.abs() + attn.abs())
        given = given - share
        share = positive(z.transpose(0, 1).flatten(1), block.attn.c_proj.weight, share)
        parts = maps[..., None] * v[:, None] * (share.unflatten(-1, (heads, -1)).transpose(0, 1) / z)[:, :, None]
        of_maps.append(parts.sum(-1) / 2)
        of_values = parts.sum(1).transpose(0, 1).flatten(1)
        width = of_values.shape[-1]
        given = given + positive(normed, block.attn.c_attn.weight[:, 2 * width :], of_values)
    return given, of_maps[::-1]


def test_a_whole_model_written_out() -> None:
    model = tiny_gpt2(layers=2, dtype=torch.float64)
    batch = interp.encode(model, IDS, answers=[(3,), (8,)])
    trace = interp.trace(model, batch, "chefer2021a", targets="all", each_layer=True)
    at = At(Site.RESID_PRE, 0)

    def logit(logits: Tensor, batch: Batch) -> Tensor:
        return torch.stack([logits[0, -1, 3], logits[1, -1, 8]])

    run = relevance_run(model, batch, logit, [at])
    reads = [At(Site.PATTERN, layer) for layer in range(2)]
    seen = interp.run(model, batch, reads, grad=logit)
    assert seen.grad is not None and run.given == 2.0
    arrived = 0.0
    for prompt, token in enumerate((3, 8)):
        with torch.no_grad():
            inputs, maps = gpt2_by_hand(model.hf, IDS[prompt], token)
        torch.testing.assert_close((run.run[at] * run.slope(at))[prompt], inputs, rtol=1e-8, atol=1e-10)
        arrived += float(inputs.sum())
        truth = relevance(
            [seen[one][prompt] for one in reads],
            [seen.grad[one][prompt] for one in reads],
            rule="chefer2021a",
            relevances=maps,
            each_layer=True,
        )
        assert trace.layers is not None
        np.testing.assert_allclose(trace.layers[:, prompt], truth, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(trace.values[prompt], truth[-1], rtol=1e-4, atol=1e-6)
    assert float(np.abs(trace.values - np.eye(5)).max()) > 0.01
    np.testing.assert_allclose(trace.values.sum(-1), 1.0, rtol=1e-5)
    # eight channels: now and then an output has no positive contribution at all, and what it has is lost
    assert abs(arrived - run.arrived) < 1e-8 and 0 < run.lost < 0.05
    assert abs(trace.metadata["relevance_lost"] - run.lost) < 1e-8


@pytest.mark.parametrize("name", KEPT)
def test_sums_are_kept_and_the_model_is_as_found(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 6)
    before = fingerprint(case.hf)

    def logit(logits: Tensor, batch: Batch) -> Tensor:
        return logits[:, -1, 7] if logits.ndim == 3 else logits[:, 0]

    at = At(Site.Z)
    run = relevance_run(case.model, batch, logit, [at])
    assert fingerprint(case.hf) == before
    assert run.given == 2.0 and run.lost < 1e-4
    plain = interp.run(case.model, batch, [at], grad=logit)
    assert plain.logits is not None and plain.grad is not None and run.run.logits is not None
    torch.testing.assert_close(run.run.logits, plain.logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(run.run.grad[at], plain.grad[at])  # pyright: ignore[reportOptionalSubscript]
    again = interp.run(case.model, batch, [at], grad=logit)
    assert again.grad is not None and torch.equal(again.grad[at], plain.grad[at])


def test_nothing_is_left_behind_by_an_error(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    before = fingerprint(case.hf)

    def broken(logits: Tensor, batch: Batch) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relevance_run(case.model, case.batch(1, 4), broken, [At(Site.Z)])
    assert fingerprint(case.hf) == before


def test_other_metrics_give_their_slopes(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    ids = case.tiny.inputs(2, 6, 0)["input_ids"]
    batch = interp.encode(case.model, ids, answers=[(7, 8), (9, 8)])
    run = relevance_run(case.model, batch, interp.logit_difference, [At(Site.Z)])
    assert run.given == 0.0 and run.size == 4.0 and abs(run.arrived) < 1e-5
    trace = interp.trace(case.model, batch, "chefer2021a", metric=interp.logit_difference)
    assert trace.metadata["metric"] == "logit_difference"


@pytest.mark.parametrize(
    ("name", "message"), [("gpt_oss", "is lost"), ("gptj", "out of reach"), ("t5", "another sequence")]
)
def test_where_it_cannot_be_done(case_of: Callable[[str], Case], name: str, message: str) -> None:
    case = case_of(name)
    with pytest.raises(interp.HeadscopeError, match=message):
        interp.trace(case.model, case.batch(2, 6), "chefer2021a", stack="cross" if name == "t5" else None)
