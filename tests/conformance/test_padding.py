"""Padding on either side changes nothing at real tokens: logits, every site, and every edit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp import At, Batch, Site

from .support import BYPASS, REPRESENTATIVE, TEXT, Case, close, everything, named, output, sites

LENGTHS = (6, 4, 2)
RIGHT_ONLY = {"bert", "distilbert", "bart"}  # their positions are columns
text_families = pytest.mark.parametrize("name", [*TEXT, "t5", "bart"])
sides = pytest.mark.parametrize("side", ["left", "right"])


def padded(case: Case, side: str, **more: object) -> Batch:
    """Three prompts of unequal length; an encoder-decoder's decoder prompts have one length."""
    ids = case.tiny.inputs(3, max(LENGTHS), 5)["input_ids"]
    rows = [ids[i, :length].tolist() for i, length in enumerate(LENGTHS)]
    decoder = {"decoder": ids[:, :3]} if case.model.default_stack == "decoder" else {}
    return interp.encode(case.model, rows, padding_side=side, **decoder, **more)  # type: ignore[arg-type]


def alone(case: Case, row: int) -> Batch:
    ids = case.tiny.inputs(3, max(LENGTHS), 5)["input_ids"]
    decoder = {"decoder": ids[row : row + 1, :3]} if case.model.default_stack == "decoder" else {}
    return interp.encode(case.model, ids[row : row + 1, : LENGTHS[row]], **decoder)


def real(x: Tensor, at: At, batch: Batch, row: int) -> Tensor:
    """``x[row]`` at the real rows (and keys) of a prompt, with a batch axis of 1."""
    mask, keys = batch.row_mask(at.stack), batch.key_mask(at.stack)
    assert mask is not None and keys is not None
    found = x[row : row + 1]
    if "key" in at.site.axes:
        return found[:, :, mask[row]][..., keys[row]]
    own = keys if at.site in (Site.K, Site.V) else mask
    return found[:, own[row]]


@text_families
@sides
def test_every_site_at_real_tokens(case_of: Callable[[str], Case], name: str, side: str) -> None:
    case = case_of(name)
    if name in RIGHT_ONLY and side == "left":
        assert case.model.card.padding == "right only"
        with pytest.raises(interp.BadInput, match="right"):
            padded(case, side)
        return
    batch = padded(case, side)
    run = interp.run(case.model, batch, everything(case))
    problems: list[str] = []
    for row in range(len(batch)):
        single = interp.run(case.model, alone(case, row), everything(case))
        mine = output(run)[row : row + 1]
        if case.model.default_stack != "decoder":
            mine = mine[:, batch.mask[row]]
        if not close(mine, output(single), 1e-4):
            problems.append(f"logits of prompt {row}")
        for at, value in single.reads():
            turned = name == "modernbert" and side == "left" and at.site in (Site.Q, Site.K)
            if turned:  # rotated by the column; the scores, which see differences alone, are compared
                continue
            if not close(real(run[at], at, batch, row), value, 1e-4):
                problems.append(f"{at} of prompt {row}")
    for at, value in run.reads():
        mask, keys = batch.row_mask(at.stack), batch.key_mask(at.stack)
        assert mask is not None and keys is not None
        if at.site is Site.PATTERN:
            if bool(value.masked_select(~mask[:, None, :, None]).any()):
                problems.append(f"{at}: rows of padding are not 0")
            if bool(value.masked_select(~keys[:, None, None, :]).any()):
                problems.append(f"{at}: padding is attended to")
        if at.site is Site.SCORES and not bool(torch.isneginf(value.masked_select(~keys[:, None, None, :])).all()):
            problems.append(f"{at}: scores of padding are not blocked")
    named(problems)


def test_the_refused_side_would_have_changed_real_tokens(case_of: Callable[[str], Case]) -> None:
    for name in ("bert", "distilbert"):
        case = case_of(name)
        single = alone(case, 2)
        ids = torch.cat([torch.zeros(1, 4, dtype=torch.long), single.inputs["input_ids"]], 1)
        with torch.no_grad():
            forced = case.hf(input_ids=ids, attention_mask=torch.tensor([[0, 0, 0, 0, 1, 1]])).logits
        moved = forced[:, 4:] - output(interp.run(case.model, single))
        assert float(moved.abs().max()) > 1e-2


