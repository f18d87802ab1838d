"""The matrices of every head against what the model itself computes from its inputs, on every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance.support import REPRESENTATIVE, Case, counted_forwards, fingerprint, load_case
from tiny_models import BEYOND, TINY
from torch import Tensor, nn

import interp
from interp import At, Batch, Site
from interp.errors import BadAddress, BadInput, Unsupported
from interp.model.dye_pool import Pool, Strand
from interp.model.dyes import LayerDyes, MarkedNorm
from interp.model.head_weights import head_weights
from interp.model.linear_parts import affine_map, is_affine, norm_gain
from interp.model.scopes import hidden_among
from interp.model.stacks import Stack
from interp.model.vocabulary import token_products

EVERYONE = [*TINY, *BEYOND]
families = pytest.mark.parametrize(
    "name", [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow) for name in EVERYONE]
)
GATED = ("afmoe", "qwen3_next")
INNER_MEAN = ("stablelm-parallel", "cohere", "persimmon")  # LayerNorms of q and k


@contextmanager
def attention_inputs(stack: Stack, seen: dict[int, list[Tensor]]) -> Iterator[None]:
    """Every attention's tensors: the hidden states first, then what cross-attention reads."""
    handles = []
    for layer in (each for each in stack.layers if each):

        def see(module: nn.Module, args: Any, kwargs: Any, index: int = layer.index) -> None:
            first, _ = hidden_among(args, kwargs)
            others = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x is not first]
            same = [x for x in others if x.is_floating_point() and x.ndim == first.ndim]
            seen[index] = [first.detach().clone(), *(x.detach().clone() for x in same)]

        handles.append(layer.attention.register_forward_pre_hook(see, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ran(case: Case, stack: Stack, batch: Batch, wanted: tuple[Site, ...]) -> tuple[Any, dict[int, list[Tensor]]]:
    offered = [site for site in wanted if stack.refusal(site, False) is None]
    layers = [layer.index for layer in stack.layers if layer]
    ats = [At(site, index, stack=stack.name) for site in offered for index in layers]
    seen: dict[int, list[Tensor]] = {}
    with attention_inputs(stack, seen):
        run = interp.run(case.model, batch, read=ats)
    return {(at.site, at.layer): tensor for at, tensor in run.reads()}, seen


def near(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> bool:
    return float((a.double() - b.double()).abs().max()) <= tolerance * max(1.0, float(b.double().abs().max()))


def applied(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("...m,hmd->...hd", x.double(), matrix) + bias


def same_direction(made: Tensor, found: Tensor) -> bool:
    """Equal to a positive factor per token and head (or per token): what a norm of q or k leaves."""
    return float(F.cosine_similarity(made.double(), found.double(), dim=-1).min()) > 1 - 1e-6


@families
def test_q_k_v_and_results_are_what_the_matrices_say(name: str) -> None:
    case = load_case(name)
    batch = case.batch()
    for stack in case.model.stacks.values():
        read, inputs = ran(case, stack, batch, (Site.Q, Site.K, Site.V, Site.Z, Site.RESULT))
        for layer in (each.index for each in stack.layers if each):
            weights = head_weights(case.model, stack, layer, fold="none")
            memory = inputs[layer][-1 if stack.cross else 0]
            z, result = read[Site.Z, layer], read[Site.RESULT, layer]
            made = torch.einsum("bphd,hdm->bphm", z.double(), weights.o)
            assert near(made.reshape(result.shape), result), (stack.name, layer, "o")
            values = applied(memory, weights.v, weights.v_bias)
            if Site.V in {site for site, _ in read}:
                latent = stack.model_type == "deepseek_v3"  # a norm stands between the latent and v
                found = read[Site.V, layer].reshape(values.shape)
                assert latent or near(values, found), (stack.name, layer, "v")
            elif stack.causal:  # the first row looks at itself alone
                assert near(weights.per_query_head(values[:, 0].transpose(0, 1)).transpose(0, 1), z[:, 0])


@families
def test_queries_and_keys_at_the_first_position(name: str) -> None:
    """Exactly those of the matrices; up to a positive factor per token and norm where norms of q and k divide."""
    case = load_case(name)
    batch = case.batch()
    if name == "paligemma":  # it counts positions from 1, at which a rotation is not the identity
        ids = batch.inputs["input_ids"]
        batch = replace(batch, inputs={**batch.inputs, "position_ids": torch.arange(ids.shape[1]).expand_as(ids)})
    for stack in case.model.stacks.values():
        if stack.model_type == "deepseek_v3":
            continue  # the norms stand before its projections: see below
        read, inputs = ran(case, stack, batch, (Site.Q, Site.K, Site.SCORES))
        for layer in (each.index for each in stack.layers if each):
            weights = head_weights(case.model, stack, layer, fold="none")
            x, memory = inputs[layer][0], inputs[layer][-1 if stack.cross else 0]
            q, k = applied(x, weights.q, weights.q_bias), applied(memory, weights.k, weights.k_bias)
            if (Site.Q, layer) not in read:
                each = weights.per_query_head(k[:, 0].transpose(0, 1)).transpose(0, 1)
                _first_scores(read[Site.SCORES, layer], q, each)
                continue
            wiring = case.model.wirings[stack.name].layers[layer]
            for made, found, traced in ((q, read[Site.Q, layer], wiring.q), (k, read[Site.K, layer], wiring.k)):
                first, expected = made.reshape(found.shape)[:, 0], found[:, 0]
                normed = bool((traced.gain != 1).any())
                assert normed or near(first, expected), (stack.name, layer)
                if normed and not traced.centred:
                    assert same_direction(first * traced.gain, expected), (stack.name, layer)


def test_latent_projections_with_their_norms_at_one_scale() -> None:
    """With the norms of the latents made plain products, q, k and v of the first position are linear as they stand."""
    case = load_case("deepseek_v3")
    stack = case.model.stack()
    for layer in range(stack.n_layers):
        for name in ("q_a_layernorm", "kv_a_layernorm"):
            norm = stack.layer(layer).attention.get_submodule(name)
            norm.forward = lambda x, weight=norm.weight: weight * x  # type: ignore[method-assign]
    model = interp.load(case.hf)
    plain = Case(case.tiny, model)
    read, inputs = ran(plain, model.stack(), plain.batch(), (Site.Q, Site.K, Site.V))
    for layer in range(stack.n_layers):
        weights = head_weights(model, model.stack(), layer, fold="none")
        gained = head_weights(case.model, stack, layer, fold="gain")
        x = inputs[layer][0]
        assert near(applied(x, weights.q, weights.q_bias)[:, 0], read[Site.Q, layer][:, 0])
        assert near(applied(x, weights.k, weights.k_bias)[:, 0], read[Site.K, layer][:, 0])
        assert near(applied(x, weights.v, weights.v_bias), read[Site.V, layer])
        assert gained.q.shape == weights.q.shape


def _first_scores(scores: Tensor, q: Tensor, k: Tensor) -> None:
    """``score(0, 0) = scale q k + offset`` with one scale and offset per head, over many prompts."""
    products = torch.einsum("bhd,bhd->bh", q[:, 0], k)
    for head in range(products.shape[1]):
        design = torch.stack([products[:, head], torch.ones(len(products), dtype=torch.float64)], dim=1)
        found = scores[:, head, 0, 0].double()
        fit = torch.linalg.lstsq(design, found[:, None]).solution
        assert len(products) > 2 and float(fit[0]) > 0
        assert near((design @ fit)[:, 0], found)


@families
def test_the_norm_before_attention_is_folded_in(name: str) -> None:
    """The residual over its own scale, times the folded matrix, is v: with and without the mean taken off."""
    case = load_case(name)
    batch = case.batch()
    for stack in case.model.stacks.values():
        if stack.cross or stack.family.norm == "post" or stack.model_type == "deepseek_v3":
            continue
        read, inputs = ran(case, stack, batch, (Site.RESID_PRE, Site.V))
        for layer in (each.index for each in stack.layers if each):
            wiring_read = head_weights(case.model, stack, layer).v, case.model.wirings[stack.name].layers[layer].read
            residual = read[Site.RESID_PRE, layer].double()
            plain = head_weights(case.model, stack, layer, fold="none")
            expected = applied(inputs[layer][0], plain.v, plain.v_bias)
            gain = wiring_read[1]
            for fold in ("gain", "norm"):
                if fold == "norm" and name in INNER_MEAN:
                    continue
                folded = head_weights(case.model, stack, layer, fold=fold)
                if gain is None:  # it reads the residual itself
                    assert torch.equal(folded.v, plain.v)
                    continue
                centred = residual - residual.mean(-1, keepdim=True) if gain.centred else residual
                over = centred if fold == "gain" else residual
                scale = centred.square().mean(-1, keepdim=True).sqrt() if gain.scaled else 1.0
                made = applied(over / scale, folded.v, folded.v_bias)
                made = made.reshape(expected.shape)  # but for the norm's eps
                assert near(made, expected, 1e-3), (stack.name, layer, fold)


@families
def test_what_stands_after_the_output_projection_is_folded_in(name: str) -> None:
    """What attention adds to the residual is parallel to the sum of the folded outputs, token by token."""
    case = load_case(name)
    batch = case.batch()
    for stack in case.model.stacks.values():
        if stack.cross:
            continue
        read, _ = ran(case, stack, batch, (Site.Z, Site.ATTN_OUT, Site.RESULT))
        for layer in (each.index for each in stack.layers if each):
            if name in INNER_MEAN:
                continue
            plain = head_weights(case.model, stack, layer, fold="none")
            folded = head_weights(case.model, stack, layer, fold="norm")
            added = read[Site.ATTN_OUT, layer].double()
            made = torch.einsum("bphd,hdm->bpm", read[Site.Z, layer].double(), folded.o)
            own = getattr(stack.layer(layer).out, "bias", None)
            if own is not None and case.model.wirings[stack.name].layers[layer].write is None:
                made = made + own.detach().double()
            elif own is not None:
                continue  # a bias and a scale in a row: seen by the residual identity of the family
            made = made.reshape(added.shape)
            size = float((added * made).sum() / made.square().sum())
            scaled = case.model.wirings[stack.name].layers[layer].write
            if scaled is None or not scaled.scaled:
                assert near(made, added, 2e-4), (stack.name, layer)
            else:
                assert same_direction(made, added) and size > 0
            assert plain.o.shape == folded.o.shape


@pytest.mark.parametrize("name", ["llama", "gptj", "gpt_neox", "falcon-grouped", "gpt2", "qwen2_vl"])
def test_turned_queries_give_the_scores_of_every_pair(name: str) -> None:
    """``score(i, j) = scale (x_i W_Q + b) R^(i - j) (x_j W_K + b)^T``."""
    case = load_case(name)
    batch = interp.encode(case.model, case.tiny.inputs(3, 6, 0)["input_ids"]) if name == "qwen2_vl" else case.batch()
    stack = case.model.stack()
    read, inputs = ran(case, stack, batch, (Site.SCORES,))
    for layer in range(stack.n_layers):
        weights = head_weights(case.model, stack, layer, fold="none")
        assert weights.turn is not None
        torch.testing.assert_close(
            weights.turn @ weights.turn.T, torch.eye(len(weights.turn)).double(), atol=1e-9, rtol=0
        )
        x = inputs[layer][0]
        q = applied(x, weights.q, weights.q_bias)
        k = weights.per_query_head(applied(x, weights.k, weights.k_bias).movedim(2, 0)).movedim(0, 2)
        made = torch.stack(
            [
                torch.stack(
                    [
                        torch.einsum("bhd,de,bhe->bh", q[:, i], torch.linalg.matrix_power(weights.turn, i - j), k[:, j])
                        for j in range(i + 1)
                    ]
                    + [torch.zeros(q.shape[0], q.shape[2]).double()] * (q.shape[1] - i - 1),
                    dim=-1,
                )
                for i in range(q.shape[1])
            ],
            dim=-2,
        )
        scores = read[Site.SCORES, layer].double()
        visible = ~torch.isneginf(scores)
        scale = float((made[visible] * scores[visible]).sum() / made[visible].square().sum())
        assert near(made[visible] * scale, scores[visible], 1e-4)
        turned = weights.turned(2)
        torch.testing.assert_close(turned, weights.q @ weights.turn @ weights.turn)


def test_grouped_keys_and_values_are_shared() -> None:
    case = load_case("llama")
    weights = head_weights(case.model, case.model.stack(), 0)
    assert weights.q.shape == (4, 32, 12) and weights.k.shape == (2, 32, 12)
    expanded = weights.per_query_head(weights.k)
    assert torch.equal(expanded[0], expanded[1]) and torch.equal(expanded[1], weights.k[0])
    assert torch.equal(expanded[2], weights.k[1])


@pytest.mark.parametrize("name", GATED)
def test_a_gate_between_v_and_z_is_said(name: str) -> None:
    case = load_case(name)
    stack = case.model.stack()
    layer = next(layer.index for layer in stack.layers if layer)
    assert "gate" in str(head_weights(case.model, stack, layer).mixes)


@pytest.mark.parametrize("name", INNER_MEAN)
def test_a_mean_inside_the_attention_is_refused(name: str) -> None:
    case = load_case(name)
    with pytest.raises(Unsupported, match=r"takes off a mean.*Use fold='gain'"):
        head_weights(case.model, case.model.stack(), 0, fold="norm")


def test_a_layer_or_fold_that_is_not_there() -> None:
    case = load_case("gpt2")
    with pytest.raises(BadAddress, match="Layer 5 is not there"):
        head_weights(case.model, case.model.stack(), 5)
    with pytest.raises(BadInput, match=r"Unknown fold 'gains'\. Did you mean 'gain'"):
        head_weights(case.model, case.model.stack(), 0, fold="gains")


# ---- one trace, and the model as found ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "deepseek_v3"])
def test_one_forward_once_and_the_model_as_found(name: str) -> None:
    case = load_case(name)
    before, generator = fingerprint(case.hf), torch.get_rng_state()
    with counted_forwards(case) as calls:
        first = head_weights(case.model, case.model.stack(), 0)
        assert len(calls) == 1
        again = head_weights(case.model, case.model.stack(), 0)
        head_weights(case.model, case.model.stack(), 1)
        assert len(calls) == 1
    assert torch.equal(first.q, again.q)
    assert fingerprint(case.hf) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_changed_weight_is_seen_and_a_changed_module_traced_anew() -> None:
    case = load_case("llama")
    stack = case.model.stack()
    before = head_weights(case.model, stack, 0, fold="none")
    attention = stack.layer(0).attention
    projection = attention.get_submodule("q_proj")
    assert isinstance(projection, nn.Linear)
    with torch.no_grad():
        projection.weight.mul_(2)
    assert torch.equal(head_weights(case.model, stack, 0, fold="none").q, 2 * before.q)
    attention.q_proj = deepcopy(projection)
    with counted_forwards(case) as calls:
        assert torch.equal(head_weights(case.model, stack, 0, fold="none").q, 2 * before.q)
    assert len(calls) == 1


def norms_of(case: Case) -> list[Tensor]:
    """The gains inside the blocks."""
    modules = [module for block in case.model.stack().blocks for module in block.modules()]
    return [module.weight for module in modules if "Norm" in type(module).__name__]  # type: ignore[misc]


CHANGES = ["in place", "data", "loaded", "a step"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "olmo2"])
def test_a_changed_gain_is_seen(name: str, change: str) -> None:
    """As a handle that was made after the change sees it: norms before, inside and after the attention."""
    case = load_case(name)
    stack = case.model.stack()
    before = head_weights(case.model, stack, 1)
    gains = norms_of(case)
    draw = torch.Generator().manual_seed(4)
    wanted = [gain.detach() * (1.5 + torch.rand(gain.shape, generator=draw)) for gain in gains]
    with torch.no_grad():
        for gain, made in zip(gains, wanted, strict=True):
            if change == "in place":
                gain.copy_(made)
            elif change == "data":
                gain.data.copy_(made)  # which no version counts
            elif change == "a step":
                gain.grad = gain - made
    if change == "loaded":
        whole = {key: value.clone() for key, value in case.hf.state_dict().items()}
        places = {value.data_ptr(): key for key, value in case.hf.state_dict().items()}
        case.hf.load_state_dict(whole | {places[g.data_ptr()]: made for g, made in zip(gains, wanted, strict=True)})
    if change == "a step":
        torch.optim.SGD(gains, lr=1.0).step()
    found = head_weights(case.model, stack, 1)
    case.model.wirings.clear()
    fresh = head_weights(case.model, stack, 1)
    for part in ("q", "k", "v", "o"):
        torch.testing.assert_close(getattr(found, part), getattr(fresh, part))
    assert not torch.allclose(found.o if name == "olmo2" else found.q, before.o if name == "olmo2" else before.q)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_edits_in_force_change_no_weight(name: str) -> None:
    """Asked first inside ``interp.edited``: neither refused nor poisoned, and the edits still fire."""
    case = load_case(name)
    stack = case.model.stack()
    expected = head_weights(case.model, stack, 0)
    case.model.wirings.clear()
    edits = [interp.zero(At("z", layer=0)), interp.zero(At("pattern", layer=1)), interp.scale(At("v", layer=0), 0.0)]
    batch = case.batch()
    edited = interp.run(case.model, batch, edits=edits).logits
    plain = fingerprint(case.hf)
    with interp.edited(case.model, edits, batch=batch) as hf:
        inside = head_weights(case.model, stack, 0)
        with torch.no_grad():
            made = hf(**batch.inputs).logits
    assert fingerprint(case.hf) == plain
    assert bool(batch.mask.all())
    torch.testing.assert_close(made, edited)
    for found in (inside, head_weights(case.model, stack, 0)):
        for part in ("q", "k", "v", "o"):
            assert torch.equal(getattr(found, part), getattr(expected, part)), part


def test_token_products_inside_edited() -> None:
    case = load_case("gpt2")
    expected = token_products(case.model, case.model.stack())
    edits = [interp.zero(At("resid_pre", layer=0)), interp.scale(At("resid_post", layer=1), 0.0)]
    with interp.edited(case.model, edits) as hf:
        found = token_products(case.model, case.model.stack())
        hf(case.batch().ids)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_was_traced_under_a_foreign_hook_is_not_kept() -> None:
    """It makes the probe NaN; once it is gone, weights are read as if it had never been."""
    case = load_case("gpt2")
    stack = case.model.stack()
    handle = stack.blocks[0].register_forward_hook(lambda module, args, output: _nothing(output))
    with pytest.raises(Unsupported):
        head_weights(case.model, stack, 1)
    handle.remove()
    looking = stack.blocks[0].register_forward_hook(lambda module, args, output: None)
    found = head_weights(case.model, stack, 1)
    looking.remove()
    assert bool(found.q.isfinite().all())
    with counted_forwards(case) as calls:
        assert torch.equal(head_weights(case.model, stack, 1).q, found.q)
    assert len(calls) == 1


def _nothing(output: Any) -> Any:
    return (output[0] * torch.nan, *output[1:]) if isinstance(output, tuple) else output * torch.nan


class Adapted(nn.Module):
    """A projection with a low-rank addition, as adapters have it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(self.down.weight.shape, generator=draw))
            self.up.weight.copy_(torch.randn(self.up.weight.shape, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class Quantised(nn.Module):
    """A projection whose weight is stored in whole numbers."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scale = float(base.weight.detach().abs().max()) / 127
        self.register_buffer("stored", (base.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.get_buffer("stored").to(x.dtype) * self.scale).T


class Bent(nn.Module):
    """What is no projection."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base(x))


@pytest.mark.parametrize("wrapper", [Adapted, Quantised])
def test_wrapped_projections_are_merged_by_what_they_do(wrapper: type[nn.Module]) -> None:
    case = load_case("llama")
    stack = case.model.stack()
    for name in ("q_proj", "v_proj", "o_proj"):
        attention = stack.layer(1).attention
        setattr(attention, name, wrapper(attention.get_submodule(name)))  # type: ignore[arg-type]
    model = interp.load(case.hf)
    stack = model.stack()
    changed = Case(case.tiny, model)
    batch = changed.batch()
    read, inputs = ran(changed, stack, batch, (Site.V, Site.Q, Site.Z, Site.RESULT))
    weights = head_weights(model, stack, 1, fold="none")
    assert near(applied(inputs[1][0], weights.v, weights.v_bias), read[Site.V, 1])
    assert near(applied(inputs[1][0][:, 0], weights.q, weights.q_bias), read[Site.Q, 1][:, 0])
    assert near(torch.einsum("bphd,hdm->bphm", read[Site.Z, 1].double(), weights.o), read[Site.RESULT, 1])


def test_what_is_no_projection_is_refused() -> None:
    case = load_case("llama")
    attention = case.model.stack().layer(0).attention
    attention.v_proj = Bent(attention.get_submodule("v_proj"))  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=r"v of layer 0 .*(mixes or bends)|does not answer like a matrix"):
        head_weights(interp.load(case.hf), case.model.stack(), 0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_half_precision(name: str) -> None:
    case = load_case(name)
    expected = head_weights(case.model, case.model.stack(), 0)
    half = interp.load(deepcopy(case.hf).to(torch.bfloat16), check=False)
    found = head_weights(half, half.stack(), 0)
    assert found.q.dtype is torch.float64
    assert near(found.q, expected.q, 1e-2) and near(found.o, expected.o, 1e-2)


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_values_that_share_the_projection_of_keys_pass_no_norm_of_keys() -> None:
    """k = norm(x W), v = x W: the two are told apart by the mark that the norm leaves."""
    draw = torch.Generator().manual_seed(0)
    rows, norm, projection = 16, nn.RMSNorm(6), nn.Linear(4, 6)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7.0))
    layer: Any = None
    dyes = LayerDyes(layer, projection, projection, rows)
    dye = torch.randn(rows, 3, 6, generator=draw)
    gain = norm_gain(norm, dye)
    assert gain is not None
    signs = torch.randn(rows, generator=draw).sign()
    dyes.outputs[projection], dyes.norms[norm] = dye, MarkedNorm(dye, gain, signs)
    pool = Pool([Strand(projection, 4, dye[:0], 0)], dyes, rows)
    marked = (0.5 * dye * signs[:, None, None])[:, 0].flip(-1)
    keys, values = pool.trace(marked.view(rows, 2, 3)), pool.trace(dye[:, 0].view(rows, 2, 3))
    assert keys is not None and values is not None
    assert keys.column.tolist() == [[5, 4, 3], [2, 1, 0]] and values.column.tolist() == [[0, 1, 2], [3, 4, 5]]
    torch.testing.assert_close(keys.gain, torch.tensor([[6.0, 5, 4], [3, 2, 1]]).double(), rtol=1e-5, atol=0)
    assert bool((values.gain == 1).all()) and values.norm.tolist() == [[-1] * 3] * 2
    torch.testing.assert_close(keys.factor, torch.full((2, 3), 0.5).double())
    torch.testing.assert_close(
        pool.at(keys, 2), (0.5 * dye * signs[:, None, None])[:, 2].flip(-1).view(rows, 2, 3).double()
    )
    assert pool.trace(torch.randn(rows, 2, generator=draw)) is None
    assert pool.trace(dye[:, 0] + dye[:, 0].flip(-1)) is None, "a sum of two entries is none of them"


class Triple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_the_gain_of_norms() -> None:
    draw = torch.Generator().manual_seed(0)
    for width in (5, 8):
        for norm, centred in ((nn.LayerNorm(width), True), (nn.RMSNorm(width), False)):
            gain = torch.randn(width, generator=draw)
            with torch.no_grad():
                norm.weight.copy_(gain)
            found = norm_gain(norm, torch.randn(2, 3, width, generator=draw))
            assert found is not None and found.centred is centred and found.scaled
            torch.testing.assert_close(found.factor[1, 2], gain.double(), rtol=1e-5, atol=1e-6)

    scale = norm_gain(Triple(), torch.ones(1, 4))
    assert scale is not None and not scale.scaled and torch.equal(scale.factor, torch.full((1, 4), 3.0).double())
    assert norm_gain(nn.Tanh(), torch.ones(1, 4)) is None
    assert norm_gain(nn.Linear(4, 4), torch.ones(1, 4)) is None


def test_matrices_by_what_modules_do() -> None:
    linear = nn.Linear(3, 5)
    stored = affine_map(linear, 3, torch.zeros(1))
    shown = affine_map(nn.Sequential(linear), 3, torch.zeros(1))
    assert stored is not None and shown is not None
    torch.testing.assert_close(stored.weight, linear.weight.detach().T.double())
    torch.testing.assert_close(shown.weight, stored.weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(shown.bias, stored.bias)
    assert affine_map(nn.Sequential(linear, nn.ReLU()), 3, torch.zeros(1)) is None
    assert is_affine(linear, torch.zeros(2, 3)) and not is_affine(nn.LayerNorm(3), torch.zeros(2, 3))
