"""The kinds of prompts that experiments are run on; data, importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TASKS: Mapping[str, str] = MappingProxyType(
    {
        "repeated-random-tokens": "BOS and S distinct random tokens, then the same S again: only copying can help",
        "copying-pairs": "random tokens said twice but for the last, and the same end after other tokens",
        "formats": "the same random tokens said once, twice, or twice with others between",
        "haystack": "facts hidden at several depths of long texts, and asked for at the end",
        "natural-text": "sentences from the config, each said twice, in the words that the tokenizer knows",
    }
)
