"""Value-aware traces: against explicit loops over tokens and heads, and against what the model itself leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case, families, fingerprint
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, UnknownName, Unsupported
from interp.model.attention_sums import hold_sums
from interp.tracing.ask import TraceAsk
from interp.tracing.values.held_steps import held_steps
from interp.tracing.values.steps import ValueStep

LENGTH = 6
FEW = (
    "gpt2",
    "llama",
    "gemma2",
    "olmo2",
    "granite",
    "gpt_oss",
    "deepseek_v3",
    "gptj",
    "bloom",
    "bert",
    "dinov2",
    "bart",
)


def written_by_loops(case: Case, batch: interp.Batch, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """``T_i(x_j)`` and ``y_i`` of a layer of gpt2 or bert, token by token and head by head, from their weights."""
    sites = (Site.PATTERN, Site.V, Site.RESID_PRE, Site.RESID_MID)
    at = {site: At(site, layer=layer) for site in sites}
    run = interp.run(case.model, batch, read=list(at.values()))
    pattern, v, before, after = (run[at[site]].double().numpy() for site in sites)
    block: Any = case.model.stack().blocks[layer]
    if case.tiny.name == "gpt2":
        out, bias = block.attn.c_proj.weight, block.attn.c_proj.bias
    else:
        out, bias = block.attention.output.dense.weight.T, block.attention.output.dense.bias
    matrix = out.detach().double().numpy().reshape(v.shape[2], v.shape[3], -1)
    batches, heads, length = pattern.shape[:3]
    made = np.zeros((batches, length, length, matrix.shape[-1]))
    for b in range(batches):
        for i in range(length):
            for j in range(length):
                for h in range(heads):
                    made[b, i, j] += pattern[b, h, i, j] * (v[b, j, h] @ matrix[h])
                if i == j:
                    made[b, i, j] += before[b, i]
    if case.tiny.name == "bert":
        norm = block.attention.output.LayerNorm
        whole = made.sum(2) + bias.detach().double().numpy()
        sigma = np.sqrt(whole.var(-1) + norm.eps)
        made = (made - made.mean(-1, keepdims=True)) * norm.weight.detach().double().numpy() / sigma[:, :, None, None]
    return made, after


def by_definition(vectors: np.ndarray, output: np.ndarray, kind: str) -> np.ndarray:
    found = np.zeros(vectors.shape[:3])
    for b, i, j in np.ndindex(found.shape):
        own = vectors[b, i, j]
        if kind == "alti":
            found[b, i, j] = max(0.0, np.abs(output[b, i]).sum() - np.abs(output[b, i] - own).sum())
        else:
            found[b, i, j] = np.sqrt((own**2).sum())
    return found / found.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize("kind", ["alti", "norm"])
def test_it_is_the_product_of_loops_over_tokens_and_heads(case_of: Callable[[str], Case], name: str, kind: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    layers = [by_definition(*written_by_loops(case, batch, layer), kind) for layer in range(2)]
    found = interp.trace(case.model, batch, kind, targets="all", each_layer=True)
    assert found.layers is not None
    np.testing.assert_allclose(found.layers[0], layers[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.layers[1], layers[1] @ layers[0], rtol=0, atol=2e-6)
    alone = interp.trace(case.model, batch, kind, targets="all", each_layer=True, rolled=False)
    assert alone.layers is not None
    np.testing.assert_allclose(alone.layers, np.stack(layers), rtol=0, atol=2e-6)
    vectors, output = written_by_loops(case, batch, 0)
    pure = interp.contributions(torch.tensor(vectors), torch.tensor(output), kind=kind)
    np.testing.assert_allclose(pure, layers[0], rtol=0, atol=1e-14)


def sums_of(case: Case, batch: interp.Batch, stack: str) -> None:
    """Over tokens, the vectors and the constant sum to what the model leaves, which is read by itself."""
    model = case.model
    sums = hold_sums(model, batch, [stack])
    family = model.stack(stack).family
    for layer in sums.held.layers(stack):
        made = sums.layer(layer, stack)
        count, length = made.output.shape[:2]
        total = torch.zeros_like(made.output)
        columns = torch.arange(length).expand(count, -1)
        seen = torch.zeros(count, length, dtype=torch.bool)
        for block in made.blocks(columns):
            index = block.rows.unsqueeze(-1).expand(-1, -1, total.shape[-1])
            total.scatter_add_(1, index, block.vectors.sum(1).double())
            seen.scatter_(1, block.rows, torch.ones_like(block.real))
        assert seen.all()
        if family.norm in ("pre", "sandwich", "post"):
            at = At(Site.RESID_MID, layer=layer, stack=stack)
            truth = interp.run(model, batch, read=[at])[at]
        else:
            pre, out = (At(site, layer=layer, stack=stack) for site in (Site.RESID_PRE, Site.ATTN_OUT))
            run = interp.run(model, batch, read=[pre, out])
            truth = run[pre] + run[out]
        size = float(truth.abs().max())
        np.testing.assert_allclose((total + made.constant).numpy(), truth.double().numpy(), rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("name", FEW)
def test_parts_sum_to_the_stream(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    for stack in case.model.stacks.values():
        if not stack.cross:
            sums_of(case, batch, stack.name)


@pytest.mark.slow
@families
def test_parts_sum_to_the_stream_of_every_family(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    for stack in case.model.stacks.values():
        if stack.family.packed:
            with pytest.raises(Unsupported, match="batch axis"):
                hold_sums(case.model, batch, [stack.name])
        elif not stack.cross:
            sums_of(case, batch, stack.name)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("method", ["alti", "norm"])
def test_rows_are_distributions(case_of: Callable[[str], Case], name: str, method: str) -> None:
    case = case_of(name)
    before = fingerprint(case.hf)
    batch = case.batch(2, LENGTH)
    targets = torch.tensor([[3, 1], [2, 0]])
    choices: list[dict[str, Any]] = [{}, {"rolled": False}, {"norm": 3 - {"alti": 1, "norm": 2}[method]}]
    for options in choices:
        found = interp.trace(case.model, batch, method, targets=targets, each_layer=True, **options)
        assert found.layers is not None
        assert (found.layers >= 0).all()
        np.testing.assert_allclose(found.layers.sum(-1), 1, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(found.layers[-1], found.values)
    assert fingerprint(case.hf) == before


def test_attention_alone_is_the_length_of_what_heads_write(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)
    vectors, _ = written_by_loops(case, batch, 1)
    before = interp.run(case.model, batch, read=[At(Site.RESID_PRE, layer=1)])[At(Site.RESID_PRE, layer=1)].numpy()
    for i in range(LENGTH):
        vectors[:, i, i] -= before[:, i]
    sizes = np.linalg.norm(vectors, axis=-1)
    found = interp.trace(case.model, batch, "norm", targets="all", within="attention", rolled=False)
    np.testing.assert_allclose(found.values, sizes / sizes.sum(-1, keepdims=True), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "bert"])
def test_a_bias_of_values_can_stand_apart(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    sums = hold_sums(case.model, batch, ["text"])
    columns = torch.arange(LENGTH).expand(2, -1)

    def whole(value_bias: bool) -> tuple[Tensor, Tensor]:
        layer = sums.layer(1, value_bias=value_bias)
        vectors = torch.cat([block.vectors for block in layer.blocks(columns)], dim=2)
        return vectors.sum(1).double() + layer.constant, layer.constant

    together, constant = whole(True)
    apart, other = whole(False)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)
    assert float((other - constant).abs().max()) > 1e-3
    found = interp.trace(case.model, batch, "alti", value_bias=False)
    assert np.abs(found.values - interp.trace(case.model, batch, "alti").values).max() > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gpt_oss"])
@pytest.mark.parametrize("method", ["alti", "norm", "alti-logit", "value-zeroing"])
def test_padding_and_order_change_nothing(case_of: Callable[[str], Case], name: str, method: str) -> None:
    case = case_of(name)
    ids = case.tiny.inputs(3, LENGTH, 0)["input_ids"]
    metric: dict[str, Any] = {"metric": first_logit} if method == "alti-logit" else {}
    alone = interp.trace(case.model, interp.encode(case.model, ids), method, **metric).values[:, 0]
    turned = interp.trace(case.model, interp.encode(case.model, ids.flip(0)), method, **metric).values[:, 0]
    np.testing.assert_allclose(turned[::-1], alone, rtol=0, atol=5e-6)
    blank = torch.zeros(3, 2, dtype=torch.long)
    for left in (True, False):
        parts, masks = [ids, blank], [torch.ones_like(ids), blank]
        rows, mask = (torch.cat(list(reversed(each)) if left else each, dim=1) for each in (parts, masks))
        if left and name == "bert":
            continue  # its positions count from the left
        batch = interp.encode(case.model, rows, mask=mask.bool())
        found = interp.trace(case.model, batch, method, **metric).values[:, 0]
        real = slice(2, None) if left else slice(0, -2)
        np.testing.assert_allclose(found[:, real], alone, rtol=0, atol=5e-6)
        assert np.isnan(found[:, ~batch.mask[0].numpy()]).all()


def first_logit(logits: Tensor, batch: interp.Batch) -> Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, batch.read_at, 7] - logits[rows, batch.read_at, 5]


def test_encoder_and_decoder_are_block_matrices(case_of: Callable[[str], Case]) -> None:
    case = case_of("t5")
    batch = case.batch(2, LENGTH)
    found = interp.trace(case.model, batch, "alti", targets="all", stack="decoder", each_layer=True)
    assert found.source_stacks == (("encoder", LENGTH), ("decoder", LENGTH - 2))
    assert found.layers is not None
    np.testing.assert_allclose(found.layers.sum(-1), 1, rtol=0, atol=2e-6)
    ask = TraceAsk("alti", case.model, batch, case.model.stack("decoder"), torch.zeros(2, 1).long())
    tower = held_steps(ask, kind="alti").tower

    def dense(step: ValueStep) -> tuple[Tensor, Tensor]:
        rows = LENGTH if step.stack == "encoder" else LENGTH - 2
        keys, own = torch.zeros(2, rows, step.n_keys), torch.zeros(2, rows)
        for part in step.read(torch.arange(rows).expand(2, -1)):
            keys[:, part.rows[0], : part.keys.shape[-1]] = part.keys
            own[:, part.rows[0]] = part.own
        return keys, own

    state = torch.eye(LENGTH + LENGTH - 2).expand(2, -1, -1)
    for step in (*tower.encoder, *tower.steps):
        keys, own = dense(step)
        encoder, decoder = state[:, :LENGTH], state[:, LENGTH:]
        if step.stack == "encoder":
            encoder = keys @ encoder
        elif step.cross:
            assert float(own.min()) > 0
            decoder = keys @ encoder + own.unsqueeze(-1) * decoder
        else:
            decoder = keys @ decoder
        state = torch.cat([encoder, decoder], dim=1)
    np.testing.assert_allclose(found.values, state[:, LENGTH:], rtol=0, atol=2e-6)


def test_left_out_columns_get_nothing_but_from_themselves(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    batch = case.batch(2, LENGTH)
    whole = interp.trace(case.model, batch, "alti", targets="all", rolled=False)
    found = interp.trace(case.model, batch, "alti", targets="all", rolled=False, exclude_sinks="first")
    left = whole.values.copy()
    left[:, 1:, 0] = 0
    np.testing.assert_allclose(found.values, left / left.sum(-1, keepdims=True), rtol=0, atol=2e-6)


def test_long_rows_in_many_blocks(case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few rows and few keys, and values made anew for each, give what one block gives."""
    import interp.model.attention_sums as sums

    case = case_of("llama")
    batch = case.batch(2, 9)
    whole = interp.trace(case.model, batch, "alti", targets="all", each_layer=True)
    monkeypatch.setattr(sums, "_ENTRIES", 2 * 3 * 32)
    monkeypatch.setattr(sums, "_KEPT", 0)
    small = interp.trace(case.model, batch, "alti", targets="all", each_layer=True)
    assert whole.layers is not None and small.layers is not None
    np.testing.assert_allclose(small.layers, whole.layers, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["afmoe"])
