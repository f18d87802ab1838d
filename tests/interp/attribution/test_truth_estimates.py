"""Gradients, attribution patching, integrated gradients and direct contributions on models worked out on paper.

The derivations stand in the docstrings of ``interp.zoo.handmade``, ``twins``, ``backup``, ``interferer``, ``and_or``
and, where a test needs more, in its own. Everywhere the estimate stands beside the exact effect that it stands for:
equal where the model is linear in the head's gate (``interferer``), and where it is not, wrong by what paper says.
Heads that are not named have 0.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from known_circuits import Scene, agrees, answered, attribute, first_words, four_words, handmade, per_head
from torch import Tensor

import interp
from interp import At, Batch
from interp.attribution.direct import direct_attribution

H00, H01, H02, H03, H10 = "L0.H0", "L0.H1", "L0.H2", "L0.H3", "L1.H0"
STRENGTHS = (3.0, -1.0, 0.0)


def times(factor: float) -> dict[str, float]:
    """Head -> factor times its strength in the interferer."""
    return {head: factor * strength for head, strength in zip((H00, H01, H02), STRENGTHS, strict=True)}


def scene_of(name: str) -> Scene:
    if name in ("twins", "backup"):
        return first_words(name)
    return {"handmade": handmade, "interferer": answered, "and_or": four_words}[name]()


@pytest.mark.parametrize(
    ("name", "slope", "true"),
    [
        ("handmade", {H10: -10}, {H00: -10, H10: -10}),
        ("twins", {}, {}),
        ("backup", {H00: -10}, {}),
        ("interferer", times(-1), times(-1)),
        ("and_or", {H00: -16, H01: -16}, {H00: -8, H01: -8}),
    ],
)
def test_gradient_against_the_effect_that_it_estimates(
    name: str, slope: dict[str, float], true: dict[str, float]
) -> None:
    """Saturated softmax: the previous-token head (true -10) has no slope, and the backup's help has none either, so
    that the primary gets its direct effect (true 0). Saturated step: 0. The AND rises with slope 2: twice the truth."""
    agrees(attribute(scene_of(name), "gradient"), slope)
    agrees(attribute(scene_of(name), "zero"), true)


def test_gradient_by_position_and_at_a_position() -> None:
    """Only the last row's z of L1.H0 reaches the answer."""
    wanted = np.zeros((2, 2, 2, 5))
    wanted[:, 1, 0, 4] = -10
    np.testing.assert_allclose(attribute(handmade(), "gradient", by="position").samples, wanted, atol=1e-4)
    agrees(attribute(handmade(), "gradient", pos=3), {})


@pytest.mark.parametrize("where", ["example", "token"])
def test_absolute_gate_gradients_do_not_tell_an_interferer_from_a_helper(where: str) -> None:
    """|c|; one position counts, so both places of the absolute value agree. Divided by the layer's norm sqrt(10)."""
    found = attribute(answered(), "gate_gradient_abs", abs=where)
    agrees(found, {H00: 3, H01: 1})
    assert found.sense == 0
    agrees(
        attribute(answered(), "gate_gradient_abs", abs=where, normalise_layers=True),
        {H00: 3 / 10**0.5, H01: 1 / 10**0.5},
    )
    agrees(attribute(first_words("twins"), "gate_gradient_abs", abs=where), {})


@pytest.mark.parametrize(
    ("name", "denoise", "noise"),
    [
        ("handmade", {H10: 10}, {H10: -10}),
        ("twins", {}, {}),
        ("backup", {H00: 20}, {H00: -20}),
        ("interferer", times(2), times(-2)),
        ("and_or", {}, {H00: -16, H01: -16}),
    ],
)
def test_attribution_patching(name: str, denoise: dict[str, float], noise: dict[str, float]) -> None:
    """The slope at the side that is edited, times the change of z.

    At the corrupted prompts: the induction head rests, its look-up is saturated (L0.H0: true +10), its own z counts
    10. Twins stand on the flat of the step for X and for Y (true +10 each). Nothing of AND or OR rises at 0 of 2 (true
    +8 for the ORs). At the clean ones: slope 16 for each AND (true -8), 0 for the ORs. Equal to the exact effect where
    the model is linear in z: the primary, the interferer."""
    scene = scene_of(name)
    agrees(attribute(scene, "attribution_patching", "corrupted", source=scene.clean), denoise)
    agrees(attribute(scene, "attribution_patching", source=scene.corrupted, direction="noise"), noise)
    if name in ("backup", "interferer"):
        agrees(attribute(scene, "patch", "corrupted", source=scene.clean), denoise)
        agrees(attribute(scene, "patch", source=scene.corrupted, direction="noise"), noise)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("handmade", {H10: 10}),
        ("twins", {}),
        ("backup", {H00: 10}),
        ("interferer", times(1)),
        ("and_or", {}),
    ],
)
def test_direct(name: str, wanted: dict[str, float]) -> None:
    """What a head itself writes to the answers: nothing for heads that write for others, be they ever so needed."""
    found = attribute(scene_of(name), "direct")
    agrees(found, wanted)
    assert found.sense == 1


