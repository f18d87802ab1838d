"""Exact interventions on models worked out on paper: every number below was derived before it was run.

The derivations stand in the docstrings of ``interp.zoo.handmade``, ``twins``, ``backup``, ``interferer``, ``and_or``
and, where a test needs more, in its own. An effect is the logit difference edited minus unedited. Heads that are not
named have 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from known_circuits import Scene, agrees, answered, attribute, first_words, four_words, handmade, pair, per_head

import interp
from interp import At
from interp.errors import BadInput

H00, H01, H02, H03, H10, H11 = "L0.H0", "L0.H1", "L0.H2", "L0.H3", "L1.H0", "L1.H1"
STRENGTHS = (3.0, -1.0, 0.0)
SUM = sum(STRENGTHS)


def times(factor: float) -> dict[str, float]:
    """Head -> factor times its strength in the interferer."""
    return {head: factor * strength for head, strength in zip((H00, H01, H02), STRENGTHS, strict=True)}


def scene_of(name: str) -> Scene:
    if name in ("twins", "backup"):
        return first_words(name)
    return {"handmade": handmade, "interferer": answered, "and_or": four_words}[name]()


def both(scene: Scene, heads: Mapping[int, tuple[int, ...]]) -> list[float]:
    """What removing all these heads (layer -> indices) together does, prompt by prompt, through ``interp.run``."""
    edits = [interp.zero(At("z", layer, heads=indices)) for layer, indices in heads.items()]
    one, other = (
        interp.logit_difference(interp.run(scene.model, scene.clean, edits=some).logits, scene.clean)
        for some in (edits, [])
    )
    return (one - other).tolist()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("handmade", {H00: -10, H10: -10}),
        ("twins", {}),
        ("backup", {}),
        ("interferer", times(-1)),
        ("and_or", {H00: -8, H01: -8}),
    ],
)
def test_zero(name: str, wanted: dict[str, float]) -> None:
    """A serial chain and an AND break at every link; twins, a backup and an OR hide every one of theirs."""
    agrees(attribute(scene_of(name), "zero"), wanted)


@pytest.mark.parametrize(
    ("name", "heads", "together"),
    [
        ("handmade", {0: (0,), 1: (0,)}, -10),
        ("twins", {0: (0, 1)}, -10),
        ("backup", {0: (0,), 1: (0,)}, -10),
        ("interferer", {0: (0, 1)}, -SUM),
        ("and_or", {0: (0, 1)}, -8),
        ("and_or", {0: (2, 3)}, -8),
        ("and_or", {0: (0, 1, 2, 3)}, -16),
    ],
)
def test_what_hides_from_single_removal_shows_when_both_go(
    name: str, heads: dict[int, tuple[int, ...]], together: float
) -> None:
    assert both(scene_of(name), heads) == pytest.approx([together] * len(scene_of(name).clean), abs=1e-4)


@pytest.mark.parametrize("name", ["handmade", "twins", "backup", "interferer", "and_or"])
@pytest.mark.parametrize("freeze", ["norms", "patterns", "other_heads"])
def test_zero_with_something_frozen(name: str, freeze: str) -> None:
    """The norms do nothing, so nothing changes when they are held. Frozen patterns hold the induction head's look-up
    and the backup's rest, so the previous-token head loses its effect and the primary shows its own. In one layer no
    head hears another and MLPs are computed anew, so nothing changes either."""
    wanted = {
        "handmade": {H00: -10.0, H10: -10.0} if freeze == "norms" else {H10: -10.0},
        "twins": {},
        "backup": {} if freeze == "norms" else {H00: -10.0},
        "interferer": times(-1),
        "and_or": {H00: -8.0, H01: -8.0},
    }
    agrees(attribute(scene_of(name), "zero", freeze=freeze), wanted[name])


def test_mean_over_the_other_prompts() -> None:
    """``handmade``, two prompts of other words: PREVIOUS holds the other prompt's words, the query finds none (-10);
    the induction head votes for the other prompt's word, which is in neither answer (-10)."""
    agrees(attribute(handmade(), "mean"), {H00: -10, H10: -10})


