"""Encoders without a head: their mean-pooled embedding along some directions, by hand and as found afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import interp
from interp.errors import BadInput
from interp.model.handle import Model
from interp.model.pooled import embeddings, pooled, with_directions

IDS = [[1, 5, 6, 7, 2], [1, 8, 2]]


@pytest.fixture(scope="module")
def encoder() -> Model:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    return interp.load(transformers.BertModel(config).eval())


def by_hand(encoder: Model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return encoder.hf(torch.tensor([ids])).last_hidden_state[0].mean(0)


def test_embeddings_are_means_over_real_tokens(encoder: Model) -> None:
    found = embeddings(encoder, interp.encode(encoder, IDS))
    for row, ids in zip(found, IDS, strict=True):
        torch.testing.assert_close(row, by_hand(encoder, ids), atol=1e-5, rtol=1e-5)
    assert pooled(torch.ones(1, 2, 3), torch.tensor([[True, False]])).tolist() == [[1.0, 1.0, 1.0]]


def test_logits_are_lengths_along_directions(encoder: Model) -> None:
    own = embeddings(encoder, interp.encode(encoder, IDS))
    unit = own / own.norm(dim=-1, keepdim=True)
    headed = with_directions(encoder, unit)
    batch = interp.encode(headed, IDS, answers=[0, 1], read_at=0)
    logits = interp.run(headed, batch).logits
    assert logits is not None
    torch.testing.assert_close(logits, own @ unit.mT, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.diagonal(), own.norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert not any(outcome.startswith("FAILS") for outcome in headed.card.checks.values())


def test_the_gradient_does_not_vanish_and_the_encoder_stays_as_found(encoder: Model) -> None:
    before = {name: value.clone() for name, value in encoder.hf.state_dict().items()}
    labels = encoder.hf.config.num_labels
    own = embeddings(encoder, interp.encode(encoder, IDS))
    headed = with_directions(encoder, own / own.norm(dim=-1, keepdim=True))
    batch = interp.encode(headed, IDS, answers=[0, 1], read_at=0)

    def answer(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return logits.gather(1, batch.answers)[:, 0]

    run = interp.run(headed, batch, read=[interp.At(interp.Site.RESID_PRE, layer=0)], grad=answer)
    assert run.grad is not None and run.grad[interp.At(interp.Site.RESID_PRE, layer=0)].abs().max() > 1e-4
    assert encoder.hf.config.num_labels == labels
    assert all(torch.equal(value, before[name]) for name, value in encoder.hf.state_dict().items())


def test_unfit_models_and_directions_are_refused(encoder: Model) -> None:
    with pytest.raises(BadInput, match=r"d_model=16"):
        with_directions(encoder, torch.eye(3))
    with pytest.raises(BadInput, match="head of its own"):
        with_directions(interp.load("handmade"), torch.zeros(1, interp.load("handmade").hf.config.hidden_size))
