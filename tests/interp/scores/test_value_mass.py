"""Attention weighted by what the attended values write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import ask_for, reduced, uniform_causal
from torch import nn

import interp
from interp import At, Site
from interp.errors import BadInput, Unsupported
from interp.model.head_norms import HeadNorms
from interp.model.stacks import project_out
from interp.scores.ask import Ask
from interp.scores.writes.value_mass import ValueMass, value_weighted_mass, value_weights

CaseOf = Callable[[str], Case]
GROUPED = ["gpt2", "llama", "gemma2", "gpt_oss", "deepseek_v3", "mixtral", "bert"]


@torch.no_grad()
def by_hand(case: Case, batch: interp.Batch, keys: torch.Tensor) -> np.ndarray:
    """The share of ``keys`` from whole maps and every ``A_ij v_j W_O`` written out: ``[batch, layer, head]``."""
    stack = case.model.stack()
    reads = [At(site, layer) for layer in range(stack.n_layers) for site in (Site.PATTERN, Site.V)]
    seen = interp.run(case.model, batch, reads)
    made = []
    for layer in range(stack.n_layers):
        pattern, v = seen[At(Site.PATTERN, layer)].double(), seen[At(Site.V, layer)]
        group = stack.n_heads(layer) // v.shape[2]
        each = v.repeat_interleave(group, dim=2)  # query head h uses KV head h // group
        written = project_out(stack.layer(layer), each).double()  # [batch, key, head, d_model]
        weights = torch.einsum("bhqk,bkhd->bhqkd", pattern, written).norm(dim=-1)
        share = (weights * keys[:, None, None]).sum(-1) / weights.sum(-1)
        rows = batch.mask[:, None].expand(-1, share.shape[1], -1)
        made.append((share.nan_to_num() * rows).sum(-1) / rows.sum(-1))
    return torch.stack(made, dim=1).numpy()


@pytest.mark.parametrize("name", GROUPED)
def test_mass_is_that_of_every_vector_written_out(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 7)
    keys = torch.zeros(2, 7, dtype=torch.bool)
    keys[:, 1:3] = True
    for block in (None, 1, 40):
        found = interp.score(
            case.model, batch, {"x": {"score": "value_weighted_mass", "keys": slice(1, 3)}}, block=block
        )
        np.testing.assert_allclose(found["x"].per_prompt, by_hand(case, batch, keys), rtol=1e-5, atol=1e-6)
    first = torch.zeros_like(keys)
    first[:, 0] = True
    sink = interp.score(case.model, batch, "value_weighted_sink")["value_weighted_sink"]
    np.testing.assert_allclose(sink.per_prompt, by_hand(case, batch, first), rtol=1e-5, atol=1e-6)


def test_groups_that_part_the_prompt_sum_to_one(case_of: CaseOf) -> None:
    case = case_of("llama")
    groups = {"start": slice(0, 2), "rest": slice(2, None)}
    found = interp.score(case.model, case.batch(2, 7), {"x": {"score": "value_weighted_mass", "keys": groups}})["x"]
    assert found.positions == ("start", "rest")
    np.testing.assert_allclose(found.per_prompt.sum(-1), 1, rtol=1e-5)


def test_equal_values_give_the_attention_itself() -> None:
    pattern = uniform_causal(6)
    torch.testing.assert_close(value_weights(pattern, torch.full((6,), 3.0)), pattern)
    sink = torch.tensor([[0.9, 0.05, 0.05]])
    weighted = value_weights(sink, torch.tensor([0.01, 1.0, 1.0]))
    assert weighted[0, 0] == pytest.approx(0.009 / 0.109)  # a sink has much attention and writes little


@torch.no_grad()
def planted_values(norms: list[float]) -> dict[Site, torch.Tensor]:
    """Values of the hand-made model's first layer that its heads write with the given lengths; a head that writes
    nothing has none."""
    layer = interp.load("handmade").stack().layer(0)
    units = torch.eye(layer.d_head)[None, :, None].expand(1, -1, layer.n_heads, -1)
    lengths = project_out(layer, units)[0].norm(dim=-1)  # [d_head, head]
    longest = lengths.max(0)
    v = torch.zeros(1, len(norms), layer.n_heads, layer.d_head)
    for head, (length, entry) in enumerate(zip(*longest, strict=True)):
        v[0, :, head, entry] = torch.tensor(norms) / length.clamp(min=1e-9)
    assert bool((longest.values > 1e-3).any())
    return {Site.V: v}


def test_planted_maps_in_any_blocks() -> None:
    seen = planted_values([0.1, 1.0, 2.0, 4.0])
    pattern = uniform_causal(4).expand(1, seen[Site.V].shape[2], -1, -1)
    expected = np.mean([1, 0.1 / 1.1, 0.1 / 3.1, 0.1 / 7.1])
    member = torch.tensor([[[True, False, False, False]]])
    for size in (1, 2, 3, 4):
        found = reduced(ValueMass(ask_for(4), member), pattern, rows_per_block=size, seen=seen)[0]
        values = found[found.isfinite()]
        assert len(values)
        torch.testing.assert_close(values, torch.full_like(values, expected), rtol=1e-5, atol=1e-6)


def test_left_out_keys_and_rows_without_a_value_do_not_count() -> None:
    ask = ask_for(4, dropped=torch.tensor([[True, False, False, False]]))
    seen = planted_values([5.0, 1.0, 1.0, 0.0])
    pattern = uniform_causal(4).expand(1, seen[Site.V].shape[2], -1, -1)
    member = torch.tensor([[[False, True, False, False]]])
    found = reduced(ValueMass(ask, member), pattern, seen=seen)
    values = found[0][found[0].isfinite()]
    assert len(values)
    torch.testing.assert_close(values, torch.full_like(values, (1 + 0.5 + 0.5) / 3))  # row 0 has nothing left
    nothing = reduced(ValueMass(ask_for(4), member), pattern, seen={Site.V: torch.zeros_like(seen[Site.V])})
    assert bool(nothing.isnan().all())


@torch.no_grad()
def test_norms_without_a_matrix_go_through_the_module(case_of: CaseOf) -> None:
    """An output projection that is no matrix by itself (here: wrapped so that it bends) is called."""

    class Bent(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.inner(x))

    case = case_of("llama")
    layer = case.model.stack().layer(0)
    z = torch.randn(2, 5, layer.n_heads, layer.d_head)
    exact = project_out(layer, z).norm(dim=-1).transpose(1, 2)
    torch.testing.assert_close(HeadNorms(layer, z).of(z), exact, rtol=1e-5, atol=1e-6)
    bent = replace(layer, out=Bent(layer.out))
    slow = HeadNorms(bent, z)
    assert slow.roots is None
    torch.testing.assert_close(slow.of(z), project_out(bent, z).norm(dim=-1).transpose(1, 2))


def test_bad_requests_are_refused(case_of: CaseOf) -> None:
    case = case_of("llama")
    with pytest.raises(BadInput, match="keys= is missing"):
        interp.score(case.model, case.batch(2), "value_weighted_mass")
    with pytest.raises(BadInput, match="'one' and 'two' share 2 token"):
        keys = {"one": slice(0, 3), "two": slice(2, 4)}
        interp.score(case.model, case.batch(2), {"value_weighted_mass": {"keys": keys}})
    bypass = case_of("bloom")
    with pytest.raises(Unsupported, match="q, k and v never show"):
        value_weighted_mass(Ask("x", bypass.model, bypass.batch(2), bypass.model.stack()), keys=0)
