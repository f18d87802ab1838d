"""The kinds of prompts that experiments are run on: their names as data, and generators of items without any model.

``TASKS`` and ``FAMILIES`` are data, importable without torch; making items needs no torch either.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from circuits.tasks.families import FAMILIES as FAMILIES
from circuits.tasks.family import TaskFamily as TaskFamily
from circuits.tasks.item import Item as Item
from circuits.tasks.make import make_task as make_task
from circuits.tasks.task import Task as Task

# made by experiments themselves, for one model's tokenizer
PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "repeated-random-tokens": "BOS and S distinct random tokens, then the same S again: only copying can help",
        "copying-pairs": "random tokens said twice but for the last, and the same end after other tokens",
        "formats": "the same random tokens said once, twice, or twice with others between",
        "haystack": "facts hidden at several depths of long texts, and asked for at the end",
        "natural-text": "sentences from the config, each said twice, in the words that the tokenizer knows",
    }
)
OWN: Mapping[str, str] = MappingProxyType(
    {"your-own": "rows of a CSV, JSONL, DataFrame or `datasets` table with columns you name: circuits.read_task(...)"}
)
TASKS: Mapping[str, str] = MappingProxyType(
    {**PROMPTS, **{name: family.summary for name, family in FAMILIES.items()}, **OWN}
)
