"""``interp.sweep``: what it refuses, what it leaves behind, and the corners that the families do not show."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import interp
from interp import At, BadInput, Site
from interp.edits import Edit
from interp.model import replay as replay_module
from interp.model import sweep as sweep_module
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.licence import licence_of

VOCABULARY = 61


def gpt2(layers: int = 3, dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_head=4, n_embd=32, vocab_size=VOCABULARY, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    network: Any = GPT2LMHeadModel(config).eval()
    network.to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    return interp.load(network, check=False)


def prompts(model: Model, count: int = 3, length: int = 9, mask: Tensor | None = None) -> Batch:
    ids = torch.randint(1, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))
    return interp.encode(model, ids, answers=[(5, 9)] * count, mask=mask)


def each_head(model: Model, **more: Any) -> list[list[Edit]]:
    return [[interp.zero(At(Site.Z, head.layer, heads=(head.index,), **more))] for head in model.heads()]


def one_by_one(model: Model, batch: Batch, variants: list[list[Edit]], logits: Any = "answers") -> Tensor:
    runs = [interp.run(model, batch, edits=edits, logits=logits).logits for edits in variants]
    return torch.stack([interp.logit_difference(made, batch) for made in runs if made is not None])


def test_padded_prompts_on_either_side_are_swept_alike() -> None:
    model = gpt2()
    for side in ("left", "right"):
        mask = torch.ones(3, 9, dtype=torch.bool)
        for row, count in ((0, 2), (2, 4)):
            mask[row, slice(0, count) if side == "left" else slice(9 - count, 9)] = False
        batch = prompts(model, mask=mask)
        variants = each_head(model) + each_head(model, pos=-1) + each_head(model, pos=1)
        swept = interp.sweep(model, batch, variants, interp.logit_difference)
        torch.testing.assert_close(swept.values, one_by_one(model, batch, variants), atol=1e-5, rtol=1e-5)


def test_sets_of_heads_shared_edits_and_edits_that_watch_earlier_sites() -> None:
    model = gpt2()
    batch, other = prompts(model), prompts(model).select([2, 0, 1])

    def follow(x: Tensor, ctx: Any) -> Tensor:
        return x * ctx.reads[At(Site.RESID_PRE, layer=1)].mean()

    shared = interp.scale(At(Site.MLP_OUT, layer=1), 0.5)
    variants: list[list[Edit]] = [
        [shared, interp.zero(At(Site.Z, layer=2, heads=(0, 3)))],
        [interp.zero(At(Site.Z, layer=0, heads=(1,))), shared],
        [interp.patch(At(Site.Z, layer=1), other)],
        [interp.mean(At(Site.Z, layer=1))],
        [interp.resample(At(Site.Z, layer=1, heads=(2,)), seed=3)],
        [interp.noise(At(Site.Z, layer=1, heads=(2,)), std=0.3), interp.noise(At(Site.Z, layer=1), std=0.3)],
        [interp.custom(At(Site.Z, layer=2), follow, reads=[At(Site.RESID_PRE, layer=1)])],
        [interp.freeze_pattern(At(Site.PATTERN, layer=2)), interp.zero(At(Site.Z, layer=1, heads=(0,)))],
        [interp.gate(At(Site.Z), torch.rand(3, 3, 4))],
        [],
    ]
    swept = interp.sweep(model, batch, variants, interp.logit_difference)
    torch.testing.assert_close(swept.values, one_by_one(model, batch, variants), atol=1e-5, rtol=1e-5)
    assert swept.effects[-1].abs().max() < 1e-6


def test_the_batch_size_changes_nothing() -> None:
    model = gpt2()
    batch = prompts(model)
    variants = each_head(model)
    whole = interp.sweep(model, batch, variants, interp.logit_difference)
    for size in (1, 7, 3 * len(variants)):
        part = interp.sweep(model, batch, variants, interp.logit_difference, batch_size=size)
        torch.testing.assert_close(part.values, whole.values, atol=1e-6, rtol=1e-6)


def test_a_metric_may_give_several_numbers_per_prompt() -> None:
    model = gpt2()
    batch = prompts(model)

    def both(logits: Tensor, batch: Batch) -> Tensor:
        return torch.stack([logits[:, -1, 5], logits[:, -1, 9]], dim=1)

    swept = interp.sweep(model, batch, each_head(model), both)
    assert swept.values.shape == (12, 3, 2)
    difference = swept.effects[..., 0] - swept.effects[..., 1]
    expected = interp.sweep(model, batch, each_head(model), interp.logit_difference).effects
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_compared_with_an_unedited_copy_in_the_same_forward() -> None:
    model = gpt2(dtype=torch.bfloat16)
    batch = prompts(model)
    neutral: list[list[Edit]] = [[interp.scale(At(Site.Z, layer=1, heads=(head,)), 1.0)] for head in range(4)]
    assert interp.sweep(model, batch, neutral, interp.logit_difference).effects.abs().max() == 0


def test_memory_that_does_not_suffice_halves_the_batch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2()
    batch = prompts(model)
    whole = interp.sweep(model, batch, each_head(model), interp.logit_difference)

    def short_of_memory(model: Model, recording: Any, suffix: Any) -> Tensor | None:
        if suffix.copies > 1:
            raise torch.OutOfMemoryError("out of memory")
        return replay_module.replay(model, recording, suffix)

    monkeypatch.setattr(sweep_module, "replay", short_of_memory)
    halved = interp.sweep(model, batch, each_head(model), interp.logit_difference)
    torch.testing.assert_close(halved.values, whole.values, atol=1e-6, rtol=1e-6)
    assert "3 prompts per forward" in halved.notes[-1]


def test_the_licence_is_tried_once_for_a_model_and_kind_of_input(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2()
    calls: list[int] = []
    before = model.hf.forward
    monkeypatch.setattr(model.hf, "forward", lambda *args, **kwargs: calls.append(1) or before(*args, **kwargs))
    first = licence_of(model, prompts(model), None)
    tried = len(calls)
    assert tried > model.stack().n_layers
    assert licence_of(model, prompts(model, count=5), None) is first
    assert len(calls) == tried
    licence_of(model, prompts(model), prompts(model).read_at[:, None])
    assert len(calls) > tried


def test_a_model_whose_blocks_depend_on_more_than_their_input_is_not_replayed() -> None:
    """Each block adds what the block before it left on the side: a replay that skips it must be found out."""
    model = gpt2()
    plain = prompts(model)
    left: dict[str, Tensor] = {}
    mlps: list[Any] = [block.mlp for block in model.stack().blocks]
    own = [mlp.forward for mlp in mlps]

    def leave(hidden: Tensor) -> Tensor:
        output = own[0](hidden)
        left["here"] = output.mean() + left.get("here", 0.0) * 0.5
        return output

    mlps[0].forward = leave
    for mlp, forward in zip(mlps[1:], own[1:], strict=True):
        mlp.forward = lambda hidden, forward=forward: forward(hidden) + left["here"]
    variants = each_head(model)
    swept = interp.sweep(model, plain.select([0]), variants, interp.logit_difference)
    expected = one_by_one(model, plain.select([0]), variants)
    licence = next(iter(model.licences.values()))
    assert not licence.replay
    if not licence.copies:
        torch.testing.assert_close(swept.values, expected, atol=1e-5, rtol=1e-5)
    assert swept.notes


@pytest.mark.parametrize("tried", [True, False])
@pytest.mark.parametrize("kind", ["steered", "scaled", "patched per prompt", "somebody's own hook"])
def test_hooks_that_are_in_force_already_count_once(kind: str, tried: bool) -> None:
    """A block that is left out gives what it gave under the hooks: they must not change it a second time."""
    model = gpt2()
    batch, variants = prompts(model), each_head(model)
    if tried:  # while nothing was in force
        interp.sweep(model, batch, variants, interp.logit_difference)
    other = interp.encode(model, torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(7)))
    edits = {
        "steered": interp.add(At(Site.RESID_POST, layer=0), torch.linspace(-3, 3, 32), axes="d_model"),
        "scaled": interp.scale(At(Site.Z, layer=1), 2.0),
        "patched per prompt": interp.patch(At(Site.RESID_POST, layer=0), other),
    }
    with ExitStack() as guard:
        if kind in edits:
            guard.enter_context(interp.edited(model, [edits[kind]], batch=batch))
        else:
            block: Any = model.stack().blocks[0]
            guard.callback(block.mlp.register_forward_hook(lambda module, args, output: 2 * output).remove)
        swept = interp.sweep(model, batch, variants, interp.logit_difference)
        expected = one_by_one(model, batch, variants)
        plain = one_by_one(model, batch, [[]])
    torch.testing.assert_close(swept.values, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swept.unedited, plain.expand(12, -1), atol=1e-5, rtol=1e-5)
    assert swept.notes and "hooks are in force" in swept.notes[0]
    assert not interp.sweep(model, batch, variants, interp.logit_difference).notes


def test_in_half_precision_a_wrong_copy_is_told_from_rounding() -> None:
    """The second prompt of a forward gets a fifth more of its MLP: much in half precision, and still no rounding."""
    model = gpt2(dtype=torch.bfloat16)
    head: Any = model.hf.lm_head
    own = head.forward
    head.forward = lambda hidden: own(hidden) * (1 + 0.2 * torch.arange(len(hidden)).view(-1, 1, 1))
    batch = prompts(model)
    assert not licence_of(model, batch, batch.read_at[:, None]).copies


def test_a_broken_prompt_is_named_by_its_place_in_the_whole_batch() -> None:
    model = gpt2()
    batch = prompts(model, count=6)

    def broken(logits: Tensor, part: Batch) -> Tensor:
        assert part.ids is not None and batch.ids is not None
        return logits[:, -1, 0].masked_fill((part.ids == batch.ids[5]).all(1), torch.nan)

    with pytest.raises(BadInput, match=r"for the prompts \[5\]"):
        interp.sweep(model, batch, each_head(model), broken, batch_size=2)


def test_a_metric_of_true_and_false_or_of_whole_numbers_is_a_metric() -> None:
    model = gpt2()
    batch = prompts(model)

    def right(logits: Tensor, batch: Batch) -> Tensor:
        assert batch.answers is not None
        return logits[:, -1].argmax(-1) == batch.answers[:, 0]

    swept = interp.sweep(model, batch, each_head(model), right)
    assert swept.effects.dtype == torch.float32
    accuracies = interp.sweep(model, batch, each_head(model), interp.accuracy)
    torch.testing.assert_close(swept.values, accuracies.values)


def test_grouped_queries_and_a_sliding_window() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = interp.load(LlamaForCausalLM(config).eval(), check=False)
    batch = prompts(model)
    variants = each_head(model) + each_head(model, pos=4)
    variants += [[interp.scale(At(Site.K, layer, heads=(1,)), 0.3)] for layer in range(3)]
    swept = interp.sweep(model, batch, variants, interp.logit_difference)
    torch.testing.assert_close(swept.values, one_by_one(model, batch, variants), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, ValueError])
def test_the_model_is_as_found_after_an_error_on_the_way(wrong: type[BaseException]) -> None:
    model = gpt2()
    batch = prompts(model)
    interp.sweep(model, batch, [[]], interp.logit_difference)
    before = interp.run(model, batch).logits
    names = {name: set(module.__dict__) for name, module in model.hf.named_modules()}

    def fails(x: Tensor, ctx: Any) -> Tensor:
        raise wrong("on purpose")

    with pytest.raises(wrong):
        interp.sweep(model, batch, [[interp.custom(At(Site.Z, layer=1), fails)]], interp.logit_difference)
    for name, module in model.hf.named_modules():
        assert set(module.__dict__) == names[name], name
        assert not module._forward_hooks and not module._forward_pre_hooks, name
    after = interp.run(model, batch).logits
    assert before is not None and after is not None and torch.equal(before, after)


def test_progress_counts_every_variant() -> None:
    model = gpt2()
    told: list[int] = []
    interp.sweep(model, prompts(model), each_head(model), interp.logit_difference, progress=told.append)
    assert sum(told) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variants": []}, "no variant"),
        ({"variants": [[3]]}, "expected edits"),
        ({"metric": "loss"}, "expected a function"),
        ({"metric": lambda logits, batch: logits.mean()}, "one number per prompt"),
        ({"metric": lambda logits, batch: logits[:2, 0, 0]}, "one number per prompt"),
        ({"metric": lambda logits, batch: logits[:, 0, 0] * float("nan")}, r"for the prompts \[0, 1, 2\]"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch": torch.ones(2, 3)}, "interp.encode"),
        ({"variants": [[interp.zero(At(Site.Z, layer=7))]]}, "Layer 7"),
        ({"logits": "first"}, "expected 'all'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    model = gpt2()
    arguments: dict[str, Any] = {
        "batch": prompts(model), "variants": each_head(model), "metric": interp.logit_difference
    } | given  # fmt: skip
    with pytest.raises(interp.HeadscopeError, match=message) as caught:
        interp.sweep(model, **arguments)
    assert isinstance(caught.value, BadInput | interp.BadAddress)


def test_prompts_that_do_not_fit_run_part_by_part_with_edits_made_for_all() -> None:
    """The mean over the other prompts, another batch's activations, noise, gates per prompt: none may see a part."""
    model = gpt2()
    mask = torch.ones(5, 9, dtype=torch.bool)
    mask[1, :3] = False
    batch = prompts(model, count=5, mask=mask)
    other = batch.select([0, 1, 2, 3, 4])
    assert other.ids is not None
    variants: list[list[Edit]] = [
        [interp.mean(At(Site.Z, layer=1))],
        [interp.patch(At(Site.Z, layer=1, heads=(2,), pos=-1), interp.run(model, other, read=[At(Site.Z, pos=-1)]))],
        [interp.noise(At(Site.Z, layer=1, heads=(2,)), std=0.3)],
        [interp.gate(At(Site.Z), torch.rand(5, 3, 4))],
        [interp.uniform(At(Site.PATTERN, layer=2, heads=(1,)))],
        [interp.knockout(-1, slice(0, 2), layers=[1])],
        *each_head(model, pos=2),
    ]
    expected = one_by_one(model, batch, variants)
    for size in (1, 2, 4):
        swept = interp.sweep(model, batch, variants, interp.logit_difference, batch_size=size)
        torch.testing.assert_close(swept.values, expected, atol=1e-5, rtol=1e-5)
        base = interp.run(model, batch, logits="answers").logits
        assert base is not None
        same = interp.logit_difference(base, batch).expand_as(swept.unedited)
        torch.testing.assert_close(swept.unedited, same, atol=1e-5, rtol=1e-5)
    drawn: list[list[Edit]] = [[interp.resample(At(Site.Z, layer=0), seed=3)]]
    equal, told = prompts(model, count=5), list[int]()
    swept = interp.sweep(model, equal, drawn * 3, interp.logit_difference, batch_size=2, progress=told.append)
    torch.testing.assert_close(swept.values, one_by_one(model, equal, drawn * 3), atol=1e-5, rtol=1e-5)
    assert sum(told) == 3


def test_the_unedited_copy_of_half_precision_counts_as_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2(dtype=torch.bfloat16)
    batch = prompts(model)
    rows: list[int] = []

    def counted(model: Model, recording: Any, suffix: Any) -> Tensor | None:
        rows.append(suffix.copies * len(recording.batch))
        return replay_module.replay(model, recording, suffix)

    monkeypatch.setattr(sweep_module, "replay", counted)
    for size in (2, 4, 9):
        rows.clear()
        interp.sweep(model, batch, each_head(model), interp.logit_difference, batch_size=size)
        assert max(rows) <= size
