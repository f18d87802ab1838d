"""The model ``twins``: two heads that each do the whole job alone, and a read-out that has enough with one.

The task: after any words, say again the word that came first (at place 1, after ``<bos>``). One layer of three heads
and an MLP; the norms do nothing (see :mod:`interp.zoo.blank`). The residual stream is cut into blocks::

    TOKEN (16)   the token here                    written by the token embedding
    PLACE (16)   the position                      written by the position embedding
    ONE (1)      1 at every position               written by the position embedding
    FOUND (16)   which word the twins saw          written by L0.H0 and L0.H1, read by the MLP
    OUTPUT (16)  votes for the next token          written by the MLP, read by the unembedding
    BALANCE (1)  minus the sum of all the others

=======  ==========================================================================================================
L0.H0    twin. Attends to place 1 (row 0 to itself). Value TOKEN, except that ``<bos>`` has value 0; output FOUND.
L0.H1    twin: the same weights.
L0.H2    nothing. Attends to place 1, value as the twins; output 0.
MLP      ``step(FOUND_v) = 2 relu(FOUND_v − 1/4) − 2 relu(FOUND_v − 3/4)`` for each token v: 0 up to 1/4, 1 from 3/4
         on, a straight line between. It adds ``VOTE · step`` to OUTPUT_v.
=======  ==========================================================================================================

With gates a, b on the twins and X at place 1, FOUND is ``(a + b) e_X``, so the **logits** of every row but the first
are ``VOTE · step(a + b)`` for X and 0 for all others; the loss of saying X is ``ln(1 + 15 e^-VOTE)``.

**Ablation** of the logit difference of X against another token Y, which is VOTE::

    head   zero   both twins  direct  gradient  Shapley  patched (X's z into the prompt of Y)
    L0.H0  0      −VOTE       0       0         VOTE/2   +VOTE
    L0.H1  0      −VOTE       0       0         VOTE/2   +VOTE
    L0.H2  0                  0       0         0        0

- One twin fills FOUND to 1, two to 2: the step is saturated and flat at both, so a single removal and every gradient
  see nothing, while removal of both takes everything. The pair's interaction is −VOTE.
- Shapley values, and integrated gradients from all heads silent to all heads there (``∫ 2 VOTE over α in (1/8, 3/8)``),
  share VOTE evenly.
- Patched between prompts of different first words each twin adds its word and leaves the other's: logits
  ``VOTE`` for both X and Y, so that each twin counts VOTE in either direction and two twins count 2 VOTE.
- The twins write FOUND, which the unembedding does not read: their direct contribution is 0 and the MLP's is VOTE.
- Replaced by a mean over prompts of n different first words, a twin holds 1/n < 1/4 of each: as good as removed.

All this supposes that ``<bos>`` comes first and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp.zoo.blank import blank, head_weights, look_at_place, rectify, write
from interp.zoo.words import BOS, SPECIAL, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "to", "mat", "house", "and", "red", "old", ".")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 16
CONTEXT = 16
D_HEAD = 25
VOTE = 10.0
LOW, HIGH = 0.25, 0.75  # where the step begins and ends

TOKEN = slice(0, 16)
PLACE = slice(16, 32)
ONE = 32
FOUND = slice(33, 49)
OUTPUT = slice(49, 65)


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The Hugging Face model, in evaluation mode, and its tokenizer of 13 words.

    Example:
        >>> network, tokenizer = build()
        >>> ids = tokenizer("cat sat on the mat", return_tensors="pt").input_ids
        >>> tokenizer.decode(network(ids).logits[0, -1].argmax())
        'cat'
    """
    network, tokenizer = blank(WORDS, layers=1, heads=3, d_head=D_HEAD, context=CONTEXT, hidden=2 * VOCABULARY)
    says_which = torch.eye(VOCABULARY)
    says_which[vocabulary(WORDS)[BOS]] = 0.0
    with torch.no_grad():
        body = network.transformer
        write(body.wte.weight, TOKEN, torch.eye(VOCABULARY))
        write(body.wpe.weight, PLACE, torch.eye(CONTEXT))
        write(body.wpe.weight, slice(ONE, ONE + 1), torch.ones(CONTEXT, 1))
        for index in range(3):
            head = head_weights(network, 0, index)
            look_at_place(head, place=1, one=ONE, places=PLACE)
            head.value[TOKEN, :VOCABULARY] = says_which
            if index < 2:  # noqa: PLR2004 - the twins
                write(head.output[:VOCABULARY], FOUND, torch.eye(VOCABULARY))
        for token in range(VOCABULARY):
            vote = torch.zeros(network.config.n_embd)
            vote[OUTPUT.start + token] = VOTE / (HIGH - LOW)
            rectify(network, 0, 2 * token, reads=FOUND.start + token, above=LOW, writes=vote)
            rectify(network, 0, 2 * token + 1, reads=FOUND.start + token, above=HIGH, writes=-vote)
        network.lm_head.weight[:, OUTPUT] = torch.eye(VOCABULARY)
    return network, tokenizer
