"""Copying scores against the [vocab, vocab] circuits that they are the eigenvalues of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conformance.support import REPRESENTATIVE, load_case
from tiny_models import BEYOND, TINY
from torch import Tensor

import interp
from interp import BadInput, Unsupported
from interp.model.head_weights import head_weights
from interp.model.vocabulary import token_products
from interp.scores.weights.ov_copying import circuit_eigenvalues, eigen_score

_POST, _HEAD, _NONE = "itself normalised", "the unembedding is no norm", "a stack that tokens enter and logits leave"
OTHERS = {  # stacks that tokens do not enter, or logits do not leave, by one linear path
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "gte", "bart", "opt-post"), _POST),
    **dict.fromkeys(("modernbert", "esm"), _HEAD),
    **dict.fromkeys(("clip", "siglip"), _NONE),
    **dict.fromkeys(("vit", "dinov2", "deit"), "it compares tokens"),
    **dict.fromkeys(("afmoe", "qwen3_next"), "gate"),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_small_product_has_the_eigenvalues_of_the_large_one() -> None:
    embed, unembed, entering, leaving = drawn(50, 12), drawn(12, 50, seed=1), drawn(12, 4, seed=2), drawn(4, 12, seed=3)
    small = circuit_eigenvalues(entering, leaving, unembed @ embed)
    large = torch.linalg.eigvals(embed @ entering @ leaving @ unembed)
    large = large[large.abs().argsort(descending=True)[:4]]
    for value in small:
        assert float((large - value).abs().min()) < 1e-8 * float(large.abs().max())
    score = eigen_score(small)
    assert float(score) == pytest.approx(float(large.real.sum() / large.abs().sum()))
    assert float(small.real.sum()) == pytest.approx(float(torch.trace(embed @ entering @ leaving @ unembed)))


def test_known_circuits() -> None:
    """Copies, suppresses, turns by a right angle, writes nothing."""
    tokens = torch.eye(6).double()
    turn = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 3).double()
    for circuit, expected in (
        (tokens, 1.0),
        (-tokens, -1.0),
        (turn, 0.0),
        (torch.diag(torch.tensor([3.0, -1, 0, 0, 0, 0])).double(), 0.5),
    ):
        values = circuit_eigenvalues(tokens, circuit, tokens)
        assert float(eigen_score(values, floor=1e-9)) == pytest.approx(expected, abs=1e-9)
    assert torch.isnan(eigen_score(torch.zeros(3, dtype=torch.complex128)))
    assert float(eigen_score(torch.tensor([3.0, -1.0, 1j, 2.0]), "positive")) == 0.5


@pytest.mark.parametrize("fold", ["gain", "norm", "none"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_equals_the_vocabulary_circuit(family: str, fold: str) -> None:
    """The matrices written out with the model's own embedding, norms and unembedding."""
    case = load_case(family)
    hf = case.hf
    embed = hf.get_input_embeddings().weight.detach().double()
    unembed = hf.get_output_embeddings().weight.detach().double().T
    final = {"gpt2": "transformer.ln_f", "llama": "model.norm", "bloom": "transformer.ln_f"}[family]
    if fold != "none":
        unembed = hf.get_submodule(final).weight.detach().double()[:, None] * unembed
        if family == "bloom":
            first = hf.transformer.word_embeddings_layernorm.weight.detach().double()
            embed = (embed - embed.mean(1, keepdim=True) if fold == "norm" else embed) * first
        if fold == "norm" and family != "llama":
            unembed = unembed - unembed.mean(0, keepdim=True)
    names = {"ov": {"score": "ov_copying", "fold": fold}, "qk": {"score": "qk_copying", "fold": fold}}
    found = interp.score(case.model, case.batch(), names)
    for layer in range(2):
        weights = head_weights(case.model, case.model.stack(), layer, fold=fold)
        k, v = weights.per_query_head(weights.k), weights.per_query_head(weights.v)
        for head in range(4):
            ov = torch.linalg.eigvals(embed @ v[head] @ weights.o[head] @ unembed)
            qk = torch.linalg.eigvals(embed @ weights.q[head] @ k[head].T @ embed.T)
            for name, values in (("ov", ov), ("qk", qk)):
                large = values[values.abs() > 1e-9 * values.abs().max()]
                expected = float(large.real.sum() / large.abs().sum())
                assert found[name].values[layer, head] == pytest.approx(expected, abs=1e-6)


def test_the_trained_induction_head_copies() -> None:
    model = interp.load("induction")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
    found = interp.score(model, batch, ["ov_copying"])["ov_copying"]
    assert found.top(1, by="value").label[0] == "L1.H0"
    assert found.values[1, 0] > 0.95
    handmade = interp.load("handmade")
    scores = interp.score(handmade, batch, ["ov_copying", "qk_copying"])
    assert scores["ov_copying"].values[1, 0] == pytest.approx(1.0)
    assert np.isnan(scores["ov_copying"].values[0]).all(), "layer 0 writes nothing that is unembedded"
    assert scores["qk_copying"].values[0, 1] == pytest.approx(1.0), "the duplicate-token head looks for its own token"


def test_random_heads_are_about_zero() -> None:
    tokens = drawn(64, 64) / 8
    scores = [
        float(eigen_score(circuit_eigenvalues(drawn(64, 8, seed=2 * i + 1), drawn(8, 64, seed=2 * i + 2), tokens)))
        for i in range(200)
    ]
    assert abs(np.mean(scores)) < 0.06 and np.std(scores) < 0.5


def test_distances() -> None:
    case = load_case("llama")
    weights = head_weights(case.model, case.model.stack(), 0)
    tokens = token_products(case.model, case.model.stack())[1]
    k = weights.per_query_head(weights.k).transpose(1, 2)
    each = [eigen_score(circuit_eigenvalues(weights.turned(distance), k, tokens)) for distance in (0, 4)]
    asked = {"far": {"score": "qk_copying", "distances": (0, 4)}}
    np.testing.assert_allclose(
        interp.score(case.model, case.batch(), asked)["far"].values[0], torch.stack(each).mean(0)
    )


@pytest.mark.parametrize(
    "family",
    [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow) for name in [*TINY, *BEYOND]],
)
def test_every_family(family: str) -> None:
    case = load_case(family)
    for name in ("ov_copying", "qk_copying"):
        if family in OTHERS and not (name == "qk_copying" and OTHERS[family] == "gate"):
            with pytest.raises(BadInput, match=OTHERS[family]):
                interp.score(case.model, case.batch(), name)
            continue
        found = interp.score(case.model, case.batch(), name)[name]
        values = found.values[[layer.index for layer in case.model.stack().layers if layer]]
        assert np.isfinite(values).all() and (np.abs(values) <= 1).all() and np.abs(values).max() > 0.01
        share = interp.score(case.model, case.batch(), {"share": {"score": name, "statistic": "positive"}})["share"]
        assert ((share.values >= 0) & (share.values <= 1) | np.isnan(share.values)).all()


def test_refusals() -> None:
    case = load_case("gpt2")
    with pytest.raises(BadInput, match="Unknown statistic 'sum'"):
        interp.score(case.model, case.batch(), {"x": {"score": "ov_copying", "statistic": "sum"}})
    encoder = load_case("t5")
    with pytest.raises(Unsupported, match="a stack that tokens enter and logits leave"):
        interp.score(encoder.model, encoder.batch(), "ov_copying", stack="encoder")
