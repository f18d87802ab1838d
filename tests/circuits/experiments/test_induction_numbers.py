"""The numbers of the induction experiment by a second road: plain Hugging Face calls, weight surgery, or paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import interp
from circuits.config import load_config
from circuits.experiments.induction.ablation import (
    Replacement,
    losses_without,
    unedited,
    without_each_head,
    without_moving_patterns,
    without_sets,
)
from circuits.experiments.induction.answers import Answers, assign_answers, measure, second_copy_columns
from circuits.experiments.induction.job import Job, head_grid
from circuits.experiments.induction.offsets import OFFSETS, offset_profile
from circuits.experiments.induction.prompts import natural_prompts
from circuits.experiments.induction.reading import losses_of
from circuits.experiments.opening import refuse_unless_causal
from circuits.experiments.repeated import Repeated, random_prompts
from circuits.progress import Silent
from circuits.units import UnitStore
from interp import At, Head, Site
from interp.errors import BadInput

D_HEAD = 8


@pytest.fixture(scope="module")
def plain() -> transformers.PreTrainedModel:
    """A two-layer GPT-2 of random weights wide enough that every head changes the logits."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=3, n_embd=3 * D_HEAD, n_positions=40, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    config.initializer_range = 0.3
    return transformers.GPT2LMHeadModel(config).eval()


def job_of(plain: transformers.PreTrainedModel, folder: Path, **settings: object) -> Job:
    config = load_config("induction", {"n_prompts": 6, "segment": 8, "batch_size": 2, "draws": 25, **settings}).config
    model = interp.load(plain)
    parts = {
        purpose: random_prompts(model, n=n, segment=8, seed=0, purpose=purpose)
        for purpose, n in (("selection", 3), ("evaluation", 4), ("reference", 5))
    }
    return Job(model, config, UnitStore(folder), Silent(), "weights", **parts)


@pytest.fixture
def job(plain: transformers.PreTrainedModel, tmp_path: Path) -> Job:
    return job_of(plain, tmp_path)


def plain_logits(plain: transformers.PreTrainedModel, prompts: Repeated) -> torch.Tensor:
    with torch.no_grad():
        return plain(torch.from_numpy(prompts.ids)).logits


def plain_second_loss(logits: torch.Tensor, prompts: Repeated) -> np.ndarray:
    """By the library's own cross-entropy, prompt by prompt."""
    ids = torch.from_numpy(prompts.ids)
    first = prompts.start + prompts.segment + 1  # start token, first copy, first token of the second
    return np.array(
        [
            float(torch.nn.functional.cross_entropy(row[first - 1 : -1], own[first:]))
            for row, own in zip(logits, ids, strict=True)
        ]
    )


# ---------------------------------------------------------------------------------------------------- prompts


def test_prompts_are_distinct_tokens_twice(job: Job) -> None:
    """Without a tokenizer there is no start token, and the first token is predicted by nothing."""
    ids = job.evaluation.ids
    assert ids.shape == (4, 16) and (ids[:, :8] == ids[:, 8:]).all()
    assert all(len(set(row[:8])) == 8 for row in ids.tolist())
    assert job.evaluation.first == slice(1, 8) and job.evaluation.second == slice(9, 16)


def test_a_start_token_stands_in_front_and_nowhere_else() -> None:
    model = interp.load("induction", check=False)
    prompts = random_prompts(model, n=3, segment=20, seed=0, purpose="x")
    assert prompts.ids.shape == (3, 41) and (prompts.ids[:, 0] == model.tokenizer.bos_token_id).all()
    assert (prompts.ids[:, 1:21] == prompts.ids[:, 21:]).all()
    assert not set(prompts.ids[:, 1:].ravel().tolist()) & set(model.tokenizer.all_special_ids)
    assert prompts.first == slice(1, 21) and prompts.second == slice(22, 41)


def test_a_prompt_depends_on_its_number_and_purpose_alone(job: Job) -> None:
    more = random_prompts(job.model, n=9, segment=8, seed=0, purpose="evaluation")
    assert (more.ids[:4] == job.evaluation.ids).all()
    assert not (job.selection.ids[:3] == job.evaluation.ids[:3]).all()
    assert not (random_prompts(job.model, n=4, segment=8, seed=1, purpose="evaluation").ids == more.ids[:4]).all()


def test_too_long_or_too_many_tokens_are_refused_with_what_would_work(job: Job) -> None:
    with pytest.raises(BadInput, match=r"context holds 40\. At most segment=20 works"):
        random_prompts(job.model, n=1, segment=21, seed=0, purpose="x")
    with pytest.raises(BadInput, match="too few for 51 distinct ones; at most segment=49"):
        random_prompts(job.model, n=1, segment=51, seed=0, purpose="x")


