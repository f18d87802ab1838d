"""``interp.relevance`` and relevance between sequences: by hand, by autograd on a model written out, and their laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.tracing.relevance.relevance import relevance
from interp.tracing.relevance.sequences import SequenceRelevance, without_identity

LAYERS, HEADS, LENGTH, WIDTH = 2, 3, 5, 4


def two_layers(seed: int = 0, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Maps of a two-layer attention-only model and the gradients of one of its outputs, ``[layer, head, query, key]``.

    The model is written out here: each head's map is a tensor of its own on the way to the output.
    """
    draw = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    x, maps = drawn(LENGTH, WIDTH), []
    hidden = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    if causal:
        hidden = ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for _ in range(LAYERS):
        written = torch.zeros_like(x)
        heads = []
        for _ in range(HEADS):
            q, k, v, out = (drawn(WIDTH, WIDTH) for _ in range(4))
            scores = (x @ q) @ (x @ k).mT / WIDTH**0.5
            heads.append(torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1).requires_grad_())
            written = written + heads[-1] @ (x @ v) @ out
        maps.append(heads)
        x = torch.tanh(x + written)
    answer = (x[-1] * drawn(WIDTH)).sum()
    flat = [one for heads in maps for one in heads]
    slopes = torch.autograd.grad(answer, flat)
    shape = (LAYERS, HEADS, LENGTH, LENGTH)
    return torch.stack(flat).detach().view(shape), torch.stack(slopes).view(shape)


def by_loops(maps: Tensor, slopes: Tensor, rule: str, carried: Tensor | None = None, start: int = 0) -> Tensor:
    """The definitions as loops over entries."""
    size = maps.shape[-1]
    found = torch.eye(size, dtype=torch.float64)
    for layer in range(start, len(maps)):
        step = torch.zeros(size, size, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                each = [
                    float(slopes[layer, h, i, j] * (maps if carried is None else carried)[layer, h, i, j])
                    for h in range(maps.shape[1])
                ]
                if rule == "vit-explain-gradient":
                    step[i, j] = max(0.0, sum(each) / len(each))
                else:
                    step[i, j] = sum(max(0.0, one) for one in each) / len(each)
        step = step + torch.eye(size)
        if rule != "chefer2021b":
            step = step / step.sum(-1, keepdim=True)
        found = step @ found
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rule", ["chefer2021b", "chefer2021a", "vit-explain-gradient"])
def test_the_rules_are_their_definitions(rule: Any, causal: bool) -> None:
    maps, slopes = two_layers(causal=causal)
    carried = maps * torch.randn(maps.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    more = {"relevances": carried} if rule == "chefer2021a" else {}
    truth = by_loops(maps, slopes, rule, more.get("relevances"))
    found = relevance(maps, slopes, rule=rule, **more)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(relevance(maps, slopes, rule=rule, targets=[-1, 0], **more), truth[[-1, 0]])
    torch.testing.assert_close(relevance(maps, slopes, rule=rule, targets=[2, 2], **more), truth[[2, 2]])
    second = by_loops(maps, slopes, rule, more.get("relevances"), start=1)
    torch.testing.assert_close(relevance(maps, slopes, rule=rule, start=1, **more), second)
    layers = relevance(maps, slopes, rule=rule, each_layer=True, **more)
    first = by_loops(maps[:1], slopes[:1], rule, None if not more else carried[:1])
    torch.testing.assert_close(layers, torch.stack([first, truth]))
    chosen = relevance(maps, slopes, rule=rule, each_layer=True, targets=[3, 1], **more)
    torch.testing.assert_close(chosen, layers[:, [3, 1]])
    assert bool((found.triu(1) == 0).all()) == causal


def test_a_worked_example_of_the_later_rule() -> None:
    """Two heads, two layers, numbers small enough for paper."""
    maps = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.2, 0.8]]]] * 2)
    slopes = torch.tensor(
        [[[[2.0, 9.0], [4.0, -1.0]], [[-3.0, 9.0], [5.0, 0.0]]], [[[0.0, 0.0], [2.0, 2.0]], [[0.0, 0.0], [-5.0, 5.0]]]]
    )
    # layer 1: row 0: (2, 0); relu -> mean (1, 0). row 1: heads (2, -.5), (1, 0) -> (1.5, 0)
    # layer 2: row 0: 0. row 1: heads (1, 1), (-1, 4) -> (.5, 2.5)
    first = torch.tensor([[2.0, 0.0], [1.5, 1.0]])
    second = torch.tensor([[1.0, 0.0], [0.5, 3.5]])
    torch.testing.assert_close(relevance(maps, slopes), second @ first)
    torch.testing.assert_close(second @ first, torch.tensor([[2.0, 0.0], [6.25, 3.5]]))