@pytest.mark.parametrize(
    ("name", "heads", "mlps", "embeddings"),
    [("handmade", 10, 0, 0), ("twins", 0, 10, 0), ("backup", 10, 0, 0), ("interferer", 2, 0, 0), ("and_or", 0, 16, -4)],
)
def test_the_direct_parts_sum_to_the_logit_difference(name: str, heads: float, mlps: float, embeddings: float) -> None:
    """Twins and and-or speak through the MLP (10, 16); and-or's ``no`` has 4 from the ONE of the position embedding."""
    scene = scene_of(name)
    parts = direct_attribution(scene.model, scene.clean)
    prompts = len(scene.clean)
    assert np.nansum(parts.heads.samples, axis=(1, 2)) == pytest.approx([heads] * prompts, abs=1e-4)
    assert parts.mlps.sum(1) == pytest.approx([mlps] * prompts, abs=1e-4)
    assert parts.embeddings == pytest.approx([embeddings] * prompts, abs=1e-4)
    assert parts.total == pytest.approx([heads + mlps + embeddings] * prompts, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("twins", {H00: 5, H01: 5}), ("interferer", times(1)), ("and_or", dict.fromkeys((H00, H01, H02, H03), 4.0))],
)
def test_integrated_gradients_share_what_gradients_miss(name: str, wanted: dict[str, float]) -> None:
    """From all heads silent to all there. Twins: FOUND = 2 alpha, the step rises with slope 20 between alpha 1/8 and
    3/8: 5 each. OR: the same with 16: 4 each. AND: slope 16 from alpha 3/4 on: 4 each. The midpoint rule with 16 points
    is exact, since no corner falls inside a sixteenth."""
    found = attribute(scene_of(name), "integrated_gradients", rule="midpoint", steps=16)
    agrees(found, wanted)
    assert found.metadata["completeness"]["residual"] < 1e-4


@pytest.mark.parametrize("name", ["handmade", "backup"])
def test_integrated_gradients_through_a_saturated_softmax(name: str) -> None:
    """Chain and self-repair: both halves of 10, and one of them in a peak of width 1/60 around alpha = 1/2.

    With alpha on both gates the second head attends with ``p(alpha)``, a logistic curve of ``60 alpha - 30`` that
    rises (chain) or falls (backup), and the logit difference is ``10 alpha p`` or ``10 alpha (1 + p)``. The second head
    gets ``10 ∫ p = 5``, the first ``10 ∫ alpha p' = 5`` or ``10 + 10 ∫ alpha p' = 5``. A rule that is too coarse for
    the peak gets the first head wrong, and says so: its parts do not sum to 10."""
    scene = scene_of(name)
    fine = attribute(scene, "integrated_gradients", rule="midpoint", steps=200, batch_size=400)
    agrees(fine, {H00: 5, H10: 5}, tolerance=0.01)
    assert fine.metadata["completeness"]["residual"] < 0.01

    coarse = attribute(scene, "integrated_gradients", rule="midpoint", steps=4)
    alphas = (np.arange(4) + 0.5) / 4
    p = 1 / (1 + np.exp(-(60 * alphas - 30)))
    first = (
        10 * (alphas * 60 * p * (1 - p)).mean() if name == "handmade" else 10 - 10 * (alphas * 60 * p * (1 - p)).mean()
    )
    agrees(coarse, {H00: first, H10: 5}, tolerance=1e-3)
    assert coarse.metadata["completeness"]["residual"] == pytest.approx(abs(first - 5), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("twins", {}),
        ("and_or", {H00: 8, H01: 8}),
        ("interferer", times(1)),
        ("handmade", {H00: 10, H10: 10}),
        ("backup", {}),
    ],
)
def test_one_gate_after_the_other_gives_minus_the_zero_effect(name: str, wanted: dict[str, float]) -> None:
    """``path="each"`` is the fundamental theorem of calculus along one gate, so it sees what zero sees and no more."""
    scene = scene_of(name)
    found = attribute(scene, "integrated_gradients", path="each", rule="midpoint", steps=240, batch_size=480)
    agrees(found, wanted, tolerance=0.02)
    np.testing.assert_allclose(found.values, -attribute(scene, "zero").values, atol=0.02)


def negative_log_probability(logits: Tensor, batch: Batch) -> Tensor:
    return -interp.answer_logprob(logits, batch)


negative_log_probability.positions = "answers"
negative_log_probability.sense = -1


def test_on_the_loss_first_order_and_exact_part_as_the_sigmoid_says() -> None:
    """NLL = softplus(-S) with S = 2: gradient ``σ(-2) c``, exact ``softplus(c - 2) - softplus(-2)``, integrated
    ``c (softplus(0) - softplus(-2)) / 2``: the path from none to all is straight in S, so it is shared by strength."""
    scene = answered()
    softplus, sigma = (lambda x: math.log1p(math.exp(x))), 1 / (1 + math.exp(2))
    found = attribute(scene, "gradient", metric=negative_log_probability)
    agrees(found, times(sigma))
    assert found.sense == 1, "the effect of removal on a loss is positive for a head that helps"
    agrees(
        attribute(scene, "zero", metric=negative_log_probability),
        {head: softplus(c - 2) - softplus(-2) for head, c in times(1).items()},
    )
    share = -(softplus(0) - softplus(-2)) / 2
    agrees(attribute(scene, "integrated_gradients", metric=negative_log_probability), times(share))


@pytest.mark.parametrize("name", ["handmade", "twins", "backup", "interferer", "and_or"])
def test_gradient_equals_a_finite_difference_along_the_gate(name: str) -> None:
    """Second road: the metric at gates 1 and 1 - 1/64, through ``interp.run``."""
    scene, step = scene_of(name), 1 / 64
    slopes = per_head(attribute(scene, "gradient"))
    whole = interp.logit_difference(interp.run(scene.model, scene.clean).logits, scene.clean)
    for head in scene.model.heads():
        gated = interp.gate(At("z", head.layer, heads=(head.index,)), 1 - step)
        less = interp.logit_difference(interp.run(scene.model, scene.clean, edits=[gated]).logits, scene.clean)
        assert slopes[str(head)] == pytest.approx(float((less - whole).mean()) / step, abs=2e-3), head
