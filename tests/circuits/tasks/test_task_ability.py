"""Whether a model can do a task: the numbers by hand, the verdict on models that can and cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from task_models import model_of, pieces, words

import interp
from circuits.tasks import Item, Task, make_task
from circuits.tasks.ability import task_ability
from circuits.tasks.answer_sets import AnswerSets, set_difference
from circuits.tasks.encode import encode_task
from circuits.tasks.task_batch import TaskBatch
from interp.errors import BadInput


@pytest.fixture(scope="module")
def copying() -> tuple[interp.Model, TaskBatch]:
    """A model that does the task it is given."""
    model = interp.load("induction")
    return model, encode_task(model, make_task("induction-random", n=30, vocabulary=(4, 390), length=20, first=0))


def test_the_numbers_are_those_of_the_metrics_one_by_one(copying: tuple[interp.Model, TaskBatch]) -> None:
    model, batch = copying
    ability = task_ability(model, batch, batch_size=7)
    logits = interp.run(model, batch.clean).logits
    assert logits is not None
    difference = interp.logit_difference(logits, batch.clean).double().numpy()
    np.testing.assert_allclose(ability.per_item["difference"], difference, atol=1e-5)
    np.testing.assert_array_equal(ability.per_item["accuracy"], interp.accuracy(logits, batch.clean).double().numpy())
    np.testing.assert_array_equal(ability.per_item["choice"], (difference > 0).astype(float))
    assert ability.difference is not None and ability.difference.mean == pytest.approx(difference.mean(), abs=1e-5)
    assert ability.choice is not None and ability.chance == 0.5 and ability.metric == "logit"
    assert ability.corrupted is not None and ability.corrupted.mean < 0 < ability.difference.low
    assert ability.able and ability.check() is ability and "able" in str(ability)


def test_a_model_that_cannot_is_refused_with_its_numbers_unless_one_goes_on() -> None:
    task = make_task("ioi", n=40)
    model = model_of(words(task))
    ability = task_ability(model, encode_task(model, task, baseline="none"), cluster="pair")
    assert not ability.able
    with pytest.raises(BadInput, match=r"not able[\s\S]*logit difference[\s\S]*go_on=True"):
        ability.check()
    assert ability.check(go_on=True) is ability


def test_a_share_that_is_asked_for_and_one_item_alone(copying: tuple[interp.Model, TaskBatch]) -> None:
    model, batch = copying
    share = task_ability(model, batch).choice
    assert share is not None
    if share.mean < 1:
        assert "below least=1" in str(task_ability(model, batch, least=1.0).reason)
    alone = task_ability(model, batch.select([0]))
    assert not alone.able and "no interval" in str(alone.reason)
    for bad in ({"least": 2.0}, {"batch_size": 0}, {"cluster": "plase"}):
        with pytest.raises(BadInput):
            task_ability(model, batch, **bad)


def test_means_by_label_are_means_of_their_items(copying: tuple[interp.Model, TaskBatch]) -> None:
    model, batch = copying
    ability = task_ability(model, batch, cluster="place")
    table = ability.by("place")
    assert int(table["items"].sum()) == len(batch) and list(ability.table()["place"]) == batch.labels("place")
    for row in table.to_dict("records"):
        own = [n for n, place in enumerate(batch.labels("place")) if str(place) == row["place"]]
        assert row["difference"] == pytest.approx(ability.per_item["difference"][own].mean())
    with pytest.raises(BadInput, match="Did you mean 'place'"):
        ability.by("plase")


def test_sets_of_answers_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 8.0]])
    right, wrong = torch.tensor([[3, 2], [0, -1]]), torch.tensor([[0, -1], [1, 3]])
    assert set_difference(logits, right, wrong, "logit").tolist() == [3.5 - 1.0, 0.0 - 4.0]
    p = logits.double().softmax(-1)
    wanted = [float(p[0, 3] + p[0, 2] - p[0, 0]), float(p[1, 0] - p[1, 1] - p[1, 3])]
    assert set_difference(logits, right, wrong, "probability").tolist() == pytest.approx(wanted, abs=1e-6)


def greater(n: int = 12) -> tuple[interp.Model, TaskBatch]:
    """Greater-than on a tokenizer that takes digits one by one, by whole sequences."""
    task = make_task("greater-than", n=n)
    known = Task("x", (Item("The year", tuple(f"{y:02d}" for y in range(100))),))
    model = model_of(pieces(known, 262))
    return model, encode_task(model, task, answers="sequence")


def test_a_set_metric_finds_its_rows_in_any_selection() -> None:
    task = make_task("agreement", n=16, answers="all")
    model = model_of(words(task))
    batch = encode_task(model, task)
    metric = batch.metric
    assert metric.kind == "probability" and metric.positions == "answers" and metric.sense == 1
    logits = interp.run(model, batch.clean).logits
    assert logits is not None
    whole = metric(logits, batch.clean)
    at = logits[torch.arange(16), batch.clean.read_at].softmax(-1)
    by_hand = [
        float(sum(at[row, t] for t in batch.right[row]) - sum(at[row, t] for t in batch.wrong[row]))
        for row in range(16)
    ]
    assert whole.tolist() == pytest.approx(by_hand, abs=1e-6)
    order = [5, 5, 2, 11]
    assert metric(logits[order], batch.clean.select(order)).tolist() == pytest.approx(whole[order].tolist())
    assert batch.corrupted is not None
    heads = interp.attribute(model, batch.clean, method="zero", metric=metric)
    assert heads.values.shape == (1, 2)
    with pytest.raises(BadInput, match="none of its clean"):
        metric(logits, encode_task(model, make_task("agreement", n=16, seed=5, answers="all")).clean)
    ability = task_ability(model, batch)
    assert ability.chance == 0.5 and ability.metric == "probability"
    np.testing.assert_allclose(ability.per_item["difference"], whole.double().numpy(), atol=1e-6)


def test_prompts_with_answers_in_common_and_others_beside_are_refused() -> None:
    model = model_of(words(Task("x", (Item("a b c d", (" a",), (" b",)),))))
    items = (Item("a b", (" c",), (" d",)), Item("b a", (" c", " a"), (" d",)))
    batch = encode_task(model, Task("own", items))
    twice = batch.clean.select([0, 0])
    with pytest.raises(BadInput, match="first answers in common"):
        AnswerSets.of([twice], batch.right, batch.wrong, "logit")


def test_chance_of_unequal_sets_and_of_no_wrong_answers() -> None:
    model, batch = greater()
    if len(batch) and int(batch.right.shape[1]) > 1:
        ability = task_ability(model, batch)
        right, wrong = (batch.right >= 0).sum(1).double(), (batch.wrong >= 0).sum(1).double()
        assert ability.chance == pytest.approx(float((right / (right + wrong)).mean()))
    plain = model_of(words(Task("x", (Item("a b c d", (" a",)),))))
    task = Task("own", tuple(Item(f"{x} {y}", (" c",)) for x in "abcd" for y in "abcd"))
    alone = task_ability(plain, encode_task(plain, task))
    assert alone.choice is None and alone.difference is None and alone.chance == pytest.approx(1 / 7)
    share = float((interp.run(plain, encode_task(plain, task).clean, logits="answers").logits[:, 0].argmax(-1)  # type: ignore[index]
                   == plain.tokenizer.convert_tokens_to_ids("c")).float().mean())  # fmt: skip
    assert alone.accuracy.mean == pytest.approx(share)