def test_gradient_attention_is_the_sum_of_products() -> None:
    maps, slopes = two_layers()
    found = relevance(maps, slopes, rule="gradient-attention")
    torch.testing.assert_close(found, (maps * slopes).mean(1).sum(0))
    assert bool((found < 0).any())
    torch.testing.assert_close(relevance(maps, -slopes, rule="gradient-attention"), -found)
    each = relevance(maps, slopes, rule="gradient-attention", each_layer=True, targets=[4])
    torch.testing.assert_close(each, (maps * slopes).mean(1).cumsum(0)[:, [4]])


@pytest.mark.parametrize("rule", ["chefer2021b", "vit-explain-gradient", "gradient-attention"])
def test_no_gradient_no_relevance(rule: Any) -> None:
    maps, slopes = two_layers()
    found = relevance(maps, torch.zeros_like(slopes), rule=rule)
    torch.testing.assert_close(
        found, torch.zeros_like(found) if rule == "gradient-attention" else torch.eye(5).double()
    )


def test_sums_and_signs() -> None:
    maps, slopes = two_layers()
    rolled = relevance(maps, slopes, rule="vit-explain-gradient")
    torch.testing.assert_close(rolled.sum(-1), torch.ones(LENGTH, dtype=torch.float64))
    added = relevance(maps, slopes)
    assert bool((added >= torch.eye(LENGTH)).all())
    assert not torch.allclose(added, relevance(maps, -slopes))  # the other side of the relu
    every = relevance(maps, slopes.abs())
    assert bool((every >= added - 1e-12).all())  # more positive gradients, no less relevance


def test_discarding_counts_each_layer_by_itself() -> None:
    maps, slopes = two_layers()
    found = relevance(maps, slopes, rule="vit-explain-gradient", discard=0.6)
    truth = torch.eye(LENGTH, dtype=torch.float64)
    for layer in range(LAYERS):
        fused = (maps[layer] * slopes[layer]).mean(0).clamp(min=0)
        order = fused.flatten().argsort(stable=True)[: int(0.6 * LENGTH**2)]
        fused.view(-1)[order] = 0
        step = fused + torch.eye(LENGTH)
        truth = step / step.sum(-1, keepdim=True) @ truth
    torch.testing.assert_close(found, truth)


