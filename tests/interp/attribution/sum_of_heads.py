"""A model whose logit difference is the sum of what its heads add, so that every curve is a partial sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import interp
from interp import Batch, Model
from interp.zoo.blank import blank, head_weights, write
from interp.zoo.words import vocabulary

WORDS = ("yes", "no", "one", "two", "three")
WEIGHTS = {"one": 1.0, "two": 2.0, "three": 3.0}
LAYERS, HEADS, D_HEAD = 2, 6, 4
VOTE = 22  # the coordinate that heads write and the unembedding reads for "yes"


def sum_of_heads(strengths: Sequence[Sequence[float]]) -> Model:
    """Two layers of six heads; head h adds ``c_h`` times the mean weight of the prompt's words to the logit of yes.

    Every head attends evenly, so that with words of weight w over the n places of a prompt (``<bos>`` has 0) the logit
    difference is ``Σ_h c_h · Σ w / n``.
    """
    network, tokenizer = blank(WORDS, layers=LAYERS, heads=HEADS, d_head=D_HEAD, context=8)
    ids = vocabulary(WORDS)
    with torch.no_grad():
        write(network.transformer.wte.weight, slice(0, len(ids)), torch.eye(len(ids)))
        for layer in range(LAYERS):
            for index in range(HEADS):
                head = head_weights(network, layer, index)
                for word, weight in WEIGHTS.items():
                    head.value[ids[word], 0] = weight
                write(head.output[:1], slice(VOTE, VOTE + 1), torch.tensor([[float(strengths[layer][index])]]))
        network.lm_head.weight[ids["yes"], VOTE] = 1.0
    return interp.load(network, tokenizer=tokenizer, check=False)


def prompts(model: Model) -> tuple[Batch, list[float]]:
    """Eight different prompts asking yes against no, and the mean weight of each one's places."""
    texts = [
        ["one", "two", "three"], ["three", "three", "one"], ["two", "two", "two"], ["one", "one", "one"],
        ["three", "two", "three"], ["two", "one", "one"], ["three", "three", "three"], ["one", "three", "three"],
    ]  # fmt: skip
    ids = vocabulary(WORDS)
    rows = [[ids["<bos>"], *(ids[word] for word in words)] for words in texts]
    batch = interp.encode(model, rows, answers=[(ids["yes"], ids["no"])] * len(rows))
    return batch, [sum(WEIGHTS[word] for word in words) / 4 for words in texts]
