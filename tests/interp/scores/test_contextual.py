"""Contextual heads: the mass of answer rows on the gold document, its companions, and answers put behind prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from planted import ask_for, reduced, uniform_causal

import interp
from interp.errors import BadAddress, BadInput, Unsupported
from interp.scores.long_context.contextual import COMPANIONS, contextual, contextual_companions
from interp.zoo.needle_text import needle_rows

IDS = torch.tensor([[0, 3, 4, 5, 3, 4, 5, 2, 3, 4]])
DOCUMENTS = {"one": slice(1, 3), "two": slice(3, 5), "three": slice(5, 7)}
ANSWER = slice(-2, None)


def test_uniform_attention_gives_m_over_n() -> None:
    ask = ask_for(10, ids=IDS)
    found = reduced(contextual(ask, gold=slice(3, 5), answer=ANSWER), uniform_causal(10))
    assert found.item() == pytest.approx((2 / 9 + 2 / 10) / 2)
    before = reduced(contextual(ask, gold=slice(3, 5), answer=ANSWER, rows="predicting"), uniform_causal(10))
    assert before.item() == pytest.approx((2 / 8 + 2 / 9) / 2)


def test_a_head_that_looks_at_the_gold_only() -> None:
    ask = ask_for(10, ids=IDS)
    looking = torch.eye(10)
    looking[8:] = 0
    looking[8, 3] = looking[9, 4] = 1
    assert reduced(contextual(ask, gold=slice(3, 5), answer=ANSWER), looking).item() == 1
    assert reduced(contextual(ask, gold=slice(5, 7), answer=ANSWER), looking).item() == 0


@pytest.mark.parametrize("rows_per_block", [1, 4, 20])
def test_companions_written_out(rows_per_block: int) -> None:
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, :2] = False
    maps = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(1)).tril() * mask[:, None, None]
    maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-9)
    ask = ask_for(10, ids=IDS.repeat(2, 1), mask=mask)
    made = contextual_companions(ask, gold=slice(3, 5), answer=ANSWER, documents=DOCUMENTS)
    assert made.rows is not None and made.rows.tolist() == [[8, 9], [8, 9]], "no other row is computed"
    found = reduced(made, maps, rows_per_block=rows_per_block)
    assert made.measured().bins == COMPANIONS
    for prompt, start in ((0, 0), (1, 2)):
        rows = maps[prompt][:, 8:, start:].mean(1)
        one, two, three = rows[:, 1:3].sum(-1), rows[:, 3:5].sum(-1), rows[:, 5:7].sum(-1)
        expected = torch.stack([two, one + three, torch.maximum(one, three), rows[:, :2].sum(-1)], -1)
        torch.testing.assert_close(found[prompt].float(), expected)


def test_the_largest_document_is_that_of_the_mean_over_rows() -> None:
    """Rows that each prefer another document: the largest mean, not the mean of the largest."""
    ask = ask_for(10, ids=IDS)
    maps = torch.eye(10)
    maps[8:] = 0
    maps[8, 1] = maps[9, 5] = 1
    made = contextual_companions(ask, gold=slice(3, 5), answer=ANSWER, documents=DOCUMENTS)
    assert reduced(made, maps)[0, 0].tolist() == pytest.approx([0, 1, 0.5, 0.5])


def test_without_other_documents_the_irrelevant_bins_are_undefined() -> None:
    ask = ask_for(10, ids=IDS)
    made = contextual_companions(ask, gold=slice(3, 5), answer=ANSWER, documents={"two": slice(2, 5)})
    found = reduced(made, uniform_causal(10))[0, 0]
    assert found[[0, 3]].isfinite().all() and found[[1, 2]].isnan().all()


def test_left_out_sinks_rescale_the_rows() -> None:
    dropped = torch.zeros(1, 10, dtype=torch.bool)
    dropped[0, 0] = True
    ask = ask_for(10, ids=IDS, dropped=dropped)
    sinking = torch.zeros(10, 10)
    sinking[:, 0], sinking[:, 3] = 0.9, 0.1
    sinking[:3] = torch.eye(10)[:1]
    assert reduced(contextual(ask, gold=slice(3, 5), answer=ANSWER), sinking).item() == pytest.approx(1)


def test_refusals_of_contextual() -> None:
    ask = ask_for(10, ids=IDS, spans={"document 1": range(1, 3)})
    with pytest.raises(BadAddress, match="Unknown span 'gold'"):
        contextual(ask, answer=ANSWER)
    with pytest.raises(BadInput, match="Unknown rows of planted 'anwser'"):
        contextual(ask, gold=slice(1, 3), answer=ANSWER, rows="anwser")
    with pytest.raises(BadInput, match="no row predicts the first token of prompts"):
        contextual(ask, gold=slice(1, 3), answer=slice(0, 2), rows="predicting")
    with pytest.raises(BadInput, match="sink=0"):
        contextual_companions(ask, gold=slice(1, 3), answer=ANSWER, sink=0)
    with pytest.raises(BadInput, match="no span begins with 'document '"):
        contextual_companions(ask_for(10, ids=IDS), gold=slice(1, 3), answer=ANSWER)
    model = interp.load("induction")
    batch = interp.encode(model, torch.randint(5, 300, (2, 10)))
    with pytest.raises(BadInput, match=r"prompts \[0, 1\] have no document besides the gold one"):
        options = {"gold": slice(1, 3), "answer": ANSWER, "documents": {"one": slice(1, 3)}}
        interp.score(model, batch, {"contextual_gold_only": options})
    golds = torch.zeros(2, 10, dtype=torch.bool)
    golds[0, 1], golds[1, 1], golds[1, 4] = True, True, True  # in the second prompt both documents hold the answer
    options = {"gold": golds, "answer": ANSWER, "documents": {"one": slice(1, 3), "two": slice(3, 5)}}
    with pytest.raises(BadInput, match=r"prompts \[1\] have no document besides the gold one; leave them out"):
        interp.score(model, batch, {"contextual_gold_only": options})
    with pytest.raises(BadInput, match="'one' and 'two' share 1 token"):
        documents = {"one": slice(3, 5), "two": slice(4, 7)}
        contextual_companions(ask, gold=slice(1, 3), answer=ANSWER, documents=documents)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom"])
def test_gold_only_is_the_score_of_the_shorter_prompt(case_of: Callable[..., object], name: str) -> None:
    case = case_of(name)
    model = case.model  # type: ignore[attr-defined]
    ids = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = interp.encode(model, ids)
    options = {"gold": slice(3, 6), "answer": ANSWER}
    documents = {"one": slice(1, 3), "two": slice(3, 6), "three": slice(6, 9)}
    found = interp.score(model, batch, {"contextual_gold_only": {**options, "documents": documents}})
    short = interp.encode(model, torch.cat([ids[:, :1], ids[:, 3:6], ids[:, 9:]], dim=1))
    expected = interp.score(model, short, {"contextual": {**options, "gold": slice(1, 4)}})["contextual"]
    np.testing.assert_allclose(found["contextual_gold_only"].samples, expected.samples, atol=1e-5)


# ---- answers --------------------------------------------------------------------------------------------------------


def test_answers_go_behind_prompts_of_any_padding() -> None:
    model = interp.load("induction")
    rows = [[0, 5, 6, 7, 8], [0, 9, 10]]
    for side in ("left", "right"):
        batch = interp.encode(model, rows, padding_side=side, spans={"first": [range(1, 3), range(1, 2)]})
        made = interp.with_answer(model, batch, [[11], [12, 13]], name="answer")
        assert made.ids is not None
        got = [made.ids[row, made.mask[row]].tolist() for row in range(2)]
        assert got == [[0, 5, 6, 7, 8, 11], [0, 9, 10, 12, 13]]
        assert [made.ids[row, made.spans["answer"][row]].tolist() for row in range(2)] == [[11], [12, 13]]
        assert [made.ids[row, made.spans["first"][row]].tolist() for row in range(2)] == [[5, 6], [9]]
        assert made.ids[torch.arange(2), made.read_at].tolist() == [8, 10]
    words = interp.with_answer(model, batch, ["cat dog", "cat"])
    assert words.spans["generated"].sum(-1).tolist() == [2, 1]
    with pytest.raises(BadInput, match="the answer of prompt 1 is empty"):
        interp.with_answer(model, batch, [[3], []])
    with pytest.raises(BadInput, match="1 answers for 2 prompts"):
        interp.with_answer(model, batch, [[3]])


def test_generated_answers_are_the_models_own_and_end_where_told() -> None:
    model = interp.load("needle")
    rows = needle_rows(3, 96, torch.Generator().manual_seed(0), questions=1)
    prompt = interp.encode(model, rows.ids[:, :-5])  # ... recall KEY
    stop = model.tokenizer.convert_tokens_to_ids(".")
    made = interp.with_generated(model, prompt, max_new_tokens=8, stop=[stop])
    assert made.ids is not None
    told = rows.ids[:, -5:-1]
    for row in range(3):
        assert made.ids[row, made.spans["generated"][row]].tolist() == told[row].tolist(), "its four values, no stop"
    short = interp.encode(model, [rows.ids[0, :-5].tolist(), rows.ids[1, 3:-5].tolist()])
    both = interp.with_generated(model, short, max_new_tokens=2)
    assert both.spans["generated"].sum(-1).tolist() == [2, 2] and both.ids is not None
    assert both.ids[0, both.spans["generated"][0]].tolist() == told[0, :2].tolist()
    with pytest.raises(BadInput, match="which holds 2048; ask for max_new_tokens=1957"):
        interp.with_generated(model, prompt, max_new_tokens=2000)


def test_an_image_stays_with_its_prompt(case_of: Callable[..., object]) -> None:
    case = case_of("llava")
    batch = case.batch()  # type: ignore[attr-defined]
    made = interp.with_answer(case.model, batch, [[7, 8]] * len(batch))  # type: ignore[attr-defined]
    assert made.inputs["pixel_values"] is batch.inputs["pixel_values"]
    groups = interp.token_groups(case.model, made)  # type: ignore[attr-defined]
    assert set(groups.names) >= {"image", "generated", "rest"} and made.width == batch.width + 2
    found = interp.score(case.model, made, {"contextual": {"gold": groups["image"]}})["contextual"]  # type: ignore[attr-defined]
    assert np.isfinite(found.samples).all()


def test_the_needle_model_looks_at_the_needle() -> None:
    """The heads that the card says retrieve are the most contextual ones, and the mass is on the asked needle."""
    model = interp.load("needle")
    rows = needle_rows(4, 128, torch.Generator().manual_seed(1), questions=1)
    answers = rows.ids[:, -5:-1].tolist()
    batch = interp.encode(model, rows.ids[:, :-5], spans={"gold": rows.asked[:, :-5]})
    batch = interp.with_answer(model, batch, answers)
    options = {"rows": "predicting"}
    found = interp.score(model, batch, {"contextual": options})["contextual"]
    per_layer = found.values.max(1)
    assert per_layer.argmax() == 1 and per_layer[1] > 0.5
    single = interp.score(model, batch, {"contextual": options}, batch_size=1)["contextual"]
    np.testing.assert_allclose(found.samples, single.samples, atol=1e-5)


@pytest.mark.parametrize("stack", ["decoder", "encoder", "cross"])
def test_no_document_is_taken_out_of_an_encoder_decoder(case_of: Callable[..., object], stack: str) -> None:
    case = case_of("t5")
    batch = case.batch(2, 10)  # type: ignore[attr-defined]
    options = {"gold": slice(1, 3), "answer": ANSWER, "documents": {"one": slice(1, 3), "two": slice(3, 5)}}
    with pytest.raises(Unsupported, match="encode prompts without the documents"):
        interp.score(case.model, batch, {"contextual_gold_only": options}, stack=stack)  # type: ignore[attr-defined]


def test_an_encoder_decoder_reads_its_documents_by_cross_attention(case_of: Callable[..., object]) -> None:
    """Answer rows of the decoder, gold keys of the encoder."""
    case = case_of("t5")
    batch = case.batch()  # type: ignore[attr-defined]
    options = {"gold": slice(1, 4), "answer": slice(-2, None)}
    found = interp.score(case.model, batch, {"contextual": options}, stack="cross")["contextual"]  # type: ignore[attr-defined]
    at = interp.At(interp.Site.PATTERN, stack="cross")
    maps = interp.run(case.model, batch, read=[at])[at].numpy()  # type: ignore[attr-defined]
    expected = maps[..., -2:, 1:4].sum(-1).mean(-1).transpose(1, 0, 2)
    np.testing.assert_allclose(found.samples, expected, atol=1e-6)
    with pytest.raises(BadInput, match="encode the answer with decoder="):
        interp.with_answer(case.model, batch, [[5]] * len(batch))  # type: ignore[attr-defined]
