"""Retrieval heads: planted attention by both roads, whole models by hand, generated answers, haystacks and ROUGE."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planted import ask_for, blocks_of, reduced, uniform_causal
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp import At, Head, Site
from interp.errors import BadInput, UnknownName
from interp.model.handle import Model
from interp.results import HeadScores
from interp.scores.long_context.haystack import Fact, haystack, haystack_batch, haystacks, locate
from interp.scores.long_context.retrieval import copied, retrieval, retrieval_heads, retrieval_score
from interp.scores.long_context.rouge import rouge_1_recall
from interp.zoo import ZOO
from interp.zoo.needle_text import NEEDLE_WORDS, filler_words, needle_vocabulary
from interp.zoo.words import build_tokenizer

NEEDLE, ANSWER = (2, 3, 4), (8, 9, 10)
IDS = torch.tensor([[0, 1, 3, 4, 5, 1, 2, 2, 3, 4, 5, 1]])  # the needle 3 4 5 at 2..4, said again at 8..10
LENGTH = IDS.shape[1]


def members(places: tuple[int, ...]) -> Tensor:
    member = torch.zeros(1, LENGTH, dtype=torch.bool)
    member[0, list(places)] = True
    return member


def looking(at: dict[int, int]) -> Tensor:
    """``[1, 1, row, key]`` evenly spread rows, but those of ``at`` have most on one key."""
    pattern = uniform_causal(LENGTH)
    for row, key in at.items():
        pattern[row] = 0.1 * pattern[row]
        pattern[row, key] += 0.9
    return pattern[None, None]


def both_roads(pattern: Tensor, ids: Tensor = IDS, answer: tuple[int, ...] = ANSWER, **options: Any) -> float:
    """The score from whole maps and from blocks of rows, which must agree."""
    ask = ask_for(ids=ids, spans={"needle": members(NEEDLE), "answer": members(answer)})
    whole = retrieval_score(pattern, ids, members(NEEDLE), members(answer), **options)
    found = [reduced(retrieval(ask, **options), pattern, rows_per_block=size) for size in (1, 3, LENGTH)]
    assert all(torch.equal(one, whole.to(one)) for one in found)
    return float(whole[0, 0])


RIGHT = {7: 2, 8: 3, 9: 4}  # the row before each token of the answer looks at that token in the needle


def test_pointing_at_the_copied_token_is_one_and_elsewhere_is_zero() -> None:
    assert both_roads(looking(RIGHT)) == 1.0
    assert both_roads(looking({7: 1, 8: 5, 9: 6})) == 0.0
    assert both_roads(looking({7: 2, 8: 5, 9: 6})) == pytest.approx(1 / 3)


def test_the_row_is_the_one_before_the_token() -> None:
    """A row that looks at its own token, which is what the answer just said, copies nothing."""
    assert both_roads(looking({8: 2, 9: 3, 10: 4})) == 0.0


def test_the_right_place_with_another_next_token_is_zero() -> None:
    said_otherwise = IDS.clone()
    said_otherwise[0, 8:11] = torch.tensor([5, 3, 4])
    assert both_roads(looking(RIGHT), said_otherwise) == 0.0


def test_a_token_said_twice_counts_twice_in_the_count_and_once_in_the_set() -> None:
    ids, n = IDS.clone(), len(NEEDLE)
    ids[0, 11] = 5
    pattern = looking({**RIGHT, 10: 4})
    answer = (*ANSWER, 11)
    assert both_roads(pattern, ids, answer, count="count") == pytest.approx((n + 1) / n)
    assert both_roads(pattern, ids, answer, count="set") == 1.0


def test_a_word_that_stands_twice_in_the_needle_can_be_copied_twice() -> None:
    ids = IDS.clone()
    ids[0, 3] = ids[0, 9] = 3
    assert both_roads(looking(RIGHT), ids) == 1.0
    assert both_roads(looking({7: 2, 8: 2, 9: 4}), ids) == pytest.approx(2 / 3), "one of the two was never looked at"


def test_ties_go_to_the_lowest_position() -> None:
    """An even row: position 0 wins, so that nothing is copied, unless the needle begins there."""
    even = uniform_causal(LENGTH)[None, None]
    assert both_roads(even) == 0.0
    needle = torch.zeros(1, LENGTH, dtype=torch.bool)
    needle[0, 0] = True
    wanted = torch.full((1, LENGTH), int(IDS[0, 0]))
    assert copied(even, IDS, wanted, needle).unique().tolist() == [0]
    tied = looking({7: 2})
    tied[0, 0, 7, 3] = tied[0, 0, 7, 2]
    assert copied(tied, IDS, IDS.roll(-1, 1), members(NEEDLE))[0, 0, 7] == 2
    tied[0, 0, 7, 1] = tied[0, 0, 7, 2]
    assert copied(tied, IDS, IDS.roll(-1, 1), members(NEEDLE))[0, 0, 7] == -1


def test_the_argmax_on_bos_is_zero_and_leaving_it_out_rescues_the_head() -> None:
    pattern = looking(RIGHT)
    for row in RIGHT:
        pattern[0, 0, row, 0] = 2.0
    assert both_roads(pattern) == 0.0
    dropped = torch.zeros(1, LENGTH, dtype=torch.bool)
    dropped[0, 0] = True
    spans = {"needle": members(NEEDLE), "answer": members(ANSWER)}
    ask = ask_for(ids=IDS, spans=spans, dropped=dropped)
    assert reduced(retrieval(ask), pattern).item() == 1.0


def test_top_k_copies_the_largest_entry_that_fits_and_once_a_step() -> None:
    pattern = looking(RIGHT)
    for row in RIGHT:
        pattern[0, 0, row, 0] = 2.0
    assert both_roads(pattern, top_k=2) == both_roads(pattern, top_k=2, count="count") == 1.0
    assert both_roads(uniform_causal(LENGTH)[None, None], top_k=LENGTH) == 1.0
    ids = IDS.clone()
    ids[0, 3] = 3
    steps = copied(looking({7: 3}), ids, ids.roll(-1, 1), members(NEEDLE), top_k=LENGTH)
    assert steps[0, 0, 7] == 3, "position 2 has the same token and less attention"


def test_only_the_rows_of_the_answer_are_asked_for() -> None:
    ask = ask_for(ids=IDS, spans={"needle": members(NEEDLE), "answer": members(ANSWER)})
    reducer = retrieval(ask)
    assert reducer.rows is not None and sorted(reducer.rows[0].tolist()) == [7, 8, 9]
    assert sum(block.rows.shape[1] for block in blocks_of(looking(RIGHT), ask)) == LENGTH


def test_wrong_options_and_prompts_are_refused() -> None:
    spans = {"needle": members(NEEDLE), "answer": members(ANSWER)}
    ask = ask_for(ids=IDS, spans=spans)
    with pytest.raises(BadInput, match="way to count what was copied"):
        retrieval(ask, count="sets")
    with pytest.raises(BadInput, match="top_k=0"):
        retrieval(ask, top_k=0)
    with pytest.raises(BadInput, match=r"begins before the needle ends in prompts \[0\]"):
        retrieval(ask, needle="answer", answer="needle")
    with pytest.raises(BadInput, match="begins before the needle ends"):
        retrieval(ask, answer="needle")
    with pytest.raises((BadInput, UnknownName, ValueError), match="neadle"):
        retrieval(ask, needle="neadle")


# ---- whole models ---------------------------------------------------------------------------------------------------

TEMPLATE = "{context} {question}"
FACTS = (
    Fact("remember mary book lamp cake moon .", "recall mary", "book lamp cake moon"),
    Fact("remember dog spoon hat river star .", "recall dog", "spoon hat river star"),
)


@pytest.fixture(scope="module")
def model() -> Model:
    return interp.load("needle")


@pytest.fixture(scope="module")
def filler() -> str:
    words = list(needle_vocabulary())
    return " ".join(words[token] for token in filler_words(400, torch.Generator().manual_seed(8)).tolist())


def by_hand(model: Model, batch: interp.Batch, **options: Any) -> np.ndarray:
    """From maps of the whole model, one prompt at a time."""
    made = []
    for row in range(len(batch)):
        own = batch.select([row])
        real = own.mask[0]
        ids = own.ids
        assert ids is not None
        maps = [interp.run(model, own, read=[at])[at] for at in (At(Site.PATTERN, layer=i) for i in range(3))]
        spans = [own.spans[name][:, real] for name in ("needle", "answer")]
        made.append(
            [retrieval_score(one[:, :, real][..., real], ids[:, real], *spans, **options)[0].numpy() for one in maps]
        )
    return np.array(made)


def test_the_score_of_a_model_is_the_one_by_hand_for_any_block_and_padding(model: Model, filler: str) -> None:
    prompts = haystacks(model, filler, FACTS, lengths=[60, 110], depths=[0.3, 0.9], template=TEMPLATE)
    batch = haystack_batch(model, prompts)
    assert len(set(batch.lengths)) > 1, "padded"
    whole = by_hand(model, batch)
    found = interp.score(model, batch, "retrieval")["retrieval"]
    np.testing.assert_array_equal(found.samples, whole)
    for options in ({"block": 500}, {"batch_size": 3}):
        again = interp.score(model, batch, "retrieval", **options)["retrieval"]  # type: ignore[arg-type]
        np.testing.assert_array_equal(again.samples, whole)
    counts = interp.score(model, batch, {"c": {"score": "retrieval", "count": "count", "top_k": 3}})["c"]
    np.testing.assert_array_equal(counts.samples, by_hand(model, batch, count="count", top_k=3))
    assert found.values[1, :2].min() > 0.8, "the retrieval heads of the zoo's model"
    assert {str(head) for head in retrieval_heads(found)} >= set(ZOO["needle"].heads["retrieval"])


def test_shuffled_words_leave_nothing_to_retrieve(model: Model, filler: str) -> None:
    batch = haystack_batch(model, haystacks(model, filler, FACTS, lengths=[80], depths=[0.5], template=TEMPLATE))
    found = interp.score(model, batch, "retrieval", null="shuffled", draws=5)
    assert found.nulls["retrieval"].samples.max() < 0.3 < found["retrieval"].values.max()


def test_generated_equals_teacher_forced_where_the_greedy_answer_is_the_needle(model: Model, filler: str) -> None:
    prompts = haystacks(model, filler, FACTS, lengths=[60, 110], depths=[0.2, 0.8], template=TEMPLATE)
    read = interp.score(model, haystack_batch(model, prompts), "retrieval")["retrieval"]
    options = {"stop": ".", "max_new_tokens": 10}
    batch = haystack_batch(model, prompts, answers=False)
    wrote = interp.score(model, batch, {"retrieval_generated": options})["retrieval_generated"]
    exact = [row for row, text in enumerate(wrote.metadata["answers"]) if text == prompts[row].fact.answer]
    assert len(exact) >= len(prompts) / 2, "the greedy answers are mostly right"
    assert all(wrote.metadata["recall"][row] == 1.0 for row in exact)
    np.testing.assert_array_equal(wrote.samples[exact], read.samples[exact])
    without = interp.score(model, batch, {"retrieval_generated": options}, exclude_sinks="first")
    rival = interp.score(model, haystack_batch(model, prompts), "retrieval", exclude_sinks="first")["retrieval"]
    np.testing.assert_array_equal(without["retrieval_generated"].samples[exact], rival.samples[exact])


def test_the_generation_is_the_one_of_transformers(model: Model, filler: str) -> None:
    (prompt,) = haystacks(model, filler, FACTS[0], lengths=[70], depths=[0.5], template=TEMPLATE)
    network: Any = model.hf
    new = network.generate(torch.tensor([prompt.ids]), max_new_tokens=4, do_sample=False)[0, len(prompt.ids) :]
    batch = haystack_batch(model, [prompt], answers=False)
    options = {"stop": None, "max_new_tokens": 4}
    found = interp.score(model, batch, {"retrieval_generated": options})["retrieval_generated"]
    assert found.metadata["answers"] == [model.tokenizer.decode(new)]


def test_prompts_that_are_not_answered_do_not_count(model: Model, filler: str) -> None:
    """The second asks for somebody the text does not tell of, so that what is written is not its needle."""
    good = haystack(model, filler, FACTS[0], length=70, depth=0.5, template=TEMPLATE)
    bad = haystack(model, filler, replace(FACTS[1], question="recall queen"), length=70, depth=0.5, template=TEMPLATE)
    batch = haystack_batch(model, [good, bad], answers=False)
    options = {"stop": ".", "max_new_tokens": 6, "recall_over": 0.99}
    name = "retrieval_generated"
    found = interp.score(model, batch, {name: options})[name]
    assert np.isfinite(found.samples[0]).all() and np.isnan(found.samples[1]).all()
    assert found.metadata["prompts counted"] == 1 and found.metadata["recall"][1] < 0.99
    np.testing.assert_array_equal(found.values, found.samples[0])
    nobody = interp.score(model, haystack_batch(model, [bad], answers=False), {name: options})[name]
    assert np.isnan(nobody.samples).all()


def test_generation_refuses_what_it_cannot_do(model: Model, filler: str) -> None:
    (prompt,) = haystacks(model, filler, FACTS[0], lengths=[70], depths=[0.5], template=TEMPLATE)
    batch = haystack_batch(model, [prompt], answers=False)
    for option, message in (({"max_new_tokens": 0}, "max_new_tokens=0"), ({"recall_over": 1.0}, "recall_over=1.0")):
        with pytest.raises(BadInput, match=message):
            interp.score(model, batch, {"retrieval_generated": option})
    with pytest.raises(BadInput, match=r"max_new_tokens=2\.5"):
        interp.score(model, batch, {"retrieval_generated": {"max_new_tokens": 2.5}})
    more = replace(batch, inputs={**batch.inputs, "pixel_values": torch.zeros(1, 3, 4, 4)})
    with pytest.raises(BadInput, match="pixel_values"):
        interp.score(model, more, {"retrieval_generated": {}})


def test_answers_that_the_context_cannot_hold_are_refused_before_any_forward() -> None:
    model = interp.load("handmade")  # whose context holds 32 tokens
    ids = torch.randint(3, 6, (1, 24), generator=torch.Generator().manual_seed(0))
    batch = interp.encode(model, ids, spans={"needle": [range(2, 4)]})
    done: list[int] = []
    with pytest.raises(BadInput, match=r"24 tokens .*=50 exceed .* 32; ask for max_new_tokens=8 at most"):
        interp.score(model, batch, "retrieval_generated", progress=done.append)
    assert not done
    fits = interp.score(model, batch, {"retrieval_generated": {"max_new_tokens": 8}})["retrieval_generated"]
    assert len(fits.metadata["recall"]) == 1
    full = interp.encode(model, ids.repeat(1, 2)[:, :32], spans={"needle": [range(2, 4)]})
    with pytest.raises(BadInput, match="give shorter prompts"):
        interp.score(model, full, {"retrieval_generated": {"max_new_tokens": 1}})


def test_retrieval_heads_are_those_over_the_threshold() -> None:
    table = HeadScores.from_array([[0.099, 0.1], [0.7, np.nan]], name="retrieval")
    assert retrieval_heads(table) == (Head(1, 0), Head(0, 1))
    assert retrieval_heads(table, 0.5) == (Head(1, 0),) and retrieval_heads(table, 0.9) == ()


# ---- haystacks ------------------------------------------------------------------------------------------------------


def test_facts_stand_at_the_sentence_end_at_or_before_their_depth(model: Model) -> None:
    text = "the dog ran to the old house . " * 40  # sentences of 8 tokens
    around = 1 + 7 + 2  # <bos>, the sentence, the question
    for depth in (0.0, 0.1, 0.5, 0.99, 1.0):
        found = haystack(model, text, FACTS[0], length=100, depth=depth, template=TEMPLATE)
        wanted = int((100 - around) * depth)
        assert found.sentence.start - 1 == wanted - wanted % 8 and len(found.ids) == 100
        said = model.tokenizer.convert_ids_to_tokens([found.ids[place] for place in found.needle])
        assert said == FACTS[0].answer.split()
        assert model.tokenizer.convert_ids_to_tokens(list(found.answer_ids)) == said
        assert model.tokenizer.decode(found.ids[-2:]) == "recall mary"


def test_a_text_without_sentence_ends_takes_the_fact_at_its_beginning(model: Model) -> None:
    found = haystack(model, "the dog ran " * 40, FACTS[0], length=60, depth=1.0, template=TEMPLATE)
    assert found.sentence.start == 1


def test_the_batch_has_the_places_as_spans(model: Model, filler: str) -> None:
    prompts = haystacks(model, filler, FACTS, lengths=[60, 80], depths=[0.0, 1.0], template=TEMPLATE)
    for answers in (True, False):
        batch = haystack_batch(model, prompts, answers=answers)
        assert set(batch.spans) == ({"sentence", "needle", "answer"} if answers else {"sentence", "needle"})
        for row, prompt in enumerate(prompts):
            assert batch.ids is not None
            assert batch.ids[row][batch.spans["needle"][row]].tolist() == [prompt.ids[at] for at in prompt.needle]
            assert int(batch.spans["sentence"][row].sum()) == 7
            assert batch.lengths[row] == len(prompt.ids) + (4 if answers else 0)
            if answers:
                assert batch.ids[row][batch.spans["answer"][row]].tolist() == list(prompt.answer_ids)


@pytest.fixture(scope="module")
def byte_pairs() -> Model:
    """A small model with a byte-level BPE tokenizer, trained here on a few sentences: tokens depend on spaces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    corpus = ["Please eat a sandwich in the park on a sunny day. The cat sat on the mat, and the dog ran home."] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    return interp.load(LlamaForCausalLM(config).eval(), tokenizer=fast)