def test_mean_of_twins_and_of_a_primary() -> None:
    """Six prompts with six words X, leave-one-out mean: 1/5 of each other word, none of X.

    Twins: FOUND has 1 X from the other twin, and 1/5 < 1/4 of each other word: 0. The primary holds no X, so X gets 0
    votes, and it still says that it has spoken: -10, where zero says 0. The backup holds 0 everywhere: 0."""
    agrees(attribute(first_words("twins"), "mean"), {})
    agrees(attribute(first_words("backup"), "mean"), {H00: -10})
    agrees(attribute(first_words("backup"), "zero"), {})


def test_mean_in_the_interferer() -> None:
    """Over a balanced reference the votes cancel: -c. Over the batch's other prompts (one of the same kind, two of the
    other) a head holds -c/3 for the right answer: -c/3 - c = -4c/3."""
    scene = answered()
    agrees(attribute(scene, "mean", reference=scene.clean), times(-1))
    agrees(attribute(scene, "mean"), times(-4 / 3))


def test_mean_in_and_or_is_the_head_itself_where_prompts_agree() -> None:
    """In both prompts all words are on, so a mean over the other prompt changes nothing; over the prompts that are off
    it is noising; over all four, 1/2 each: BOTH 3/2 takes the AND, EITHER 3/2 leaves the OR."""
    scene = four_words()
    agrees(attribute(scene, "mean"), {})
    agrees(attribute(scene, "mean", reference=scene.corrupted), {H00: -8, H01: -8})
    ids = torch.cat([scene.clean.ids, scene.corrupted.ids])
    agrees(attribute(scene, "mean", reference=interp.encode(scene.model, ids)), {H00: -8, H01: -8})


def test_resample_from_the_only_other_prompt() -> None:
    """Two prompts, so each head gets the other's z. Handmade: as its mean. Interferer, one living and one lifeless:
    -2c. And-or, one prompt on and one off: the on prompt is noised (-8, -8, 0, 0), the off prompt denoised
    (0, 0, +8, +8); the mean over the two is (-4, -4, +4, +4)."""
    agrees(attribute(handmade(), "resample"), {H00: -10, H10: -10})
    scene = answered()
    agrees(interp.attribute(scene.model, scene.clean.select(torch.tensor([0, 2])), "resample"), times(-2))
    yes, no, on, off = 3, 4, 5, 6
    batch = interp.encode(
        scene_of("and_or").model, [[0, on, on, on, on], [0, off, off, off, off]], answers=[(yes, no)] * 2
    )
    found = interp.attribute(scene_of("and_or").model, batch, "resample").per_prompt[:, 0]
    np.testing.assert_allclose(found, [[-8, -8, 0, 0], [0, 0, 8, 8]], atol=1e-4)


def test_resample_exchanges_two_twins_words() -> None:
    """Two prompts, X against Y and Y against X. One twin with the other prompt's word fills both slots: logits 10 and
    10, effect -10 where zero says 0. The primary with the other's word votes for it alone: -20."""
    words = {"clean": [[0, 3, 9, 10], [0, 4, 9, 10]], "corrupted": [[0, 4, 9, 10], [0, 3, 9, 10]]}
    for name, wanted in (("twins", {H00: -10, H01: -10}), ("backup", {H00: -20})):
        scene = pair(name, words["clean"], words["corrupted"], [(3, 4), (4, 3)])
        agrees(attribute(scene, "resample"), wanted)


