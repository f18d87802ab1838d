"""The contextual experiment: prompts, what it finds on the needle model by more than one road, files of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import circuits
import interp
from circuits.config import load_config
from circuits.experiments.contextual.config import ContextualConfig
from circuits.experiments.contextual.findings import recalled
from circuits.experiments.contextual.measuring import predicting_rows, tokens_right
from circuits.experiments.contextual.prompts import contextual_prompts
from circuits.experiments.contextual.questions import drawn_prompts, read_questions
from circuits.runner import Finished
from interp import At, Head, Site
from interp.errors import BadInput
from interp.zoo.needle_text import BLOCK, needle_vocabulary

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "n_questions": 4,
        "n_documents": 5,
        "length": 128,
        "places": [0.0, 0.5, 1.0],
        "counts": [1, 2],
        "draws": 4,
        "null_draws": 19,
        "batch_size": 3,
    }
)


def settings(**more: Any) -> ContextualConfig:
    found = load_config("contextual-heads", {**SETTINGS, **more}).config
    assert isinstance(found, ContextualConfig)
    return found


@pytest.fixture(scope="module")
def needle() -> interp.Model:
    return interp.load("needle", check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Finished]:
    """The run, done once."""
    folder = tmp_path_factory.mktemp("contextual")
    return lambda: circuits.run("contextual-heads", SETTINGS, out=folder / "run")


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_the_gold_fact_moves_and_nothing_else_changes(needle: interp.Model) -> None:
    (drawn, *_) = drawn_prompts(needle, settings())
    words = list(needle_vocabulary())
    contents = []
    for slot in range(5):
        moved = drawn.with_gold_at(slot)
        blocks = [moved.ids[place : place + BLOCK] for place in moved.facts]
        contents.append(blocks)
        key = moved.ids[-1]
        assert [block[1] == key for block in blocks].index(True) == slot == moved.gold
        assert blocks[slot][2:6] == moved.answer and words[moved.ids[-2]] == "recall"
        kept = [one for place, one in enumerate(blocks) if place != slot]
        assert kept == [one for place, one in enumerate(contents[0]) if place != 0], "the others keep their order"
        inside = {place + step for place in moved.facts for step in range(BLOCK)}
        assert all(a == b for i, (a, b) in enumerate(zip(moved.ids, drawn.ids, strict=True)) if i not in inside)


def test_prompts_share_no_question_and_mark_their_documents(needle: interp.Model) -> None:
    selection, evaluation = contextual_prompts(needle, settings())
    assert len(selection) == len(evaluation) == 6 and not set(selection.cluster) & set(evaluation.cluster)
    assert evaluation.slots == [0, 2, 4]
    batch = evaluation.batch(needle)
    for row, prompt in enumerate(evaluation.made):
        gold = batch.spans[f"document {prompt.gold + 1}"][row]
        torch.testing.assert_close(gold, batch.spans["gold"][row])
        assert batch.ids is not None and batch.ids[row, batch.spans["answer"][row]].tolist() == list(prompt.answer)
    rows = predicting_rows(batch)
    assert rows.shape == (6, 4) and batch.ids is not None
    answer = batch.spans["answer"].nonzero()[:, 1].view(6, 4)
    torch.testing.assert_close(rows, answer - 1)


def test_rows_of_answers_of_unequal_length_repeat_the_last(needle: interp.Model) -> None:
    batch = interp.with_answer(needle, interp.encode(needle, [[0, 5, 6], [0, 7]]), [[8], [9, 10]], name="answer")
    assert predicting_rows(batch).tolist() == [[2, 2], [1, 2]]
    logits = torch.zeros(2, 4, 310)
    logits[0, 2, 8] = logits[1, 1, 9] = logits[1, 2, 11] = 1
    assert tokens_right(logits, batch).tolist() == [1.0, 0.5]


# ---- findings -------------------------------------------------------------------------------------------------------


def test_two_heads_read_and_the_answer_needs_them(finished: Callable[[], Finished]) -> None:
    found = finished()
    facts = found.facts
    assert facts["reading"] == facts["order"][:2] and {name[:2] for name in facts["reading"]} == {"L1"}
    assert facts["right"]["0"] > 0.95 and facts["right"]["2"] < 0.3, "no answer without the two"
    pair = facts["sets"][1]
    assert pair["change"] < 10 * pair["same layers"] - 5, "random heads of the layer cost next to nothing"
    assert max(facts["scores"].values()) > 10 * facts["largest null"] / 4
    table = pd.read_parquet(found.folder / "heads.parquet")
    assert {"contextual, selection", "contextual, evaluation", "companions", "gold alone"} <= set(table["quantity"])
    assert "L1.H0" in found.answer and (found.folder / "report.html").stat().st_size < 8e6
    effects = facts["effects at the answer"]
    assert sorted(effects, key=lambda name: effects[name])[:2] in (facts["reading"], facts["reading"][::-1])
    assert facts["agreement"]["foremost in common"] == 1, "exact ablation finds the same two"
    assert "of the 2 most contextual heads 2 are among the 2" in found.notes[0]


def test_scores_by_the_other_road(finished: Callable[[], Finished], needle: interp.Model) -> None:
    """Whole maps of the plain model, and the edited runs, prompt by prompt."""
    facts = finished().facts
    batch = contextual_prompts(needle, settings())[1].batch(needle)
    at = At(Site.PATTERN, layer=1)
    run = interp.run(needle, batch, read=[at])
    rows, keys = batch.spans["answer"].float(), batch.spans["gold"].float()
    mass = torch.einsum("bhqk,bq,bk->bh", run[at], rows, keys) / rows.sum(-1, keepdim=True)
    best = Head.parse(facts["reading"][0])
    assert float(mass.mean(0)[best.index]) == pytest.approx(facts["scores"][str(best)], abs=1e-5)
    assert facts["answers by place"]["said"] == [1.0] * 3, "the model's own answers are the right ones"
    reference = contextual_prompts(needle, settings())[0].batch(needle)  # all six of them
    edits = [interp.mean(At(Site.Z, layer=best.layer, heads=(best.index,)), reference)]
    change = interp.sequence_logprob(interp.run(needle, batch, edits=edits).logits, batch)
    whole = interp.sequence_logprob(interp.run(needle, batch).logits, batch)
    assert float((change - whole).mean()) == pytest.approx(facts["effects"][str(best)], abs=1e-3)


def test_a_finished_run_is_not_done_again(finished: Callable[[], Finished]) -> None:
    folder = finished().folder
    assert circuits.run("contextual-heads", SETTINGS, out=folder).reused


# ---- files ----------------------------------------------------------------------------------------------------------


def write_questions(path: Path, n: int = 4, documents: int = 3) -> Path:
    """Questions in the needle models' own words, a text at a time."""
    words = list(needle_vocabulary())
    keys, values = words[134:182], words[182:310]
    rows = []
    for number in range(n):
        facts = []
        for place in range(documents):
            own = [values[(17 * number + 5 * place + step) % 128] for step in range(4)]
            facts.append((keys[(3 * number + place) % 48], " ".join(own)))
        gold = number % documents
        rows.append(
            {
                "question": f"recall {facts[gold][0]}",
                "documents": [f"remember {key} {said} ." for key, said in facts],
                "gold": gold,
                "answer": facts[gold][1],
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_file_of_ones_own(tmp_path: Path, needle: interp.Model) -> None:
    file = write_questions(tmp_path / "questions.jsonl")
    own = {"documents": str(file), "template": "{documents}{question}", "document": "{document} ", "answer": "given"}
    prompts = contextual_prompts(needle, settings(**own))[0]
    words = needle.tokenizer.convert_ids_to_tokens(list(prompts.made[1].ids))
    assert words[:8] == ["<bos>", "remember", *words[2:7], "."] and words[-2] == "recall" and len(words) == 24
    assert [stop - start for start, stop in prompts.made[1].documents] == [7, 7, 7] and prompts.made[1].gold == 1
    start, stop = prompts.made[1].documents[1]
    assert words[start:stop][1] == words[-1] and len(prompts.made[1].answer) == 4
    found = circuits.run("contextual-heads", {**SETTINGS, **own, "counts": [1], "null_draws": 4}, out=tmp_path / "run")
    assert found.facts["order"][0].startswith("L1") and found.facts["places"] == [1, 2, 3]
    assert "19" in found.notes[0], "too few draws for a head to pass"


def test_a_chat_template_goes_around_the_prompt(tmp_path: Path) -> None:
    from small_tokenizers import chatty
    from tiny_models import TINY

    texts = ["Mary had a dog", "The Tower is in Paris", "John had a drink"]
    rows = [{"question": "the city", "documents": texts, "gold": 1, "answer": "Paris"}] * 4
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    model = interp.load(TINY["gpt2"]().hf, tokenizer=chatty(), check=False)
    own = {"documents": str(file), "chat": True, "document": "{document} . ", "template": "{documents} {question}"}
    with pytest.warns(UserWarning, match="unknown token"):  # the role
        prompt = contextual_prompts(model, settings(**own))[0].made[0]
    words = model.tokenizer.convert_ids_to_tokens(list(prompt.ids))
    start, stop = prompt.documents[prompt.gold]
    assert words[0] == "<s>" and words[1] != "<s>" and words[start:stop] == ["The", "Tower", "is", "in", "Paris"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2: no JSON"),
        ('{"question": "a", "documents": ["b"]}', "line 2: answer, gold missing"),
        ('{"question": "a", "documents": ["b", "c", ""], "gold": 0, "answer": "d"}', "line 2: an empty text"),
        ('{"question": "a", "documents": ["b", "c", "e"], "gold": 3, "answer": "d"}', "line 2: gold=3 of 3"),
        ('{"question": "a", "documents": ["b", "c"], "gold": 1, "answer": "d"}', "2 documents; expected at least 3"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = '{"question": "a", "documents": ["b", "c", "e"], "gold": 1, "answer": "d"}'
    file = tmp_path / "q.jsonl"
    file.write_text(f"{good}\n{line}\n{good}")
    with pytest.raises(BadInput, match=message):
        read_questions(settings(documents=str(file)))


def test_refusals_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no file"):
        circuits.run("contextual-heads", {"documents": str(tmp_path / "none.jsonl")}, out=tmp_path / "a")
    with pytest.raises(BadInput, match="has another vocabulary"):
        circuits.run("contextual-heads", {"model": "induction"}, out=tmp_path / "b")
    for wrong, message in (
        ({"template": "{question}"}, r"expected \{documents\} and \{question\}"),
        ({"document": "text"}, r"expected \{document\} once"),
        ({"places": [0.5, 0.5]}, "expected numbers that grow"),
        ({"ablation": "mena"}, "Did you mean 'mean'"),
    ):
        with pytest.raises(BadInput, match=message):
            load_config("contextual-heads", wrong)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_what_an_answer_says_of_the_right_one() -> None:
    assert recalled((1, 2, 3), (1, 2, 3, 4)) == 0.75 and recalled((1,), (1, 1)) == 0.5
    assert np.isclose(recalled((9, 2), (2,)), 1)
