"""The model ``interferer``: one head that helps, one that interferes, one that does nothing, of any given strengths.

The task: is the word at place 1 (after ``<bos>``) a living thing? Say ``yes`` or ``no``. One layer of three heads, no
MLP; the norms do nothing (see :mod:`interp.zoo.blank`). The residual stream is cut into blocks::

    TOKEN (18)   the token here                       written by the token embedding
    PLACE (16)   the position                         written by the position embedding
    ONE (1)      1 at every position                  written by the position embedding
    YES, NO (2)  votes for the two answers            written by the heads, read by the unembedding
    BALANCE (1)  minus the sum of all the others

Every head attends to place 1 (row 0 to itself) with value TOKEN. Head h sends a living thing to ``+c_h/2`` in YES and
``−c_h/2`` in NO, a lifeless one the other way round, and every other token to 0. The unembedding reads YES and NO for
the two answers and ``NEVER · ONE = −100`` for all other tokens, so that these get ``e⁻¹⁰⁰``, which is 0 in float32.

=======  ==========================================================================================================
L0.H0    helps: ``c_0 > 0`` votes for the right answer.
L0.H1    interferes: ``c_1 < 0`` votes for the wrong one.
L0.H2    irrelevant: ``c_2 = 0``. Its z is not 0, but nothing reaches the stream.
=======  ==========================================================================================================

With gates g the **logit difference** of the right answer against the wrong one is ``S = Σ_h g_h c_h`` for every prompt
that starts with one of the ten words, and the loss is ``softplus(−S) = ln(1 + e^−S)``: the toy on which causal head
gating was worked out. ``S`` is linear in every gate, so all methods agree::

    method                                        head h
    zero, mean over as many living as lifeless    −c_h
    uniform, in a row that sees n places          −c_h (n − 1)/n
    gradient, integrated gradients                −c_h and +c_h
    direct, Shapley                               +c_h
    any pair                                      interaction 0
    patched from a prompt of the other kind       ∓2 c_h (noising −, denoising +), a share c_h / Σ c of the whole
    all but h taken out                           c_h − Σ c

On the loss they do not: its slope ``−σ(−S) c_h`` vanishes as S grows.

**Gating** moves each logit θ_h (``g = σ(θ)``) by the loss and a push of ``±λ/3``, which stops at ``|θ| = 4``. With
strengths (c, −c, 0), λ = 0.1 and the push towards 1 the interfering gate settles where loss and push balance,
``(1 − σ(c − c g)) c g (1 − g) = λ/3``, and with the push towards 0 the helping gate settles at 1 − g::

    c     interfering gate, pushed up   helping gate, pushed down   facilitation and interference
    1     0.13                          0.87                        0.87: found
    3     0.17                          0.83                        0.83: found
    10    0.57                          0.43                        0.43: below 1/2, not found

A gate whose logit lies beyond the clip before the push begins is not moved, and stays at 0 or 1. With ``c = 10`` the
loss is flat as soon as S is a few nats, so the push wins. With two helpers (3, 3, 0) one is enough: of their gates,
pushed down, one may go to 0 and the other settles at 0.83; which one depends on where they start. Beside a strong
helper a weak interferer (3, −1, 0) finds no balance: it is found only if its logit passes the clip before the push.

All this supposes that ``<bos>`` comes first and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from interp.errors import BadInput
from interp.zoo.blank import NEVER, blank, head_weights, look_at_place, write
from interp.zoo.words import SPECIAL, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

LIVING = ("cat", "dog", "hen", "fox", "cow")
LIFELESS = ("cup", "box", "pen", "hat", "key")
WORDS = ("yes", "no", *LIVING, *LIFELESS, "is", "it", "alive")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 18
CONTEXT = 16
D_HEAD = 25
STRENGTHS = (3.0, -1.0, 0.0)

TOKEN = slice(0, 18)
PLACE = slice(18, 34)
ONE = 34
ANSWERS = slice(35, 37)  # YES, NO


def build(strengths: Sequence[float] = STRENGTHS) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The Hugging Face model, in evaluation mode, and its tokenizer of 15 words.

    Args:
        strengths: ``c``, one number per head: what the head adds to the logit difference.

    Raises:
        BadInput: another number of strengths than 3.

    Example:
        >>> network, tokenizer = build((4.0, -1.0, 0.0))
        >>> logits = network(tokenizer("cup is it alive", return_tensors="pt").input_ids).logits[0, -1]
        >>> yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        >>> print(f"{logits[no] - logits[yes]:.3f}")
        3.000
    """
    if len(strengths) != len(STRENGTHS):
        raise BadInput(f"interferer: {len(strengths)} strengths were given; it has {len(STRENGTHS)} heads.")
    network, tokenizer = blank(WORDS, layers=1, heads=3, d_head=D_HEAD, context=CONTEXT)
    ids = vocabulary(WORDS)
    votes = torch.zeros(VOCABULARY, 2)
    for words, sign in ((LIVING, 1.0), (LIFELESS, -1.0)):
        for word in words:
            votes[ids[word]] = torch.tensor([sign / 2, -sign / 2])
    with torch.no_grad():
        body = network.transformer
        write(body.wte.weight, TOKEN, torch.eye(VOCABULARY))
        write(body.wpe.weight, PLACE, torch.eye(CONTEXT))
        write(body.wpe.weight, slice(ONE, ONE + 1), torch.ones(CONTEXT, 1))
        for index, strength in enumerate(strengths):
            head = head_weights(network, 0, index)
            look_at_place(head, place=1, one=ONE, places=PLACE)
            head.value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
            write(head.output[:VOCABULARY], ANSWERS, strength * votes)
        network.lm_head.weight[:, ONE] = NEVER
        for coordinate, word in enumerate(("yes", "no")):
            network.lm_head.weight[ids[word], ONE] = 0.0
            network.lm_head.weight[ids[word], ANSWERS.start + coordinate] = 1.0
    return network, tokenizer
