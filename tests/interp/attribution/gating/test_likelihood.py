"""The loss under gates and its slopes: equal to brute force through ``run``, on every family, by every shortcut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conformance.support import BYPASS, DECODERS, REPRESENTATIVE, Case, fingerprint
from torch import Tensor

import interp
from interp import At, BadInput, Batch, Model, NotFinite, Site, Unsupported
from interp.attribution.gating.likelihood import Likelihood
from interp.attribution.gating.targets import Targets
from interp.model.licence import hooks_of

MODEL = interp.load("induction")
SHORT = ("gpt2", "llama", "gptj", "gemma2", "gpt_neox", "opt", "qwen3")


def span_of(batch: Batch, rows: list[list[int]]) -> Batch:
    """``batch`` with the tokens predicted at the columns given for each prompt."""
    mask = torch.zeros_like(batch.mask)
    for row, columns in enumerate(rows):
        mask[row, columns] = True
    return interp.encode(MODEL, batch.ids, mask=batch.mask, spans={"loss": mask})


def brute_force(model: Model, batch: Batch, gates: Tensor, stack: str | None = None) -> tuple[Tensor, Tensor]:
    """``nll [mask, prompt]`` and slopes ``[mask, layer, head]``, one mask at a time, by ``run`` and autograd."""
    losses, slopes = [], []
    widths = model.stack(stack)
    for mask in gates:
        leaf = mask.clone().requires_grad_()
        edits = [
            interp.gate(At(Site.Z, layer=layer, stack=stack), leaf[layer, : widths.n_heads(layer)])
            for layer in range(widths.n_layers)
        ]
        run = interp.run(model, batch, edits=edits, graph=True)
        nll = interp.loss(run.logits, batch)
        (slope,) = torch.autograd.grad(nll.mean(), [leaf])
        losses.append(nll.detach())
        slopes.append(slope)
    return torch.stack(losses), torch.stack(slopes)


def ours(model: Model, batch: Batch, gates: Tensor, **options: Any) -> tuple[Tensor, Tensor, list[str]]:
    with Likelihood(model, Targets.of(model, batch), **options) as likelihood:
        nll, slopes = likelihood(gates, torch.arange(len(batch)))
    return nll, slopes, likelihood.notes


def words(n_prompts: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(5, 400, (n_prompts, length), generator=torch.Generator().manual_seed(seed))


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """Rows of every call of the unembedding."""
    rows: list[int] = []

    def note(module: Any, args: Any, output: Tensor) -> None:
        rows.append(output.shape[:-1].numel())

    handle = model.hf.get_output_embeddings().register_forward_hook(note)
    try:
        yield rows
    finally:
        handle.remove()


def some_batch() -> Batch:
    plain = interp.encode(MODEL, words(3, 9), mask=torch.arange(9) < torch.tensor([[9], [7], [5]]))
    return span_of(plain, [[7, 8], [3, 6], [1]])


GATES = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [{}, {"checkpointing": True}, {"rows": 1}, {"rows": 4}, {"rows": 6}, {"checkpointing": True, "rows": 5}],
    ids=str,
)
def test_losses_and_slopes_are_those_of_run(options: dict[str, Any]) -> None:
    batch = some_batch()
    nll, slopes, notes = ours(MODEL, batch, GATES, **options)
    wanted, by_run = brute_force(MODEL, batch, GATES)
    torch.testing.assert_close(nll, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(slopes, by_run, atol=1e-6, rtol=1e-5)
    assert not notes


def test_without_a_loss_mask_every_token_but_the_first_counts() -> None:
    batch = interp.encode(MODEL, words(2, 6))
    nll, slopes, _ = ours(MODEL, batch, GATES)
    wanted, by_run = brute_force(MODEL, batch, GATES)
    torch.testing.assert_close(nll, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(slopes, by_run, atol=1e-6, rtol=1e-5)


def test_open_gates_are_the_plain_model_and_shut_ones_no_heads_at_all() -> None:
    batch = some_batch()
    nll, _, _ = ours(MODEL, batch, torch.ones(1, 2, 4))
    torch.testing.assert_close(nll[0], interp.loss(interp.run(MODEL, batch).logits, batch), atol=1e-6, rtol=1e-6)
    nll, _, _ = ours(MODEL, batch, torch.zeros(1, 2, 4))
    removed = interp.run(MODEL, batch, edits=[interp.zero(At(Site.Z))]).logits
    torch.testing.assert_close(nll[0], interp.loss(removed, batch), atol=1e-6, rtol=1e-6)


def test_open_gates_in_a_forward_of_one_mask_are_bit_identical_to_the_plain_model() -> None:
    from interp.model.gated import GatedModel

    batch = interp.encode(MODEL, words(3, 9))
    everywhere = torch.arange(9).expand(3, -1)
    with GatedModel(MODEL) as gated, torch.no_grad():
        logits = gated.logits(batch.inputs, torch.ones(1, 2, 4), everywhere)
    assert torch.equal(logits[0], interp.run(MODEL, batch, logits=everywhere).logits)


def test_only_targets_are_unembedded() -> None:
    batch = some_batch()
    with Likelihood(MODEL, Targets.of(MODEL, batch)) as likelihood, counted(MODEL) as rows:
        likelihood(GATES, torch.arange(3))
    assert rows == [3 * 3 * 2]  # masks, prompts, the most targets of a prompt


def test_padding_on_either_side_changes_nothing() -> None:
    ids = words(1, 7)
    alone = interp.encode(MODEL, ids, spans={"loss": range(5, 7)})
    wanted, slopes, _ = ours(MODEL, alone, GATES)
    for side, place in (("right", slice(0, 7)), ("left", slice(4, 11))):
        wide = torch.zeros(1, 11, dtype=torch.long)
        mask = torch.zeros(1, 11, dtype=torch.bool)
        wide[:, place], mask[:, place] = ids, True
        span = torch.zeros_like(mask)
        span[:, place.start + 5 : place.start + 7] = True
        padded = interp.encode(MODEL, wide, mask=mask, spans={"loss": span}, padding_side=side)  # type: ignore[arg-type]
        found, by_gate, _ = ours(MODEL, padded, GATES)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(by_gate, slopes, atol=1e-6, rtol=1e-5)


def check_family(case: Case) -> list[str]:
    model = case.model
    before = fingerprint(case.hf)
    asked = [parameter.requires_grad for parameter in case.hf.parameters()]
    batch = case.batch(2, 6)
    mask = torch.zeros_like(batch.mask)
    mask[0, -2:] = True
    mask[1, 2] = True
    inputs = batch.inputs
    batch = interp.encode(model, inputs=inputs, spans=None)
    batch = Batch(**{**vars(batch), "spans": {"loss": mask}})
    stack = model.stack()
    widest = max(stack.n_heads(layer) for layer in range(stack.n_layers))
    gates = torch.rand(2, stack.n_layers, widest, generator=torch.Generator().manual_seed(1))
    nll, slopes, notes = ours(model, batch, gates)
    wanted, by_run = brute_force(model, batch, gates)
    torch.testing.assert_close(nll, wanted, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(slopes, by_run, atol=1e-6, rtol=2e-5)
    again, kept, _ = ours(model, batch, gates, checkpointing=True)
    torch.testing.assert_close(again, nll, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(kept, slopes, atol=1e-6, rtol=2e-5)
    assert fingerprint(case.hf) == before
    assert [parameter.requires_grad for parameter in case.hf.parameters()] == asked
    return notes


@pytest.mark.parametrize("name", sorted({*REPRESENTATIVE, *SHORT} & {*DECODERS, "t5", "bart"}))
def test_every_kind_of_family_gives_what_run_gives(name: str, case_of: Callable[[str], Case]) -> None:
    notes = check_family(case_of(name))
    if name in SHORT:
        assert not notes, notes


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*DECODERS, *BYPASS} - {*REPRESENTATIVE, *SHORT}))
def test_every_other_family_gives_what_run_gives(name: str, case_of: Callable[[str], Case]) -> None:
    check_family(case_of(name))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "whisper"])
def test_models_that_see_or_hear_give_what_run_gives(name: str, case_of: Callable[[str], Case]) -> None:
    check_family(case_of(name))  # qwen2_vl packs the rows of all images: one mask at a time there


def test_a_model_whose_blocks_cannot_be_split_takes_whole_forwards_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.model import gated

    monkeypatch.setattr(gated.GatedModel, "_after", lambda *_: 1 / 0)
    monkeypatch.setattr("interp.attribution.gating.likelihood.SPLIT_FAILURES", (ZeroDivisionError,))
    nll, slopes, notes = ours(MODEL, some_batch(), GATES)
    wanted, by_run = brute_force(MODEL, some_batch(), GATES)
    torch.testing.assert_close(nll, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(slopes, by_run, atol=1e-6, rtol=1e-5)
    assert notes == ["Whole forwards: a block cannot be split at its attention (ZeroDivisionError)."]


def test_a_shortcut_that_gives_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.model import gated

    own = gated.GatedModel._z_of
    monkeypatch.setattr(gated.GatedModel, "_z_of", lambda self, *rest: own(self, *rest) * 1.01)
    nll, _, notes = ours(MODEL, some_batch(), GATES)
    torch.testing.assert_close(nll, brute_force(MODEL, some_batch(), GATES)[0], atol=1e-6, rtol=1e-6)
    assert len(notes) == 1 and "other results" in notes[0]


def test_a_cut_to_few_columns_is_tried_even_where_the_longest_prompts_have_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from interp.model import gated

    own, cuts = gated.GatedModel._spread, []
    monkeypatch.setattr(gated.GatedModel, "_spread", lambda self, *rest: cuts.append(1) or own(self, *rest))
    batch = interp.encode(MODEL, words(2, 6))  # every token counts, so no update will be cut
    with Likelihood(MODEL, Targets.of(MODEL, batch)) as likelihood:
        assert cuts == [1]
        likelihood(GATES, torch.arange(2))
    assert cuts == [1]


def test_weights_that_asked_for_gradients_ask_again_and_none_was_made() -> None:
    parameters = list(MODEL.hf.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    parameters[0].requires_grad_(not before[0])
    try:
        expected = [parameter.requires_grad for parameter in parameters]
        ours(MODEL, some_batch(), GATES)
        assert [parameter.requires_grad for parameter in parameters] == expected
        assert all(parameter.grad is None for parameter in parameters)
    finally:
        parameters[0].requires_grad_(before[0])


def test_out_of_memory_halves_the_rows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    own, sizes = Likelihood._part, []

    def part(self: Likelihood, gated: Any, gates: Tensor, few: Targets, n_prompts: int) -> Any:
        sizes.append(len(gates) * len(few))
        if len(gates) * len(few) > 4 and self._gated is not None:
            raise torch.OutOfMemoryError
        return own(self, gated, gates, few, n_prompts)

    monkeypatch.setattr(Likelihood, "_part", part)
    nll, slopes, notes = ours(MODEL, some_batch(), GATES, rows=9)
    wanted, by_run = brute_force(MODEL, some_batch(), GATES)
    torch.testing.assert_close(nll, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(slopes, by_run, atol=1e-6, rtol=1e-5)
    assert notes == ["Out of memory: rows of one forward were halved to 4."]


def test_little_memory_means_fewer_rows_and_blocks_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.attribution.gating.likelihood.free_memory", lambda device: 50_000)
    _, slopes, notes = ours(MODEL, some_batch(), GATES)
    torch.testing.assert_close(slopes, brute_force(MODEL, some_batch(), GATES)[1], atol=1e-6, rtol=1e-5)
    assert notes == ["Blocks were computed again in the backward pass, for want of memory."]


def test_bfloat16_is_near_and_no_more() -> None:
    nll, slopes, notes = ours(MODEL, some_batch(), GATES, precision="bfloat16")
    assert not notes
    wanted, by_run = brute_force(MODEL, some_batch(), GATES)
    torch.testing.assert_close(nll, wanted, atol=0.1, rtol=0.02)
    assert (nll - wanted).abs().max() > 1e-5
    assert torch.nn.functional.cosine_similarity(slopes.flatten(), by_run.flatten(), dim=0) > 0.99


def test_prompts_without_a_target_are_named() -> None:
    batch = span_of(interp.encode(MODEL, words(3, 5)), [[2], [], [0]])  # the first token is never predicted
    with pytest.raises(BadInput, match=r"Prompts without a target: 1, 2 \(2 of 3\)"):
        Targets.of(MODEL, batch)


def test_a_loss_that_is_not_finite_is_named() -> None:
    batch = some_batch()
    gates = GATES.clone()
    gates[1, 1, 2] = torch.nan
    with Likelihood(MODEL, Targets.of(MODEL, batch)) as likelihood, pytest.raises(NotFinite, match=r"masks \[1\]"):
        likelihood(gates, torch.arange(3))


def test_the_model_is_as_found_after_an_error_too(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")  # the fixture compares it with what it was
    batch = case.batch(2, 6)
    gates = torch.full((2, 3, 4), torch.nan)[:, : case.model.stack().n_layers, : case.model.stack().n_heads(0)]
    for options in ({}, {"checkpointing": True}):
        with Likelihood(case.model, Targets.of(case.model, batch), **options) as likelihood:  # type: ignore[arg-type]
            with pytest.raises(NotFinite):
                likelihood(gates, torch.arange(2))
        assert not any("forward" in vars(module) for module in case.hf.modules())
        assert not hooks_of(case.model)  # transformers may keep its own, which only look


def test_blocks_that_are_computed_again_keep_less() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from interp.model.gated import GatedModel, kept_bytes

    network = GPT2LMHeadModel(GPT2Config(n_layer=6, n_head=2, n_embd=32, vocab_size=50, bos_token_id=0, eos_token_id=0))
    model = interp.load(network.eval(), check=False)
    inputs, columns = {"input_ids": torch.arange(40)[None]}, torch.tensor([[39]])
    grown = {}
    for checkpointing in (False, True):
        gates = torch.ones(2, 6, 2, requires_grad=True)
        with GatedModel(model, checkpointing=checkpointing) as gated, kept_bytes(network) as kept:
            gated.logits(inputs, gates, columns)
        grown[checkpointing] = kept[0]
    assert 0 < grown[True] < grown[False] / 2


def test_models_that_do_not_predict_the_next_token_are_refused(case_of: Callable[[str], Case]) -> None:
    case = case_of("bert")
    with pytest.raises(Unsupported, match="bidirectional"):
        Targets.of(case.model, case.batch())
    with pytest.raises(BadInput, match=r"expected what interp\.encode"):
        Targets.of(MODEL, [[1, 2]])  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"checkpointing": "yes"}, {"precision": "half"}, {"rows": 0}], ids=str)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Likelihood(MODEL, Targets.of(MODEL, some_batch()), **options)
