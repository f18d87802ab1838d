"""ROUGE-1 recall: what share of a text's words another text says."""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"[^\W_]+")
_SHORTEST_STEMMED = 4
_ENDINGS = (("sses", "ss"), ("ies", "i"), ("ing", ""), ("ed", ""), ("s", ""))
_VOWELS = frozenset("aeiouy")


def rouge_1_recall(reference: str, said: str, *, stem: bool = False) -> float:
    """The share of the words of ``reference`` that ``said`` has too, each as often as it stands in both.

    ``sum over words w of min(count in reference, count in said) / words of reference`` (Lin, "ROUGE: A Package for
    Automatic Evaluation of Summaries", 2004), NaN for a reference without a word. Words are runs of letters and digits,
    without regard to case.

    Args:
        reference: what should be said.
        said: what was said.
        stem: compare the words without a few endings (-s, -ies, -ed, -ing) from four letters on. Packages use Porter's
            stemmer here; these rules are our own and simpler, so equality with them is UNVERIFIED.

    Example:
        >>> rouge_1_recall("eat a sandwich", "You should eat one sandwich.")
        0.6666666666666666
        >>> rouge_1_recall("two parks", "the park"), rouge_1_recall("two parks", "the park", stem=True)
        (0.0, 0.5)
    """
    wanted, found = _counts(reference, stem), _counts(said, stem)
    total = sum(wanted.values())
    return sum((wanted & found).values()) / total if total else float("nan")


def _counts(text: str, stem: bool) -> Counter[str]:
    words = _WORD.findall(text.lower())
    return Counter(_stem(word) for word in words) if stem else Counter(words)


def _stem(word: str) -> str:
    if len(word) < _SHORTEST_STEMMED or word.endswith("ss"):
        return word
    for ending, left in _ENDINGS:
        if word.endswith(ending) and _VOWELS & set(stem := word[: len(word) - len(ending)]):
            return stem + left
    return word
