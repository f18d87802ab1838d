"""The model ``handmade``: two layers of two heads whose weights are worked out on paper, not trained.

The residual stream is cut into named blocks of one-hot coordinates::

    TOKEN (16)     the token here                 written by the token embedding
    PLACE (32)     the position                   written by the position embedding
    PREVIOUS (16)  the token one place to the left  written by L0.H0
    SEEN (16)      the token that L0.H1 looked at   written by L0.H1, read by nobody
    OUTPUT (16)    votes for the next token         written by L1.H0, read by the unembedding
    BALANCE (1)    minus the sum of all the others

**LayerNorm does nothing.** BALANCE keeps the mean of the stream at 0; with ``eps = 1e8`` and gain ``1e4`` the norm is
``x · 1e4 / sqrt(var + 1e8)``, which is ``x`` up to ``var / 2e8``. The MLPs and all biases are 0.

**Heads.** A score is ``q·k / sqrt(d_head)`` and ``d_head = 49``, so a query entry of ``7 s`` against a key entry of 1
scores ``s``. With ``s = STRONG = 60`` and ``s = WEAK = 30``, a key that is behind by 30 gets ``e⁻³⁰ < 1e-13`` of the
attention of the one ahead, so every pattern below is exact to float32 rounding.

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

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.zoo.words import BOS, PAD, SPECIAL, build_tokenizer, vocabulary

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "to", "mat", "house", "and", "red", "old", ".")
VOCABULARY = len(SPECIAL) + len(WORDS)  # 16
CONTEXT = 32
D_HEAD = 49
D_MODEL = 2 * D_HEAD
STRONG, WEAK, VOTE = 60.0, 30.0, 10.0

TOKEN = slice(0, 16)
PLACE = slice(16, 48)
PREVIOUS = slice(48, 64)
SEEN = slice(64, 80)
OUTPUT = slice(80, 96)
BALANCE = 96  # coordinate 97 stays empty: the width must be even


def build() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The Hugging Face model, in evaluation mode, and its tokenizer of 13 words.

    Example:
        >>> network, tokenizer = build()
        >>> ids = tokenizer("the cat sat on the", return_tensors="pt").input_ids
        >>> tokenizer.decode(network(ids).logits[0, -1].argmax())
        'cat'
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = vocabulary(WORDS)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=D_MODEL,
        n_layer=2,
        n_head=2,
        n_inner=4,
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
        body = network.transformer
        _write(body.wte.weight, TOKEN, torch.eye(VOCABULARY))
        _write(body.wpe.weight, PLACE, torch.eye(CONTEXT))
        _previous_token(body.h[0].attn, head=0)
        _duplicate_token(body.h[0].attn, head=1)
        _induction(body.h[1].attn, head=0)
        _nothing(body.h[1].attn, head=1)
        network.lm_head.weight[:, OUTPUT] = torch.eye(VOCABULARY)
    return network.eval(), build_tokenizer(WORDS, context=CONTEXT)


def _previous_token(attention: Any, head: int) -> None:
    query, key, value, output = _parts(attention, head)
    asks_for = torch.diag(torch.ones(CONTEXT - 1), -1)  # place i -> place i - 1
    query[PLACE, :CONTEXT] = _entry(STRONG) * asks_for
    key[PLACE, :CONTEXT] = torch.eye(CONTEXT)
    value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    _write(output[:VOCABULARY], PREVIOUS, torch.eye(VOCABULARY))


def _duplicate_token(attention: Any, head: int) -> None:
    query, key, value, output = _parts(attention, head)
    places = slice(VOCABULARY, VOCABULARY + CONTEXT)
    query[TOKEN, :VOCABULARY] = _entry(STRONG) * torch.eye(VOCABULARY)
    key[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    query[PLACE, places] = -_entry(WEAK) * torch.eye(CONTEXT)
    key[PLACE, places] = torch.eye(CONTEXT)
    value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    _write(output[:VOCABULARY], SEEN, torch.eye(VOCABULARY))


def _induction(attention: Any, head: int) -> None:
    query, key, value, output = _parts(attention, head)
    query[TOKEN, :VOCABULARY] = _entry(STRONG) * torch.eye(VOCABULARY)
    key[PREVIOUS, :VOCABULARY] = torch.eye(VOCABULARY)
    query[TOKEN, VOCABULARY] = _entry(WEAK)  # whatever the token, place 0 is where to rest
    key[PLACE.start, VOCABULARY] = 1.0
    value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
    value[TOKEN.start + vocabulary(WORDS)[BOS]] = 0.0
    _write(output[:VOCABULARY], OUTPUT, VOTE * torch.eye(VOCABULARY))


def _nothing(attention: Any, head: int) -> None:
    _, _, value, _ = _parts(attention, head)
    value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)


def _parts(attention: Any, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of a head's query, key, value weights ``[d_model, d_head]`` and output weights ``[d_head, d_model]``."""
    fused: Tensor = attention.c_attn.weight
    starts = [part * D_MODEL + head * D_HEAD for part in range(3)]
    query, key, value = (fused[:, start : start + D_HEAD] for start in starts)
    output: Tensor = attention.c_proj.weight[head * D_HEAD : (head + 1) * D_HEAD]
    return query, key, value, output


def _write(weight: Tensor, block: slice, rows: Tensor) -> None:
    weight[:, block] = rows
    weight[:, BALANCE] = -rows.sum(dim=1)


def _entry(score: float) -> float:
    return score * D_HEAD**0.5
