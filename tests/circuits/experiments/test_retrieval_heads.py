"""The retrieval experiment on the zoo's model, held against masks and prompts made by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from browser import chromium, opened
from torch import Tensor, nn

import circuits
import interp
from circuits.config import load_config
from circuits.experiments.retrieval.masking import CONTROLS, answers_without, head_sets
from circuits.experiments.retrieval.prompts import Prompts, retrieval_prompts
from circuits.experiments.retrieval.scoring import recall_grid
from circuits.runner import Finished
from interp import Head
from interp.errors import BadInput
from interp.model.handle import Model
from interp.zoo import ZOO
from interp.zoo.needle_text import KEYS, VALUES

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "lengths": [96, 160], "depths": [0.0, 1.0], "n_facts": 4, "distractors": 2, "counts": [1, 2, 4, 8],
        "draws": 20, "null_draws": 20, "masks": ["zero"],
    }
)  # fmt: skip
D_HEAD = 32


@pytest.fixture(scope="module")
def model() -> Model:
    return interp.load("needle")


@pytest.fixture(scope="module")
def prompts(model: Model) -> tuple[Prompts, Prompts]:
    return retrieval_prompts(model, load_config("retrieval-heads", SETTINGS).config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    settings = {**SETTINGS, "lengths": [96], "counts": [1, 2, 4]}
    return circuits.run("retrieval-heads", settings, out=tmp_path_factory.mktemp("retrieval") / "run")


def right(network: nn.Module, prompts: Prompts) -> np.ndarray:
    """``[prompt]`` share of right answer tokens, one prompt at a time, with transformers alone."""
    shares = []
    for one in prompts.made:
        ids = torch.tensor([[*one.ids, *one.answer_ids]])
        with torch.no_grad():
            said = network(ids).logits[0].argmax(-1)
        begin = len(one.ids)
        shares.append((said[begin - 1 : -1] == ids[0, begin:]).double().mean().item())
    return np.array(shares)


def without(model: Model, heads: list[Head], *, even: bool = False) -> nn.Module:
    """The network with the heads' columns of the output projection, or their queries, set to zero."""
    network: Any = copy.deepcopy(model.hf)
    with torch.no_grad():
        for head in heads:
            attention, at = (
                network.model.layers[head.layer].self_attn,
                slice(head.index * D_HEAD, (head.index + 1) * D_HEAD),
            )
            if even:
                attention.q_proj.weight[at] = 0
                attention.q_proj.bias[at] = 0
            else:
                attention.o_proj.weight[:, at] = 0
    return network


SETS: list[list[Head]] = [[], [Head(1, 0)], [Head(1, 0), Head(1, 1)], [Head(0, 3), Head(2, 1), Head(1, 4)]]


@pytest.mark.parametrize("mask", ["zero", "uniform"])
def test_masked_heads_are_the_network_without_them(model: Model, prompts: tuple[Prompts, Prompts], mask: str) -> None:
    """Attending evenly is what a query of zeros does, which is how retrieval heads were first masked."""
    chunk = prompts[1].chunks(20)[0]
    told: list[None] = []
    found = answers_without(model, chunk, SETS, mask, prompts[0], lambda: told.append(None))
    expected = [right(without(model, heads, even=mask == "uniform"), chunk) for heads in SETS]
    np.testing.assert_allclose(found, expected)
    assert len(told) == len(SETS) and found[0].mean() > 0.8 > found[2].mean()


