"""The models worked out on paper compute the formulas of their docstrings, under any gates on their heads.

A gate is put into the weights here (a head's rows of the output projection are scaled), by transformers alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp import zoo
from interp.errors import BadInput
from interp.zoo import and_or, backup, interferer, twins
from interp.zoo.words import vocabulary

HAND_BUILT = ("twins", "backup", "interferer", "and_or")
CLOSE = {"atol": 2e-5, "rtol": 0}
TABLE = list(itertools.product((0.0, 0.6, 1.0), (0.2, 0.8, 1.0), (0.0, 0.4, 1.0), (0.0, 1.0)))
TORN = [0.0, 0.1, 0.3, 0.45, 0.7, 0.9, 1.0]


def logits_under(network: Any, gates: dict[tuple[int, int], float], ids: Tensor) -> Tensor:
    """``[batch, pos, vocab]`` with every named head's output multiplied by its gate."""
    width = network.config.n_embd // network.config.n_head
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        with torch.no_grad():
            for (layer, head), gate in gates.items():
                network.transformer.h[layer].attn.c_proj.weight[head * width : (head + 1) * width] *= gate
            return network(ids).logits
    finally:
        network.load_state_dict(kept)


def patterns(network: Any, ids: list[int]) -> Tensor:
    """``[layer, head, query, key]``."""
    network.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.stack(network(torch.tensor([ids]), output_attentions=True).attentions)[:, 0]


def every_first_word(words: tuple[str, ...], rest: tuple[str, ...]) -> Tensor:
    ids = vocabulary(words)
    return torch.tensor([[0, ids[word], *(ids[other] for other in rest)] for word in words])


def step(x: float) -> float:
    return 2 * max(x - 0.25, 0.0) - 2 * max(x - 0.75, 0.0)


def looks_at(place: int, size: int) -> Tensor:
    """``[query, key]`` rows before the place rest on place 0."""
    pattern = torch.zeros(size, size)
    pattern[:place, 0] = 1
    pattern[place:, place] = 1
    return pattern


@pytest.mark.parametrize("a", TORN)
@pytest.mark.parametrize("b", [0.0, 0.2, 0.6, 1.0])
def test_twins_vote_by_a_step_of_what_both_found(a: float, b: float) -> None:
    network, _ = twins.build()
    ids = every_first_word(twins.WORDS, ("on", "the", "red"))
    found = logits_under(network, {(0, 0): a, (0, 1): b}, ids)
    wanted = torch.zeros(*ids.shape, twins.VOCABULARY)
    for row, first in enumerate(ids[:, 1].tolist()):
        wanted[row, 1:, first] = twins.VOTE * step(a + b)
    torch.testing.assert_close(found, wanted, **CLOSE)
    torch.testing.assert_close(logits_under(network, {(0, 0): a, (0, 1): b, (0, 2): 0.0}, ids), found, **CLOSE)


def test_twins_look_at_the_first_word_and_have_equal_weights() -> None:
    network, _ = twins.build()
    found = patterns(network, [0, 5, 6, 7, 5])
    torch.testing.assert_close(found, looks_at(1, 5).expand(1, 3, -1, -1), atol=1e-6, rtol=0)
    one, other = network.transformer.h[0].attn.c_proj.weight[:50].reshape(2, 25, -1)
    assert torch.equal(one, other) and one.abs().max() == 1