def edits_for(case: Case) -> list[interp.Edit]:
    """Edits that mean the same tokens whatever the padding."""
    both = [
        interp.zero(At(Site.Z, 0, heads=(0,))),
        interp.scale(At(Site.Z, 1, pos=-1), 3.0),
        interp.add(At(Site.RESID_POST, 0, pos=slice(0, 2)), 0.7),
        interp.noise(At(Site.MLP_OUT, 0), std=0.5),
        interp.scale(At(Site.ATTN_OUT, 1, pos=0), -1.0),
    ]
    if case.tiny.name in BYPASS:
        return both
    return [
        *both,
        interp.knockout(-1, 0),
        interp.knockout(slice(1, None), 0, layers=0),
        interp.uniform(),
        interp.uniform(At(Site.PATTERN, 1, pos=-1)),
        interp.sharpen(At(Site.SCORES), 0.5),
        interp.boost(At(Site.SCORES), 0, 2.0),
        interp.boost(At(Site.SCORES, pos=-1), -1, 2.0),
        interp.redistribute(At(Site.PATTERN), 0, 0.8),
        interp.redistribute(At(Site.PATTERN), 0, 0.8, to=-1),
        interp.to_identity(At(Site.PATTERN), 0.5),
        interp.freeze_pattern(),
        interp.scale(At(Site.K, 0, pos=0), 2.0),
        interp.scale(At(Site.V, 0, pos=-1), 2.0),
        interp.scale(At(Site.Q, 0, pos=1), 2.0),
    ]


