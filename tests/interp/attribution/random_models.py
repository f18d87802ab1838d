"""Models of random weights with random prompts and answers: nothing in them matters, whatever a method says."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import interp
from interp import Batch, Model

VOCABULARY = 64
Family = Literal["gpt2", "llama"]
Answers = Literal["fixed", "redrawn", "swapped", "clustered"]


def random_model(seed: int, family: Family) -> Model:
    """Four layers of four heads, weights wide enough that every head moves the logits."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.3, "vocab_size": VOCABULARY}
    if family == "gpt2":
        return interp.load(
            GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=32, n_head=4, n_positions=16, **ids)).eval(), check=False
        )
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=16, **ids,
    )  # fmt: skip
    return interp.load(LlamaForCausalLM(config).eval(), check=False)


def random_batch(model: Model, seed: int, answers: Answers, *, prompts: int = 24) -> tuple[Batch, list[int] | None]:
    """Random prompts and answers that know nothing of them, with cluster labels where answers are drawn per cluster.

    ``fixed`` one pair for all prompts, ``redrawn`` a pair for each, ``swapped`` one pair in either order, ``clustered``
    a pair for each group of four prompts that differ in one token.
    """
    generator = np.random.default_rng([seed, 1])

    def pair() -> tuple[int, int]:
        first, second = generator.choice(np.arange(1, VOCABULARY), 2, replace=False).tolist()
        return first, second

    ids = generator.integers(1, VOCABULARY, (prompts, 8))
    cluster = None
    if answers == "fixed":
        given = [pair()] * prompts
    elif answers == "swapped":
        one = pair()
        given = [one if generator.random() < 0.5 else one[::-1] for _ in range(prompts)]
    elif answers == "clustered":
        cluster = [place // 4 for place in range(prompts)]
        pairs = [pair() for _ in range(prompts // 4)]
        given = [pairs[label] for label in cluster]
        ids[:, 1:] = ids[[4 * label for label in cluster], 1:]
    else:
        given = [pair() for _ in range(prompts)]
    return interp.encode(model, torch.tensor(ids), answers=given), cluster
