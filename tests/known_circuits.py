"""The hand-built models with prompts whose every number was derived on paper, for tests of the methods.

Word ids: 0 is ``<bos>``, ordinary words start at 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

import interp
from interp import Batch, HeadScores, Model
from interp.zoo import interferer


@dataclass(frozen=True)
class Scene:
    """A model, prompts that it gets right, and the same prompts with what matters taken away.

    Attributes:
        name: the model's.
        model: the model, loaded.
        clean: the prompts, with answers.
        corrupted: as many prompts of the same lengths, with the clean ones' answers.
    """

    name: str
    model: Model
    clean: Batch
    corrupted: Batch


@lru_cache
def loaded(name: str) -> Model:
    """The model, loaded once per worker; tests leave it as it was."""
    return interp.load(name)


def pair(name: str, clean: list[list[int]], corrupted: list[list[int]], answers: list[tuple[int, int]]) -> Scene:
    """A scene from ids and the clean prompts' answers (right, wrong)."""
    model = loaded(name)
    made = [interp.encode(model, torch.tensor(ids), answers=answers) for ids in (clean, corrupted)]
    return Scene(name, model, *made)


def handmade() -> Scene:
    """``a b c a`` and ``d b c a``: after the second a comes b, or nothing is known. Logit difference b - c: 10, 0."""
    return pair(
        "handmade",
        [[0, 3, 4, 5, 3], [0, 6, 7, 8, 6]],
        [[0, 9, 4, 5, 3], [0, 9, 7, 8, 6]],
        [(4, 5), (7, 8)],
    )


def first_words(name: str) -> Scene:
    """For ``twins`` and ``backup``: X at place 1 against Y at place 1, in six prompts. Logit difference X - Y: 10, -10.

    Six different words X, whose wrong answers Y never stand in a clean prompt; the other places hold four others.
    """
    rest = [9, 10, 11, 12]
    return pair(
        name,
        [[0, first, *rest] for first in range(3, 9)],
        [[0, wrong, *rest] for wrong in (13, 14, 15, 13, 14, 15)],
        list(zip(range(3, 9), (13, 14, 15, 13, 14, 15), strict=True)),
    )


def answered(strengths: Sequence[float] = interferer.STRENGTHS) -> Scene:
    """For ``interferer``: living against lifeless at place 1, in four prompts. Logit difference S and -S, S = sum c."""
    model = interp.load(*interferer.build(strengths)[:1], tokenizer=interferer.build()[1], check=False)
    yes, no, cat, dog, cup, box, it = model.tokenizer.convert_tokens_to_ids(
        ["yes", "no", "cat", "dog", "cup", "box", "it"]
    )
    answers = [(yes, no), (yes, no), (no, yes), (no, yes)]
    clean, corrupted = (
        interp.encode(model, torch.tensor([[0, first, it, it] for first in words]), answers=answers)
        for words in ([cat, dog, cup, box], [cup, box, cat, dog])
    )
    return Scene("interferer", model, clean, corrupted)


def four_words() -> Scene:
    """For ``and_or``: four times on against four times off, in two prompts. Logit difference yes - no: 12 and -4."""
    yes, no, on, off, so, or_ = (3, 4, 5, 6, 9, 8)
    return pair(
        "and_or",
        [[0, on, on, on, on, last] for last in (so, or_)],
        [[0, off, off, off, off, last] for last in (so, or_)],
        [(yes, no)] * 2,
    )


def per_head(scores: HeadScores) -> dict[str, float]:
    """Head -> value, from the table."""
    rows = scores.table()
    return dict(zip((f"L{row.layer}.H{row.head}" for row in rows.itertuples()), rows.value, strict=True))


def agrees(scores: HeadScores, wanted: Mapping[str, float], *, tolerance: float = 1e-4) -> None:
    """Every head has the value that paper says, on every prompt; heads that are not named have 0."""
    found = per_head(scores)
    assert set(wanted) <= set(found), "every head of the derivation is in the table"
    for head, value in found.items():
        assert np.isclose(value, wanted.get(head, 0.0), atol=tolerance), (
            f"{head}: {value}, on paper {wanted.get(head, 0)}"
        )
    samples = scores.samples
    if scores.sample_axis == "prompt":
        assert np.allclose(samples, samples[:1], atol=tolerance, equal_nan=True), "the prompts are alike"


def attribute(scene: Scene, method: str, side: str = "clean", **options: Any) -> HeadScores:
    """``interp.attribute`` on one side of a scene, at full precision of what the method gives."""
    return interp.attribute(scene.model, getattr(scene, side), method, **options)
