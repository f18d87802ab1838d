"""Labels on models whose heads were planted: each head gets its own label, and no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_heads import FOILS, NAMES, Job, choice_prompts, name_prompts, planted_model, question_prompts
from tiny_models import TINY

import interp
from interp import BadInput, HeadLabels, Model, UnknownName
from interp.scores.labels import HEAD_TYPES, HeadType
from interp.scores.prompts import repeated_random
from interp.zoo import interferer
from interp.zoo.interferer import LIFELESS, LIVING
from interp.zoo.needle_text import needle_rows

STRUCTURE = ("previous", "duplicate", "induction")
MOVERS = (
    Job(looks_at=NAMES, votes=10.0),
    Job(looks_at=NAMES, votes=-4.0),
    Job(looks_at=FOILS, votes=-6.0),
    Job(looks_at=NAMES),
    Job(),
    Job(first=True, votes=20.0, votes_for=FOILS),
)


@pytest.fixture(scope="module")
def movers() -> tuple[Model, HeadLabels]:
    """The planted movers, and what all types say of them."""
    model = planted_model(*MOVERS)
    return model, interp.label_heads(model, name_prompts(model), n_prompts=8)


# ---- own label and no other ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["handmade", "induction", "induction-planted"])
def test_the_two_heads_that_copy_get_their_labels_and_no_other(name: str) -> None:
    found = interp.label_heads(interp.load(name), n_prompts=16)
    assert found.labels == {"L0.H0": ("previous",), "L1.H0": ("induction",)}


def test_a_pattern_without_an_effect_earns_nothing() -> None:
    found = interp.label_heads(interp.load("handmade"), types="duplicate", n_prompts=16)
    row = found.evidence("L0.H1").iloc[0]
    assert row.score == pytest.approx(1.0, abs=1e-6) and row.pattern and not row.causal and not row.labelled
    assert row.effect == 0 and "The pattern stands out" in row.why and "does not" in row.why
    assert found.labels == {} and [str(head) for head in found.unlabelled] == ["L0.H0", "L0.H1", "L1.H0", "L1.H1"]


def test_an_effect_without_the_pattern_earns_nothing() -> None:
    found = interp.label_heads(interp.load("handmade"), types="induction", n_prompts=16)
    row = found.evidence("L0.H0").iloc[0]  # the model needs it to copy, and it looks elsewhere
    assert row.causal and not row.pattern and not row.labelled
    assert "The pattern does not stand out" in row.why and "the effect (−10.000) stands out" in row.why


def test_movers_suppressors_and_sinks_get_their_labels_and_no_other(movers: tuple[Model, HeadLabels]) -> None:
    kept = movers[1].labels
    assert kept == {
        "L0.H0": ("retrieval", "name_mover", "subject"),  # the name's place is named as the needle and as the subject
        "L0.H1": ("negative_name_mover",),
        "L0.H2": ("suppression",),
        "L0.H5": ("sink",),
    }


def test_without_spans_a_mover_is_a_mover_alone() -> None:
    model = planted_model(*MOVERS)
    batch = replace(name_prompts(model), spans={})
    found = interp.label_heads(model, batch, types=["name_mover", "negative_name_mover", "suppression", "subject"])
    assert found.labels == {
        "L0.H0": ("name_mover",),
        "L0.H1": ("negative_name_mover",),
        "L0.H2": ("suppression",),
    }
    assert list(found.untested) == ["subject"] and "spans=" in found.untested["subject"]


def test_a_head_that_looks_where_the_answer_always_stands_is_no_mover() -> None:
    """With the name at one and the same place in every prompt, place and content cannot be told apart."""
    model = planted_model(Job(places=(2,), votes=10.0), Job(looks_at=NAMES, votes=10.0), Job(), Job())
    found = interp.label_heads(model, name_prompts(model, fixed=True), types=["name_mover", "positional"])
    assert found.labels == {"L0.H0": ("positional",)}
    assert any("cannot be told apart" in note for note in found.notes)
    assert found.evidence("L0.H0").set_index("label").place["positional"] == "place 2"


def test_heads_of_choices_get_their_labels_and_no_other() -> None:
    model = planted_model(
        Job(looks_at=NAMES, votes=10.0),
        Job(places=(4,), votes=6.0),
        Job(places=(2, 4, 6, 8), votes=12.0, votes_for=NAMES),
        Job(places=(2, 4, 6, 8)),
        Job(),
    )
    types = ["correct_letter", "single_letter", "constant"]
    found = interp.label_heads(model, choice_prompts(model, 96), types=types)
    assert found.labels == {"L0.H0": ("correct_letter",), "L0.H1": ("single_letter",), "L0.H2": ("constant",)}
    assert found.evidence("L0.H1").set_index("label").place["single_letter"] == "option 1"


def test_a_head_that_leans_to_no_is_negative_and_one_that_leans_to_yes_is_not() -> None:
    jobs = (Job(looks_at=["no"], votes=8.0), Job(looks_at=["yes"], votes=3.0), Job(looks_at=["yes", "no"]), Job())
    model = planted_model(*jobs)
    kept = interp.label_heads(model, question_prompts(model), types="negative")
    assert kept.labels == {}  # it leans the same way in every prompt, which its mean keeps up
    found = interp.label_heads(model, question_prompts(model), types="negative", method="zero")
    assert found.labels == {"L0.H0": ("negative",)}
    scores = found.rows.score.to_numpy()
    assert scores[0] > 5 and scores[1] < -5 and abs(scores[2]) < 1e-5
    assert any("random tokens" in note for note in found.notes)  # one answer pair: the vocabulary takes its place


# ---- zoo models whose heads look at places --------------------------------------------------------------------------


def test_helping_and_interfering_heads_are_positional_and_the_idle_one_is_not() -> None:
    network, tokenizer = interferer.build((3.0, -2.0, 0.0))
    model = interp.load(network, tokenizer=tokenizer)
    words = [(word, kind) for kind, group in (("yes", LIVING), ("no", LIFELESS)) for word in group]
    other = {"yes": "no", "no": "yes"}
    tails = ("is it alive", "it is alive", "alive is it", "alive it is", "it alive is", "is alive it")
    prompts = [f"{word} {tail}" for word, _ in words for tail in tails]
    answers = [(f" {kind}", f" {other[kind]}") for _, kind in words for _ in tails]
    batch = interp.encode(model, prompts, answers=answers)
    found = interp.label_heads(model, batch, types=["positional", "name_mover"], segment=4, n_prompts=8)
    assert found.labels == {"L0.H0": ("positional",), "L0.H1": ("positional",)}
    assert set(found.rows[found.rows.label == "positional"].place) == {"place 1"}


def test_a_soft_previous_token_head_is_not_positional_as_well() -> None:
    """L0.H0 gives a fifth of its attention to the token two back, and half of it to the one before."""
    model = interp.load("induction")
    ids = repeated_random(model, seeds=range(16), length=12, repeats=2)
    batch = interp.encode(model, ids[:, :-1], answers=[(int(row[-1]), int(row[6])) for row in ids])
    found = interp.label_heads(model, batch, types=["previous", "positional"], n_prompts=8)
    assert found.labels == {"L0.H0": ("previous",)}
    row = found.evidence("L0.H0").set_index("label").loc["positional"]
    assert row.place == "2 back" and row.score > row.threshold and not row.pattern


@pytest.mark.parametrize("name", ["twins", "backup"])
def test_heads_that_stand_in_for_each_other_earn_nothing(name: str) -> None:
    """Removed alone, neither changes the answer: the pattern is there, the cause is not."""
    model = interp.load(name)
    words = ["cat", "dog", "sat", "ran", "on", "to", "mat", "house", "red", "old"]
    prompts = [f"{word} the and {tail}" for word in words for tail in ("the", ".", "and")]
    answers = [(f" {word}", f" {words[(place + 3) % 10]}") for place, word in enumerate(words) for _ in range(3)]
    batch = interp.encode(model, prompts, answers=answers)
    found = interp.label_heads(model, batch, types=["positional", "name_mover"], segment=5, n_prompts=8, method="zero")
    assert found.labels == {}
    assert found.rows[found.rows.label == "positional"].set_index("head").pattern["L0.H0"]


# ---- random models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_random_model_earns_no_label(name: str) -> None:
    tiny = TINY[name]()
    found = interp.label_heads(interp.load(tiny.hf), n_prompts=8, segment=6)
    assert found.tested == STRUCTURE and found.labels == {}


@pytest.mark.slow
def test_random_models_earn_labels_at_most_as_often_as_the_level_allows() -> None:
    """Without a margin as well: what keeps false labels away is that both tests must agree."""
    import transformers

    earned = {margin: 0 for margin in (0.0, 0.1)}
    seeds = range(20)
    for seed in seeds:
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        model = interp.load(transformers.GPT2LMHeadModel(config).eval())
        for margin in earned:
            found = interp.label_heads(model, n_prompts=16, segment=10, margin=margin, seed=seed)
            earned[margin] += bool(found.labels)
    assert earned[0.1] == 0 and earned[0.0] <= 2, earned  # 20 models at 5 %: 1 expected


# ---- the result -----------------------------------------------------------------------------------------------------


def test_the_table_shows_score_null_weight_and_effect(movers: tuple[Model, HeadLabels]) -> None:
    table = movers[1].table()
    wanted = ["head", "label", "stage", "score", "low", "high", "null", "threshold", "rival", "weight", "effect"]
    assert set(wanted) < set(table.columns) and len(table) == sum(map(len, movers[1].labels.values()))
    assert (
        (table.score > table.threshold).all() and (table.low <= table.score).all() and (table.score <= table.high).all()
    )
    every = movers[1].table(every=True)
    assert len(every) == 6 * len(movers[1].tested) and {"pattern", "causal", "labelled"} < set(every.columns)
    by_hand = every.pattern & every.causal
    assert (by_hand == every.labelled).all()


def test_the_effect_is_that_of_the_plain_sweep_on_the_other_half(movers: tuple[Model, HeadLabels]) -> None:
    model, found = movers
    other = interp.split(name_prompts(model), seed=0)[1]
    effects = interp.attribute(model, other, "mean").values
    rows = found.rows[found.rows.label == "name_mover"]
    np.testing.assert_allclose(rows.effect.to_numpy(), effects[0], atol=1e-5)


def test_the_pattern_score_is_that_of_the_plain_map_on_the_first_half(movers: tuple[Model, HeadLabels]) -> None:
    model, found = movers
    batch = interp.split(name_prompts(model), seed=0)[0]
    at = interp.At(interp.Site.PATTERN, layer=0)
    pattern = interp.run(model, batch, read=[at])[at]
    assert batch.ids is not None and batch.answers is not None
    own = (batch.ids == batch.answers[:, :1])[:, None]
    expected = (pattern[:, :, -1] * own).sum(-1).mean(0)
    rows = found.rows[found.rows.label == "name_mover"]
    np.testing.assert_allclose(rows.score.to_numpy(), expected.numpy(), atol=1e-6)


def test_untested_types_say_what_is_missing(movers: tuple[Model, HeadLabels]) -> None:
    found = movers[1]
    assert set(found.untested) | set(found.tested) == set(HEAD_TYPES)
    assert "'yes'" in found.untested["negative"] and "option 0" in found.untested["constant"]
    assert "would need" in found.untested["truthfulness"]


def test_it_survives_being_saved(movers: tuple[Model, HeadLabels], tmp_path) -> None:
    found = movers[1]
    again = HeadLabels.open(found.save(tmp_path / "labels.safetensors"))
    assert again.rows.equals(found.rows) and again.heads == found.heads and again.untested == found.untested
    assert (again.notes, again.metadata, again.labels) == (found.notes, found.metadata, found.labels)
    assert str(again) == str(found) and "L0.H0 retrieval and name_mover" in str(found)
    with pytest.raises(BadInput, match="not a file"):
        HeadLabels.open(tmp_path / "nothing")


def test_it_shows_itself(movers: tuple[Model, HeadLabels]) -> None:
    found = movers[1]
    assert "name_mover" in found._repr_html_() and "Not tested" in found._repr_html_()
    figure = found.plot()
    assert figure.data[0].text[0][1] == "negative_name_mover" and figure.data[0].z[0][3] == 0
    assert [trace.name for trace in figure.data[1:]] == [
        "in-context identification",
        "latent reasoning",
        "outside the survey",
    ]


def test_the_same_request_gives_the_same_rows_whatever_the_batch_size() -> None:
    model = interp.load("handmade")
    one, two = (interp.label_heads(model, n_prompts=6, types=STRUCTURE, batch_size=size) for size in (4, 16))
    np.testing.assert_allclose(
        one.rows.select_dtypes("number").to_numpy(), two.rows.select_dtypes("number").to_numpy(), atol=1e-5
    )


def test_a_type_of_ones_own() -> None:
    test = HEAD_TYPES["duplicate"].test
    assert test is not None
    mine = HeadType("copycat", "outside the survey", "looks at copies", "me, 2026", replace(test, effect="either"))
    found = interp.label_heads(interp.load("handmade"), types=mine, n_prompts=4)
    assert found.tested == ("copycat",) and found.labels == {}


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_refusals_say_what_to_do() -> None:
    model = interp.load("handmade")
    plain = interp.encode(model, [[0, 3, 4, 3]])
    for options, error, words in (
        ({"types": "indction"}, UnknownName, "Did you mean 'induction'"),
        ({"types": []}, BadInput, "types= is empty"),
        ({"batch": plain}, BadInput, "answers="),
        ({"batch": [1]}, BadInput, "interp.encode"),
        ({"rule": "claims"}, BadInput, "Did you mean 'claim'"),
        ({"level": 1.0}, BadInput, "between 0 and 1"),
        ({"margin": -1.0}, BadInput, "at least 0"),
        ({"n_prompts": 1}, BadInput, "at least 2"),
        ({"draws": 1}, BadInput, "at least 2"),
        ({"segment": 40}, BadInput, "from 4 to"),
    ):
        with pytest.raises(error, match=words):
            interp.label_heads(model, **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"interp\.load"):
        interp.label_heads("handmade")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="Unknown head"):
        interp.label_heads(model, types="induction", n_prompts=4).evidence("L7.H0")


def test_a_model_that_sees_later_tokens_has_no_repeated_text_to_say() -> None:
    found_of = TINY["bert"]()
    model = interp.load(found_of.hf)
    batch = interp.encode(model, inputs=found_of.inputs(4, 8, 0), answers=[(5, 6), (6, 5), (7, 8), (8, 7)])
    found = interp.label_heads(model, batch, types=["induction", "suppression"], n_prompts=4, segment=4)
    assert "see later" in found.untested["induction"]


# ---- a model in which heads were planted by training -----------------------------------------------------------------


@pytest.mark.slow
def test_retrieval_heads_of_the_needle_model_earn_the_label_on_its_own_task() -> None:
    """L1.H0 and L1.H4 were trained to look at the token being copied; L1.H1 and L1.H5 share their keys and values."""
    model = interp.load("needle-planted")
    rows = needle_rows(64, 96, torch.Generator().manual_seed(0), told=3, questions=1).ids
    prompts, answers, spans = [], [], []
    for row in rows.tolist():
        key = row[-6]  # "recall key v v v v ." ends the row
        told = row.index(key)
        others = [place + 2 for place, token in enumerate(row[:-7]) if token == row[told - 1] and place + 1 != told]
        prompts.append(row[:-5])
        answers.append((row[-5], row[others[0]]))
        spans.append(range(told - 1, told + 6))
    batch = interp.encode(model, torch.tensor(prompts), answers=answers, spans={"needle": spans})
    found = interp.label_heads(model, batch, types=["retrieval", "name_mover"])
    labelled = {head for head, labels in found.labels.items() if "retrieval" in labels}
    assert labelled and labelled <= {"L1.H0", "L1.H1", "L1.H4", "L1.H5", "L1.H6", "L1.H7"}
    assert "name_mover" not in found.tested  # the answer follows the key's copy everywhere: that is induction
    scores = found.rows.set_index("head").score
    assert scores["L1.H0"] > 0.8 and scores["L1.H4"] > 0.8 and scores["L2.H3"] < 0.2
