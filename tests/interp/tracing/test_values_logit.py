"""Contributions to logits, and value zeroing: against explicit projections and runs with values edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, Unsupported

LENGTH = 6


def difference(logits: Tensor, batch: interp.Batch) -> Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, batch.read_at, 7] - logits[rows, batch.read_at, 5]


def flipped(logits: Tensor, batch: interp.Batch) -> Tensor:
    return -difference(logits, batch)


def test_states_add_what_their_values_project_to(case_of: Callable[[str], Case]) -> None:
    """In gpt2, ``A_tj v_j W_O`` through the final norm's own scale and the unembedding, by hand."""
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)
    sites = [At(site, layer=layer) for layer in range(2) for site in (Site.PATTERN, Site.V)]
    last = At(Site.RESID_POST, layer=1)
    run = interp.run(case.model, batch, read=[*sites, last])
    norm, unembed = case.hf.transformer.ln_f, case.hf.lm_head.weight.detach().double()
    top = run[last][:, -1].double()
    sigma = (top.var(-1, correction=0) + norm.eps).sqrt()
    direction = (unembed[7] - unembed[5]) * norm.weight.detach().double()
    direction = direction - direction.mean()  # the norm takes the mean off what is written
    added = []
    for layer in range(2):
        pattern, v = (run[At(site, layer=layer)].double() for site in (Site.PATTERN, Site.V))
        out = case.hf.transformer.h[layer].attn.c_proj.weight.detach().double().view(v.shape[2], v.shape[3], -1)
        written = torch.einsum("bhj,bjhd,hdm->bjm", pattern[:, :, -1], v, out)
        added.append(written @ direction / sigma[:, None])
    alone = interp.trace(case.model, batch, "alti-logit", metric=difference, rolled=False, each_layer=True)
    assert alone.layers is not None
    np.testing.assert_allclose(alone.layers[0, :, 0], added[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(alone.values[:, 0], added[0] + added[1], rtol=0, atol=1e-6)
    below = interp.trace(case.model, batch, "alti", targets="all", each_layer=True).layers
    assert below is not None
    led_back = added[0] + torch.einsum("bj,bjs->bs", added[1], torch.tensor(below[0]))
    found = interp.trace(case.model, batch, "alti-logit", metric=difference)
    np.testing.assert_allclose(found.values[:, 0], led_back, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2", "granite", "gptj", "bloom", "opt-post", "t5"])
def test_parts_sum_to_the_metric(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    found = interp.trace(case.model, batch, "alti-logit", metric=difference, each_layer=True)
    said = found.metadata
    np.testing.assert_allclose(found.values.sum((1, 2)), said["attention"], rtol=0, atol=1e-5)
    parts = sum(np.array(said[part]) for part in ("attention", "mlps", "embeddings", "biases"))
    np.testing.assert_allclose(parts, said["metric value"], rtol=0, atol=2e-5)
    logits = interp.run(case.model, batch).logits
    assert logits is not None
    np.testing.assert_allclose(said["metric value"], difference(logits, batch), rtol=0, atol=1e-5)
    assert found.layers is not None
    np.testing.assert_allclose(found.layers[-1], found.values, rtol=0, atol=1e-9)
    own = interp.trace(case.model, batch, "alti-logit", metric=difference, embeddings=True)
    gap = own.values.sum((1, 2)) - found.values.sum((1, 2))
    np.testing.assert_allclose(gap, said["embeddings"], rtol=0, atol=1e-5)


def test_the_other_answer_turns_all_signs(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = case.batch(2, LENGTH)
    one = interp.trace(case.model, batch, "alti-logit", metric=difference)
    other = interp.trace(case.model, batch, "alti-logit", metric=flipped)
    np.testing.assert_allclose(other.values, -one.values, rtol=0, atol=1e-6)
    assert (one.values < 0).any() and (one.values > 0).any() and one.signed
    maps = [interp.trace(case.model, batch, "raw", metric=metric).values for metric in (difference, flipped)]
    np.testing.assert_array_equal(maps[0], maps[1])


def test_no_embedding_and_known_head() -> None:
    """The induction head of the handmade model brings the whole answer, from the token behind the earlier one."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
    found = interp.trace(model, batch, "alti-logit", metric=interp.logit_difference, rolled=False)
    np.testing.assert_allclose(found.values[0, 0], [0, 0, 10, 0, 0], rtol=0, atol=1e-3)


def test_a_bent_metric_and_another_stack_are_refused(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)

    def bent(logits: Tensor, batch: interp.Batch) -> Tensor:
        return difference(logits, batch) ** 2 + 1

    with pytest.raises(BadInput, match="linear in the logits"):
        interp.trace(case.model, batch, "alti-logit", metric=bent)
    both = case_of("clip")
    with pytest.raises(Unsupported, match="do not write"):
        interp.trace(both.model, both.batch(2, LENGTH), "alti-logit", stack="vision")


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert", "gpt_oss", "vit"])
def test_values_are_zeroed_as_an_edit_would(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    tops = [At(Site.RESID_POST, layer=layer) for layer in range(2)]
    plain = interp.run(case.model, batch, read=tops)
    length = plain[tops[0]].shape[1]
    layers = np.zeros((2, 2, length, length))
    for layer, top in enumerate(tops):
        for key in range(length):
            pos = torch.full((2, 1), key)
            without = interp.run(case.model, batch, [top], [interp.zero(At(Site.V, layer=layer, pos=pos))])
            cosine = torch.cosine_similarity(plain[top].double(), without[top].double(), dim=-1)
            layers[layer, :, :, key] = 1 - cosine
    layers = np.where(layers < 1e-11, 0, layers)
    layers = layers / layers.sum(-1, keepdims=True)
    every = torch.arange(length).expand(2, -1)
    alone = interp.trace(case.model, batch, "value-zeroing", targets=every, each_layer=True, rolled=False)
    assert alone.layers is not None
    np.testing.assert_allclose(alone.layers, layers, rtol=0, atol=1e-5)
    found = interp.trace(case.model, batch, "value-zeroing", targets=every)
    np.testing.assert_allclose(found.values, layers[1] @ layers[0], rtol=0, atol=1e-5)
    mixed = interp.trace(case.model, batch, "value-zeroing", targets=every, residual=0.5)
    half = (layers + np.eye(length)) / 2
    np.testing.assert_allclose(mixed.values, half[1] @ half[0], rtol=0, atol=1e-5)
    assert found.metadata["block forwards"] == 2 * length


def test_value_zeroing_says_what_it_cannot(case_of: Callable[[str], Case]) -> None:
    for name, words in (("bloom", "Site.V"), ("t5", "encoder")):
        case = case_of(name)
        with pytest.raises(Unsupported, match=words):
            interp.trace(case.model, case.batch(1, 4), "value-zeroing")


@pytest.mark.parametrize("method", ["alti", "norm"])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_heads_share_what_passes(case_of: Callable[[str], Case], name: str, method: str) -> None:
    """Of one layer: the contributions, split over heads by the lengths of what each writes, by hand."""
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    layers = interp.trace(case.model, batch, method, targets="all", each_layer=True, rolled=False).layers
    assert layers is not None
    order = {"alti": 1, "norm": 2}[method]
    split = []
    for layer in range(2):
        sites = (Site.PATTERN, Site.V, Site.RESID_PRE)
        run = interp.run(case.model, batch, read=[At(site, layer=layer) for site in sites])
        pattern, v, before = (run[At(site, layer=layer)].double() for site in sites)
        block: Any = case.model.stack().blocks[layer]
        gpt2 = name == "gpt2"
        out = (block.attn.c_proj.weight if gpt2 else block.attention.output.dense.weight.T).detach().double()
        written = torch.einsum("bjhd,hdm->bjhm", v, out.view(v.shape[2], v.shape[3], -1))
        if not gpt2:  # the norm behind; what it divides by is the same for all parts of a row
            gain = block.attention.output.LayerNorm.weight.detach().double()
            written, before = ((x - x.mean(-1, keepdim=True)) * gain for x in (written, before))
        sizes = torch.einsum("bhij,bjh->bijh", pattern, torch.linalg.vector_norm(written, order, dim=-1))
        own = torch.diag_embed(torch.linalg.vector_norm(before, order, dim=-1)).unsqueeze(-1)
        parts = torch.cat([sizes, own], dim=-1)
        split.append((parts / parts.sum(-1, keepdim=True).clamp(min=1e-30)).numpy() * layers[layer][..., None])
    top = np.zeros((2, LENGTH))
    top[np.arange(2), batch.read_at] = 1
    weights = [np.einsum("bi,bij->bj", top, layers[1]), top]
    for sources in (None, 1):
        member = np.ones((2, LENGTH)) if sources is None else np.eye(LENGTH)[[sources] * 2]
        below = [member, np.einsum("bij,bj->bi", layers[0], member)]
        truth = np.stack([np.einsum("bi,bijh,bj->bh", weights[k], split[k], below[k]) for k in range(2)], axis=1)
        found = interp.trace_heads(case.model, batch, method, sources=sources)
        np.testing.assert_allclose(found.samples, truth[..., :-1], rtol=0, atol=3e-6)
        whole = interp.trace(case.model, batch, method).values[:, 0]
        owed = (whole * member).sum(-1)
        np.testing.assert_allclose(truth.sum(-1), np.stack([owed, owed], axis=1), rtol=0, atol=3e-6)


def test_heads_of_an_encoder_decoder(case_of: Callable[[str], Case]) -> None:
    case = case_of("bart")
    batch = case.batch(2, LENGTH)
    for sources, stack in ((None, None), (0, "encoder"), (0, "decoder")):
        found = interp.trace_heads(case.model, batch, "alti", sources=sources, source_stack=stack)
        trace = interp.trace(case.model, batch, "alti").values[:, 0]
        for name in ("encoder", "cross", "decoder"):
            part = np.nansum(found.of(name).samples, axis=-1)
            assert ((part >= 0).all() and part.max() > 0) or sources is not None
            owed = trace.sum(-1) if sources is None else trace[:, 0 if stack == "encoder" else LENGTH]
            assert (part <= owed[:, None] + 1e-5).all()
