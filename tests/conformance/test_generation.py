"""Generation: plain equals the model's own, cached equals uncached, and both equal one forward over the whole text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import At, Batch, Site

from .support import BYPASS, GENERATING, Case, close, fingerprint, named

NEW = 5
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
SCORED = {**GREEDY, "output_scores": True, "return_dict_in_generate": True}
FAST = ["gpt2", "llama", "mistral", "gemma3_text", "gpt_oss", "deepseek_v3", "gptj", "t5", "bart", "qwen2_vl"]
TOKENS_ALONE = [name for name in GENERATING if name not in ("whisper", "llava", "qwen2_vl", "paligemma", "smolvlm",
                                                            "idefics3", "t5", "bart")]  # fmt: skip


# In generated rows some keys of the prompt lie outside a sliding window, so that an edit of them does nothing.
WINDOWED = {"mistral", "gemma2", "gemma3_text", "gpt_oss"}
OF_FIRST_KEYS = {"knockout", "knockout of rows", "boost", "redistribute", "scale one k"}


def edits_for(case: Case) -> dict[str, interp.Edit]:
    """Every edit of the catalogue that has a meaning for generated rows."""
    draw = torch.Generator().manual_seed(3)
    width, heads = case.model.stack().channels(Site.RESID_PRE, 0)["d_model"][0], case.model.stack().n_heads(0)
    edits = {
        "zero": interp.zero(At(Site.Z, layer=0, heads=(0,))),
        "gate": interp.gate(At(Site.RESULT, layer=0), torch.linspace(0, 1, heads)),
        "scale": interp.scale(At(Site.MLP_OUT, layer=1), 0.3),
        "add": interp.add(At(Site.RESID_PRE, layer=1), torch.randn(width, generator=draw), axes="d_model"),
        "noise": interp.noise(At(Site.Z, layer=0), std=0.5),
        "mean": interp.mean(At(Site.Z, layer=1, heads=(1,)), positions=False),
        "custom": interp.custom(At(Site.RESID_POST, layer=0), lambda x, ctx: x * 1.1),
    }
    if case.tiny.name in BYPASS:
        return edits
    return edits | {
        "knockout": interp.knockout(None, 1),
        "knockout of rows": interp.knockout(slice(2, None), 0, layers=0),
        "uniform": interp.uniform(At(Site.PATTERN, layer=0)),
        "sharpen": interp.sharpen(At(Site.SCORES), 2.0),
        "boost": interp.boost(At(Site.SCORES), 1, 1.5),
        "redistribute": interp.redistribute(At(Site.PATTERN), 0, 0.7),
        "to_identity": interp.to_identity(At(Site.PATTERN, layer=1), 0.5),
        "scale q": interp.scale(At(Site.Q, layer=1), 0.5),
        "scale one k": interp.scale(At(Site.K, layer=0, pos=1), 3.0),
        "scale v": interp.scale(At(Site.V, layer=1), 0.3),
        "noise k": interp.noise(At(Site.K, layer=0), std=1.0),
    }


def prompts(case: Case) -> Batch:
    """Two prompts; those of a decoder begin with its start token, which ``generate`` would else put before them."""
    inputs = case.tiny.inputs(2, 5, 0)
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"][:, 0] = case.hf.config.decoder_start_token_id
    return interp.encode(case.model, inputs=inputs)


def tokens_match(a: Any, b: Any) -> tuple[bool, float]:
    gap = max(float((x - y).nan_to_num(0.0, 0.0, 0.0).abs().max()) for x, y in zip(a.scores, b.scores, strict=True))
    return torch.equal(a.sequences, b.sequences), gap


@pytest.mark.parametrize("name", GENERATING)
def test_without_edits_it_is_the_models_own(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = prompts(case)
    before = fingerprint(case.hf)
    expected = case.hf.generate(**batch.inputs, **GREEDY)
    for cache in (True, False):
        made = interp.generate(case.model, batch, use_cache=cache, **GREEDY)
        assert torch.equal(made.sequences, expected)
        assert torch.equal(made.new_tokens, expected[:, -NEW:])
    neutral = interp.generate(case.model, batch, [interp.scale(At(Site.Z), 1.0)], **GREEDY)
    assert torch.equal(neutral.sequences, expected)
    torch.manual_seed(5)
    drawn = case.hf.generate(**batch.inputs, max_new_tokens=4, do_sample=True)
    torch.manual_seed(5)
    assert torch.equal(interp.generate(case.model, batch, max_new_tokens=4, do_sample=True).sequences, drawn)
    assert fingerprint(case.hf) == before


def sweep(case: Case) -> None:
    """Cached equals uncached, under every edit and phase; every edit changes some score; nothing is left behind."""
    batch = prompts(case)
    before = fingerprint(case.hf)
    plain = interp.generate(case.model, batch, **SCORED).output
    problems: list[str] = []
    for label, edit in edits_for(case).items():
        for phase in ("both", "prefill", "decode"):
            cached = interp.generate(case.model, batch, [edit], phase=phase, **SCORED).output  # type: ignore[arg-type]
            uncached = interp.generate(case.model, batch, [edit], phase=phase, use_cache=False, **SCORED).output  # type: ignore[arg-type]
            same, gap = tokens_match(cached, uncached)
            if not same or gap > 1e-3:
                problems.append(f"{label}, {phase}: tokens {'agree' if same else 'differ'}, scores {gap:.1e} apart")
            unseen = phase == "decode" and label in OF_FIRST_KEYS and case.tiny.name in WINDOWED
            unseen |= phase == "decode" and label == "scale one k"  # that key is the prompt's
            if tokens_match(cached, plain)[1] < 1e-5 and not unseen:
                problems.append(f"{label}, {phase}: did nothing")
    assert fingerprint(case.hf) == before
    named(problems)


@pytest.mark.parametrize("name", FAST)
def test_cached_equals_uncached(case_of: Callable[[str], Case], name: str) -> None:
    sweep(case_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GENERATING if name not in FAST])
def test_cached_equals_uncached_everywhere(case_of: Callable[[str], Case], name: str) -> None:
    sweep(case_of(name))


def step_logits(case: Case, batch: Batch, sequences: Tensor, edits: list[interp.Edit]) -> Tensor:
    """``[batch, step, vocab]`` by one forward over everything that was generated."""
    if case.model.default_stack == "decoder":
        inputs = {**batch.inputs, "decoder_input_ids": sequences[:, :-1]}
        whole = interp.encode(case.model, inputs=inputs)
        start = 0 if "decoder_input_ids" not in batch.inputs else batch.width - 1
    else:
        whole, start = interp.encode(case.model, sequences[:, :-1]), batch.width - 1
    logits = interp.run(case.model, whole, edits=edits).logits
    assert logits is not None
    return logits[:, start:]


@pytest.mark.parametrize("name", [*TOKENS_ALONE, "t5", "bart"])
def test_against_one_forward_over_everything(case_of: Callable[[str], Case], name: str) -> None:
    """Every step's logits, with the edit on all rows, on the prompt's and on the generated ones alone."""
    case = case_of(name)
    batch = prompts(case)
    n = batch.width
    problems: list[str] = []
    for label, edit in edits_for(case).items():
        if label in ("mean", "noise", "noise k"):  # made from the prompts' own content
            continue
        made = interp.generate(case.model, batch, [edit], output_logits=True, return_dict_in_generate=True, **GREEDY)
        by_step = torch.stack(made.output.logits, 1)
        expected = step_logits(case, batch, made.sequences, [edit])
        if not close(by_step, expected, 1e-4):
            problems.append(f"{label}: {float((by_step - expected).abs().max()):.1e} off")
    parts = {"prefill": slice(0, n), "decode": slice(n, None)}
    sites = [Site.Z, Site.RESID_POST, Site.MLP_OUT] + ([] if name in BYPASS else [Site.Q, Site.K, Site.V, Site.PATTERN])
    for site in sites:
        for phase, rows in parts.items():
            edit, by_hand = interp.scale(At(site, 0), 0.5), interp.scale(At(site, 0, pos=rows), 0.5)
            made = interp.generate(case.model, batch, [edit], phase=phase, output_logits=True,  # type: ignore[arg-type]
                                   return_dict_in_generate=True, **GREEDY)  # fmt: skip
            by_step = torch.stack(made.output.logits, 1)
            expected = step_logits(case, batch, made.sequences, [by_hand])
            if not close(by_step, expected, 1e-4):
                problems.append(f"{site} in {phase}: {float((by_step - expected).abs().max()):.1e} off")
    named(problems)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "gpt_oss", "bloom", "gptj"])
def test_left_padded_prompts(case_of: Callable[[str], Case], name: str) -> None:
    """Prompts of unequal length generate what each generates alone, also under edits."""
    case = case_of(name)
    ids = case.tiny.inputs(2, 5, 0)["input_ids"]
    batch = interp.encode(case.model, [ids[0].tolist(), ids[1, :3].tolist()], padding_side="left")
    with pytest.raises(interp.BadInput, match="left"):
        interp.generate(case.model, interp.encode(case.model, [ids[0].tolist(), ids[1, :3].tolist()]), **GREEDY)
    edits: list[list[interp.Edit]] = [[]] + [[e] for label, e in edits_for(case).items() if label != "mean"]
    for chosen in edits:
        together = interp.generate(case.model, batch, chosen, **GREEDY).new_tokens
        for row, length in enumerate((5, 3)):
            single = interp.encode(case.model, ids[row : row + 1, :length])
            assert torch.equal(interp.generate(case.model, single, chosen, **GREEDY).new_tokens[0], together[row]), (
                chosen
            )


@pytest.mark.parametrize("name", ["llama", "gpt2", "bart"])
def test_beams_and_several_samples(case_of: Callable[[str], Case], name: str) -> None:
    """An edit per prompt follows its prompt through beams: equal to each prompt alone."""
    case = case_of(name)
    batch = prompts(case)
    layers, heads = case.model.stack().n_layers, case.model.stack().n_heads(0)
    gate = torch.rand(2, layers, heads, generator=torch.Generator().manual_seed(2))
    keywords = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    together = interp.generate(case.model, batch, [interp.gate(At(Site.Z), gate)], **keywords).new_tokens
    for row in range(2):
        alone = interp.generate(case.model, batch.select([row]), [interp.gate(At(Site.Z), gate[row])], **keywords)
        width = min(alone.new_tokens.shape[1], together.shape[1])
        assert torch.equal(alone.new_tokens[0, :width], together[row, :width])


@pytest.mark.parametrize("name", ["gpt2", "mistral", "t5"])
def test_edits_of_the_prompt_alone(case_of: Callable[[str], Case], name: str) -> None:
    """Values that end with the prompt need phase='prefill'; there they are what one forward makes of them."""
    case = case_of(name)
    batch = prompts(case)
    z = interp.run(case.model, batch, [At(Site.Z, 0)])[At(Site.Z, 0)]
    patch = interp.patch(At(Site.Z, 0), torch.randn(z.shape))
    if z.shape[1] > 1:
        with pytest.raises(interp.BadInput, match="prefill"):
            interp.generate(case.model, batch, [patch], **GREEDY)
    frozen = interp.generate(case.model, batch, [interp.freeze_pattern(phase="prefill")], **GREEDY)
    assert torch.equal(frozen.sequences, interp.generate(case.model, batch, **GREEDY).sequences)
    first = interp.generate(case.model, batch, [patch], phase="prefill", output_logits=True,
                            return_dict_in_generate=True, **GREEDY).output.logits[0]  # fmt: skip
    logits = interp.run(case.model, batch, edits=[patch]).logits
    assert logits is not None and close(first, logits[:, -1], 1e-5)
    with pytest.raises(interp.BadInput, match="at least 2"):
        interp.generate(case.model, batch, [interp.zero(At(Site.Z), phase="decode")], max_new_tokens=1)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_decoder_prompts_without_the_start_token(case_of: Callable[[str], Case], name: str) -> None:
    """The model puts it before them: without edits that is its own affair, with edits positions would be off."""
    case = case_of(name)
    batch = case.batch(2, 5, 0)
    expected = case.hf.generate(**batch.inputs, **GREEDY)
    assert torch.equal(interp.generate(case.model, batch, **GREEDY).sequences, expected)
    with pytest.raises(interp.BadInput, match="start token"):
        interp.generate(case.model, batch, [interp.zero(At(Site.Z, 0))], **GREEDY)


@pytest.mark.parametrize("name", ["llama", "t5", "gptj"])
def test_edited_serves_foreign_loops(case_of: Callable[[str], Case], name: str) -> None:
    """``hf.generate`` inside ``edited`` is ``interp.generate``, in each phase."""
    case = case_of(name)
    batch = prompts(case)
    edits = [interp.scale(At(Site.Z, 0), 0.2), interp.add(At(Site.RESID_POST, 1), 0.5, phase="decode")]
    expected = interp.generate(case.model, batch, edits, **GREEDY).sequences
    before = fingerprint(case.hf)
    with interp.edited(case.model, edits, batch=batch, prompt=batch.width) as hf:
        assert torch.equal(hf.generate(**batch.inputs, **GREEDY), expected)
    assert fingerprint(case.hf) == before
    with pytest.raises(interp.BadInput, match="prompt="), interp.edited(case.model, edits):
        pass