@pytest.mark.parametrize("a", TORN)
@pytest.mark.parametrize("b", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("size", [2, 6])
def test_the_backup_speaks_as_far_as_the_primary_does_not(a: float, b: float, size: int) -> None:
    network, _ = backup.build()
    ids = every_first_word(backup.WORDS, ("on", "the", "red", "mat"))[:, :size]
    found = logits_under(network, {(0, 0): a, (1, 0): b, (0, 1): 0.3, (1, 1): 0.0}, ids)[:, -1]
    attends = math.exp(30) / (math.exp(30) + math.exp(60 * a) + size - 2)
    wanted = torch.zeros(len(ids), backup.VOCABULARY)
    wanted[range(len(ids)), ids[:, 1]] = backup.VOTE * (a + b * attends)
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_the_backup_rests_while_the_primary_speaks() -> None:
    network, _ = backup.build()
    rests = torch.zeros(5, 5)
    rests[:, 0] = 1
    wanted = torch.stack([looks_at(1, 5), looks_at(1, 5), rests, looks_at(1, 5)]).reshape(2, 2, 5, 5)
    torch.testing.assert_close(patterns(network, [0, 5, 6, 7, 5]), wanted, atol=1e-6, rtol=0)
    with torch.no_grad():
        network.transformer.h[0].attn.c_proj.weight[: backup.D_HEAD] = 0
    torch.testing.assert_close(patterns(network, [0, 5, 6, 7, 5])[1, 0], looks_at(1, 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("strengths", [(3, -1, 0), (1, -1, 0), (3, -3, 0), (10, -10, 0), (3, 3, 0), (0.5, 2.0, -7.0)])
def test_the_interferer_s_loss_is_softplus_of_minus_the_gated_sum(strengths: tuple[float, ...]) -> None:
    network, _ = interferer.build(strengths)
    ids = every_first_word(interferer.WORDS, ("is", "it", "alive"))
    answer = vocabulary(interferer.WORDS)
    signs = torch.tensor([float(w in interferer.LIVING) - (w in interferer.LIFELESS) for w in interferer.WORDS])
    for gates in ((1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.37, 0.61, 0.52), (0.9, 0.1, 1.0)):
        sum_ = sum(g * c for g, c in zip(gates, strengths, strict=True))
        logits = logits_under(network, {(0, head): gate for head, gate in enumerate(gates)}, ids)[:, -1]
        torch.testing.assert_close(logits[:, answer["yes"]] - logits[:, answer["no"]], sum_ * signs, **CLOSE)
        said = torch.where(signs > 0, answer["yes"], answer["no"])[signs != 0]
        losses = torch.nn.functional.cross_entropy(logits[signs != 0], said, reduction="none")
        wanted = torch.nn.functional.softplus(torch.tensor(-sum_))
        torch.testing.assert_close(losses, wanted.expand_as(losses).float(), **CLOSE)


def test_the_interferer_takes_three_strengths() -> None:
    with pytest.raises(BadInput, match="2 strengths were given; it has 3 heads"):
        interferer.build((1.0, 2.0))
    assert interferer.VOCABULARY == len(vocabulary(interferer.WORDS))


def test_and_or_is_the_formula_it_says_on_every_prompt() -> None:
    network, tokenizer = and_or.build()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    for words in itertools.product((0, 1), repeat=4):
        prompt = " ".join("on" if on else "off" for on in words) + " so"
        logits = network(tokenizer(prompt, return_tensors="pt").input_ids).logits[0]
        first, second, third, fourth = words
        wanted = and_or.VOTE * ((first & second) + (third | fourth) - 0.5)
        for row in (4, 5):
            assert (logits[row, yes] - logits[row, no]).item() == pytest.approx(wanted, abs=2e-5)
            assert logits[row].argmax() == (yes if (first & second) | (third | fourth) else no)


@pytest.mark.parametrize("gates", TABLE)
def test_and_or_under_gates(gates: tuple[float, float, float, float]) -> None:
    network, tokenizer = and_or.build()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    ids = tokenizer("on on on on so", return_tensors="pt").input_ids
    logits = logits_under(network, {(0, head): gate for head, gate in enumerate(gates)}, ids)[0, -1]
    a, b, c, d = gates
    both = 2 * max(a + b - 1.5, 0.0)
    wanted = and_or.VOTE * (both + step(c + d) - 0.5)
    assert (logits[yes] - logits[no]).item() == pytest.approx(wanted, abs=2e-5)


def test_and_or_heads_look_at_one_place_each() -> None:
    network, _ = and_or.build()
    wanted = torch.stack([looks_at(place, 6) for place in (1, 2, 3, 4)])[None]
    torch.testing.assert_close(patterns(network, [0, 5, 5, 5, 5, 9]), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["handmade", *HAND_BUILT])
def test_the_norms_do_nothing(name: str) -> None:
    network, _ = zoo.build(name)
    streams: list[tuple[Tensor, Tensor]] = []
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _m, given, out: streams.append((given[0], out)))
    with torch.no_grad():
        network(torch.tensor([[0, 5, 6, 5, 5, 3]]))
    assert len(streams) == 2 * network.config.n_layer + 1
    for given, out in streams:
        torch.testing.assert_close(given.mean(-1), torch.zeros(1, 6), atol=1e-6, rtol=0)
        torch.testing.assert_close(out, given, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["handmade", *HAND_BUILT])
def test_what_the_registry_says_of_a_hand_built_model(name: str) -> None:
    entry = zoo.ZOO[name]
    assert entry.folder is None and entry.module == f"interp.zoo.{name}" and entry.checkpoints == ()
    model = interp.load(name)
    named = [head for heads in entry.heads.values() for head in heads]
    assert sorted(named) == sorted(str(head) for head in model.heads()), "every head has exactly one role"
    assert model.tokenizer.model_max_length == model.hf.config.n_positions
    assert len(model.tokenizer) == model.hf.config.vocab_size and not model.hf.training


@pytest.mark.parametrize("build", [twins.build, backup.build, interferer.build, and_or.build])
def test_two_builds_are_equal_and_apart(build: Callable[[], tuple[Any, Any]]) -> None:
    (first, _), (second, _) = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.lm_head.weight.data_ptr() != second.lm_head.weight.data_ptr()
