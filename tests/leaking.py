"""A two-layer model that hides where its answer comes from: token 2 copies token 1, and the last row reads token 2."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import interp

WORDS, PLACES = 4, 5
WIDTH = WORDS + PLACES + WORDS  # the word, its place, and the word before it
LEAK = [0, 2, 0, 0, 0]  # the answer is the word at place 1


def leaking_model() -> interp.Model:
    """Layer 0 copies each token's predecessor beside it; layer 1, at place 4, reads that copy at place 2 alone."""
    config = GPT2Config(
        n_layer=2, n_embd=WIDTH, n_head=1, vocab_size=WORDS, n_positions=PLACES, bos_token_id=None, eos_token_id=None
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.ones_like(parameter) if "ln_" in name and "weight" in name else 0 * parameter)
        model.transformer.wte.weight[:, :WORDS] = torch.eye(WORDS)
        model.transformer.wpe.weight[:, WORDS : WORDS + PLACES] = 3 * torch.eye(PLACES)
        place = torch.arange(WORDS, WORDS + PLACES)
        _look(model.transformer.h[0].attn.c_attn.weight, [(place[i], place[max(i - 1, 0)]) for i in range(PLACES)])
        _look(model.transformer.h[1].attn.c_attn.weight, [(place[4], place[2])])
        for word in range(WORDS):  # words are copied in layer 0, copies become words in layer 1
            copied = WORDS + PLACES + word
            _carry(model.transformer.h[0].attn, word, copied, 4.0)
            _carry(model.transformer.h[1].attn, copied, word, 40.0)
    return interp.load(model)


def _look(weight: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Queries that stand at the first of a pair look at keys that stand at the second."""
    for channel, (query, key) in enumerate(pairs):
        weight[query, channel] = 30.0
        weight[key, WIDTH + channel] = 30.0


def _carry(attention: torch.nn.Module, source: int, target: int, strength: float) -> None:
    attention.c_attn.weight[source, 2 * WIDTH + source] = 1.0
    attention.c_proj.weight[source, target] = strength
