"""The model ``backup``: a head that does the job, and another that does it only when the first is silent.

The task is that of ``twins``: say again the word at place 1. Two layers of two heads, no MLP; the norms do nothing
(see :mod:`interp.zoo.blank`). The residual stream is cut into blocks::

    TOKEN (16)   the token here                    written by the token embedding
    PLACE (16)   the position                      written by the position embedding
    ONE (1)      1 at every position               written by the position embedding
    DONE (1)     how much L0.H0 has said           written by L0.H0, read by the query of L1.H0
    OUTPUT (16)  votes for the next token          written by L0.H0 and L1.H0, read by the unembedding
    BALANCE (1)  minus the sum of all the others

=======  ==========================================================================================================
L0.H0    primary. Attends to place 1 (row 0 to itself). Value TOKEN, and 1 for any token, except that ``<bos>`` has
         value 0; output VOTE × OUTPUT, and the 1 into DONE.
L0.H1    nothing. Attends to place 1, value TOKEN, output 0.
L1.H0    backup. Place 1 scores WEAK = 30, place 0 scores STRONG × DONE = 60 DONE. Rests on place 0 when the primary has
         spoken, attends to place 1 when it has not. Value TOKEN, except that ``<bos>`` has value 0; output
         VOTE × OUTPUT.
L1.H1    nothing, as L0.H1.
=======  ==========================================================================================================

With gates a on the primary and b on the backup and X at place 1, the **logits** are ``VOTE · (a + b · p(a))`` for X and
0 for all others, where ``p(a) = e^30 / (e^30 + e^(60 a) + n − 2)`` is the backup's attention to place 1 in a row that
sees n places: 1 for a = 0, 1/2 for a = 1/2, 0 for a = 1, with an error below 1e-12 at both ends.

**Ablation** of the logit difference of X against another token Y, which is VOTE::

    head   zero   zero, others frozen  both   direct  gradient  Shapley  patched (X's z into Y's prompt)
    L0.H0  0      −VOTE                −VOTE  VOTE    −VOTE     VOTE/2   +2 VOTE
    L1.H0  0      0                    −VOTE  0       0         VOTE/2   0
    L*.H1  0      0                           0       0         0        0

- **Self-repair**: removed, the primary is replaced by the backup within the same forward, so its effect is 0 although
  it makes the whole logit. With the other heads (or only the patterns) frozen at the unedited run the repair is
  switched off and the effect is −VOTE, which is also what the direct contribution and the gradient say: at a = 1 the
  softmax of L1.H0 is saturated, so the gradient does not see the backup either.
- Zeroing the backup costs nothing because it is silent. The pair's interaction is −VOTE.
- Shapley values and integrated gradients from all heads silent to all there share VOTE evenly:
  ``VOTE ∫ p dα = VOTE/2`` for the backup; the primary's other half sits in the narrow peak of ``α p'(α)`` at 1/2.
- **Mean against zero**: replaced by its mean over prompts of other first words the primary still writes DONE = 1, so
  nobody steps in and all of VOTE is lost, where zero says that nothing is.

All this supposes that ``<bos>`` comes first and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp.zoo.blank import STRONG, WEAK, blank, entry, head_weights, look_at_place, write
from interp.zoo.words import BOS, SPECIAL, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "to", "mat", "house", "and", "red", "old", ".")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 16
CONTEXT = 16
D_HEAD = 36
VOTE = 10.0

TOKEN = slice(0, 16)
PLACE = slice(16, 32)
ONE = 32
DONE = 33
OUTPUT = slice(34, 50)


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The Hugging Face model, in evaluation mode, and its tokenizer of 13 words.

    Example:
        >>> network, tokenizer = build()
        >>> ids = tokenizer("cat sat on the mat", return_tensors="pt").input_ids
        >>> tokenizer.decode(network(ids).logits[0, -1].argmax())
        'cat'
    """
    network, tokenizer = blank(WORDS, layers=2, heads=2, d_head=D_HEAD, context=CONTEXT)
    says_which = torch.eye(VOCABULARY)
    says_which[vocabulary(WORDS)[BOS]] = 0.0
    with torch.no_grad():
        body = network.transformer
        write(body.wte.weight, TOKEN, torch.eye(VOCABULARY))
        write(body.wpe.weight, PLACE, torch.eye(CONTEXT))
        write(body.wpe.weight, slice(ONE, ONE + 1), torch.ones(CONTEXT, 1))
        for layer in range(2):
            for index in range(2):
                head_weights(network, layer, index).value[TOKEN, :VOCABULARY] = says_which
        primary = head_weights(network, 0, 0)
        primary.value[TOKEN, VOCABULARY] = says_which.sum(dim=1)
        write(primary.output[:VOCABULARY], OUTPUT, VOTE * torch.eye(VOCABULARY))
        write(primary.output[VOCABULARY : VOCABULARY + 1], slice(DONE, DONE + 1), torch.ones(1, 1))
        for head in (primary, head_weights(network, 0, 1), head_weights(network, 1, 1)):
            look_at_place(head, place=1, one=ONE, places=PLACE)
        backup = head_weights(network, 1, 0)
        backup.query[ONE, 0] = entry(WEAK, D_HEAD)
        backup.key[PLACE.start + 1, 0] = 1.0
        backup.query[DONE, 1] = entry(STRONG, D_HEAD)
        backup.key[PLACE.start, 1] = 1.0
        write(backup.output[:VOCABULARY], OUTPUT, VOTE * torch.eye(VOCABULARY))
        network.lm_head.weight[:, OUTPUT] = torch.eye(VOCABULARY)
    return network, tokenizer
