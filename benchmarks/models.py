"""The models that are measured: built from a config with random weights, nothing is downloaded."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor


def gpt2_124m(quick: bool = False) -> hf.GPT2LMHeadModel:
    """GPT-2 small's shape: 12 layers, 12 heads, d_model 768, vocabulary 50257 (``quick``: 2 layers of 64)."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 500}
    config = hf.GPT2Config(**(small if quick else {}))
    config.architectures = ["GPT2LMHeadModel"]
    return hf.GPT2LMHeadModel(config).eval()


def llama_6x512(quick: bool = False) -> hf.LlamaForCausalLM:
    """Llama's shape in 6 layers of 8 heads, d_model 512, MLP 1376, vocabulary 1000 (``quick``: 2 layers of 64)."""
    torch.manual_seed(0)
    n_layers, width = (2, 64) if quick else (6, 512)
    config = hf.LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=43 * width // 16,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=32768,
    )
    config.architectures = ["LlamaForCausalLM"]
    return hf.LlamaForCausalLM(config).eval()


def random_ids(model: hf.PreTrainedModel, batch: int, length: int) -> Tensor:
    """Random token ids ``[batch, length]``, the same at every call."""
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def tokenizer_in(folder: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of three words saved in ``folder``: a bridge loads its tokenizer anew from the place it came from."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )
    made.save_pretrained(folder)
    return hf.PreTrainedTokenizerFast.from_pretrained(folder)


def bridge_of(model: hf.PreTrainedModel) -> Any:
    """transformer-lens's bridge around ``model``, which it changes: give it one of its own."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        return TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer_in(folder))
