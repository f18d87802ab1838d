"""Heads between checkpoints: sets by hand, identities of the definitions, doses against loops, and a real training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import tiny_gpt2
from sum_of_heads import prompts, sum_of_heads

import interp
from interp import At, BadInput, Batch, Head, HeadScores, Model, Site
from interp.attribution.changes import HeadChanges, compare_heads
from interp.attribution.doses import head_doses
from interp.attribution.head_sets import head_set
from interp.attribution.timeline import HeadTimeline, head_timeline
from interp.zoo import checkpoints
from interp.zoo.repeats import evaluation_rows

BEFORE = np.array([[4.0, 0.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0, 0.0, 0.1]])
AFTER = np.array([[4.0, 0.0, 0.0, 0.0, 2.5, 0.0], [-3.5, 0.0, 0.0, 3.0, 0.0, 0.1]])
HEADS = [Head(layer, index) for layer in range(2) for index in range(3)]


@pytest.fixture(scope="module")
def before() -> Model:
    return sum_of_heads(BEFORE.tolist())


@pytest.fixture(scope="module")
def after() -> Model:
    return sum_of_heads(AFTER.tolist())


@pytest.fixture(scope="module")
def repeats() -> Batch:
    """Prompts that end where the next word has been seen before, against another word of the prompt."""
    rows = evaluation_rows(12, length=12)
    wrong = [
        next(word for word in row[1:13].tolist()[place % 6 :] if word != row[20]) for place, row in enumerate(rows)
    ]
    model = interp.load("induction")
    return interp.encode(model, rows[:, :20], answers=list(zip(rows[:, 20].tolist(), wrong, strict=True)))


def table(values: Any, **changes: Any) -> HeadScores:
    return HeadScores.from_array(values, **{"name": "zero", "quantity": "effect", "sense": -1, **changes})


# ---- sets of heads --------------------------------------------------------------------------------------------------


def test_a_head_is_active_where_resampled_means_stay_over_the_threshold() -> None:
    """Ten prompts; a mean over resamples is k/10 times the spike, k of a binomial of mean 1 and n = 10."""
    samples = np.zeros((10, 1, 3))
    samples[:, 0, 0] = -2.0  # always
    samples[0, 0, 1] = 20.0  # mean 2 by one prompt alone: drawn at least once in 1 - 0.9^10 = 65 % of resamples
    found = head_set(table(samples, sample_axis="prompt"), threshold=1.9, draws=4000)
    assert found.support[0] == 1.0 and found.support[2] == 0.0
    assert found.support[1] == pytest.approx(1 - 0.9**10, abs=0.03)
    assert found.members == (Head(0, 0),) and found.values.tolist() == [-2.0, 2.0, 0.0]
    assert head_set(table(samples, sample_axis="prompt"), threshold=1.9, confidence=0.6).members == (
        Head(0, 0),
        Head(0, 1),
    )


def test_direction_clusters_and_single_samples() -> None:
    values = np.array([[-2.0, 2.0, 0.5]])
    assert head_set(table(values), threshold=1.0, by="helps").members == (Head(0, 0),)
    assert head_set(table(values), threshold=1.0, by="hurts").members == (Head(0, 1),)
    samples = np.repeat(np.array([2.0, 0.0]), 5)[:, None, None]
    alone = head_set(table(samples, sample_axis="prompt"), threshold=0.5, draws=4000)
    together = head_set(table(samples, sample_axis="prompt", cluster=["a"] * 5 + ["b"] * 5), threshold=0.5, draws=4000)
    # ten prompts: 3 of 10 or more from the first half; two clusters: not twice the second, a chance of 3/4
    assert alone.support[0] > 0.9 and together.support[0] == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 0.0}, "a number above 0"),
        ({"confidence": 0.0}, "a share above 0"),
        ({"by": "size"}, "Unknown way"),
    ],
)
def test_sets_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        head_set(table([[1.0]]), **{"threshold": 1.0, **changes})
    with pytest.raises(BadInput, match="helps or hurts"):
        head_set(table([[1.0]], sense=0), threshold=1.0, by="helps")


# ---- two models -----------------------------------------------------------------------------------------------------


def test_identical_models_change_nothing(before: Model) -> None:
    batch, _ = prompts(before)
    same = compare_heads(before, before, batch)
    assert same.gained == same.lost == () and same.jaccard == 1.0
    assert same.weight_corr == pytest.approx(1.0) and same.doses == {} and same.dose_table().empty
    assert np.abs(same.change.samples).max() == 0.0


def test_heads_gained_lost_and_shared_are_those_written_into_the_models(before: Model, after: Model) -> None:
    batch, weights = prompts(before)
    found = compare_heads(before, after, batch, factors=())
    assert found.gained == (Head(0, 4), Head(1, 0)) and found.lost == (Head(0, 2),)
    assert found.shared == (Head(0, 0), Head(1, 3)) and found.jaccard == pytest.approx(2 / 5)
    assert found.weight_corr == pytest.approx(np.corrcoef(BEFORE.ravel(), AFTER.ravel())[0, 1], rel=1e-4)
    rows = found.table().set_index("label")
    assert rows.loc["L0.H2", "status"] == "lost" and rows.loc["L1.H5", "status"] == ""
    # zeroing a head takes its strength away; 0.1 against a threshold of a tenth of 4 is not active
    change = -(AFTER - BEFORE) * np.mean(weights)
    np.testing.assert_allclose(rows["change"], change.ravel(), atol=1e-4)
    assert rows.loc["L1.H0", "low"] < change[1, 0] < rows.loc["L1.H0", "high"]
    assert compare_heads(before, after, batch, factors=(), by="helps").gained == (Head(0, 4),)
    assert len(found.scores[0].per_prompt) == 8 and found.metadata["disjoint"] is None


def test_the_changed_heads_are_tested_on_other_prompts_where_they_are_active(before: Model, after: Model) -> None:
    batch, _ = prompts(before)
    found = compare_heads(before, after, batch, factors=(1.3, 0.5, 0.0, 1.0), random=40)
    assert found.metadata["disjoint"] is True and found.scores[0].samples.shape[0] == 4
    tested = found.doses["gained"]
    assert tested.changes.shape == (4, 4)  # the other half of the eight prompts
    strength = 2.5 - 3.5
    ratios = tested.changes / tested.changes[2]  # ablation is the unit
    np.testing.assert_allclose(ratios[0], (1.3 - 1) / (0 - 1), atol=1e-3)
    np.testing.assert_allclose(ratios[1], (0.5 - 1) / (0 - 1), atol=1e-3)
    assert np.abs(tested.changes[3]).max() == 0.0  # scaling by 1
    assert (np.sign(tested.changes[2]) == -np.sign(strength)).all()
    # one head in each layer: 25 sets without the chosen ones, so all of them
    assert tested.sets.exhaustive and len(tested.sets.sets) == 25
    null = tested.against_random(0.0)
    assert null.p is not None and null.n == 25
    pairs = [AFTER[0, a.index] + AFTER[1, b.index] for a, b in tested.sets.sets]
    np.testing.assert_allclose(
        tested.random[2].mean(1) / tested.changes[2].mean(), np.array(pairs) / strength, atol=1e-3
    )
    rows = found.dose_table()
    assert rows["group"].tolist() == ["gained"] * 4 + ["lost"] * 4 and rows["factor"].tolist()[:4] == [1.3, 0.5, 0, 1]


def test_doses_equal_single_runs_on_a_tiny_model() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4], [5, 6, 7, 8], [2, 2, 9, 1]], answers=[(2, 3)] * 3)
    chosen = [Head(0, 1), Head(2, 0)]
    doses = head_doses(model, batch, chosen, interp.logit_difference, factors=(1.3, 0.0))
    plain = interp.run(model, batch).logits
    assert plain is not None
    for place, factor in enumerate((1.3, 0.0)):
        for heads, changes in [(chosen, doses.changes[place]), *zip(doses.sets.sets, doses.random[place], strict=True)]:
            edits = [interp.scale(At(Site.Z, head.layer, heads=(head.index,)), factor) for head in heads]
            logits = interp.run(model, batch, edits=edits).logits
            assert logits is not None
            by_hand = interp.logit_difference(logits, batch) - interp.logit_difference(plain, batch)
            np.testing.assert_allclose(changes, by_hand.numpy(), atol=1e-5)
    with pytest.raises(BadInput, match="was not run"):
        doses.against_random(0.5)
    with pytest.raises(BadInput, match="expected finite numbers"):
        head_doses(model, batch, chosen, interp.logit_difference, factors=())


def test_tables_made_elsewhere_are_compared_as_they_are(before: Model, after: Model) -> None:
    batch, _ = prompts(before)
    tables = (table(-BEFORE), table(-AFTER))
    found = compare_heads(before, after, batch, method=tables, threshold=1.0)
    assert found.gained == (Head(0, 4), Head(1, 0)) and found.doses["lost"].changes.shape == (3, 8)
    assert found.table()["low"].isna().all()  # one number per head has no interval
    with pytest.raises(BadInput, match="differ in sense"):
        compare_heads(before, after, batch, method=(tables[0], table(-AFTER, sense=1)))
    with pytest.raises(BadInput, match="other heads"):
        compare_heads(before, after, batch, method=(tables[0], table(-AFTER[:, :3])))
    with pytest.raises(BadInput, match="expected a method's name"):
        compare_heads(before, after, batch, method=(1, 2))  # type: ignore[arg-type]


def test_a_source_is_halved_with_its_batch(before: Model, after: Model) -> None:
    batch, _ = prompts(before)
    source = batch.select([7, 6, 5, 4, 3, 2, 1, 0])
    found = compare_heads(before, after, batch, method="patch", source=source)
    direct = interp.attribute(before, batch, "patch", source=source)
    for row in found.scores[0].samples:  # every prompt kept its partner
        assert np.abs(direct.samples - row).max((1, 2)).min() < 1e-5


def test_models_of_another_shape_or_vocabulary_are_refused(before: Model) -> None:
    batch, _ = prompts(before)
    with pytest.raises(BadInput, match=r"\{'text': \[6, 6\]\} and .* has \{'text': \[2, 2, 2\]\}"):
        compare_heads(before, tiny_gpt2(), batch)
    with pytest.raises(BadInput, match="different vocabularies"):
        compare_heads(
            interp.load("handmade"), interp.load(interp.load("handmade").hf, tokenizer=before.tokenizer), batch
        )
    with pytest.raises(BadInput, match="Every value of 'zero' is 0"):
        compare_heads(before, before, batch, method=(table([[0.0]]), table([[0.0]])))


# ---- checkpoints ----------------------------------------------------------------------------------------------------

NESTED = [[], HEADS[:1], HEADS[:1], HEADS[:3], HEADS[:3], HEADS[:4], HEADS[:4], HEADS[:6]]
STEPS = [0, 10, 20, 30, 40, 50, 60, 70]


def test_nested_sets_are_retained_whole() -> None:
    timeline = HeadTimeline.of_sets(STEPS, NESTED, HEADS)
    retention = timeline.retention
    for start in range(8):
        for end in range(8):
            first, second = set(NESTED[start]), set(NESTED[end])
            expected = len(first & second) / len(first) if first else np.nan
            np.testing.assert_equal(retention[start, end], expected)
    assert (retention[1:][np.triu_indices(7, 1)] == 1.0).all()
    assert timeline.counts.tolist() == [0, 1, 1, 3, 3, 4, 4, 6] and timeline.turnover == 6
    assert timeline.first == (10, 30, 30, 50, 70, 70)
    np.testing.assert_allclose(timeline.frequency, [7 / 8, 5 / 8, 5 / 8, 3 / 8, 1 / 8, 1 / 8])
    assert timeline.at(30) == tuple(HEADS[:3])


def test_cohorts_count_who_is_still_active() -> None:
    sets = [[HEADS[0], HEADS[1]], [HEADS[0], HEADS[2]], [HEADS[1], HEADS[2]]]
    cohorts = HeadTimeline.of_sets([5, 6, 7], sets, HEADS).cohorts()
    assert cohorts.index.tolist() == [5, 6] and cohorts["size"].tolist() == [2, 1]
    assert cohorts.loc[5, [5, 6, 7]].tolist() == [2.0, 1.0, 1.0]
    assert np.isnan(cohorts.loc[6, 5]) and cohorts.loc[6, [6, 7]].tolist() == [1.0, 1.0]
    assert HeadTimeline.of_sets([1, 2], [[], []], HEADS).cohorts().empty


def test_permuted_labels_destroy_the_cohorts() -> None:
    timeline = HeadTimeline.of_sets(STEPS, NESTED, HEADS)
    assert timeline.order_p(draws=199) <= 0.02
    forward = np.triu_indices(8, 1)
    kept = [np.nanmean(timeline.shuffled(seed).retention[forward]) for seed in range(20)]
    assert np.mean(kept) < 0.8 and np.nanmean(timeline.retention[forward]) == 1.0
    # sets without any order are not told apart from their permutations
    generator = np.random.default_rng(0)
    found = []
    for draw in range(30):
        sets = [[head for head in HEADS if generator.random() < 0.5] for _ in STEPS]
        found.append(HeadTimeline.of_sets(STEPS, sets, HEADS).order_p(draws=99, seed=draw))
    assert np.mean(np.array(found) <= 0.1) <= 0.3 and 0.35 < np.mean(found)


def test_identical_checkpoints_keep_everything(before: Model) -> None:
    batch, _ = prompts(before)
    seen: list[int] = []
    timeline = head_timeline([(0, before), (5, before), (9, before)], batch, progress=seen.append)
    assert (timeline.retention == 1.0).all() and timeline.turnover == 0 and seen == [1, 1, 1]
    assert timeline.at(0) == (Head(0, 0), Head(0, 2), Head(1, 3))
    np.testing.assert_allclose(timeline.values[0], interp.attribute(before, batch, "zero").values.ravel())


def test_a_timeline_of_two_models_tells_what_their_comparison_tells(before: Model, after: Model) -> None:
    batch, _ = prompts(before)
    timeline = head_timeline([(0, before), (1, after)], batch)
    found = compare_heads(before, after, batch, factors=())
    assert set(timeline.at(1)) - set(timeline.at(0)) == set(found.gained)
    assert set(timeline.at(0)) - set(timeline.at(1)) == set(found.lost)
    np.testing.assert_array_equal(timeline.support, [each.support for each in found.sets])


def test_over_the_training_of_the_induction_model_the_pair_comes_first_and_stays(repeats: Batch) -> None:
    timeline = head_timeline(checkpoints("induction"), repeats, by="helps")
    assert timeline.steps[0] == 0 and not timeline.active[0].any()  # untrained heads do nothing
    pair = {Head(0, 0), Head(1, 0)}
    first = {head: step for head, step in zip(timeline.heads, timeline.first, strict=True) if step is not None}
    assert pair <= set(first) and set(timeline.at(4000)) == pair
    arrived = max(first[head] for head in pair)
    assert 700 <= arrived <= 1250  # the bump in the loss curve
    for step in timeline.steps[timeline.steps.index(arrived) :]:
        assert pair <= set(timeline.at(step))
    assert timeline.order_p(draws=199) <= 0.05


def test_the_heads_gained_in_training_are_what_the_model_runs_on(repeats: Batch) -> None:
    places = dict(checkpoints("induction"))
    young, old = (interp.load(str(places[step]), check=False) for step in (500, 4000))
    found = compare_heads(young, old, repeats, by="helps")
    assert found.gained == (Head(0, 0), Head(1, 0)) and not found.lost
    doses = found.doses["gained"]
    rows = doses.table().set_index("factor")
    assert rows.loc[0.0, "high"] < 0 and doses.sets.overlap  # 4 heads a layer: random sets share heads with the pair
    others = [place for place, one in enumerate(doses.sets.sets) if not set(one) & set(found.gained)]
    assert len(others) == 9 and doses.random[2, others].mean(1).min() > 0 > rows.loc[0.0, "change"]


def test_the_file_and_the_table_hold_all(before: Model, after: Model, tmp_path: Path) -> None:
    batch, _ = prompts(before)
    timeline = head_timeline([(0, before), (1, after)], batch)
    rows = timeline.table()
    assert len(rows) == 24 and rows[rows["active"]]["label"].tolist()[:3] == ["L0.H0", "L0.H2", "L1.H3"]
    back = HeadTimeline.open(timeline.save(tmp_path / "timeline.safetensors"))
    assert (str(back), back.heads, back.steps, back.metadata) == (
        str(timeline), timeline.heads, timeline.steps, timeline.metadata,
    )  # fmt: skip
    np.testing.assert_array_equal(back.active, timeline.active)
    assert back.active.dtype == bool


@pytest.mark.parametrize(
    ("steps", "sets", "message"),
    [
        ([0], [[], []], "1 steps for 2 checkpoints"),
        ([], [], "one checkpoint at least"),
        ([5, 5], [[], []], "expected them ascending"),
        ([0], [[Head(7, 7)]], r"L7\.H7 stand"),
    ],
)
def test_timelines_that_cannot_be_are_refused(steps: list[int], sets: list[Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        HeadTimeline.of_sets(steps, sets, HEADS)


def test_views_and_steps_that_are_not_there() -> None:
    timeline = HeadTimeline.of_sets(STEPS, NESTED, HEADS)
    with pytest.raises(BadInput, match="Unknown view 'flow'"):
        timeline.plot("flow")
    with pytest.raises(BadInput, match="No checkpoint of step 15"):
        timeline.at(15)
    with pytest.raises(BadInput, match=r"\[2, 2, 2\]"):
        head_timeline([(0, tiny_gpt2()), (1, interp.load("handmade"))], interp.encode(tiny_gpt2(), [[1, 2]],
                      answers=[(2, 3)]))  # fmt: skip


def test_nothing_active_is_an_answer_too() -> None:
    empty = HeadChanges((table([[0.1]]), table([[0.1]])), tuple(head_set(table([[0.1]]), threshold=1.0) for _ in "ab"))  # type: ignore[arg-type]
    assert empty.jaccard == 1.0 and np.isnan(empty.weight_corr)
    assert str(empty).startswith("Gained none; lost none; shared none")