def test_unknown_words_of_natural_text_are_dropped_and_told() -> None:
    model = interp.load("induction", check=False)
    prompts, notes = natural_prompts(model, ["the old man saw the dog .", "the old xylophone man saw the dog .", "qqq"])
    assert len(prompts) == 2 and (prompts[0].ids[0, 1:8] == prompts[0].ids[0, 8:]).all()
    assert (prompts[0].ids == prompts[1].ids).all()
    assert len(notes) == 3 and "1 of 8 tokens" in notes[0] and "left out" in notes[2]


# ---------------------------------------------------------------------------------------------------- losses


def test_losses_are_the_library_s_cross_entropy(job: Job, plain: transformers.PreTrainedModel) -> None:
    losses = losses_of(job, job.evaluation, "evaluation")
    logits = plain_logits(plain, job.evaluation)
    ids = torch.from_numpy(job.evaluation.ids)
    for number in range(4):
        expected = torch.nn.functional.cross_entropy(logits[number, :-1], ids[number, 1:], reduction="none")
        np.testing.assert_allclose(losses.by_token[number], expected.numpy(), rtol=1e-5)
        np.testing.assert_allclose(losses.first[number], expected[:7].mean(), rtol=1e-5)
    np.testing.assert_allclose(losses.second, plain_second_loss(logits, job.evaluation), rtol=1e-5)


def test_measure_by_hand() -> None:
    logits = torch.tensor([[[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [1.0, 1.0, 5.0]]])
    answers = Answers(
        right=np.array([[[2, 0], [0, 1]], [[0, 1], [2, 0]]]), wrong=np.array([[[1, 1], [1, 2]], [[1, 2], [0, 2]]])
    )
    found = measure(logits, answers)
    np.testing.assert_allclose(found["lead"], [(2 + 2) / 2 + (0 + 4) / 2, (-1 + 0) / 2 + (0 - 4) / 2])
    expected = [
        (np.log(1 + np.e + np.e**3) - 3 + np.log(np.e**2 + 2) - 2) / 2,
        (np.log(3) + np.log(2 * np.e + np.e**5) - 5) / 2,
    ]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)


def test_reassigned_answers_are_pairs_of_other_prompts(job: Job) -> None:
    answers = assign_answers(job.evaluation, draws=7, seed=0)
    own = job.evaluation.ids[:, job.evaluation.second]
    assert answers.right.shape == (4, 7, 8) and (answers.right[..., 0] == own).all()
    rows = own.tolist()
    partner = [rows.index(row) for row in answers.wrong[..., 0].tolist()]
    assert sorted(partner) == [0, 1, 2, 3] and all(partner[i] != i for i in range(4))
    for draw in range(1, 8):
        right = [rows.index(row) for row in answers.right[..., draw].tolist()]
        wrong = [rows.index(row) for row in answers.wrong[..., draw].tolist()]
        assert sorted(right) == [0, 1, 2, 3] and all(right[i] != i for i in range(4))
        assert wrong == [partner[source] for source in right]


# ---------------------------------------------------------------------------------------------------- ablation


def surgery(plain: transformers.PreTrainedModel, head: Head) -> transformers.PreTrainedModel:
    """A copy in which the output projection ignores one head."""
    import copy

    cut = copy.deepcopy(plain)
    rows = slice(head.index * D_HEAD, (head.index + 1) * D_HEAD)
    with torch.no_grad():
        cut.transformer.h[head.layer].attn.c_proj.weight[rows] = 0  # Conv1D: [in, out]
    return cut


def test_zero_ablation_equals_cutting_the_weights(plain: transformers.PreTrainedModel, tmp_path: Path) -> None:
    job = job_of(plain, tmp_path, ablation="zero")
    answers = assign_answers(job.evaluation, draws=2, seed=0)
    found = without_each_head(job, Replacement(job), job.evaluation, answers, "evaluation")
    assert list(found) == job.model.heads()
    for head, part in found.items():
        logits = plain_logits(surgery(plain, head), job.evaluation)
        np.testing.assert_allclose(part["loss"], plain_second_loss(logits, job.evaluation), rtol=1e-4)


