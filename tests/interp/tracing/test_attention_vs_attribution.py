"""Attention against attribution at three levels, and the saliency of encoder positions by brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case
from scipy import stats
from torch import Tensor

import interp
from interp import At, BadInput, Site, UnknownName, Unsupported

CaseOf = Callable[[str], Case]


def maps_of(case: Case, batch: interp.Batch, stack: str) -> list[Tensor]:
    """``[batch, head, row, key]`` of each layer, as the model shows them."""
    run = interp.run(case.model, batch, [At(Site.PATTERN, stack=stack)])
    return [run[At(Site.PATTERN, layer, stack=stack)] for layer in range(case.model.stack(stack).n_layers)]


def standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_three_levels_by_hand(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 6)
    maps = maps_of(case, batch, "cross")
    shape = (2, *maps[0].shape[2:])
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = interp.attention_vs_attribution(case.model, batch, numbers)
    whole = torch.cat(maps, dim=1).mean(1)
    for prompt in range(2):
        target = standard(numbers[prompt].double().numpy()).ravel()

        def r(map_: Tensor, target: np.ndarray = target) -> float:
            return float(stats.pearsonr(standard(map_.double().numpy()).ravel(), target)[0])

        assert found.all[prompt] == pytest.approx(r(whole[prompt]), abs=1e-5)
        for layer, own in enumerate(maps):
            assert found.layers[prompt, layer] == pytest.approx(r(own[prompt].mean(0)), abs=1e-5)
            for head in range(own.shape[1]):
                exact = r(own[prompt, head])
                assert found.heads.samples[prompt, layer, head] == pytest.approx(exact, abs=1e-5)
    assert found.table()["level"].tolist() == ["layer"] * len(maps) + ["all"] and "all heads" in repr(found)


def test_invariances(case_of: CaseOf) -> None:
    """A head with itself 1; rows rescaled and shifted change nothing; shuffled keys about 0; ranks by scipy."""
    case = case_of("t5")
    batch = case.batch(3, 12)
    maps = maps_of(case, batch, "cross")
    own = maps[0][:, 1]
    found = interp.attention_vs_attribution(case.model, batch, own).heads.samples
    np.testing.assert_allclose(found[:, 0, 1], 1, atol=1e-6)
    draw = torch.Generator().manual_seed(0)
    scale = torch.rand(*own.shape[:2], 1, generator=draw) + 0.5
    moved = interp.attention_vs_attribution(case.model, batch, own * scale - 7 * scale).heads.samples
    np.testing.assert_allclose(moved, found, atol=1e-5)
    numbers = torch.randn(own.shape, generator=draw)
    for how, measure in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        ranks = interp.attention_vs_attribution(case.model, batch, numbers, how=how, normalise=False)
        exact = measure(maps[0][0, 0].double().numpy().ravel(), numbers[0].double().numpy().ravel())[0]
        assert ranks.heads.samples[0, 0, 0] == pytest.approx(exact, abs=1e-6)
    top = interp.attention_vs_attribution(case.model, batch, own, how="topk", top=4, normalise=False)
    np.testing.assert_allclose(top.heads.samples[:, 0, 1], 1)


def test_padding_sinks_and_causal_rows() -> None:
    """Only keys that a row sees are compared: numbers elsewhere may be anything."""
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9]], padding_side="left")
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(2, 6, 6, generator=draw)
    wild = numbers.clone()
    wild[:, torch.ones(6, 6, dtype=torch.bool).triu(1)] = 1e6
    wild[1, :, :2] = -1e6
    found = interp.attention_vs_attribution(model, batch, numbers)
    other = interp.attention_vs_attribution(model, batch, wild)
    np.testing.assert_allclose(other.heads.samples, found.heads.samples, atol=1e-9)
    one = interp.attention_vs_attribution(model, interp.encode(model, [[6, 7, 8, 9]]), numbers[1:, 2:, 2:])
    np.testing.assert_allclose(one.heads.samples[0], found.heads.samples[1], atol=1e-4)
    sink = numbers.clone()
    sink[0, :, 0], sink[1, :, 2] = 50, 50
    free = interp.attention_vs_attribution(model, batch, numbers, exclude_sinks="first")
    np.testing.assert_allclose(
        interp.attention_vs_attribution(model, batch, sink, exclude_sinks="first").layers, free.layers, atol=1e-6
    )


@pytest.mark.parametrize("of", ["input", "encoder"])
def test_saliency_of_tokens_by_brute_force(case_of: CaseOf, of: str) -> None:
    case = case_of("t5")
    batch = case.batch(2, 5)
    ids, target = batch.inputs["input_ids"], batch.inputs["decoder_input_ids"]
    found = interp.token_saliency(case.model, batch, of, replacement=7)
    assert found.shape == (2, target.shape[1], ids.shape[1])
    with torch.no_grad():
        base = case.hf(**batch.inputs).logits
        follows = torch.cat([target[:, 1:], base[:, -1:].argmax(-1)], dim=1)[..., None]
        for key in range(ids.shape[1]):
            if of == "input":
                changed = {**batch.inputs, "input_ids": ids.clone().index_fill_(1, torch.tensor([key]), 7)}
                logits = case.hf(**changed).logits
            else:
                member = torch.zeros_like(ids, dtype=torch.bool)
                member[:, key] = True
                logits = interp.run(case.model, batch, edits=[interp.knockout(None, member, stack="cross")]).logits
                assert logits is not None
            exact = (base.log_softmax(-1) - logits.log_softmax(-1)).gather(-1, follows)[..., 0]
            np.testing.assert_allclose(found[:, :, key], exact, atol=1e-5)
    told = interp.attention_vs_attribution(case.model, batch, found)
    assert told.heads.samples.shape[0] == 2 and np.isfinite(told.all).all()


def test_saliency_of_frames(case_of: CaseOf) -> None:
    case = case_of("whisper")
    batch = case.batch(2, 3)
    found = interp.token_saliency(case.model, batch, "input", fill="zero")
    sounds = batch.inputs["input_features"].clone()
    sounds[:, :, 10:12] = 0
    target = batch.inputs["decoder_input_ids"]
    with torch.no_grad():
        base = case.hf(**batch.inputs).logits
        less = case.hf(**{**batch.inputs, "input_features": sounds}).logits
    follows = torch.cat([target[:, 1:], base[:, -1:].argmax(-1)], dim=1)[..., None]
    exact = (base.log_softmax(-1) - less.log_softmax(-1)).gather(-1, follows)[..., 0]
    np.testing.assert_allclose(found[:, :, 5], exact, atol=1e-5)
    for fill in ("mean", "blur", 0.1):
        assert bool(interp.token_saliency(case.model, batch, "input", fill=fill).isfinite().all())
    weights = found.mean(1)
    curves = interp.removal_curves(case.model, batch, {"saliency": weights}, stack="cross", draws=2)
    assert np.isfinite(curves.area()["saliency"]).all()


def test_refusals(case_of: CaseOf) -> None:
    case = case_of("t5")
    batch = case.batch(2, 6)
    with pytest.raises(BadInput, match="with 4 rows and 6 keys"):
        interp.attention_vs_attribution(case.model, batch, torch.zeros(2, 3, 3))
    with pytest.raises(UnknownName):
        interp.attention_vs_attribution(case.model, batch, torch.zeros(2, 4, 6), how="cosine")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="top=0"):
        interp.attention_vs_attribution(case.model, batch, torch.zeros(2, 4, 6), how="topk", top=0)
    with pytest.raises(UnknownName, match="place"):
        interp.token_saliency(case.model, batch, "output")  # type: ignore[arg-type]
    plain = tiny_gpt2()
    with pytest.raises(Unsupported, match="no cross-attention"):
        interp.token_saliency(plain, interp.encode(plain, [[1, 2]]))