def test_a_gate_before_the_projection_is_refused(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    with pytest.raises(Unsupported, match=r"Layer \d of stack 'text'.*off by"):
        interp.trace(case.model, case.batch(2, LENGTH), "alti")


@pytest.mark.parametrize(
    ("method", "options", "error", "words"),
    [
        ("alti", {"norm": 3}, BadInput, "expected 1, 2"),
        ("norm", {"within": "stream"}, UnknownName, "attention"),
        ("norm", {"value_bias": 1}, BadInput, "True or False"),
        ("alti", {"rolled": "yes"}, BadInput, "True or False"),
        ("value-zeroing", {"residual": 2}, BadInput, "0 to 1"),
        ("alti-logit", {"embeddings": 1}, BadInput, "True or False"),
    ],
)
def test_bad_options(
    case_of: Callable[[str], Case], method: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    case = case_of("gpt2")
    with pytest.raises(error, match=words):
        interp.trace(case.model, case.batch(1, 4), method, **options)


def test_pure_contributions() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 5, generator=draw, dtype=torch.float64)
    maps = maps / maps.sum(-1, keepdim=True)
    value = torch.randn(3, generator=draw, dtype=torch.float64)
    same = maps.unsqueeze(-1) * value  # equal values: what is brought is the attention itself
    for kind in ("alti", "norm"):
        for norm in (None, 1, 2):
            torch.testing.assert_close(interp.contributions(same, kind=kind, norm=norm), maps, rtol=0, atol=1e-12)
    vectors = torch.randn(2, 4, 5, 3, generator=draw, dtype=torch.float64)
    found = interp.contributions(vectors)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    doubled = interp.contributions(3.5 * vectors)
    torch.testing.assert_close(doubled, found, rtol=0, atol=1e-12)
    none = interp.contributions(torch.zeros(1, 2, 3))
    assert none.tolist() == [[0.0, 0.0]]
    assert interp.contributions(vectors, kind="norm", normalise=False).sum(-1).max() > 1
    with pytest.raises(UnknownName, match="alti"):
        interp.contributions(vectors, kind="altii")
