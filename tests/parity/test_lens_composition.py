"""Composition scores against transformer-lens' all_composition_scores, of the same weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY, VOCAB

import interp

_LEVEL = logging.getLogger("transformers").level  # importing transformer-lens raises it for the whole process
transformer_lens = pytest.importorskip("transformer_lens", reason="transformer-lens is not installed (extra: interop)")
logging.getLogger("transformers").setLevel(_LEVEL)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that lies in a folder: booting a bridge loads it anew by its path."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    folder = Path(tmp_path_factory.mktemp("tokenizer"))
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen2"])
def test_all_composition_scores(family: str, tokenizer: Any) -> None:
    tiny = TINY[family]()
    ours = interp.composition(interp.load(tiny.hf), fold="none")
    tiny.hf.config.architectures = [type(tiny.hf).__name__]
    bridge = transformer_lens.TransformerBridge.boot_transformers("tiny", hf_model=tiny.hf, tokenizer=tokenizer)
    for kind in "qkv":
        theirs = bridge.all_composition_scores(kind.upper()).scores.detach().numpy()
        found = ours.of(kind)
        earlier = np.isfinite(found)
        assert earlier.sum() == 16 and (theirs[~earlier] == 0).all()
        np.testing.assert_allclose(found[earlier], theirs[earlier], rtol=2e-5)
        assert torch.from_numpy(found[earlier]).max() < 1
