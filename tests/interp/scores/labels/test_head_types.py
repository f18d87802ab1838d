"""The registry of head types is data, and holds what the survey lists."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from interp.scores.labels import HEAD_TYPES

SURVEY = {
    "knowledge recalling": {"associative_memory", "memory", "constant", "single_letter", "negative"},
    "in-context identification": {
        *("previous", "positional", "rare_words", "duplicate", "retrieval", "global_retrieval"),
        *("syntactic", "subword_merge", "name_mover", "backup_name_mover", "letter_mover", "negative_name_mover"),
        *("context", "content_gatherer", "sentiment_summarizer", "semantic_induction", "subject", "relation"),
    },
    "latent reasoning": {
        *("summary_reader", "function_vector", "induction", "in_context", "truthfulness", "accuracy", "consistency"),
        *("vulnerable", "correct_letter", "iteration", "successor", "suppression"),
    },
    "expression preparation": {"mixed", "amplification", "correct", "coherence", "faithfulness"},
    "outside the survey": {"sink"},
}


def test_listing_needs_no_torch() -> None:
    code = "import sys; from interp.scores.labels import HEAD_TYPES; print(len(HEAD_TYPES), *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(loaded[0]) == len(HEAD_TYPES) and "torch" not in loaded and "numpy" not in loaded


def test_the_four_stages_hold_the_surveys_types_and_one_more_is_said_to_be_outside() -> None:
    by_stage: dict[str, set[str]] = {}
    for kind in HEAD_TYPES.values():
        by_stage.setdefault(kind.stage, set()).add(kind.name)
    assert by_stage == SURVEY


@pytest.mark.parametrize("name", HEAD_TYPES)
def test_an_entry_is_complete(name: str) -> None:
    kind = HEAD_TYPES[name]
    assert kind.name == name and kind.summary and "\n" not in kind.summary
    assert re.search(r"\b(19|20)\d\d\b", kind.source), "paper and year"
    assert (kind.test is None) == bool(kind.missing), "a test, or what one would need"
    assert kind.card()["stage"] == kind.stage
    if kind.test is not None:
        module, function = kind.test.pattern.split(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert bool(kind.test.weight) == bool(kind.test.weight_is)
        assert kind.test.words.startswith(kind.test.looks) and "removing" in kind.test.words


def test_the_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        HEAD_TYPES["mine"] = HEAD_TYPES["induction"]  # type: ignore[index]