def test_uniform() -> None:
    """Attention spread over the n places that the last row sees.

    Interferer, n = 4 with one word that counts: c/4 - c = -3c/4. Twins, n = 6: one twin holds 1/6 < 1/4 of each other
    word: 0. Backup, n = 6: the primary gives 10/6 to X and still writes DONE = 5/6, which scores 50 against 30: -25/3;
    the silent backup, made to attend evenly, gives 10/6 to X: +5/3. And-or, n = 6 with four words on: each head
    holds 4/6 on: BOTH = 5/3 votes 16 (5/3 - 3/2) = 8/3: -16/3; EITHER = 5/3: 0.
    """
    agrees(attribute(answered(), "uniform"), times(-3 / 4))
    agrees(attribute(first_words("twins"), "uniform"), {})
    agrees(attribute(first_words("backup"), "uniform"), {H00: -25 / 3, H10: 5 / 3})
    agrees(attribute(four_words(), "uniform"), {H00: -16 / 3, H01: -16 / 3})


def test_uniform_in_the_induction_circuit() -> None:
    """``a b c a``, five places. L1.H0 even: 1/5 of b and of c, so -10. L0.H0 even: row i holds 1/(i + 1) of each token
    up to its own, so the query a scores 30, 20, 15 and 24 at the rows of a, b, c, a, and 30 at place 0; votes
    10 (p_b - p_c) of that softmax."""
    scores = [30, 30, 20, 15, 24]
    weights = [math.exp(score - 30) for score in scores]
    left = 10 * (weights[2] - weights[3]) / sum(weights)
    agrees(attribute(handmade(), "uniform"), {H00: left - 10, H10: -10})


@pytest.mark.parametrize(
    ("name", "denoise", "noise"),
    [
        ("handmade", {H00: 10, H10: 10}, {H00: -10, H10: -10}),
        ("twins", {H00: 10, H01: 10}, {H00: -10, H01: -10}),
        ("backup", {H00: 20}, {H00: -20}),
        ("interferer", times(2), times(-2)),
        ("and_or", {H02: 8, H03: 8}, {H00: -8, H01: -8}),
    ],
)
def test_patch_in_both_directions(name: str, denoise: dict[str, float], noise: dict[str, float]) -> None:
    """Denoising finds what is sufficient (OR), noising what is necessary (AND); where a word is exchanged for another,
    twins show in both directions, because each brings its word while the other keeps its own."""
    scene = scene_of(name)
    found = attribute(scene, "patch", "corrupted", source=scene.clean)
    agrees(found, denoise)
    assert found.sense == 1
    found = attribute(scene, "patch", source=scene.corrupted, direction="noise")
    agrees(found, noise)
    assert found.sense == -1


def test_patch_as_a_share_of_the_difference_between_clean_and_corrupted() -> None:
    """c_h / sum c in the interferer, 1/2 for each twin (10 of 20), 1/2 for each OR head (8 of 16), 1 for each link."""
    for name, wanted in (
        ("interferer", times(1 / SUM)),
        ("twins", {H00: 0.5, H01: 0.5}),
        ("backup", {H00: 1.0}),
        ("and_or", {H02: 0.5, H03: 0.5}),
        ("handmade", {H00: 1.0, H10: 1.0}),
    ):
        scene = scene_of(name)
        agrees(attribute(scene, "patch", "corrupted", source=scene.clean, normalise=True), wanted)


def test_a_share_of_nothing_is_refused() -> None:
    """With strengths 3 and -3 clean and corrupted both give 0, and there is nothing to take a share of."""
    scene = answered((3.0, -3.0, 0.0))
    agrees(attribute(scene, "patch", "corrupted", source=scene.clean), {H00: 6, H01: -6})
    with pytest.raises(BadInput, match="prompts"):
        attribute(scene, "patch", "corrupted", source=scene.clean, normalise=True)


@pytest.mark.parametrize(
    ("site", "wanted"),
    [("z", {H00: 10, H10: 10}), ("q", {}), ("k", {H10: 10}), ("v", {H00: 10}), ("pattern", {H10: 10})],
)
def test_patch_at_each_site_of_the_induction_circuit(site: str, wanted: dict[str, float]) -> None:
    """``d b c a`` patched from ``a b c a``: the first word matters as the *value* that L0.H0 moves one place on, and as
    the *key* that L1.H0 finds there. The queries are equal (same last word, same places), so are the patterns of
    L0.H0; the pattern of L1.H0 then goes from rest to b."""
    scene = handmade()
    agrees(attribute(scene, "patch", "corrupted", source=scene.clean, site=site), wanted)


