"""The tokenizer check: what fits becomes equal batches, what does not is named with the rule that it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from task_models import model_of, pieces, texts_of, words

import interp
from circuits.tasks import FAMILIES, Item, Task, make_task
from circuits.tasks.encode import encode_task
from circuits.tasks.task_batch import TaskBatch
from circuits.tasks.tokenised import Splitter, known_words
from interp.errors import BadInput, Unsupported

TEXTS = [name for name in FAMILIES if name != "induction-random"]
STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories260k"


def agree(batch: TaskBatch, model: interp.Model) -> None:
    """What every TaskBatch promises, found again with the tokenizer alone."""
    for side in ("clean", "corrupted"):
        prompts = getattr(batch, side)
        assert isinstance(prompts, interp.Batch) and prompts.lengths == batch.clean.lengths
        assert prompts.answers is not None and torch.equal(prompts.answers, batch.clean.answers)
        for row, item in enumerate(batch.task):
            assert prompts.texts[row] == item.text(side)
            for name, mask in prompts.spans.items():
                told = "".join(
                    model.tokenizer.decode([token]) for token in prompts.ids[row][mask[row] & prompts.mask[row]]
                )
                assert str(item.marked(name, side)).replace(" ", "") in told.replace(" ", ""), (name, told)
                assert not (mask[row] & ~prompts.mask[row]).any() and mask[row].any()
            assert bool(prompts.spans["END"][row, prompts.read_at[row]])
    for row, (item, (right, wrong)) in enumerate(zip(batch.task, batch.sequences, strict=True)):
        for answers, ids in ((item.right, right), (item.wrong, wrong)):
            whole = [
                tuple(model.tokenizer(str(item.clean) + str(a), add_special_tokens=False)["input_ids"]) for a in answers
            ]
            lead = tuple(model.tokenizer(str(item.clean), add_special_tokens=False)["input_ids"])
            assert {one[len(lead) :][: len(ids[0])] for one in whole} == set(ids) or len(set(map(len, ids))) > 1
            assert all(one[: len(lead)] == lead for one in whole)
        assert batch.right[row][batch.right[row] >= 0].tolist() == [one[0] for one in right]
        assert batch.clean.answers is not None and int(batch.clean.answers[row, 0]) == right[0][0]


@pytest.mark.parametrize("name", TEXTS)
def test_every_task_fits_a_tokenizer_of_its_own_words(name: str) -> None:
    task = make_task(name, n=12).spaced() if name != "greater-than" else make_task(name, n=12)
    if name in ("greater-than", "acronyms"):  # their answers continue a word
        task = make_task(name, n=12, **({"form": "spaced"} if name == "acronyms" else {})).spaced()
    if name == "greater-than":
        items = tuple(
            Item(**{**{k: getattr(i, k) for k in ("clean", "corrupted")}, "right": tuple(f" {y}" for y in i.right),
                    "wrong": tuple(f" {y}" for y in i.wrong), "positions": i.positions,
                    "corrupted_positions": i.corrupted_positions})
            for i in task
        )  # fmt: skip
        task = Task(name, items)
    model = model_of(words(task, bos=True))
    batch = encode_task(model, task, baseline="any")
    assert len(batch) == 12 and batch.dropped.empty and batch.indices == tuple(range(12))
    agree(batch, model)
    assert bool((batch.clean.ids[:, 0] == 1).all())  # type: ignore[index]
    assert (batch.baseline is not None) == (name == "ioi")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [300, 700])
def test_every_task_fits_or_is_explained_under_pieces_of_words(name: str, size: int) -> None:
    task = make_task(name, n=24)
    model = model_of(pieces(task, size))
    batch = None
    try:
        batch = encode_task(model, task, answers="first", baseline="none", least=0.0)
    except BadInput as error:
        assert "0 of 24 items" in str(error)
    if batch is not None:
        agree(batch, model)
        assert sorted([*batch.indices, *batch.dropped["item"]]) == list(range(24))
        assert all(reason for reason in batch.dropped["reason"]) and sum(batch.drop_counts().values()) == 24 - len(
            batch
        )


def test_names_of_several_tokens_make_unequal_pairs_which_are_dropped_and_words_of_one_token_none() -> None:
    names = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Maximilian", "Wilhelmina", "Bartholomew"]
    common = Task("common", tuple(item for item in make_task("ioi", n=60, names=names[:6])))
    model = model_of(pieces(common, 600))
    task = make_task("ioi", n=60, names=names)
    batch = encode_task(model, task, least=0.0)
    by_rule = batch.drop_counts()
    assert by_rule["unequal lengths"] > 0 and by_rule["several tokens"] > 0
    for drop in batch.drops:
        item = task[drop.item]
        long = {"Maximilian", "Wilhelmina", "Bartholomew"}
        if drop.rule == "several tokens":
            assert long & {str(a).strip() for a in (*item.right, *item.wrong)} and "tokens" in drop.reason
    agree(batch, model)
    assert known_words(model, names) == names[:6]
    fit = encode_task(model, make_task("ioi", n=60, names=known_words(model, names)))
    assert len(fit) == 60 and fit.baseline is not None and fit.baseline.lengths == fit.clean.lengths
    with pytest.raises(BadInput, match=r"least=0.9 of them must fit[\s\S]*several tokens: \d+, such as item"):
        encode_task(model, task, least=0.9)
    every = encode_task(model, task, corrupted="any", baseline="any", answers="first", least=0.0)
    assert len(every) > len(batch) and "unequal lengths" not in every.drop_counts()
    assert encode_task(model, task, corrupted="none", baseline="none", least=0.0).corrupted is None


def test_whole_sequences_of_answers() -> None:
    task = make_task("country-capital", n=10)
    model = model_of(pieces(Task("x", (Item("The capital of", (" a",)),)), 262))
    batch = encode_task(model, task, answers="sequence", corrupted="any")
    for item, (right, wrong) in zip(batch.task, batch.sequences, strict=True):
        assert model.tokenizer.decode(right[0]) == item.right[0] and len(right[0]) > 1
        assert model.tokenizer.decode(wrong[0]) == item.wrong[0]
    with pytest.raises(BadInput, match=r"answers alike: 10[\s\S]*answers='sequence'"):  # each begins with the space
        encode_task(model, task, answers="first", corrupted="any", least=0)
    with pytest.raises(BadInput, match="answers='first'"):
        encode_task(model, task, corrupted="any")


def own(*items: Item) -> Task:
    return Task("own", items)


@pytest.mark.parametrize(
    ("bad", "rule", "words_of_reason"),
    [
        (Item("b zebra a", (" c",), (" d",)), "unknown words", "'zebra'"),
        (Item("a b", (" zebra",), (" d",)), "unknown answer", "' zebra'"),
        (Item("a b", (" c d",), (" a",)), "several tokens", "right answer ' c d' is 2 tokens"),
        (Item("a b", (" c",), (" d",), corrupted="a b c"), "unequal lengths", "clean has 2 tokens, corrupted 3"),
        (Item("a b", (" c",), (" d",), corrupted="a  b"), "nothing corrupted", "same tokens"),
        (Item("c  c", (" a",), (" b",)), "duplicate", "same tokens as item 0"),
        (Item("a b", ("c",), (" d",)), "merging border", "'c' merges"),
        (Item("a b c " * 10 + "a", (" d",), (" c",)), "too long", "31 tokens, the context holds 20"),
        (Item("b  a", (" c",), (" d",), positions={"gap": (1, 3)}), "position lost", "'gap'"),
        (Item("d d", (" c",), ("  c",)), "answers alike", "same token"),
        (Item(" ", (" c",), (" d",)), "empty", "no tokens"),
    ],
)
def test_each_rule_drops_its_item_and_says_what_was_found(bad: Item, rule: str, words_of_reason: str) -> None:
    good = Item("c c", (" a",), (" b",), corrupted=None if bad.corrupted is None else "c d")
    known = own(Item("a b c d", (" a",), (" b",)))
    model = model_of(words(known), context=20)
    batch = encode_task(model, own(good, bad))
    assert batch.indices == (0,) and [(drop.item, drop.rule) for drop in batch.drops] == [(1, rule)], batch.drops
    assert words_of_reason in batch.drops[0].reason
    assert list(batch.dropped.columns) == ["item", "rule", "reason"] and rule in repr(batch)


def test_an_item_without_a_side_that_others_have_is_dropped() -> None:
    model = model_of(words(own(Item("a b c d", (" a",), (" b",)))))
    batch = encode_task(model, own(Item("a b", (" c",), corrupted="b a"), Item("b b", (" c",))))
    assert batch.drops[0].reason == "it has no corrupted prompt, which other items have"
    assert len(encode_task(model, own(Item("a b", (" c",)), Item("b b", (" c",))))) == 2


def test_keep() -> None:
    model = model_of(words(own(Item("a b c d", (" a",), (" b",)))))
    lengths = (2, 3, 3, 1, 3, 2)
    items = tuple(
        Item(" ".join("abcd"[(row + place * (row + 1)) % 4] for place in range(size)), (" a",), (" b",))
        for row, size in enumerate(lengths)
    )
    whole = encode_task(model, own(*items))
    assert len(whole) == 6 and whole.clean.lengths == list(lengths)
    same = encode_task(model, own(*items), keep="one length")
    assert same.indices == (1, 2, 4) and set(same.drop_counts()) == {"another length"} and same.clean.width == 3
    few = encode_task(model, own(*items), keep=2)
    assert few.indices == (0, 1) and few.given == 2 and few.drops == ()
    with pytest.raises(BadInput, match="keep=7 asks for more"):
        encode_task(model, own(*items), keep=7)
    with pytest.raises(BadInput, match=r"least=0\.9"):
        encode_task(model, own(*items), keep="one length", least=0.9)
    for bad in ({"keep": 0}, {"keep": "all"}, {"least": 2}, {"answers": "two"}, {"corrupted": "same"}, {"bos": "yes"}):
        with pytest.raises(BadInput, match="expected"):
            encode_task(model, own(*items), **bad)


def test_some_wrong_answers_may_be_left_out() -> None:
    model = model_of(words(own(Item("a b c d", (" a",), (" b",)))))
    task = own(Item("a b", (" c",), (" zebra", " d")))
    with pytest.raises(BadInput, match="zebra"):
        encode_task(model, task)
    assert encode_task(model, task, wrong="some").wrong.tolist() == [[model.tokenizer.convert_tokens_to_ids("d")]]


def test_selecting_rows_takes_everything_along() -> None:
    task = make_task("greater-than", n=8)
    model = model_of(pieces(Task("x", (Item("The year lasted", ("00",)),)), 300))
    batch = encode_task(model, task, answers="sequence", baseline="none")
    part = batch.select([3, -1])
    assert part.indices == (batch.indices[3], batch.indices[-1]) and part.task.items == (task[3], task[7])
    assert torch.equal(part.right[0], batch.right[3]) and part.sequences[1] == batch.sequences[-1]
    assert part.clean.texts == (task[3].clean, task[7].clean) and part.corrupted is not None
    with pytest.raises(BadInput, match="select"):
        batch.select([8])


def test_ids_need_no_tokenizer_and_must_lie_in_the_vocabulary() -> None:
    model = interp.load("handmade")
    good = make_task("induction-random", n=2, length=3, vocabulary=(1, 8))
    batch = encode_task(model, good)
    for row, item in enumerate(batch.task):
        assert tuple(batch.clean.ids[row][batch.clean.mask[row]].tolist()) == item.clean  # type: ignore[index]
        assert tuple(batch.clean.ids[row][batch.clean.spans["source"][row]].tolist()) == item.right  # type: ignore[index]
    with pytest.raises(BadInput, match="outside the vocabulary: 2"):
        encode_task(model, make_task("induction-random", n=2, length=3, vocabulary=(1000, 1010)))
    with pytest.raises(BadInput, match="mixes texts and ids"):
        encode_task(model, own(good[0], Item("a", (" b",))))


def test_models_that_continue_no_texts_are_refused() -> None:
    with pytest.raises(Unsupported, match="does not continue texts"):
        encode_task(interp.load("digits-vit"), make_task("pronoun", n=2))
    with pytest.raises(BadInput, match="has no tokenizer"):
        encode_task(interp.load(model_of(words(own(Item("a", (" b",))))).hf, check=False), make_task("pronoun", n=2))


def test_a_tokenizer_without_offsets_gives_the_same_positions() -> None:
    task = make_task("ioi", n=12)
    tokenizer = pieces(task, 400)

    class Slow:
        is_fast, unk_token_id, eos_token_id, bos_token_id = False, None, None, 1

        def __call__(self, texts: list[str], **told: Any) -> Any:
            return {"input_ids": tokenizer(texts, **told)["input_ids"]}

    fast, slow = Splitter(tokenizer, True), Splitter(Slow(), True)
    for item in task:
        text = str(item.clean)
        quick, plain = fast.prompts([text])[0], slow.prompts([text])[0]
        assert quick.ids == plain.ids and plain.offsets is None and quick.ids[0] == 1
        for name, span in item.positions.items():
            assert slow.columns(text, plain, span) == fast.columns(text, quick, span), name
        assert slow.columns(text, plain, (1, 2)) in ([], fast.columns(text, quick, (1, 2)))


def test_a_tokenizer_that_ends_prompts_by_itself_is_refused_with_the_way_out() -> None:
    from tokenizers import processors

    tokenizer = words(own(Item("a b c d", (" a",), (" b",))))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <s>", special_tokens=[("<s>", 1)]
    )
    model = model_of(tokenizer)
    with pytest.raises(BadInput, match="bos=False"):
        encode_task(model, own(Item("a b", (" c",))))
    assert encode_task(model, own(Item("a b", (" c",))), bos=False).clean.lengths == [2]


@pytest.mark.skipif(not STORIES.exists(), reason="the stories model is not here")
@pytest.mark.parametrize("name", ["ioi", "pronoun", "colored-objects", "docstring", "multiple-choice"])
def test_tasks_on_a_sentencepiece_model(name: str) -> None:
    model = interp.load(STORIES)
    task = make_task(name, n=30)
    batch = encode_task(model, task, answers="first", corrupted="any", baseline="none", least=0.0)
    assert sorted([*batch.indices, *batch.dropped["item"]]) == list(range(30)) and len(batch) > 2
    assert set(batch.drop_counts()) <= {"answers alike", "too long"}
    for row, item in enumerate(batch.task):
        for place in item.positions:
            ids = batch.clean.ids[row][batch.clean.spans[place][row]]  # type: ignore[index]
            assert str(item.marked(place)) in model.tokenizer.decode(ids)
    equal = encode_task(model, task, answers="first", baseline="none", least=0.0)
    assert equal.corrupted is not None and equal.clean.lengths == equal.corrupted.lengths


def test_a_task_of_the_zoos_words() -> None:
    model = interp.load("needle")
    told: dict[str, Any] = {"right": (" house",), "wrong": (" lamp",)}
    said = "the dog ran to the {} . the dog ran to the"
    good = Item(said.format("house"), **told, corrupted=said.format("lamp"))
    batch = encode_task(model, own(good, Item("the Zyx ran", **told, corrupted="the dog ran")))
    assert batch.drops[0].rule == "unknown words" and "'Zyx'" in batch.drops[0].reason
    assert batch.indices == (0,) and texts_of(batch.task)[0].endswith("the house")