def test_layers_may_have_other_numbers_of_heads() -> None:
    maps, slopes = two_layers()
    made = relevance([maps[0], maps[1][:1]], [slopes[0], slopes[1][:1]])
    step = (maps[1][:1] * slopes[1][:1]).clamp(min=0).mean(0) + torch.eye(LENGTH)
    torch.testing.assert_close(made, step @ relevance(maps[:1], slopes[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "chefer"}, "chefer2021b"),
        ({"rule": "chefer2021a"}, "needs relevances"),
        ({"relevances": torch.ones(2, 3, 5, 5)}, "takes no relevances"),
        ({"discard": 0.5}, "vit-explain-gradient"),
        ({"start": 2}, "2 layers"),
        ({"start": -1}, "start=-1"),
        ({"targets": [5]}, "5 tokens"),
        ({"gradients": torch.ones(2, 3, 5, 4)}, "differ in shape"),
        ({"patterns": torch.ones(3, 5, 5)}, "expected"),
        ({"patterns": -torch.ones(2, 3, 5, 5)}, "negative attention"),
        ({"patterns": torch.full((2, 3, 5, 5), torch.nan)}, "NaN"),
        ({"gradients": torch.full((2, 3, 5, 5), torch.inf)}, "infinite"),
        ({"patterns": torch.ones(2, 3, 4, 5), "gradients": torch.ones(2, 3, 4, 5)}, "SequenceRelevance"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    given = {"patterns": torch.ones(2, 3, 5, 5) / 5, "gradients": torch.ones(2, 3, 5, 5), **change}
    with pytest.raises(interp.HeadscopeError, match=message):
        relevance(given.pop("patterns"), given.pop("gradients"), **given)


def test_without_identity_by_hand() -> None:
    found = without_identity(torch.tensor([[1.0, 0.0, 0.0], [3.0, 2.0, 0.0], [0.0, 4.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0], [0.75, 1.25, 0.0], [0.0, 1.0, 1.0]]))


def drawn(*size: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    maps = torch.softmax(torch.randn(*size, generator=draw, dtype=torch.float64), dim=-1)
    return maps, torch.randn(*size, generator=draw, dtype=torch.float64)


def fused(pair: tuple[Tensor, Tensor]) -> Tensor:
    return (pair[0] * pair[1]).clamp(min=0).mean(0)


def test_two_sequences_by_hand() -> None:
    """Self-attention of both, then co-attention both ways at once, then self-attention of the first: all equations."""
    t, i = 3, 2
    text, image = drawn(2, t, t, seed=0), drawn(2, i, i, seed=1)
    forth, back, again = drawn(2, t, i, seed=2), drawn(2, i, t, seed=3), drawn(2, t, t, seed=4)
    found = SequenceRelevance.of({"text": t, "image": i}, dtype=torch.float64)
    assert not found["text", "image"].any()
    found = found.after_self("text", *text).after_self("image", *image)
    r_tt, r_ii = torch.eye(t) + fused(text), torch.eye(i) + fused(image)
    torch.testing.assert_close(found["text", "text"], r_tt)
    found = found.after_both("text", "image", forth, back)

    def n(r: Tensor) -> Tensor:
        rest = r - torch.eye(len(r))
        return torch.eye(len(r)) + torch.nan_to_num(rest / rest.sum(-1, keepdim=True))

    r_ti, r_it = n(r_tt).T @ fused(forth) @ n(r_ii), n(r_ii).T @ fused(back) @ n(r_tt)
    torch.testing.assert_close(found["text", "image"], r_ti)
    torch.testing.assert_close(found["image", "text"], r_it)
    torch.testing.assert_close(found["text", "text"], r_tt)  # R_it was still 0 before this layer
    found = found.after_cross("text", "image", *forth)
    torch.testing.assert_close(found["text", "text"], r_tt + fused(forth) @ r_it)
    torch.testing.assert_close(found["text", "image"], r_ti + n(r_tt).T @ fused(forth) @ n(r_ii))
    before = found
    found = found.after_self("text", *again)
    for other in ("text", "image"):
        torch.testing.assert_close(found["text", other], (torch.eye(t) + fused(again)) @ before["text", other])
        assert torch.equal(found["image", other], before["image", other])


def test_one_sequence_is_the_plain_rule() -> None:
    maps, slopes = two_layers()
    found = SequenceRelevance.of({"text": LENGTH}, dtype=torch.float64)
    for layer in range(LAYERS):
        found = found.after_self("text", maps[layer], slopes[layer])
    torch.testing.assert_close(found["text", "text"], relevance(maps, slopes))


def test_what_sequences_refuse() -> None:
    found = SequenceRelevance.of({"text": 3, "image": 2})
    maps = torch.ones(1, 3, 2)
    with pytest.raises(interp.BadInput, match=r"\[head, 3, 3\]"):
        found.after_self("text", maps, maps)
    with pytest.raises(interp.UnknownName, match="text"):
        found.after_self("txt", maps, maps)
    with pytest.raises(interp.BadInput, match="negative or NaN"):
        found.after_cross("text", "image", -maps, maps)
    with pytest.raises(interp.BadInput, match="after_self"):
        found.after_cross("text", "text", torch.ones(1, 3, 3), torch.ones(1, 3, 3))
    assert len(found) == 4 and set(found) == {(a, b) for a in ("text", "image") for b in ("text", "image")}
