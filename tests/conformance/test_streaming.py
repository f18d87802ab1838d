"""Blocks of rows hold what whole maps hold, on every stack of every family, for any block size, rows and padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import pytest
import torch
from torch import Tensor

import interp
from interp import At, Batch, Site
from interp.model import streaming
from interp.model.plain_maps import plain_maps
from interp.model.row_blocks import Block
from interp.model.streaming import stream

from .support import Case, families

LENGTH = 6


class Collector:
    """A watcher that puts the maps together again, which no score may do."""

    maps = True
    logits = True
    layered = False

    def __init__(self, shape: Mapping[int, torch.Size], rows: Tensor | None, sites: frozenset[Site]) -> None:
        self.rows, self.sites = rows, sites
        self.pattern = {layer: torch.full(size, torch.nan) for layer, size in shape.items()}
        self.scores = {layer: torch.full(size, -torch.inf) for layer, size in shape.items()}
        self.products: dict[int, list[Tensor]] = {layer: [] for layer in shape}
        self.weights = torch.rand(1, max(size[-1] for size in shape.values()), 2)
        self.order: list[tuple[str, int]] = []
        self.held: dict[tuple[int, Site], Tensor] = {}
        self.rows_of_blocks: list[int] = []

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor:
        return self.weights[:, :n_keys]

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        self.order.append(("start", layer))
        assert set(seen) == self.sites & {Site.RESID_PRE, Site.Q, Site.K, Site.V}

    def block(self, block: Block, products: Tensor | None) -> None:
        assert products is not None and block.logits is not None
        self.order.append(("block", block.layer))
        self.rows_of_blocks.append(block.rows.shape[1])
        index = block.rows[:, None, :, None].expand(-1, block.whole.shape[1], -1, block.n_keys)
        rest = torch.zeros_like(self.pattern[block.layer])[:, :, : block.rows.shape[1]]
        full = torch.cat([block.whole, rest[..., block.n_keys :]], dim=-1)
        wide = index[..., :1].expand(-1, -1, -1, full.shape[-1])
        self.pattern[block.layer].scatter_(2, wide, full)
        self.scores[block.layer].scatter_(2, wide, torch.nn.functional.pad(
            block.logits.masked_fill(~block.visible, -torch.inf), (0, rest.shape[-1] - block.n_keys), value=-torch.inf
        ))  # fmt: skip
        torch.testing.assert_close(products, block.pattern @ self.weights[0, : block.n_keys])
        assert bool(((block.whole > 0) <= block.visible).all())

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        self.order.append(("finish", layer))
        assert set(seen) == self.sites
        self.held |= {(layer, site): tensor.clone() for site, tensor in seen.items()}


def plain(case: Case, batch: Batch, stack: str, sites: frozenset[Site]) -> dict[tuple[int, Site], Tensor]:
    """What a forward with whole maps reads."""
    layers = [i for i in range(case.model.stacks[stack].n_layers) if case.model.stacks[stack].n_heads(i)]
    reads = {(i, site): At(site, layer=i, stack=stack) for i in layers for site in sites | {Site.PATTERN, Site.SCORES}}
    seen = interp.run(case.model, batch, read=list(reads.values()))
    return {key: seen[at] for key, at in reads.items()}


def offered(case: Case, stack: str, *sites: Site) -> frozenset[Site]:
    return frozenset(site for site in sites if case.model.stacks[stack].refusal(site, False) is None)


@families
@pytest.mark.parametrize("entries", [None, 1], ids=["whole", "row by row"])
def test_blocks_are_the_rows_of_the_maps(case_of: Callable[[str], Case], name: str, entries: int | None) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    for stack in case.model.stacks:
        if case.model.stacks[stack].refusal(Site.PATTERN, False):
            continue
        sites = offered(case, stack, Site.RESID_PRE, Site.Q, Site.K, Site.V, Site.Z, Site.RESULT)
        truth = plain(case, batch, stack, sites)
        shapes = {layer: x.shape for (layer, site), x in truth.items() if site is Site.PATTERN}
        seen = Collector(shapes, None, sites)
        stream(case.model, batch, [seen], stack=stack, entries=entries)
        if entries == 1:
            assert set(seen.rows_of_blocks) == {1}
        for (layer, site), x in truth.items():
            if site is Site.PATTERN:
                torch.testing.assert_close(seen.pattern[layer], x.float(), rtol=1e-5, atol=1e-6)
            elif site is Site.SCORES:
                torch.testing.assert_close(seen.scores[layer], x.float(), rtol=1e-5, atol=1e-5)
            else:
                torch.testing.assert_close(seen.held[layer, site], x, rtol=0, atol=0)
        for layer in shapes:
            own = [what for what, index in seen.order if index == layer]
            assert own[0] == "start" and own[-1] == "finish" and set(own[1:-1]) == {"block"}


@families
def test_only_the_rows_asked_for_are_shown(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    stack = case.model.default_stack
    if batch.row_mask(stack) is None:
        pytest.skip("rows of images are not tokens")
    truth = plain(case, batch, stack, frozenset())
    shapes = {layer: x.shape for (layer, site), x in truth.items() if site is Site.PATTERN}
    last = batch.width - 1
    rows = torch.tensor([[1, last - 1], [0, last]])
    some, every = Collector(shapes, rows, frozenset()), Collector(shapes, None, frozenset())
    stream(case.model, batch, [some, every], stack=stack)
    for layer, seen in some.pattern.items():
        for prompt, wanted in enumerate(rows.tolist()):
            whole = truth[layer, Site.PATTERN][prompt].float()
            torch.testing.assert_close(seen[prompt][:, wanted], whole[:, wanted], rtol=1e-5, atol=1e-6)
            others = [row for row in range(seen.shape[2]) if row not in wanted]
            assert seen[prompt][:, others].isnan().all()
        torch.testing.assert_close(every.pattern[layer], truth[layer, Site.PATTERN].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "bloom", "gptj"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("entries", [None, 1])
def test_padding_is_nobody(case_of: Callable[[str], Case], name: str, side: str, entries: int | None) -> None:
    case = case_of(name)
    ids = case.tiny.inputs(2, LENGTH, 0)["input_ids"]
    blank = torch.zeros(2, 3, dtype=torch.long)
    parts, masks = [ids, blank], [torch.ones_like(ids), blank]
    if side == "left":
        parts, masks = parts[::-1], masks[::-1]
    batch = interp.encode(case.model, torch.cat(parts, dim=1), mask=torch.cat(masks, dim=1).bool())
    alone = interp.encode(case.model, ids)
    truth = plain(case, alone, "text", frozenset())
    width = batch.width
    shapes = {i: torch.Size([2, x.shape[1], width, width]) for (i, site), x in truth.items() if site is Site.PATTERN}
    seen = Collector(shapes, None, frozenset())
    stream(case.model, batch, [seen], entries=entries)
    real = slice(3, None) if side == "left" else slice(0, -3)
    padding = slice(0, 3) if side == "left" else slice(-3, None)
    for layer in shapes:
        torch.testing.assert_close(
            seen.pattern[layer][:, :, real, real], truth[layer, Site.PATTERN].float(), rtol=1e-4, atol=1e-5
        )
        assert not seen.pattern[layer][:, :, padding].any() and not seen.pattern[layer][..., padding].any()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss"])
def test_half_precision_rows_are_softmaxed_in_float32(case_of: Callable[[str], Case], name: str) -> None:
    """What a bfloat16 map rounds away is there: rows sum to 1 as closely as float32 has it, near the model's own."""
    case = case_of(name)
    half = interp.load(deepcopy(case.hf).bfloat16(), check=False)
    batch = interp.encode(half, inputs=case.tiny.inputs(2, LENGTH, 0))
    own = Case(case.tiny, half)
    truth = plain(own, batch, "text", frozenset())
    shapes = {layer: x.shape for (layer, site), x in truth.items() if site is Site.PATTERN}
    seen = Collector(shapes, None, frozenset())
    stream(half, batch, [seen])
    for layer, found in seen.pattern.items():
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, truth[layer, Site.PATTERN].float(), rtol=0, atol=3e-2)
        if name != "gpt_oss":  # a sink takes its share
            torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic_of_ones_own_is_not_taken_for_the_plain_formula(
    case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Another scale that no keyword tells of: maps come from the architecture's own function, in half precision too."""
    from transformers.models.llama import modeling_llama

    case = case_of("llama")
    model = interp.load(deepcopy(case.hf).to(dtype), check=False)
    own = modeling_llama.eager_attention_forward

    def colder(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        return own(module, query * 0.75, key, value, mask, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", colder)
    batch = interp.encode(model, inputs=case.tiny.inputs(2, LENGTH, 0))
    truth = plain(Case(case.tiny, model), batch, "text", frozenset())
    shapes = {layer: x.shape for (layer, site), x in truth.items() if site is Site.PATTERN}
    seen = Collector(shapes, None, frozenset())
    answers: list[object] = []
    monkeypatch.setattr(streaming, "plain_maps", lambda call: answers.append(plain_maps(call)) or answers[-1])
    stream(model, batch, [seen])
    assert answers == [None] * len(shapes)
    for layer, found in seen.pattern.items():
        slack = 1e-6 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(found, truth[layer, Site.PATTERN].float(), rtol=0, atol=slack)