def test_byte_pairs_are_found_where_the_characters_say(byte_pairs: Model) -> None:
    fact = Fact("Please eat a sandwich in the park.", "What should one eat?", "eat a sandwich")
    text = "The cat sat on the mat. The dog ran home! " * 30
    for depth in (0.0, 0.4, 1.0):
        found = haystack(byte_pairs, text, fact, length=150, depth=depth)
        tokenizer = byte_pairs.tokenizer
        assert tokenizer.decode([found.ids[at] for at in found.needle]).strip() == fact.answer
        assert tokenizer.decode([found.ids[at] for at in found.sentence]).strip() == fact.sentence
        assert tokenizer.decode(found.ids[found.sentence.start - 1]).rstrip()[-1:] in (".", "!", "") or depth == 0
        assert abs(len(found.ids) - 150) <= 4
        assert [found.ids[at] for at in found.needle] == list(found.answer_ids), "they can be copied"


def test_what_is_not_found_is_refused_with_the_nearest_match(model: Model) -> None:
    ids = model.tokenizer("the old dog ran home . the cat sat", add_special_tokens=False).input_ids
    assert locate(model.tokenizer, ids, "dog ran home") == range(2, 5)
    with pytest.raises(BadInput, match=r"nearest match, at 2, has 2 of its 3 tokens: 'dog ran home'"):
        locate(model.tokenizer, ids, "dog ran house")
    with pytest.raises(BadInput, match="stands at 2 places"):
        locate(model.tokenizer, ids, "the")


