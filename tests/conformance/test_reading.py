"""What is read: nothing moves, and every number is held against another road to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import interp
from interp import At, Run, Site, Unsupported
from interp.model.family import module_at
from interp.model.stacks import Stack

from .support import (
    BYPASS,
    Case,
    attention,
    close,
    counted_forwards,
    everything,
    families,
    named,
    output,
    plain,
    refused,
    sites,
)

NO_SDPA = {"gemma2", "gpt_oss", "gptj", "bloom", "gpt_neo"}  # they have no sdpa, or never look at the setting


@families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_nothing_moves(case_of: Callable[[str], Case], name: str, implementation: str) -> None:
    """Bit-identical without reads, with every site read, and with one site read at a time."""
    case = case_of(name)
    with attention(case, implementation) as offered:
        assert offered or name in NO_SDPA
        if not offered:
            return
        batch = case.batch()
        expected = plain(case, batch)
        assert torch.equal(output(interp.run(case.model, batch)), expected)
        whole = interp.run(case.model, batch, everything(case))
        assert torch.equal(output(whole), expected)
        assert all(torch.isfinite(x).all() for at, x in whole.reads() if at.site is not Site.SCORES)
        problems = []
        for stack_name, stack, site in sites(case):
            run = interp.run(case.model, batch, [At(site, stack=stack_name)])
            if not torch.equal(output(run), expected):
                problems.append(f"reading {site} of {stack_name} moves the logits")
            for layer in stack.layers_of(At(site, stack=stack_name)):
                at = At(site, layer, stack=stack_name)
                if not torch.equal(run[at], whole[at]):
                    problems.append(f"{at} alone differs from {at} among all")
        named(problems)
        own = {key: name for key, name in interp.run(case.model, batch).kernels.items()}
        assert whole.kernels == own, "a read must not change the kernel"
        assert torch.equal(plain(case, batch), expected)


@families
def test_identities(case_of: Callable[[str], Case], name: str) -> None:
    """Pattern rows, scores, z, results and the residual stream, each from the others."""
    case = case_of(name)
    batch = case.batch()
    run = interp.run(case.model, batch, everything(case))
    problems: list[str] = []
    for stack in case.model.stacks.values():
        for layer in range(stack.n_layers):
            problems += [f"{stack.name}.{layer}: {what}" for what in broken_identities(case, run, stack, layer)]
    named(problems)


def broken_identities(case: Case, run: Run, stack: Stack, layer: int) -> list[str]:
    """The identities that do not hold among what a run read at one layer."""
    found = {site: run[At(site, layer, stack=stack.name)] for name, _, site in sites(case) if name == stack.name}
    broken: list[str] = []

    def hold(what: str, a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
        if not close(a, b, tolerance):
            broken.append(what)

    z, out = found[Site.Z], stack.layer(layer).out
    hold("results and bias sum to ATTN_RAW", found[Site.RESULT].sum(2) + (bias_of(out)), found[Site.ATTN_RAW])
    hold("ATTN_RAW is the projection of z", run_alone(out, z.flatten(2)), found[Site.ATTN_RAW])
    assert z.shape[2:] == (stack.n_heads(layer), stack.d_head(layer))
    pattern, scores = found[Site.PATTERN], found[Site.SCORES]
    hold("rows sum to 1, or 1 minus the sink", pattern.sum(-1), sums_of(stack, layer, scores))
    hold("pattern is the softmax of the scores", scores.softmax(-1) * pattern.sum(-1, keepdim=True), pattern)
    visible = ~torch.isneginf(scores)
    difference = (pattern.double().log() - scores.double()).masked_fill(~visible | (pattern == 0), torch.nan)
    spread = difference.nan_to_num(-torch.inf).amax(-1) - difference.nan_to_num(torch.inf).amin(-1)
    if float(spread.max()) > 1e-3:
        broken.append("scores are the logarithm of the pattern up to a constant of the row")
    if stack.family.interface:
        v = found[Site.V]
        assert v.shape[2] == found[Site.K].shape[2] == stack.n_kv_heads(layer)
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        hold("z is the pattern times v", torch.einsum("bhqk,bkhd->bqhd", pattern, v), z)
    if not stack.cross:
        for what, a, b in residual_identity(stack, layer, found):
            hold(what, a, b)
    return broken


def bias_of(out: nn.Module) -> Tensor:
    bias = getattr(out, "bias", None)
    return torch.zeros(()) if bias is None else bias.detach()


def run_alone(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def sums_of(stack: Stack, layer: int, scores: Tensor) -> Tensor:
    """What each row of the pattern must sum to: 1, with a sink logit 1 minus its share."""
    ones = torch.ones(scores.shape[:-1])
    sinks = getattr(stack.layer(layer).attention, "sinks", None)
    if sinks is None:
        return ones
    total = torch.logsumexp(scores, -1)
    return 1 - torch.sigmoid(sinks.detach().view(1, -1, 1) - total)


def residual_identity(stack: Stack, layer: int, found: dict[Site, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """What must be equal, by the norm kind of the row."""
    row, block = stack.family, stack.blocks[layer]
    pre, attn, mlp, post = (found[s] for s in (Site.RESID_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_POST))
    if row.norm == "parallel":
        return [("pre + attn + mlp = post", pre + attn + mlp, post)]
    mid = found[Site.RESID_MID]
    last = found.get(Site.RESID_CROSS, mid)
    if row.norm == "post":
        assert row.post_norms
        first, second = (module_at(block, path) for path in row.post_norms)
        assert first is not None and second is not None
        return [("LN(pre + attn) = mid", run_alone(first, pre + attn), mid),
                ("LN(mid + mlp) = post", run_alone(second, last + mlp), post)]  # fmt: skip
    return [("pre + attn = mid", pre + attn, mid), ("mid + mlp = post", last + mlp, post)]


@families
def test_against_what_the_model_itself_returns(case_of: Callable[[str], Case], name: str) -> None:
    """Hidden states and attentions as the Hugging Face object gives them out, under eager attention."""
    case = case_of(name)
    batch = case.batch()
    with attention(case, "eager"), torch.no_grad():
        returned = case.hf(**batch.inputs, output_hidden_states=True, output_attentions=True)
        run = interp.run(case.model, batch, everything(case))
    named_so = {"encoder": "encoder", "decoder": "decoder", "cross": "cross", "text": "", "vision": "vision"}
    compared = 0
    for stack in case.model.stacks.values():
        prefix = named_so[stack.name] + ("_" if named_so[stack.name] else "")
        if case.tiny.kind == "vision":
            prefix = ""
        source = getattr(returned, f"{stack.name}_model_output", returned) if name in ("clip", "siglip") else returned
        prefix = "" if source is not returned else prefix
        maps = getattr(source, prefix + "attentions", None)
        states = getattr(source, prefix + "hidden_states", None)
        for layer in range(stack.n_layers):
            if maps:
                assert torch.equal(run[At(Site.PATTERN, layer, stack=stack.name)], maps[layer]), (stack.name, layer)
                compared += 1
            if states and not stack.cross:
                assert torch.equal(run[At(Site.RESID_PRE, layer, stack=stack.name)], states[layer]), (stack.name, layer)
                if layer + 1 < stack.n_layers:
                    post = run[At(Site.RESID_POST, layer, stack=stack.name)]
                    assert torch.equal(post, states[layer + 1]), (stack.name, layer)
                compared += 1
    assert compared >= case.model.stack().n_layers


@families
def test_narrow_reads_are_slices(case_of: Callable[[str], Case], name: str) -> None:
    """A head, some positions, every layer: read alone, and cut from the whole."""
    case = case_of(name)
    batch = case.batch()
    whole = interp.run(case.model, batch, everything(case))
    columns = torch.tensor([[2, 0], [1, 3], [0, 1]])
    for stack_name, stack, site in sites(case):
        layer = stack.n_layers - 1
        heads = (stack.width(site, layer) - 1, 0)[: stack.width(site, layer)] if site.per_head else None
        full = whole[At(site, layer, stack=stack_name)]
        if heads is not None:
            axis = site.axes.index("head")
            alone = interp.run(case.model, batch, [At(site, layer, heads=heads, stack=stack_name)])
            assert close(
                alone[At(site, layer, heads=heads, stack=stack_name)], full.index_select(axis, torch.tensor(heads))
            )
        if stack.family.packed or (stack.cross and site in (Site.K, Site.V)):
            continue
        at = At(site, layer, pos=columns, stack=stack_name)
        try:
            alone = interp.run(case.model, batch, [at])
        except interp.BadAddress:
            assert case.tiny.kind == "vision", at  # images have no columns that a batch knows
            continue
        axis = site.axes.index("query" if "query" in site.axes else "pos")
        by_hand = torch.stack([full[row].index_select(axis - 1, columns[row]) for row in range(3)])
        assert close(alone[at], by_hand), at


@families
def test_what_is_not_offered_is_refused_before_any_forward(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch()
    missing = refused(case)
    with counted_forwards(case) as calls:
        for stack_name, site in missing:
            with pytest.raises(Unsupported, match=site.name):
                interp.run(case.model, batch, [At(site, stack=stack_name)])
    assert not calls
    text = {site for stack_name, site in missing if stack_name == case.model.default_stack}
    assert ({Site.Q, Site.K, Site.V} <= text) == (name in BYPASS)
    assert (Site.RESID_MID in text) == (case.model.stack().family.norm == "parallel")
    assert not text & {Site.Z, Site.RESULT, Site.PATTERN, Site.SCORES, Site.RESID_PRE, Site.RESID_POST, Site.MLP_OUT}


@families
def test_the_card_says_what_the_sites_do(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    for stack_name in case.model.stacks:
        for site in Site:
            offered = any((stack_name, site) == (other, found) for other, _, found in sites(case))
            ability = case.model.card.abilities[(stack_name, site)]
            assert (ability.read == "yes") == offered, (stack_name, site, ability)
            assert ability.read != "no" or ability.note
    assert not [check for check, outcome in case.model.card.checks.items() if "FAILS" in outcome]


@families
def test_a_single_prompt_and_any_order_give_the_same(case_of: Callable[[str], Case], name: str) -> None:
    """Batch order and batch size change nothing beyond rounding, at every site."""
    case = case_of(name)
    batch = case.batch()
    whole = interp.run(case.model, batch, everything(case))
    packed = {n for n, stack in case.model.stacks.items() if stack.family.packed}
    two_towers = name in ("clip", "siglip")
    if packed:
        with pytest.raises(interp.BadInput, match="prompt axis"):
            batch.select([0])
        return
    for rows in ([2, 0, 1], [1]):
        part = interp.run(case.model, batch.select(rows), everything(case))
        expected = output(whole)[rows][:, rows] if two_towers else output(whole)[rows]
        assert close(output(part), expected, 1e-4)
        problems = []
        for at, value in part.reads():
            if not close(value, whole[at][rows], 1e-4):
                problems.append(f"{at} with prompts {rows}")
        named(problems)