def test_patch_with_something_frozen() -> None:
    """What L0.H0 brings is used by the pattern of L1.H0 alone; L1.H0 needs nobody after it, nor does the primary."""
    scene = handmade()
    for freeze, wanted in (("patterns", {H10: 10}), ("other_heads", {H10: 10}), ("norms", {H00: 10, H10: 10})):
        agrees(attribute(scene, "patch", "corrupted", source=scene.clean, freeze=freeze), wanted)
    scene = first_words("backup")
    for freeze in ("patterns", "other_heads", "norms"):
        agrees(attribute(scene, "patch", "corrupted", source=scene.clean, freeze=freeze), {H00: 20})


def test_what_a_patch_finds_depends_on_what_the_corruption_takes() -> None:
    """``a c b a`` instead of ``a b c a``: after a now comes the wrong word. PREVIOUS says a at the second place in
    both, so L0.H0 carries nothing of the difference (0), and the whole of it (20) sits in L1.H0."""
    scene = pair("handmade", [[0, 3, 4, 5, 3]], [[0, 3, 5, 4, 3]], [(4, 5)])
    agrees(attribute(scene, "patch", "corrupted", source=scene.clean), {H10: 20})
    agrees(attribute(scene, "zero"), {H00: -10, H10: -10})


def test_positions() -> None:
    """The chain acts at two places: L0.H0 writes "after a" at b (place 2), L1.H0 reads it at the last place (4)."""
    found = attribute(handmade(), "zero", by="position")
    wanted = np.zeros((2, 2, 5))
    wanted[0, 0, 2] = wanted[1, 0, 4] = -10
    np.testing.assert_allclose(found.samples, np.stack([wanted] * 2), atol=1e-4)
    agrees(attribute(handmade(), "zero", pos=2), {H00: -10})
    agrees(attribute(handmade(), "zero", pos=4), {H10: -10})
    agrees(attribute(answered(), "zero", pos=1), {})


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("handmade", {H01: -10, H11: -10}),
        ("twins", {H02: -10}),
        ("backup", {}),
        ("interferer", {H00: 3 - SUM, H01: -1 - SUM, H02: -SUM}),
        ("and_or", {H00: -16, H01: -16, H02: -8, H03: -8}),
    ],
)
def test_all_but_one(name: str, wanted: dict[str, float]) -> None:
    """One head of a layer alone. A twin and a link suffice within their layer; no head of the backup model is missed
    in its layer, because the other layer does the job; one of two ANDs is worth nothing, one OR keeps half."""
    found = attribute(scene_of(name), "all_but_one")
    agrees(found, wanted)
    assert found.sense == 1


def test_the_mean_of_the_others_does_not_see_heads_that_hold_the_same() -> None:
    """In the interferer and in and-or all heads of the layer hold the same z (the word, the word ``on``), so that each
    replaced by the mean of the others is itself: 0. In ``handmade`` L0.H1 holds each row's own token (the last row's
    first copy), so a is found at a itself, and L1.H1 holds 1/5 of b and c: -10 for both links."""
    agrees(attribute(answered(), "mean_of_others"), {})
    agrees(attribute(four_words(), "mean_of_others"), {})
    agrees(attribute(handmade(), "mean_of_others"), {H00: -10, H10: -10})
    agrees(attribute(answered(), "mean_of_others", mode="zero"), times(-1))


def test_noise_moves_only_what_reaches_the_answer() -> None:
    """Noise of standard deviation s on z moves the logit difference by ``s c n``, with n the noise on the words that
    count: of variance 10, five words of either kind at slope c each. Nothing where c = 0, nothing for s = 0."""
    scene = answered()
    agrees(attribute(scene, "noise", std=0.0), {})
    found = np.concatenate([attribute(scene, "noise", std=0.1, seed=seed).per_prompt[:, 0] for seed in range(100)])
    assert np.abs(found[:, 2]).max() < 1e-6
    np.testing.assert_allclose(found[:, :2].std(0), [0.1 * 3 * 10**0.5, 0.1 * 10**0.5], rtol=0.15)
    np.testing.assert_allclose(found[:, :2].mean(0), 0, atol=0.15)


