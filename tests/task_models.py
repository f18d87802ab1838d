"""Tokenizers trained on a task's own texts, and tiny models that take them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
from circuits.tasks import Task

SPECIAL = ["<pad>", "<s>", "<unk>"]


def texts_of(task: Task) -> list[str]:
    """Prompts with each of their answers."""
    return [str(text) + str(a) for i in task for text in (i.clean, i.corrupted, i.baseline) if text for a in
            (*i.right, *i.wrong)]  # fmt: skip


def words(task: Task, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per word, split at spaces alone, as the zoo's tokenizers do."""
    known = sorted({word for text in texts_of(task) for word in text.split()})
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *known])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(raw)


def pieces(task: Task, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts: the larger, the fewer words are split."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts_of(task), trainer)
    return _wrapped(raw)


def model_of(tokenizer: Any, *, context: int = 200) -> interp.Model:
    """A tiny untrained GPT-2 with this tokenizer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    return interp.load(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer, check=False)


def _wrapped(raw: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")