def test_mean_ablation_equals_a_hook_with_the_mean_of_the_reference(
    job: Job, plain: transformers.PreTrainedModel
) -> None:
    head = Head(1, 2)
    columns = slice(head.index * D_HEAD, (head.index + 1) * D_HEAD)
    projection = plain.transformer.h[head.layer].attn.c_proj
    seen: list[torch.Tensor] = []
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain_logits(plain, job.reference)
    handle.remove()
    mean = seen[0].mean(0)[:, columns]

    def put(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = args[0].clone()
        changed[..., columns] = mean
        return (changed,)

    handle = projection.register_forward_pre_hook(put)
    logits = plain_logits(plain, job.evaluation)
    handle.remove()
    answers = assign_answers(job.evaluation, draws=0, seed=0)
    edits = Replacement(job).edits([head], job.evaluation)
    found = losses_without(job, job.evaluation, answers, edits)
    np.testing.assert_allclose(found["loss"], plain_second_loss(logits, job.evaluation), rtol=1e-4)


def test_resampling_puts_in_another_prompt_s_output(plain: transformers.PreTrainedModel, tmp_path: Path) -> None:
    job = job_of(plain, tmp_path, ablation="resample")
    at = At(Site.Z, layer=0, heads=(1,))
    edits = Replacement(job).edits([Head(0, 1)], job.evaluation)
    found = interp.run(job.model, job.batch(job.evaluation), read=[at], edits=edits)[at]
    donors = interp.run(job.model, job.batch(job.reference), read=[at])[at]
    assert all(any(torch.allclose(row, donor, atol=1e-5) for donor in donors) for row in found)


def test_an_edit_of_nothing_changes_nothing(job: Job) -> None:
    answers = assign_answers(job.evaluation, draws=3, seed=0)
    base = unedited(job, job.evaluation, answers, "evaluation")
    np.testing.assert_allclose(base["loss"], losses_of(job, job.evaluation, "evaluation").second, rtol=1e-5)
    [alone] = without_sets(job, Replacement(job), job.evaluation, answers, [(Head(0, 0),)])
    swept = without_each_head(job, Replacement(job), job.evaluation, answers, "evaluation")
    np.testing.assert_allclose(alone, swept[Head(0, 0)]["loss"], rtol=1e-6)
    assert np.abs(alone - base["loss"]).max() > 1e-3


def test_a_set_is_replaced_at_once(job: Job, plain: transformers.PreTrainedModel, tmp_path: Path) -> None:
    zero = job_of(plain, tmp_path / "zero", ablation="zero")
    answers = assign_answers(zero.evaluation, draws=0, seed=0)
    (tmp_path / "zero").mkdir()
    [together] = without_sets(zero, Replacement(zero), zero.evaluation, answers, [(Head(0, 0), Head(1, 1))])
    logits = plain_logits(surgery(surgery(plain, Head(0, 0)), Head(1, 1)), zero.evaluation)
    np.testing.assert_allclose(together, plain_second_loss(logits, zero.evaluation), rtol=1e-4)


def test_with_patterns_held_the_last_layer_keeps_its_effect_and_the_first_changes(job: Job) -> None:
    """Nothing attends after the last layer, so holding patterns still takes nothing from its heads' effect."""
    answers = assign_answers(job.evaluation, draws=0, seed=0)
    sets = [(Head(1, 0),), (Head(0, 0),)]
    free = without_sets(job, Replacement(job), job.evaluation, answers, sets)
    base, last, first = without_moving_patterns(job, Replacement(job), job.evaluation, answers, sets)
    plain_base = unedited(job, job.evaluation, answers, "evaluation")["loss"]
    np.testing.assert_allclose(base, plain_base, rtol=1e-4)
    np.testing.assert_allclose(last, free[0], rtol=1e-4)
    assert np.abs(first - free[1]).max() > 1e-3


# ---------------------------------------------------------------------------------------------------- offsets


def test_offsets_are_the_library_s_own_attention(job: Job, plain: transformers.PreTrainedModel) -> None:
    found = offset_profile(job)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        maps = plain(torch.from_numpy(job.selection.ids[:2]), output_attentions=True).attentions
    plain.set_attn_implementation("sdpa")
    assert found.shape == (2, 2, 3, len(OFFSETS))
    queries = range(8, 15)  # the second copy but for its last token
    for place, offset in enumerate(OFFSETS):
        for layer in range(2):
            pairs = [(query, query - 8 + offset) for query in queries if 0 <= query - 8 + offset <= query]
            expected = np.stack([maps[layer][:, :, query, key].numpy() for query, key in pairs]).mean(0)
            np.testing.assert_allclose(found[:, layer, :, place], expected, atol=1e-5)


def test_second_copy_columns_predict_the_second_copy(job: Job) -> None:
    columns = second_copy_columns(job.evaluation)
    assert columns.shape == (4, 7) and columns[0].tolist() == list(range(8, 15))


def test_head_grid_leaves_nan_where_no_head_is() -> None:
    grid = head_grid({Head(0, 1): np.array([1.0, 2.0]), Head(2, 0): np.array([3.0, 4.0])}, [2, 0, 1])
    assert grid.shape == (2, 3, 2) and grid[0, 0, 1] == 1 and grid[1, 2, 0] == 4 and np.isnan(grid).sum() == 8


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=16, vocab_size=50,
        max_position_embeddings=40,
    )  # fmt: skip
    job = job_of(transformers.BertForMaskedLM(config).eval(), tmp_path)
    with pytest.raises(BadInput, match="need a decoder"):
        refuse_unless_causal(job.model, job.batch(job.evaluation))
