"""Tokenizers trained on a few sentences, for tests of encoding without any download."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The Eiffel Tower is in the city of Paris.",
    "Mary had a little lamb and John had a big dog.",
    "unbelievable things are believable when they are seen.",
)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]


@cache
def words(*, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """One token per word or mark; with a BOS in front or an EOS behind by itself on request."""
    vocabulary = sorted({word for line in SENTENCES for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(line)})
    ids = {token: index for index, token in enumerate([*SPECIAL, *vocabulary])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos or eos:
        template = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return _wrapped(raw)


@cache
def pieces() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose tokens carry the space in front of a word; merges stay inside short pieces."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(SENTENCES * 4, trainer)
    return _wrapped(raw)


@cache
def chatty() -> PreTrainedTokenizerFast:
    """The word tokenizer with a chat template."""
    made = words.__wrapped__()
    made.chat_template = (
        "{% for message in messages %}<s>{{ message['role'] }} {{ message['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>{% endif %}"
    )
    return made


def _wrapped(raw: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
