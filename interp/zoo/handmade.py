"""The model ``handmade``: two layers of two heads whose weights are worked out on paper, not trained.

The residual stream is cut into named blocks of one-hot coordinates::

    TOKEN (16)     the token here                 written by the token embedding
    PLACE (32)     the position                   written by the position embedding
    PREVIOUS (16)  the token one place to the left  written by L0.H0
    SEEN (16)      the token that L0.H1 looked at   written by L0.H1, read by nobody
    OUTPUT (16)    votes for the next token         written by L1.H0, read by the unembedding
    BALANCE (1)    minus the sum of all the others

The norms do nothing (see :mod:`interp.zoo.blank`), the MLPs and all biases are 0.

**Heads.** Scores are ``STRONG = 60``, ``WEAK = 30`` and 0, so every pattern below is exact to float32 rounding.

=======  ==========================================================================================================
L0.H0    previous token. Query: PLACE i asks for place i − 1 (STRONG). Key: PLACE. Row i ≥ 1 attends to i − 1, row 0
         to itself. Value TOKEN, output PREVIOUS.
L0.H1    duplicate token. Same TOKEN scores STRONG, the same PLACE loses WEAK: earlier copies score 60, itself 30,
         others 0. A row with k earlier copies of its token gives each of them 1/k, any other row attends to itself.
         Value TOKEN, output SEEN. High duplicate-token score, no effect on any logit.
L1.H0    induction. Query TOKEN against key PREVIOUS scores STRONG; place 0 scores WEAK for every query. A row whose
         token occurred k times before attends 1/k to each token that followed; any other row rests on place 0. Value
         TOKEN, except that ``<bos>`` has value 0; output VOTE × OUTPUT.
L1.H1    nothing. Query and key 0: row i attends 1/(i + 1) to each of its keys. Value TOKEN, output 0: z is not zero
         but nothing reaches the stream.
=======  ==========================================================================================================

**Logits** are the OUTPUT block: 0 for all 16 tokens where nothing repeats (loss ``ln 16 = 2.7726``), else ``VOTE/k``
for each token that followed one of the k earlier copies. With one copy the loss is ``ln(1 + 15 e^-VOTE) = 6.8e-4``.

**Ablation.** Zero L0.H0: PREVIOUS is empty, L1.H0 rests on place 0, all logits are 0. Zero L1.H0: all logits are 0.
Zero L0.H1 or L1.H1: nothing changes. The one path that matters is ``TOKEN → L0.H0 → key of L1.H0 → OUTPUT``.

All this supposes that ``<bos>`` comes first and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp.zoo.blank import BALANCE as BALANCE
from interp.zoo.blank import STRONG, WEAK, HeadWeights, blank, entry, head_weights, write
from interp.zoo.words import BOS, SPECIAL, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "to", "mat", "house", "and", "red", "old", ".")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 16
CONTEXT = 32
D_HEAD = 49
VOTE = 10.0

TOKEN = slice(0, 16)
PLACE = slice(16, 48)
PREVIOUS = slice(48, 64)
SEEN = slice(64, 80)
OUTPUT = slice(80, 96)  # coordinate 96 stays empty


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The Hugging Face model, in evaluation mode, and its tokenizer of 13 words.

    Example:
        >>> network, tokenizer = build()
        >>> ids = tokenizer("the cat sat on the", return_tensors="pt").input_ids
        >>> tokenizer.decode(network(ids).logits[0, -1].argmax())
        'cat'
    """
    network, tokenizer = blank(WORDS, layers=2, heads=2, d_head=D_HEAD, context=CONTEXT)
    with torch.no_grad():
        body = network.transformer
        write(body.wte.weight, TOKEN, torch.eye(VOCABULARY))
        write(body.wpe.weight, PLACE, torch.eye(CONTEXT))
        _previous_token(head_weights(network, 0, 0))
        _duplicate_token(head_weights(network, 0, 1))
        _induction(head_weights(network, 1, 0))
        _nothing(head_weights(network, 1, 1))
        network.lm_head.weight[:, OUTPUT] = torch.eye(VOCABULARY)
    return network, tokenizer


def _previous_token(head: HeadWeights) -> None:
    query, key, value, output = head
    asks_for = torch.diag(torch.ones(CONTEXT - 1), -1)  # place i -> place i - 1
    query[PLACE, :CONTEXT] = entry(STRONG, D_HEAD) * asks_for
    key[PLACE, :CONTEXT] = torch.eye(CONTEXT)
    value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    write(output[:VOCABULARY], PREVIOUS, torch.eye(VOCABULARY))


def _duplicate_token(head: HeadWeights) -> None:
    query, key, value, output = head
    places = slice(VOCABULARY, VOCABULARY + CONTEXT)
    query[TOKEN, :VOCABULARY] = entry(STRONG, D_HEAD) * torch.eye(VOCABULARY)
    key[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    query[PLACE, places] = -entry(WEAK, D_HEAD) * torch.eye(CONTEXT)
    key[PLACE, places] = torch.eye(CONTEXT)
    value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    write(output[:VOCABULARY], SEEN, torch.eye(VOCABULARY))


def _induction(head: HeadWeights) -> None:
    query, key, value, output = head
    query[TOKEN, :VOCABULARY] = entry(STRONG, D_HEAD) * torch.eye(VOCABULARY)
    key[PREVIOUS, :VOCABULARY] = torch.eye(VOCABULARY)
    query[TOKEN, VOCABULARY] = entry(WEAK, D_HEAD)  # whatever the token, place 0 is where to rest
    key[PLACE.start, VOCABULARY] = 1.0
    value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    value[TOKEN.start + vocabulary(WORDS)[BOS]] = 0.0
    write(output[:VOCABULARY], OUTPUT, VOTE * torch.eye(VOCABULARY))


def _nothing(head: HeadWeights) -> None:
    head.value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