def test_impossible_haystacks_are_refused(model: Model) -> None:
    text = "the dog ran . " * 10
    with pytest.raises(BadInput, match="no part of the sentence"):
        haystack(model, text, replace(FACTS[0], answer="moon book"), length=30, depth=0, template=TEMPLATE)
    with pytest.raises(BadInput, match="expected a length from 10 to 50"):
        haystack(model, text, FACTS[0], length=51, depth=0, template=TEMPLATE)
    with pytest.raises(BadInput, match=r"depth=1\.5"):
        haystack(model, text, FACTS[0], length=30, depth=1.5, template=TEMPLATE)
    with pytest.raises(BadInput, match="lacks"):
        haystack(model, text, FACTS[0], length=30, depth=0, template="{context}")
    with pytest.raises(BadInput, match="stands at 2 places"):
        haystack(model, FACTS[0].sentence + " " + text, FACTS[0], length=40, depth=1.0, template=TEMPLATE)
    bare = interp.load(
        LlamaForCausalLM(
            LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        ).eval()
    )
    with pytest.raises(BadInput, match="without a tokenizer"):
        haystack(bare, text, FACTS[0], length=30, depth=0)
    assert build_tokenizer(NEEDLE_WORDS, context=8).get_vocab() == needle_vocabulary()


# ---- ROUGE ----------------------------------------------------------------------------------------------------------


def test_rouge_is_a_count_of_words() -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        reference, said = ([f"w{n}" for n in draw.integers(0, 6, size)] for size in draw.integers(1, 9, 2))
        shared, left = 0, list(said)
        for word in reference:
            if word in left:
                left.remove(word)
                shared += 1
        assert rouge_1_recall(" ".join(reference), ", ".join(said).upper()) == pytest.approx(shared / len(reference))
    assert math.isnan(rouge_1_recall("...", "words")) and rouge_1_recall("a b", "") == 0.0
    assert rouge_1_recall("walked dogs", "walking dog") == 0.0
    assert rouge_1_recall("walked dogs", "walking dog", stem=True) == 1.0
    assert rouge_1_recall("glass", "glas", stem=True) == 0.0
    assert Counter("ab") & Counter("b") == Counter("b")