def test_a_mean_is_that_of_the_reference_prompts(model: Model, prompts: tuple[Prompts, Prompts]) -> None:
    chunk, head = prompts[1].chunks(20)[0], Head(1, 0)
    first = prompts[0].chunks(20)[0]
    reference = Prompts(first.made[: len(chunk)], first.owners[: len(chunk)])
    seen: list[Tensor] = []
    network: Any = copy.deepcopy(model.hf)
    module = network.model.layers[1].self_attn.o_proj
    handle = module.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(torch.tensor([[*one.ids, *one.answer_ids] for one in reference.made]))
    handle.remove()
    at = slice(head.index * D_HEAD, (head.index + 1) * D_HEAD)
    held = seen[0][..., at].mean(0, keepdim=True)

    def replaced(_module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        changed = inputs[0].clone()
        changed[..., at] = held
        return (changed,)

    module.register_forward_pre_hook(replaced)
    found = answers_without(model, chunk, [[head]], "mean", reference, lambda: None)
    np.testing.assert_allclose(found[0], right(network, chunk))


def test_no_fact_chooses_and_judges_and_the_words_are_as_asked(model: Model, prompts: tuple[Prompts, Prompts]) -> None:
    selection, evaluation = prompts
    assert not {one.fact for one in selection.made} & {one.fact for one in evaluation.made}
    assert len(selection) == len(evaluation) == 8 and set(selection.owners) | set(evaluation.owners) == {0, 1, 2, 3}
    for one in (*selection.made, *evaluation.made):
        words = model.tokenizer.convert_ids_to_tokens(list(one.ids))
        assert len(words) == one.length and words[-2] == "recall" and words[-1] == one.fact.question.split()[1]
        told = [words[at + 1] for at, word in enumerate(words) if word == "remember"]
        assert words[-1] in told and set(told) <= set(KEYS) and len(told) <= 3
        assert [words[at] for at in one.needle] == one.fact.answer.split() and set(one.fact.answer.split()) <= set(
            VALUES
        )
        assert one.sentence.start == 1 or words[one.sentence.start - 1] == "."
    again = retrieval_prompts(model, load_config("retrieval-heads", SETTINGS).config)
    assert [part.fingerprint for part in again] == [part.fingerprint for part in prompts]
    other = retrieval_prompts(model, load_config("retrieval-heads", {**SETTINGS, "seed": 1}).config)
    assert other[0].fingerprint != prompts[0].fingerprint


def test_random_sets_keep_clear_of_the_top_and_lie_where_they_say() -> None:
    order = [Head(1, index) for index in range(4)] + [Head(layer, index) for layer in (0, 2) for index in range(4)]
    sets = head_sets(order, order[:3], [4, 4, 4], counts=[1, 2, 5], draws=30, seed=2)
    for (control, count), drawn in sets.random.items():
        assert len(set(drawn)) == len(drawn) and all(len(one) == count for one in drawn)
        for one in drawn:
            assert not set(one) & set(sets.chosen[count])
            if control == "same layers":
                assert all(head.layer == 1 for head in one)
            else:
                assert not set(one) & set(order[:3]) and (control == "all layers" or all(head.layer for head in one))
    assert len(sets.random["same layers", 1]) == 3 and len(sets.random["same layers", 2]) == 1
    assert sets.random["same layers", 5] == () and len(sets.random["later layers", 5]) == 0
    assert len(sets.random["all layers", 1]) == 9 and sets.every()[0] == ()
    assert any(head.layer == 0 for one in sets.random["all layers", 2] for head in one)


def test_the_zoo_heads_are_found_and_masking_them_breaks_the_answers(finished: Finished) -> None:
    facts = finished.facts
    roles = ZOO["needle"].heads["retrieval"]
    assert facts["retrieval heads"][:2] in ([*roles], [*roles[::-1]])
    assert min(facts["scores on other facts"][head] for head in roles) > 0.7
    masking = facts["masking"]["zero"]
    assert facts["right with all heads"] > 0.8 and masking["2"]["right"] < 0.5
    assert set(masking["2"]["heads"]) == set(roles)
    assert np.mean(masking["2"]["later layers"]) > 0.8, "random heads of later layers are not missed"
    assert len(masking["1"]["later layers"]) >= 8 and set(CONTROLS) <= set(masking["1"])


def test_the_tables_hold_what_the_page_says(finished: Finished) -> None:
    table: Any = pd.read_parquet(finished.folder / "heads.parquet")
    rows = table[table["quantity"] == "retrieval, selection"]
    scores = {f"L{row['layer']}.H{row['head']}": row["value"] for row in rows.to_dict(orient="records")}
    assert scores == pytest.approx(finished.facts["scores"]) and len(scores) == 24
    assert table["quantity"].nunique() == 4
    (top, *_) = finished.top
    assert top["retrieves"] == "yes" and top["shuffled"] < 0.1 and top["p"] <= 0.1
    assert top["head"] in finished.answer and "masked (zero)" in finished.answer
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert manifest["units"]["computed now"] > 5


def test_a_model_of_ones_own_is_given_a_text_and_facts(model: Model, finished: Finished, tmp_path: Path) -> None:
    """The same prompts by way of a file: the scores are the same."""
    selection, evaluation = retrieval_prompts(
        model, load_config("retrieval-heads", {**SETTINGS, "distractors": 0}).config
    )
    text = "the dog ran to the house . " * 60
    (tmp_path / "text.txt").write_text(text)
    facts = [dict.fromkeys([one.fact for one in part.made]) for part in (selection, evaluation)]
    given = [vars(fact) for part in facts for fact in part]
    settings = {**SETTINGS, "text": str(tmp_path / "text.txt"), "facts": given}
    first, second = retrieval_prompts(model, load_config("retrieval-heads", settings).config)
    assert [one.fact for one in first.made] == [one.fact for one in selection.made]
    words = model.tokenizer.convert_ids_to_tokens(list(first.made[0].ids))
    assert words.count("remember") == 1 and "house" in words and len(second) == 8


def test_unfit_texts_and_facts_are_refused(model: Model, tmp_path: Path) -> None:
    fact = {"sentence": "remember mary book .", "question": "recall mary", "answer": "book"}
    (tmp_path / "text.txt").write_bytes(b"the dog ran . \xff" * 40)
    for settings, message in (
        ({"facts": [fact]}, "go together"),
        ({"text": "nowhere.txt", "facts": [fact] * 4}, "is no file"),
        ({"text": str(tmp_path / "text.txt"), "facts": [fact] * 4}, "is not UTF-8"),
    ):
        with pytest.raises(BadInput, match=message):
            retrieval_prompts(model, load_config("retrieval-heads", {**SETTINGS, **settings}).config)
    (tmp_path / "text.txt").write_text("the dog ran . " * 80)
    with pytest.raises(BadInput, match="1 facts; give at least 4"):
        settings = {**SETTINGS, "text": str(tmp_path / "text.txt"), "facts": [fact]}
        retrieval_prompts(model, load_config("retrieval-heads", settings).config)
    with pytest.raises(BadInput, match="numbers that grow"):
        load_config("retrieval-heads", {"counts": [2, 1]})
    with pytest.raises(BadInput, match="zero"):
        load_config("retrieval-heads", {"masks": ["zeros"]})


def test_recall_is_shown_by_length_and_depth(prompts: tuple[Prompts, Prompts]) -> None:
    made = prompts[0].made
    recall = np.array([one.length + one.depth for one in made])
    grid, lengths, depths = recall_grid(made, recall)
    assert lengths == [96, 160] and depths == [0.0, 1.0]
    np.testing.assert_allclose(grid, [[96, 160], [97, 161]])


@pytest.mark.browser
def test_the_page_opens_and_nothing_runs_over_its_edge(finished: Finished) -> None:
    chromium()
    with opened(finished.report, "dark", width=900) as view:
        assert view.locator(".plot .main-svg").count() >= 4
        assert finished.answer.split()[0] in view.locator(".verdict").text_content()
        over = view.evaluate(
            "[...document.querySelectorAll('.plot .main-svg')].some(e => e.getBoundingClientRect().right > innerWidth)"
        )
        assert not over and "nan" not in view.locator("main").inner_text().lower().split()