@text_families
@sides
def test_every_edit_at_real_tokens(case_of: Callable[[str], Case], name: str, side: str) -> None:
    """An edit of a padded batch is the same edit of each prompt alone; all of one call together as well."""
    case = case_of(name)
    if name in RIGHT_ONLY and side == "left":
        return
    batch = padded(case, side)
    problems: list[str] = []
    for edit in [*edits_for(case), *([] if name in BYPASS else [None])]:
        chosen = edits_for(case)[5:] if edit is None else [edit]
        together = output(interp.run(case.model, batch, edits=chosen))
        for row in range(len(batch)):
            mine = together[row : row + 1]
            if case.model.default_stack != "decoder":
                mine = mine[:, batch.mask[row]]
            if not close(mine, output(interp.run(case.model, alone(case, row), edits=chosen)), 1e-4):
                problems.append(f"{edit if edit is not None else 'all together'}, prompt {row}")
    named(problems)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_edits_of_an_encoder_and_of_cross_attention(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = padded(case, "right")
    edits = [
        interp.uniform(At(Site.PATTERN, stack="encoder")),
        interp.uniform(At(Site.PATTERN, stack="cross")),
        interp.knockout(None, -1, stack="cross"),
        interp.knockout(-1, 0, stack="encoder"),
        interp.scale(At(Site.Z, 1, pos=-1, stack="encoder"), 3.0),
        interp.boost(At(Site.SCORES, stack="cross"), -1, 2.0),
        interp.redistribute(At(Site.PATTERN, stack="cross"), 0, 0.5, to=-1),
    ]
    for edit in edits:
        together = output(interp.run(case.model, batch, edits=[edit]))
        for row in range(len(batch)):
            single = output(interp.run(case.model, alone(case, row), edits=[edit]))
            assert close(together[row : row + 1], single, 1e-4), (edit, row)


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVE if name not in BYPASS])
@sides
def test_uniform_rows_are_one_over_the_visible_real_keys(case_of: Callable[[str], Case], name: str, side: str) -> None:
    case = case_of(name)
    if name in RIGHT_ONLY and side == "left":
        return
    batch = padded(case, side)
    for stack_name, stack in case.model.stacks.items():
        for layer in range(stack.n_layers):
            maps = At(Site.PATTERN, layer, stack=stack_name)
            pattern = interp.run(case.model, batch, [maps], [interp.uniform(maps)])[maps]
            owner = stack.config if name == "mistral" else stack.layer(layer).attention
            window = getattr(owner, "sliding_window", None)
            rows, keys = batch.row_mask(stack_name), batch.key_mask(stack_name)
            assert rows is not None and keys is not None
            for prompt in range(len(batch)):
                for query in rows[prompt].nonzero()[:, 0].tolist():
                    seen = keys[prompt].clone()
                    if stack.causal:
                        seen[query + 1 :] = False
                    if window:
                        seen[: max(0, query - window + 1)] = False
                    expected = seen.float() / seen.sum()
                    assert close(pattern[prompt, :, query], expected.expand(pattern.shape[1], -1)), (
                        maps,
                        prompt,
                        query,
                    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_oss", "gemma2"])
@sides
def test_spans(case_of: Callable[[str], Case], name: str, side: str) -> None:
    """A span names the same tokens as their positions do."""
    case = case_of(name)
    batch = padded(case, side, spans={"start": range(0, 1), "second": range(1, 2)})
    by_span = interp.run(
        case.model, batch, edits=[interp.knockout("second", "start"), interp.zero(At(Site.Z, 1, pos="second"))]
    )
    by_place = interp.run(case.model, batch, edits=[interp.knockout(1, 0), interp.zero(At(Site.Z, 1, pos=1))])
    assert torch.equal(output(by_span), output(by_place))
    rows = (batch.mask.cumsum(-1) == 2) & batch.mask
    pattern = interp.run(case.model, batch, [At(Site.PATTERN)], [interp.knockout("second", "start")])[At(Site.PATTERN)]
    for prompt in range(3):
        query = int(rows[prompt].nonzero()[0, 0])
        assert not pattern[:, prompt, :, query, query - 1].any() and pattern[:, prompt, :, query, query].all()


@pytest.mark.parametrize("name", ["llava", "smolvlm", "idefics3"])
def test_prompts_with_images(case_of: Callable[[str], Case], name: str) -> None:
    """Padded on the right, with the image tokens inside."""
    case = case_of(name)
    inputs = case.tiny.inputs(2, 6, 3)
    short = {key: value[1:2] for key, value in inputs.items()}
    short["input_ids"], short["attention_mask"] = short["input_ids"][:, :-2], short["attention_mask"][:, :-2]
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][1, -2:] = 0
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 0)
    batch, single = interp.encode(case.model, inputs=inputs), interp.encode(case.model, inputs=short)
    for edit in (interp.uniform(), interp.knockout(-1, 1), interp.scale(At(Site.Z, pos=-1), 2.0),
                 interp.scale(At(Site.Z, 0, stack="vision"), 0.5)):  # fmt: skip
        together = interp.run(case.model, batch, [At(Site.Z, 1)], [edit])
        one = interp.run(case.model, single, [At(Site.Z, 1)], [edit])
        assert close(output(together)[1:, :-2], output(one), 1e-4), edit
        assert close(together[At(Site.Z, 1)][1:, :-2], one[At(Site.Z, 1)], 1e-4), edit


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gpt_oss", "gemma2", "deepseek_v3", "bloom"])
def test_causality(case_of: Callable[[str], Case], name: str) -> None:
    """With taps in force and eager forced, a later token changes no earlier logit: no mask was lost."""
    case = case_of(name)
    ids = case.tiny.inputs(2, 6, 5)["input_ids"]
    changed = ids.clone()
    changed[:, -1] = 7
    edits = [interp.scale(At(site, stack=stack), 0.9) for stack, _, site in sites(case, edit=True)]
    for kernels in (None, "eager"):
        for chosen in ([], edits):
            runs = [
                interp.run(case.model, interp.encode(case.model, x), everything(case), chosen, kernels=kernels)
                for x in (ids, changed)
            ]
            first, second = map(output, runs)
            assert torch.equal(first[:, :-1], second[:, :-1]) and not torch.equal(first[:, -1], second[:, -1])
