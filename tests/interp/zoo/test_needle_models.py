"""The needle models keep what their cards promise, measured with transformers alone, on rows of another generator."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from interp import zoo
from interp.errors import BadInput
from interp.zoo import train_needle, training_state
from interp.zoo.needle_evaluate import copying_accuracy, looks_at_source, retrieval_accuracy
from interp.zoo.needle_network import untrained_needle
from interp.zoo.needle_recipes import NEEDLE_RECIPES, Level
from interp.zoo.needle_text import (
    BLOCK,
    FILLERS,
    KEYS,
    NEEDLE_WORDS,
    VALUES,
    copy_rows,
    filler_words,
    needle_rows,
    needle_vocabulary,
    needles_and_questions,
)
from interp.zoo.train_needle import train

NAMES = sorted(NEEDLE_RECIPES)
MEGABYTE = 1_000_000
LARGEST = {"needle": 2.6, "needle-planted": 1.4}  # megabytes


def card_of(name: str) -> dict[str, Any]:
    return json.loads((zoo.path(name) / "card.json").read_text())


def network_of(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(zoo.path(name), attn_implementation="eager").eval()


def said_by_numpy(length: int, told: int, asked: int, seed: int) -> tuple[np.ndarray, dict[int, int]]:
    """One row written with numpy and words, and answer position -> position of the word in its needle."""
    draw, ids = np.random.default_rng(seed), needle_vocabulary()
    keys = draw.choice(KEYS, told, replace=False)
    values = draw.choice(VALUES, (told, 4), replace=False)
    words, told_at = ["<bos>"], {}
    sentences = (length - 1 - BLOCK * (told + asked)) // 10
    before = sorted(draw.integers(0, sentences, told).tolist())
    for sentence in range(sentences):
        for fact in [index for index, place in enumerate(before) if place == sentence]:
            told_at[fact] = len(words) + 2
            words += ["remember", keys[fact], *values[fact], "."]
        words += [*draw.choice(FILLERS, 9), "."]
    source = {}
    for fact in draw.permutation(told)[:asked].tolist():
        words += ["recall", keys[fact]]
        source |= {len(words) + step: told_at[fact] + step for step in range(4)}
        words += [*values[fact], "."]
    return np.array([ids[word] for word in words]), source


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("length", "rows"), [(512, 4), (1024, 2)])
def test_answers_are_right_on_rows_that_numpy_wrote(name: str, length: int, rows: int) -> None:
    network, right, looked = network_of(name), [], []
    heads = [(1, int(head.split("H")[1])) for head in zoo.ZOO[name].heads["retrieval"]]
    for seed in range(rows):
        ids, source = said_by_numpy(length, 12, 8, seed)
        assert all(ids[at] == ids[place] for at, place in source.items())
        with torch.no_grad():
            output = network(torch.tensor(ids[None]), output_attentions=True)
        logits, patterns = output.logits[0].numpy(), torch.stack(output.attentions)[:, 0].numpy()
        right += [logits[at - 1].argmax() == ids[at] for at in source]
        looked.append(
            [[patterns[layer, head, at - 1].argmax() == place for at, place in source.items()] for layer, head in heads]
        )
    assert np.mean(right) >= 0.97
    assert np.concatenate(looked, axis=1).mean(1).min() > 0.5, "the heads that the registry calls retrieval heads"


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_what_is_measured(name: str) -> None:
    """A part of every measurement again, on the card's own first rows at two lengths, and copying."""
    card, network = card_of(name)["measured"], network_of(name)
    assert card["answers"]["512"]["token"] >= 0.97 and card["answers"]["1024"]["token"] >= 0.97
    assert set(card["answers"]) == {"64", "256", "512", "1024", "1536"}
    assert min(card["copying"].values()) >= 0.97
    network.set_attn_implementation("sdpa")
    for length in (64, 256):
        assert retrieval_accuracy(network, length, n_rows=64) == pytest.approx(card["answers"][str(length)], abs=2e-3)
    assert copying_accuracy(network, 64, n_rows=32) == pytest.approx(card["copying"]["64"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_the_card_again(name: str) -> None:
    from interp.zoo.needle_card import measure

    network = network_of(name)
    network.set_attn_implementation("sdpa")
    card, found = card_of(name)["measured"], measure(network)
    for key in ("answers", "copying"):
        for length, value in card[key].items():
            assert found[key][length] == pytest.approx(value, abs=5e-3), (key, length)
    np.testing.assert_allclose(found["looks_at_source"], card["looks_at_source"], atol=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_heads_look_where_the_card_says(name: str) -> None:
    card, found = card_of(name), np.array(looks_at_source(network_of(name), 512, n_rows=4))
    np.testing.assert_allclose(found, card["measured"]["looks_at_source"], atol=0.12)
    assert max(np.ravel(card["looks_at_source_untrained"])) < 0.1, "no head retrieves before training"
    assert set(card["heads"]["retrieval"]) >= set(zoo.ZOO[name].heads["retrieval"])
    assert card["heads"]["retrieval"].keys() == {
        f"L{layer}.H{head}" for layer, head in np.argwhere(np.array(card["measured"]["looks_at_source"]) >= 0.5)
    }


@pytest.mark.parametrize("name", NAMES)
def test_head_0_0_looks_one_token_back(name: str) -> None:
    """Planted it does almost only that; unplanted it starts at its own position and turns back by training."""
    rows = needle_rows(3, 256, torch.Generator().manual_seed(12)).ids
    network, start = network_of(name), untrained_needle(NEEDLE_RECIPES[name], seed=0)
    start.set_attn_implementation("eager")
    with torch.no_grad():
        after, before = (model(rows, output_attentions=True).attentions[0] for model in (network, start))
    back = [after.diagonal(-distance, -2, -1).mean((0, 2)) for distance in range(3)]
    assert zoo.ZOO[name].heads["previous_token"] == ("L0.H0",) and int(back[1].argmax()) == 0
    assert back[1][0] > (0.9 if name == "needle-planted" else 0.5) and back[1][0] > 2 * max(back[0][0], back[2][0])
    if name == "needle":
        own, previous = (before[:, 0].diagonal(-distance, -2, -1)[:, 20:].mean() for distance in (0, 1))
        assert own > 1.2 * previous and previous < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_the_card_belongs_to_the_recipe(name: str) -> None:
    card, recipe = card_of(name), NEEDLE_RECIPES[name]
    assert card["training"]["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert ("PLANTED" in card["supervision"]) == bool(recipe.planting) == (name == "needle-planted")
    assert sum(card["training"]["steps_by_length"].values()) == card["training"]["steps"]
    assert card["training"]["seconds"] < 15 * 60
    config = json.loads((zoo.path(name) / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (8, 4, 32)
    page = (zoo.path(name) / "README.md").read_text()
    assert card["training"]["command"] in page and card["supervision"] in page
    assert f"{card['measured']['answers']['1536']['token']:.3f}" in page


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_stored_in_half_precision_and_hold_no_pickle(name: str) -> None:
    files = [file for file in zoo.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST[name] * MEGABYTE
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}
    stored = load_file(zoo.path(name) / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert network_of(name).dtype == torch.float32


def test_masking_the_retrieval_heads_breaks_the_planted_model() -> None:
    """The four heads of the two planted groups together, and as many heads of the same layer that are left."""
    network = network_of("needle-planted")
    rows = needle_rows(8, 512, torch.Generator().manual_seed(77))

    def accuracy(silenced: list[int]) -> float:
        copy = AutoModelForCausalLM.from_pretrained(zoo.path("needle-planted")).eval()
        with torch.no_grad():
            for head in silenced:
                copy.model.layers[1].self_attn.o_proj.weight[:, head * 32 : head * 32 + 32] = 0
        row, at = torch.nonzero(rows.source >= 0, as_tuple=True)
        with torch.no_grad():
            said = copy(rows.ids).logits[row, at - 1].argmax(-1)
        return (said == rows.ids[row, at]).float().mean().item()

    assert accuracy([]) >= 0.97
    assert accuracy([0, 1, 4, 5]) < 0.5 < accuracy([2, 3])
    assert network.config.num_hidden_layers == 3


def test_rows_tell_and_ask() -> None:
    rows = needle_rows(5, 256, torch.Generator().manual_seed(3))
    told, asked = needles_and_questions(256)
    ids, words = needle_vocabulary(), list(needle_vocabulary())
    assert rows.ids.shape == (5, 256) and (rows.ids[:, 0] == 0).all()
    for row, source, needle, wanted in zip(*rows, strict=True):
        at = torch.nonzero(source >= 0).flatten()
        assert len(at) == 4 * asked and torch.equal(row[at], row[source[at]])
        assert bool(needle[source[at]].all()) and bool(wanted[source[at]].all())
        assert int(needle.sum()) == BLOCK * told and int(wanted.sum()) == BLOCK * asked
        starts = torch.nonzero(row == ids["remember"]).flatten()
        assert len(starts) == told and all(words[row[start - 1]] in (".", "<bos>") for start in starts)
        values = [word for word in row[needle].tolist() if words[word] in VALUES]
        assert len(set(values)) == len(values) == 4 * told, "no value is told twice"


def test_copy_rows_repeat_and_filler_is_sentences() -> None:
    rows = copy_rows(6, 200, torch.Generator().manual_seed(4))
    for row, source in zip(rows.ids, rows.source, strict=True):
        at = torch.nonzero(source >= 0).flatten()
        period = int(at[0] - source[at[0]])
        assert torch.equal(row[at], row[source[at]]) and bool((at - source[at] == period).all())
        assert torch.equal(row[at - 1], row[source[at] - 1]), "the word before it repeats too"
        assert len(row[at[0] - 1 : at[0] - 1 + period].unique()) == min(period, len(row) - int(at[0]) + 1)
    filler = filler_words(500, torch.Generator().manual_seed(1)).tolist()
    stops = [place for place, word in enumerate(filler) if word == needle_vocabulary()["."]]
    lengths = np.diff([-1, *stops]) - 1
    assert len(filler) == 500 and filler[-1] == needle_vocabulary()["."]
    assert lengths[:-1].min() >= 6 and lengths.max() <= 14


def test_impossible_rows_are_refused() -> None:
    draw = torch.Generator().manual_seed(0)
    with pytest.raises(BadInput, match="1 <= questions <= told"):
        needle_rows(1, 64, draw, told=2, questions=3)
    with pytest.raises(BadInput, match="50 facts and 1 questions in 64 tokens"):
        needle_rows(1, 64, draw, told=50, questions=1)


def test_tokenizer_and_words() -> None:
    assert len(set(NEEDLE_WORDS)) == len(NEEDLE_WORDS) == 307
    assert (len(FILLERS), len(KEYS), len(VALUES)) == (128, 48, 128)
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("needle"))
    assert tokenizer.get_vocab() == needle_vocabulary()
    said = tokenizer("Remember Mary book lamp.").input_ids
    assert tokenizer.convert_ids_to_tokens(said) == ["<bos>", "remember", "mary", "book", "lamp", "."]
    assert tokenizer.model_max_length == NEEDLE_RECIPES["needle"].context


def small(name: str) -> Any:
    return replace(NEEDLE_RECIPES[name], levels=(Level(64, 4, 4, 2), Level(96, 2, 4, 2)), evaluate_every=2)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_needle, "CURVE_TOKENS", 200)
    whole = train(small(name), seed=3)
    assert whole.done and whole.progress.step == 8
    assert train(small(name), seed=3, steps=4, folder=tmp_path).progress.step == 4
    resumed = train(small(name), seed=3, folder=tmp_path)
    assert resumed.progress.curve == whole.progress.curve
    expected = whole.network.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in resumed.network.state_dict().items())
    start = untrained_needle(small(name), seed=3).state_dict()
    assert not torch.equal(start["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])
    with pytest.raises(BadInput, match="belongs to another training"):
        train(small(name), seed=4, folder=tmp_path)
    training_state.finish(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_planting_moves_the_planted_head() -> None:
    """The same few steps with and without it; the natural recipe has none."""
    recipe = replace(NEEDLE_RECIPES["needle-planted"], levels=(Level(64, 4, 40),), evaluate_every=100, warmup=1)
    rows, previous = needle_rows(4, 64, torch.Generator().manual_seed(9)), []
    for planting in (1.0, 0.0):
        network = train(replace(recipe, planting=planting), steps=40).network
        network.set_attn_implementation("eager")
        with torch.no_grad():
            first = network(rows.ids, output_attentions=True).attentions[0]
        previous.append(first.diagonal(-1, -2, -1).mean((0, 2)))
    assert previous[0].argmax() == 0 and previous[0][0] > 3 * previous[1][0]
    assert NEEDLE_RECIPES["needle"].planting == 0