def test_the_loss_tells_a_helper_by_the_other_sign_and_saturates() -> None:
    """Loss softplus(-S), S = 2: removing c raises it by softplus(c - S) - softplus(-S), so +1.19 and -0.08: the helper
    counts 15 times the interferer, where on the logit difference it counts 3 times. ``importance`` has the sign of
    c."""
    scene = answered()

    def negative_log_probability(logits: torch.Tensor, batch: interp.Batch) -> torch.Tensor:
        return -interp.answer_logprob(logits, batch)

    negative_log_probability.positions = "answers"
    negative_log_probability.sense = -1
    found = attribute(scene, "zero", metric=negative_log_probability)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    agrees(found, {head: softplus(c - SUM) - softplus(-SUM) for head, c in times(1).items()})
    assert (np.sign(found.importance()[0].round(5)) == [1, -1, 0]).all() and found.sense == 1


def test_the_removals_disagree_as_they_should() -> None:
    """One head, five answers: the primary of ``backup`` is worth 0 by zero, -10 by mean, -10 with the others frozen,
    -20 by a prompt with another word, -25/3 made to attend evenly."""
    scene = first_words("backup")
    found = {
        "zero": per_head(attribute(scene, "zero"))[H00],
        "mean": per_head(attribute(scene, "mean"))[H00],
        "frozen": per_head(attribute(scene, "zero", freeze="other_heads"))[H00],
        "noise": per_head(attribute(scene, "patch", source=scene.corrupted, direction="noise"))[H00],
        "uniform": per_head(attribute(scene, "uniform"))[H00],
    }
    assert found == pytest.approx({"zero": 0, "mean": -10, "frozen": -10, "noise": -20, "uniform": -25 / 3}, abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "texts", "corrupted", "answers", "zero", "patch"),
    [
        (
            "handmade",
            ["the cat sat the", "dog ran on to mat dog"],
            ["old cat sat the", "house ran on to mat dog"],
            [(" cat", " sat"), (" ran", " on")],
            {H00: -10, H10: -10},
            {H00: 10, H10: 10},
        ),
        ("twins", ["cat on", "dog on the mat"], ["ran on", "red on the mat"], [(" cat", " ran"), (" dog", " red")], {},
         {H00: 10, H01: 10}),
        ("backup", ["cat on", "dog on the mat"], ["ran on", "red on the mat"], [(" cat", " ran"), (" dog", " red")], {},
         {H00: 20}),
        ("interferer", ["cat is", "cup is it alive"], ["box is", "fox is it alive"], [(" yes", " no"), (" no", " yes")],
         times(-1), times(2)),
        ("and_or", ["on on on on", "on on on on and so"], ["off off off off", "off off off off and so"],
         [(" yes", " no")] * 2, {H00: -8, H01: -8}, {H02: 8, H03: 8}),
    ],
)  # fmt: skip
def test_padding_changes_nothing(
    name: str, side: Any, texts: list[str], corrupted: list[str], answers: Any, zero: dict[str, float],
    patch: dict[str, float],
) -> None:  # fmt: skip
    """Prompts of two lengths, padded on either side, as texts: the same numbers, prompt by prompt."""
    model = scene_of(name).model
    clean, other = (interp.encode(model, some, answers=answers, padding_side=side) for some in (texts, corrupted))
    assert not clean.mask.all()
    agrees(interp.attribute(model, clean, "zero"), zero)
    agrees(interp.attribute(model, other, "patch", source=clean), patch)
    found = interp.attribute(model, clean, "shapley", permutations="all")
    whole = {"handmade": 10, "twins": 10, "backup": 10, "interferer": SUM, "and_or": 16}[name]
    assert np.nansum(found.values) == pytest.approx(whole, abs=1e-4)
