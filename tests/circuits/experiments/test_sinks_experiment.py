"""The sinks experiment on models whose sinks were worked out on paper."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_heads import FOILS, NAMES, Job, planted_model
from tiny_models import TINY

import circuits
import interp
from circuits.experiments.sinks.config import SinksConfig
from circuits.experiments.sinks.measuring import blinded, material_for, uniform_share
from circuits.runner import Finished
from interp import BadInput, Head

SMALL = {"n_prompts": 8, "tokens": 20, "random_sets": 4, "batch_size": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return circuits.run("sinks", SMALL, out=tmp_path_factory.mktemp("sinks") / "run")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Heads that always rest on the first token, that look at names, and at nothing in particular."""
    folder = tmp_path_factory.mktemp("planted")
    model = planted_model(Job(first=True), Job(looks_at=NAMES), Job(looks_at=FOILS), Job())
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    return circuits.run("sinks", {**SMALL, "model": str(folder / "model")}, out=folder / "run")


def test_uniform_rows_give_the_first_token_the_harmonic_share() -> None:
    assert uniform_share(20) == pytest.approx(0.18, abs=0.001)
    assert uniform_share(1) == 1


def test_the_planted_sink_is_found_and_no_other(planted: Finished) -> None:
    assert planted.facts["sink heads"] == ["L0.H0"] and planted.facts["born in layer"] == 0
    assert 0.25 <= planted.facts["sink rate"] < 0.4  # a prompt without names leaves the other heads at rest, too
    table = pd.read_parquet(planted.folder / "heads.parquet")
    alpha = table[table.quantity == "sink"].value.tolist()
    assert alpha[0] == pytest.approx(1.0) and alpha[3] == pytest.approx(
        uniform_share(planted.facts["tokens"][0]), abs=1e-6
    )


def test_without_the_first_token_a_sinks_rows_are_empty_and_other_scores_change(planted: Finished) -> None:
    table = pd.read_parquet(planted.folder / "heads.parquet")
    whole = table[table.quantity == "mean_distance"].value.to_numpy()
    left = table[table.quantity == "mean_distance without"].value.to_numpy()
    assert whole[0] == pytest.approx(
        np.mean(range(1, planted.facts["tokens"][0])), rel=0.1
    )  # it looks all the way back
    assert left[0] < whole[0] / 2  # what is left of its rows is even
    np.testing.assert_allclose(left[3], whole[3], rtol=0.2)  # an even head has little there
    found = {row["score"]: row for row in planted.facts["without first token"]}
    assert found["mean_distance"]["changed most"] == "L0.H0"


def test_the_change_of_the_loss_is_that_of_a_plain_run_with_the_edit(finished: Finished) -> None:
    model = interp.load("induction")
    config = circuits.load_config("sinks", SMALL).config
    assert isinstance(config, SinksConfig)
    batch = material_for(model, config).batch
    plain = interp.loss(interp.run(model, batch).logits, batch)
    table = pd.read_parquet(finished.folder / "heads.parquet")
    rows = table[table.quantity.str.startswith("loss")].set_index(["layer", "head"])
    for head in (Head(0, 0), Head(1, 0)):
        edited = interp.loss(interp.run(model, batch, edits=blinded([head], 0)).logits, batch)
        assert rows.loc[(head.layer, head.index), "value"] == pytest.approx(float((edited - plain).mean()), abs=2e-5)
    assert finished.facts["loss"] == pytest.approx(float(plain.mean()), abs=1e-5)
    heads = [Head.parse(head) for head in finished.facts["sink heads"]]
    together = interp.loss(interp.run(model, batch, edits=blinded(heads, 0)).logits, batch)
    assert finished.facts["change of the loss"][0] == pytest.approx(float((together - plain).mean()), abs=2e-5)
    elsewhere = interp.loss(interp.run(model, batch, edits=blinded(heads, 3)).logits, batch)
    assert finished.facts["change with other places"][2] == pytest.approx(float((elsewhere - plain).mean()), abs=2e-5)


def test_the_scores_are_those_of_score_with_and_without(finished: Finished) -> None:
    model = interp.load("induction")
    config: Any = circuits.load_config("sinks", SMALL).config
    batch = material_for(model, config).batch
    table = pd.read_parquet(finished.folder / "heads.parquet")
    for name in config.compare:
        for label, sinks in ((name, None), (f"{name} without", "first")):
            expected = interp.score(model, batch, name, exclude_sinks=sinks)[name].values
            np.testing.assert_allclose(
                table[table.quantity == label].value.to_numpy().reshape(2, 4), expected, atol=1e-6
            )


def test_the_answer_says_what_the_facts_say(finished: Finished) -> None:
    assert finished.facts["sink heads"] == ["L1.H0"] and finished.facts["born in layer"] == 1
    assert "1 of 8 heads rests on the first token" in finished.answer and "layer 1 on: L1.H0" in finished.answer
    assert any("uniform attention gives" in note for note in finished.notes)
    page = finished.report.read_text()
    assert len(page) < 8e6 and all(title in page for title in ("since which layer", "What it is for", "become sinks"))


def test_a_model_without_a_sink_says_so(tmp_path: Path) -> None:
    found = circuits.run("sinks", {**SMALL, "model": "handmade", "eps": 0.9, "tokens": 16}, out=tmp_path / "run")
    assert found.facts["sink heads"] == [] and found.facts["born in layer"] is None
    assert "no head rests on the first token" in found.answer and found.facts["change of the loss"] is None


def test_attention_that_cannot_be_edited_is_left_out_and_said(tmp_path: Path) -> None:
    TINY["gptj"]().hf.save_pretrained(tmp_path / "gptj")
    changes = {**SMALL, "model": str(tmp_path / "gptj"), "compare": ["entropy"]}
    found = circuits.run("sinks", changes, out=tmp_path / "run")
    assert found.facts["loss"] is None and any("Masking is left out" in note for note in found.notes)
    assert any("sink_anatomy is left out" in note for note in found.notes) and found.facts["sink rate"] >= 0


def test_it_goes_on_from_what_is_finished(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((finished.folder / "summary.json").read_text())
    (finished.folder / "manifest.json").unlink()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(interp, "score", never)
    monkeypatch.setattr(interp, "sweep", never)
    circuits.run("sinks", SMALL, out=finished.folder)
    assert json.loads((finished.folder / "summary.json").read_text()) == before


def test_what_reads_no_text_is_refused() -> None:
    config: Any = circuits.load_config("sinks", SMALL).config
    with pytest.raises(BadInput, match="own stack is 'vision'"):
        material_for(SimpleNamespace(default_stack="vision"), config)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no tokenizer"):
        material_for(SimpleNamespace(default_stack="text", tokenizer=None), config.model_copy(update={"texts": ("a",)}))  # type: ignore[arg-type]
