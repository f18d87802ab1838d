"""Claims, signed contributions and the average indirect effect on models worked out on paper.

The derivations stand in the docstrings of ``interp.zoo.twins``, ``backup``, ``interferer`` and, where a test needs
more, in its own.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from known_circuits import Scene, agrees, answered, first_words, four_words, pair, per_head

import interp
from interp.attribution.aie import average_indirect_effect
from interp.attribution.signed import signed_contributions

H00, H01, H10 = "L0.H0", "L0.H1", "L1.H0"


def many_words(name: str) -> Scene:
    """Twelve pairs of a first word X and another word Y, no X of which is a Y."""
    pairs = list(itertools.product(range(3, 9), (13, 14)))
    rest = [9, 10, 11]
    return pair(name, [[0, x, *rest] for x, _ in pairs], [[0, y, *rest] for _, y in pairs], pairs)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def claimed(scene: Scene, method: str, **asked: object) -> list[str]:
    return [str(head) for head in interp.claims(scene.model, scene.clean, method, **asked).claimed]


def test_nothing_is_claimed_of_heads_that_stand_in_for_each_other_until_their_words_are_exchanged() -> None:
    """Zero: every effect of twins is 0. Exchanged: -10 on every prompt, and on reassigned answers less."""
    scene = many_words("twins")
    assert claimed(scene, "zero") == []
    assert claimed(scene, "patch", source=scene.corrupted) == [H00, H01]


def test_a_primary_is_claimed_by_mean_and_not_by_zero() -> None:
    scene = many_words("backup")
    assert claimed(scene, "zero") == []
    assert claimed(scene, "mean") == [H00]


def test_one_answer_pair_for_all_prompts_carries_no_claim() -> None:
    """And-or answers yes against no everywhere, so reassigned answers are the same answers, though -8 is true."""
    scene = four_words()
    found = interp.claims(scene.model, scene.clean, "zero")
    assert list(found.claimed) == [] and found.notes
    agrees(found.effects, {H00: -8, H01: -8})


@pytest.mark.parametrize(
    ("strengths", "right"), [((3.0, -1.0, 0.0), True), ((1.0, -3.0, 0.0), False)], ids=["right", "wrong"]
)
def test_signed_contributions(strengths: tuple[float, ...], right: bool) -> None:
    """The right answer has the probability σ(S), and σ(S - c) without a head. At S = 2 all answers are right: positive
    ``max(0, σ(2) - σ(2 - c))``, so 0.61 for the helper alone, no negative at all. At S = -2 all are wrong: negative
    ``max(0, σ(-2 - c) - σ(-2))``, so 0.61 for the interferer alone."""
    scene = answered(strengths)
    total = sum(strengths)
    falls = {f"L0.H{head}": sigma(total) - sigma(total - c) for head, c in enumerate(strengths)}
    found = signed_contributions(scene.model, scene.clean, mode="zero")
    agrees(found.signed, falls)
    assert found.correct.all() == right and found.correct.any() == right
    seen, unseen = (found.positive, found.negative) if right else (found.negative, found.positive)
    agrees(seen, {head: max(0.0, fall if right else -fall) for head, fall in falls.items()})
    assert np.isnan(unseen.samples).all()
    # all heads hold the same word, so that the mean of the others is the head itself
    agrees(signed_contributions(scene.model, scene.clean).signed, {})


def test_the_average_indirect_effect_of_twins_and_of_a_primary() -> None:
    """Clean prompts say X, the patched ones Y, with the answer X. One twin brings X beside Y:
    ``1 / (2 + 14 e^-10)`` against ``1 / (e^10 + 15)``; the primary brings X instead of Y: ``1 / (1 + 15 e^-10)``;
    the backup is silent in clean prompts and brings nothing."""
    before = 1 / (math.exp(10) + 15)
    for name, after, heads in (
        ("twins", 1 / (2 + 14 * math.exp(-10)), (H00, H01)),
        ("backup", 1 / (1 + 15 * math.exp(-10)), (H00,)),
    ):
        model = first_words(name).model
        clean = interp.encode(model, torch.tensor([[0, 3, 9, 10], [0, 3, 11, 12]]))
        shuffled = interp.encode(model, torch.tensor([[0, 4, 9, 10, 11], [0, 5, 11, 12, 9]]), answers=[(3,), (3,)])
        found = average_indirect_effect(model, shuffled, clean)
        agrees(found, dict.fromkeys(heads, after - before), tolerance=1e-5)
        assert max(per_head(found).values()) == pytest.approx(after - before, abs=1e-5)
