"""The paper that hand-built models are written on: a GPT-2 whose weights are all 0 and whose norms do nothing.

**LayerNorm does nothing.** With ``eps = 1e8`` and gain ``1e4`` the norm of a stream of mean 0 is
``x · 1e4 / sqrt(var + 1e8)``, which is ``x`` up to ``var / 2e8``. The last coordinate of the stream, BALANCE, keeps the
mean at 0: :func:`write` puts minus the sum of everything else there.

**Scores.** A score is ``q·k / sqrt(d_head)``, so a query entry of ``s sqrt(d_head)`` against a key entry of 1 scores
``s``; ``d_head`` is a square number, so that this is exact. A key that is behind by 30 gets ``e⁻³⁰ < 1e-13`` of the
attention of the one ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.zoo.words import BOS, PAD, build_tokenizer, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

STRONG, WEAK = 60.0, 30.0
BALANCE = -1
NEVER = -100.0  # a logit that leaves a token e⁻¹⁰⁰ of the probability, 0 in float32


class HeadWeights(NamedTuple):
    """Views of one head's weights: query, key and value ``[d_model, d_head]``, output ``[d_head, d_model]``."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


def blank(
    words: Sequence[str], *, layers: int, heads: int, d_head: int, context: int, hidden: int = 4
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A GPT-2 in evaluation mode with zero weights and linear norms, and its tokenizer; ReLU in the MLPs.

    Args:
        words: the ordinary words of the vocabulary; ``<bos> <pad> <unk>`` come before them.
        layers: number of blocks.
        heads: heads of each block.
        d_head: width of a head; the stream is ``heads * d_head`` wide.
        context: number of positions.
        hidden: units of each MLP.

    Example:
        >>> network, tokenizer = blank(["yes", "no"], layers=1, heads=2, d_head=4, context=8)
        >>> network(tokenizer("yes", return_tensors="pt").input_ids).logits.abs().max().item()
        0.0
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = vocabulary(words)
    config = GPT2Config(
        vocab_size=len(ids),
        n_positions=context,
        n_embd=heads * d_head,
        n_layer=layers,
        n_head=heads,
        n_inner=hidden,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        layer_norm_epsilon=1e8,
        tie_word_embeddings=False,
        bos_token_id=ids[BOS],
        eos_token_id=ids[BOS],
        pad_token_id=ids[PAD],
    )
    network = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_gain = name.split(".")[-2].startswith("ln_") and name.endswith("weight")
            parameter.fill_(1e4 if is_gain else 0.0)
    return network.eval(), build_tokenizer(words, context=context)


def head_weights(network: GPT2LMHeadModel, layer: int, head: int) -> HeadWeights:
    """The weights of one head, as views that can be written to."""
    attention: Any = network.transformer.h[layer].attn
    width = network.config.n_embd // network.config.n_head
    starts = [part * network.config.n_embd + head * width for part in range(3)]
    query, key, value = (attention.c_attn.weight[:, start : start + width] for start in starts)
    return HeadWeights(query, key, value, attention.c_proj.weight[head * width : (head + 1) * width])


def write(weight: Tensor, block: slice, rows: Tensor) -> None:
    """Puts ``rows`` ``[row, coordinate]`` into a block of the stream, and minus their sums into BALANCE."""
    weight[:, block] = rows
    weight[:, BALANCE] -= rows.sum(dim=1)


def entry(score: float, d_head: int) -> float:
    """The query entry that scores ``score`` against a key entry of 1."""
    return score * d_head**0.5


def look_at_place(head: HeadWeights, *, place: int, one: int, places: slice) -> None:
    """Makes every row attend to ``place``; rows before it rest on place 0.

    The place scores STRONG, place 0 scores WEAK, all others 0.

    Args:
        head: the weights to write.
        place: the position to attend to.
        one: the coordinate of the stream that is 1 at every position.
        places: the block with the position, one-hot.
    """
    d_head = head.query.shape[1]
    head.query[one, 0] = entry(STRONG, d_head)
    head.key[places.start, 0] = WEAK / STRONG
    head.key[places.start + place, 0] = 1.0


def rectify(network: GPT2LMHeadModel, layer: int, unit: int, *, reads: int, above: float, writes: Tensor) -> None:
    """Makes a unit of the MLP add ``relu(stream[reads] - above) · writes`` to the stream (BALANCE follows).

    Args:
        network: the model.
        layer: whose MLP.
        unit: which hidden unit.
        reads: the coordinate that it reads.
        above: the threshold.
        writes: ``[d_model]``, 0 at BALANCE.
    """
    mlp: Any = network.transformer.h[layer].mlp
    mlp.c_fc.weight[reads, unit] = 1.0
    mlp.c_fc.bias[unit] = -above
    mlp.c_proj.weight[unit] = writes
    mlp.c_proj.weight[unit, BALANCE] = -writes.sum()
