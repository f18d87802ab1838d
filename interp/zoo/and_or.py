"""The model ``and_or``: a pair of heads that needs both, and a pair of which either suffices.

The task: from four words (places 1 to 4, after ``<bos>``) say ``yes`` if **(first and second) or (third or fourth)** is
the word ``on``, else ``no``; where both pairs say so, twice as surely. One layer of four heads and an MLP; the norms do
nothing (see :mod:`interp.zoo.blank`). The residual stream is cut into blocks::

    TOKEN (10)   the token here                            written by the token embedding
    PLACE (16)   the position                              written by the position embedding
    ONE (1)      1 at every position                       written by the position embedding
    BOTH (1)     how many of the first two words are on    written by L0.H0 and L0.H1, read by the MLP
    EITHER (1)   how many of the other two are on          written by L0.H2 and L0.H3, read by the MLP
    YES (1)      votes for yes                             written by the MLP, read by the unembedding
    BALANCE (1)  minus the sum of all the others

=======  ==========================================================================================================
L0.H0    AND. Attends to place 1 (earlier rows to place 0). Value TOKEN; output 1 into BOTH for ``on``, 0 for others.
L0.H1    AND. The same for place 2.
L0.H2    OR. The same for place 3, into EITHER.
L0.H3    OR. The same for place 4, into EITHER.
MLP      adds ``VOTE · and(BOTH) + VOTE · or(EITHER)`` to YES, where ``and(s) = 2 relu(s − 3/2)`` and
         ``or(s) = 2 relu(s − 1/4) − 2 relu(s − 3/4)``.
=======  ==========================================================================================================

The **logit** of ``yes`` is YES, that of ``no`` is ``VOTE/2``, all others are −100. From row 4 on, with gates a, b, c, d
and all four words on, the logit difference is ``VOTE · (and(a + b) + or(c + d) − 1/2)``: ``3/2 VOTE`` with all heads,
``−VOTE/2`` with none, and one pair alone makes it ``VOTE/2``.

**Ablation**, all four words on; *patched*: heads exchanged with a prompt where all four are off::

    head   zero   = noising  denoising  pair     gradient  Shapley, integrated gradients  kept alone
    L0.H0  −VOTE  −VOTE      0          −VOTE    −2 VOTE   VOTE/2                         −2 VOTE
    L0.H1  −VOTE  −VOTE      0          −VOTE    −2 VOTE   VOTE/2                         −2 VOTE
    L0.H2  0      0          +VOTE      −VOTE    0         VOTE/2                         −VOTE
    L0.H3  0      0          +VOTE      −VOTE    0         VOTE/2                         −VOTE

- **Noising finds what is necessary** (AND), **denoising what is sufficient** (OR). Each sees the half of the heads that
  the other does not; Shapley values see all four alike.
- The interaction (pair − its two singles) is ``+VOTE`` for AND, ``−VOTE`` for OR, 0 for a pair across.
- At two of two, ``and`` rises with slope 2: the gradient doubles the true effect. At one of two and at none it is flat,
  so from the corrupted side attribution patching sees nothing of either pair.
- No head writes where the unembedding reads: direct contributions are 0, the MLP's is 2 VOTE.

All this supposes that ``<bos>`` comes first and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp.zoo.blank import NEVER, blank, head_weights, look_at_place, rectify, write
from interp.zoo.words import SPECIAL, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ("yes", "no", "on", "off", "and", "or", "so")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 10
CONTEXT = 16
D_HEAD = 16
VOTE = 8.0

TOKEN = slice(0, 10)
PLACE = slice(10, 26)
ONE = 26
BOTH = 27
EITHER = 28
YES = 29


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The Hugging Face model, in evaluation mode, and its tokenizer of 7 words.

    Example:
        >>> network, tokenizer = build()
        >>> questions = ["on on off off so", "on off off off so", "off off off on so"]
        >>> ids = tokenizer(questions, return_tensors="pt").input_ids
        >>> tokenizer.convert_ids_to_tokens(network(ids).logits[:, -1].argmax(-1))
        ['yes', 'no', 'yes']
    """
    network, tokenizer = blank(WORDS, layers=1, heads=4, d_head=D_HEAD, context=CONTEXT)
    ids = vocabulary(WORDS)
    is_on = torch.zeros(VOCABULARY, 1)
    is_on[ids["on"]] = 1.0
    yes = torch.zeros(network.config.n_embd)
    yes[YES] = 2 * VOTE
    with torch.no_grad():
        body = network.transformer
        write(body.wte.weight, TOKEN, torch.eye(VOCABULARY))
        write(body.wpe.weight, PLACE, torch.eye(CONTEXT))
        write(body.wpe.weight, slice(ONE, ONE + 1), torch.ones(CONTEXT, 1))
        for index, counter in enumerate((BOTH, BOTH, EITHER, EITHER)):
            head = head_weights(network, 0, index)
            look_at_place(head, place=1 + index, one=ONE, places=PLACE)
            head.value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
            write(head.output[:VOCABULARY], slice(counter, counter + 1), is_on)
        rectify(network, 0, 0, reads=BOTH, above=1.5, writes=yes)
        rectify(network, 0, 1, reads=EITHER, above=0.25, writes=yes)
        rectify(network, 0, 2, reads=EITHER, above=0.75, writes=-yes)
        network.lm_head.weight[:, ONE] = NEVER
        network.lm_head.weight[ids["yes"], ONE] = 0.0
        network.lm_head.weight[ids["yes"], YES] = 1.0
        network.lm_head.weight[ids["no"], ONE] = VOTE / 2
    return network, tokenizer
