"""What the pure functions take and refuse: kinds of numbers, shapes, padding; and 16-bit models."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from dense_rollout import random_maps
from torch import Tensor

import interp
from interp import Batch
from interp.errors import BadInput

MAPS = random_maps(3, 2, 5)
SLOPES = np.random.default_rng(1).standard_normal(MAPS.shape)
VECTORS = np.random.default_rng(2).standard_normal((4, 4, 6))
KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.tensor,
    "array": lambda x: x,
    "lists": lambda x: x.tolist(),
    "one array per layer": list,
    "with a graph": lambda x: torch.tensor(x, requires_grad=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_kind(kind: str) -> None:
    made, plain = KINDS[kind], torch.tensor
    for found, truth in (
        (interp.relevance(made(MAPS), made(SLOPES)), interp.relevance(plain(MAPS), plain(SLOPES))),
        (interp.rollout(made(MAPS)), interp.rollout(plain(MAPS))),
        (interp.contributions(made(VECTORS)), interp.contributions(plain(VECTORS))),
    ):
        assert found.dtype == torch.float64
        assert not found.requires_grad
        torch.testing.assert_close(found, truth, rtol=0, atol=0)


@pytest.mark.parametrize("residual", [0.0, 0.5, 1.0, [0.0, 0.5, 0.0]])
def test_padding_is_nothing_for_any_share(residual: Any) -> None:
    padded = MAPS.copy()
    padded[..., :2, :] = padded[..., :2] = 0
    padded[..., 2:, :] /= padded[..., 2:, :].sum(-1, keepdims=True)
    found = interp.rollout(padded, residual=residual).numpy()
    alone = interp.rollout(padded[..., 2:, 2:], residual=residual).numpy()
    np.testing.assert_allclose(found[2:, 2:], alone, rtol=0, atol=1e-14)
    assert not found[:2].any()
    assert not found[:, :2].any()


def test_sixteen_bits_are_read_as_float32() -> None:
    low = torch.tensor(VECTORS).bfloat16()
    torch.testing.assert_close(interp.contributions(low), interp.contributions(low.float()), rtol=0, atol=0)
    maps, slopes = torch.tensor(MAPS).bfloat16(), torch.tensor(SLOPES).bfloat16()
    found = interp.relevance(maps, slopes)
    torch.testing.assert_close(found, interp.relevance(maps.float(), slopes.float()), rtol=0, atol=0)


@pytest.mark.parametrize("targets", [[1.5], "all", [True], [[0, 1]], -1, []])
@pytest.mark.parametrize(
    "function", [lambda **o: interp.rollout(MAPS, **o), lambda **o: interp.relevance(MAPS, SLOPES, **o)]
)
def test_rows_are_whole_numbers(function: Callable[..., Tensor], targets: Any) -> None:
    with pytest.raises(BadInput, match="columns of the rows wanted"):
        function(targets=targets)


def test_what_is_no_attention_is_refused() -> None:
    with pytest.raises(BadInput, match=r"sum to 2\.0000"):
        interp.relevance(2 * MAPS, SLOPES)
    with pytest.raises(BadInput, match=r"expected \[layer, head, query, key\]"):
        interp.relevance(None, SLOPES)  # pyright: ignore[reportArgumentType]
    begun = interp.SequenceRelevance.of({"text": 5, "image": 5})
    with pytest.raises(BadInput, match="more than 1"):
        begun.after_self("text", 2 * MAPS[0], SLOPES[0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="discard"):
        interp.rollout(MAPS, discard="much")  # pyright: ignore[reportArgumentType]


def test_what_are_no_contributions_is_refused() -> None:
    with pytest.raises(BadInput, match="NaN"):
        interp.contributions(np.full((2, 2, 3), np.nan))
    with pytest.raises(BadInput, match="output of shape"):
        interp.contributions(VECTORS, VECTORS[0, 0])
    with pytest.raises(BadInput, match="query, key, d_model"):
        interp.contributions(VECTORS[0])


def test_sink_logits_take_their_share_in_sixteen_bits_too(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt_oss")
    low = interp.load(deepcopy(case.hf).bfloat16())
    inputs = case.tiny.inputs(2, 6, 0)
    truth = interp.trace(case.model, interp.encode(case.model, inputs=inputs), "rollout", each_layer=True)
    found = interp.trace(low, interp.encode(low, inputs=inputs), "rollout", each_layer=True)
    assert found.metadata["missing"] == ["sink"]
    assert found.layers is not None
    assert truth.layers is not None
    np.testing.assert_allclose(found.layers, truth.layers, rtol=0, atol=0.02)


def test_a_difference_of_rounded_logits_is_linear(case_of: Callable[[str], Case]) -> None:
    def difference(logits: Tensor, batch: Batch) -> Tensor:
        rows = torch.arange(len(logits))
        return logits[rows, batch.read_at, 3] - logits[rows, batch.read_at, 5]

    def bent(logits: Tensor, batch: Batch) -> Tensor:
        return difference(logits, batch).exp()

    case = case_of("llama")
    low = interp.load(deepcopy(case.hf).bfloat16())
    batch = interp.encode(low, inputs=case.tiny.inputs(2, 6, 0))
    assert np.isfinite(interp.trace(low, batch, "alti-logit", metric=difference).values).all()
    with pytest.raises(BadInput, match="not: <dm/dlogits, logits>"):
        interp.trace(low, batch, "alti-logit", metric=bent)


@pytest.mark.parametrize("method", ["gradient", "gradient-input", "integrated-gradients"])
def test_no_maps_no_sinks_to_leave_out(case_of: Callable[[str], Case], method: str) -> None:
    case = case_of("gpt2")
    with pytest.raises(BadInput, match="no attention maps"):
        interp.trace(case.model, case.batch(1, 4), method, exclude_sinks="first")
