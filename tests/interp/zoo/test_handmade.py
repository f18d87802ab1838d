"""The handmade model does what its docstring derives, to float32 rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp import zoo
from interp.zoo.handmade import BALANCE, CONTEXT, OUTPUT, PLACE, PREVIOUS, SEEN, TOKEN, VOCABULARY, VOTE, WORDS, build

N_WORDS = len(WORDS)
EXACT = {"atol": 1e-6, "rtol": 0}


def patterns_and_logits(ids: list[int]) -> tuple[Tensor, Tensor]:
    model, _ = build()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_attentions=True)
    return torch.stack(output.attentions)[:, 0], output.logits[0]


def expected_patterns(ids: list[int]) -> Tensor:
    """The rules of the docstring, row by row: [layer, head, query, key]."""
    size = len(ids)
    wanted = torch.zeros(2, 2, size, size)
    for i in range(size):
        copies = [j for j in range(i) if ids[j] == ids[i]]
        wanted[0, 0, i, max(i - 1, 0)] = 1
        wanted[0, 1, i, copies or [i]] = 1 / max(len(copies), 1)
        wanted[1, 0, i, [j + 1 for j in copies] or [0]] = 1 / max(len(copies), 1)
        wanted[1, 1, i, : i + 1] = 1 / (i + 1)
    return wanted


PROMPTS = {
    "nothing repeats": [0, 3, 4, 5, 6, 7],
    "said twice": [0, *range(3, 3 + N_WORDS), *range(3, 3 + N_WORDS)],
    "three copies with other successors": [0, 3, 4, 3, 5, 3, 6, 3],
    "a word at once again": [0, 9, 9, 9],
    "unknown words count as one": [0, 2, 5, 2],
    "the whole context": [0, *[3 + (7 * n) % N_WORDS for n in range(CONTEXT - 1)]],
}


@pytest.mark.parametrize("ids", PROMPTS.values(), ids=PROMPTS)
def test_patterns_are_the_derived_ones(ids: list[int]) -> None:
    found, _ = patterns_and_logits(ids)
    torch.testing.assert_close(found, expected_patterns(ids), **EXACT)


@pytest.mark.parametrize("ids", PROMPTS.values(), ids=PROMPTS)
def test_logits_are_the_votes_of_the_induction_head(ids: list[int]) -> None:
    _, found = patterns_and_logits(ids)
    wanted = torch.zeros(len(ids), VOCABULARY)
    for i, token in enumerate(ids):
        followers = [ids[j + 1] for j in range(i) if ids[j] == token]
        for follower in followers:
            wanted[i, follower] += VOTE / len(followers)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_scores_on_words_said_twice_in_closed_form() -> None:
    found, logits = patterns_and_logits(PROMPTS["said twice"])
    s, size = N_WORDS, 2 * N_WORDS + 1
    previous = found.diagonal(-1, -2, -1).mean(-1)
    # L1.H0 rests on place 0, which row 1 finds at its left; L1.H1 gives 1/(i + 1)
    uniform = sum(1 / (i + 1) for i in range(1, size)) / (size - 1)
    torch.testing.assert_close(previous, torch.tensor([[1.0, 0.0], [1 / (size - 1), uniform]]), **EXACT)
    rows = range(s + 1, size)
    duplicate = torch.stack([found[..., i, i - s] for i in rows]).mean(0)
    induction = torch.stack([found[..., i, i - s + 1] for i in rows]).mean(0)
    later = sum(1 / (i + 1) for i in rows) / s
    torch.testing.assert_close(duplicate, torch.tensor([[0.0, 1.0], [0.0, later]]), **EXACT)
    torch.testing.assert_close(induction, torch.tensor([[0.0, 0.0], [1.0, later]]), **EXACT)
    losses = -logits[:-1].log_softmax(-1)[range(size - 1), PROMPTS["said twice"][1:]]
    torch.testing.assert_close(losses[: s + 1], torch.full((s + 1,), math.log(VOCABULARY)), **EXACT)
    torch.testing.assert_close(losses[s + 1 :], torch.full((s - 1,), math.log1p(15 * math.exp(-VOTE))), **EXACT)


@pytest.mark.parametrize(("layer", "head", "matters"), [(0, 0, True), (0, 1, False), (1, 0, True), (1, 1, False)])
def test_removing_a_head_does_what_the_docstring_says(layer: int, head: int, matters: bool) -> None:
    model, _ = build()
    ids = torch.tensor([PROMPTS["said twice"]])
    with torch.no_grad():
        whole = model(ids).logits
        width = model.config.n_embd // model.config.n_head
        model.transformer.h[layer].attn.c_proj.weight[head * width : (head + 1) * width] = 0
        rest = model(ids).logits
    if matters:
        torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-5, rtol=0)
        assert whole.abs().max() > 9.9
    else:
        torch.testing.assert_close(rest, whole, atol=1e-5, rtol=0)


def test_the_stream_keeps_its_blocks_and_its_mean() -> None:
    model, _ = build()
    ids = [0, 3, 4, 3]
    with torch.no_grad():
        stream = model.transformer(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    one_hot = torch.eye(VOCABULARY)
    torch.testing.assert_close(stream[:, TOKEN], one_hot[ids], **EXACT)
    torch.testing.assert_close(stream[:, PLACE], torch.eye(CONTEXT)[: len(ids)], **EXACT)
    torch.testing.assert_close(stream[:, PREVIOUS], one_hot[[0, 0, 3, 4]], **EXACT)
    torch.testing.assert_close(stream[:, SEEN], one_hot[[0, 3, 4, 3]], **EXACT)
    torch.testing.assert_close(stream[:, OUTPUT], torch.zeros(len(ids), VOCABULARY), **EXACT)
    torch.testing.assert_close(stream[:, BALANCE], torch.full((len(ids),), -4.0), **EXACT)
    torch.testing.assert_close(stream.mean(-1), torch.zeros(len(ids)), **EXACT)
    torch.testing.assert_close(model.transformer.ln_f(stream), stream, atol=1e-5, rtol=0)


def test_build_gives_a_fresh_model_with_words() -> None:
    first, tokenizer = zoo.build("handmade")
    second, _ = zoo.build("handmade")
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.lm_head.weight.data_ptr() != second.lm_head.weight.data_ptr()
    ids = tokenizer("the cat sat on the", return_tensors="pt").input_ids
    assert tokenizer.decode(first(ids).logits[0, -1].argmax()) == "cat"
