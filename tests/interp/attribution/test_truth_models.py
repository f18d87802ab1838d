"""Two models, and several methods, compared where paper says how they differ.

Models: the interferer with other strengths, a head more and a head less. Methods: on the interferer all signed methods
are the same numbers; on the induction chain, which is not linear, they are not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_circuits import agrees, answered, attribute, first_words, four_words, handmade

import interp
from interp.attribution.changes import compare_heads


def test_a_head_gained_and_a_head_lost() -> None:
    """Strengths (3, -1, 0) and then (0, -1, 2): the first head is lost, the third gained, the second shared. Scaling
    the gained one by f changes the logit difference by ``2 (f - 1)``, the lost one in the first by ``3 (f - 1)``."""
    before, after = answered((3.0, -1.0, 0.0)), answered((0.0, -1.0, 2.0))
    found = compare_heads(before.model, after.model, before.clean, factors=(1.5, 0.5, 0.0, -1.0))
    assert [[str(head) for head in heads] for heads in (found.gained, found.lost, found.shared)] == [
        ["L0.H2"],
        ["L0.H0"],
        ["L0.H1"],
    ]
    assert found.jaccard == pytest.approx(1 / 3)
    agrees(found.change, {"L0.H0": 3, "L0.H2": -2})
    for group, strength in (("gained", 2), ("lost", 3)):
        doses = found.doses[group]
        wanted = [strength * (factor - 1) for factor in doses.factors]
        assert doses.changes.mean(1) == pytest.approx(wanted, abs=1e-4)


def test_a_twin_that_is_gained_does_not_show_by_zero_and_shows_by_patch() -> None:
    """A model in which the second twin writes nothing has its first at -10; in ``twins`` both are at 0. By zero the
    first head looks lost. By patching its word in, it is worth +20 alone and +10 beside a twin, and the twin is
    gained."""
    both, alone = first_words("twins"), interp.load("twins")
    with torch.no_grad():
        alone.hf.transformer.h[0].attn.c_proj.weight[25:50] = 0
    zero = compare_heads(alone, both.model, both.clean, factors=())
    assert [str(head) for head in zero.lost] == ["L0.H0"] and zero.gained == ()
    agrees(zero.scores[0], {"L0.H0": -10})
    patch = compare_heads(alone, both.model, both.corrupted, method="patch", source=both.clean, factors=())
    assert [str(head) for head in patch.gained] == ["L0.H1"] and [str(head) for head in patch.shared] == ["L0.H0"]
    agrees(patch.scores[0], {"L0.H0": 20})


METHODS = ("zero", "mean", "uniform", "gradient", "direct", "shapley", "integrated_gradients")


def test_all_signed_methods_agree_where_the_model_is_linear() -> None:
    """On the interferer every method is a multiple of the strengths, so that importance ranks alike."""
    scene = answered()
    tables = [attribute(scene, method) for method in METHODS]
    for table in tables:
        ratio = table.importance()[0] / np.array([3.0, -1.0, 1.0])
        assert ratio[0] == pytest.approx(ratio[1], abs=1e-4) and ratio[0] > 0 and ratio[2] == pytest.approx(0, abs=1e-4)
        assert tables[0].agreement(table).kendall == pytest.approx(1)


def test_methods_part_where_paper_says() -> None:
    """Importance of the first head of each model, by method: what a study would conclude from that method alone."""
    scenes = {
        "handmade": handmade(),
        "twins": first_words("twins"),
        "backup": first_words("backup"),
        "and_or": four_words(),
    }
    wanted = {
        #             zero mean gradient direct shapley
        "handmade": (10, 10, 0, 0, 5),
        "twins": (0, 0, 0, 0, 5),
        "backup": (0, 10, 10, 10, 5),
        "and_or": (8, 0, 16, 0, 4),
    }
    for name, scene in scenes.items():
        found = tuple(
            float(attribute(scene, method).importance()[0, 0])
            for method in ("zero", "mean", "gradient", "direct", "shapley")
        )
        assert found == pytest.approx(wanted[name], abs=1e-3), name
