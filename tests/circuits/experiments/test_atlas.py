"""The atlas experiment on models whose heads are known: scores, nulls, refusals, labels, resuming, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from browser import opened
from tiny_models import TINY

import circuits
import interp
from circuits.experiments.atlas.config import AtlasConfig
from circuits.experiments.atlas.findings import central, foremost
from circuits.experiments.atlas.prompts import material_for
from circuits.runner import Finished
from interp import BadInput
from interp.scores import SCORES

SMALL = {"model": "handmade", "n_prompts": 8, "null_draws": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return circuits.run("head-atlas", SMALL, out=tmp_path_factory.mktemp("atlas") / "run")


def settings(**changes: object) -> AtlasConfig:
    config = circuits.load_config("head-atlas", {**SMALL, **changes}).config
    assert isinstance(config, AtlasConfig)
    return config


def test_every_score_is_measured_or_says_why_not(finished: Finished) -> None:
    measured, refused = finished.facts["scores"], finished.facts["do not apply"]
    assert set(measured) | set(refused) == set(SCORES) and not set(measured) & set(refused)
    assert {"induction", "sink", "ov_copying", "retrieval", "direct_effect"} <= set(measured)
    assert "image" in refused["hop_profile"] and all(len(why) > 20 for why in refused.values())


def test_the_labels_are_those_of_the_model(finished: Finished) -> None:
    labels = finished.facts["labels"]
    assert "previous" in labels["L0.H0"] and "induction" in labels["L1.H0"] and "L0.H1" not in labels
    assert "L0.H0 (previous" in finished.answer and len(finished.facts["labels not tested"]) > 20
    assert finished.top[0]["head"] == "L0.H0"


def test_the_table_holds_what_score_says_and_the_null_band(finished: Finished) -> None:
    table = pd.read_parquet(finished.folder / "heads.parquet")
    model = interp.load("handmade")
    material = material_for(model, settings())
    found = interp.score(model, material.batch, ["induction", "sink_profile"], null="shuffled", draws=2, batch_size=8)
    rows = table[table.quantity == "induction"]
    np.testing.assert_allclose(rows.value.to_numpy().reshape(2, 2), found["induction"].values, atol=1e-6)
    low, high = np.nanquantile(found.nulls["induction"].samples, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(rows.null_low.to_numpy().reshape(2, 2), low, atol=1e-6)
    np.testing.assert_allclose(rows.null_high.to_numpy().reshape(2, 2), high, atol=1e-6)
    assert rows.labels.tolist()[2].startswith("induction") and rows.labels.tolist()[3] == ""
    profile = table[(table.quantity == "sink_profile") & (table["layer"] == 1) & (table["head"] == 0)]
    np.testing.assert_allclose(profile.value, found["sink_profile"].values[1, 0], atol=1e-6)
    assert table[table.quantity == "ov_copying"].null_high.isna().all(), "weights have no null prompts"


def test_it_goes_on_from_what_is_finished(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((finished.folder / "summary.json").read_text())
    (finished.folder / "manifest.json").unlink()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(interp, "score", never)
    monkeypatch.setattr(interp, "label_heads", never)
    again = circuits.run("head-atlas", SMALL, out=finished.folder)
    assert not again.reused and json.loads((finished.folder / "summary.json").read_text()) == before


@pytest.mark.browser
def test_the_page_shows_the_pattern_of_the_head_that_is_clicked(finished: Finished) -> None:
    assert finished.report.stat().st_size < 8e6
    with opened(finished.report) as view:
        view.locator(".explorer-map").scroll_into_view_if_needed()
        box = view.locator(".explorer-map .nsewdrag").first.bounding_box()
        view.mouse.click(box["x"] + box["width"] / 4, box["y"] + 3 * box["height"] / 4)
        view.locator(".explorer h3", has_text="L1.H0").wait_for()
        assert "induction" in view.locator(".explorer h3").text_content()
        shown = np.array(view.evaluate("document.querySelector('.explorer-pattern').data[0].z"))
        names = view.locator(".explorer-table tbody tr td:first-child").all_text_contents()
    model = interp.load("handmade")
    at = interp.At(interp.Site.PATTERN, layer=1)
    batch = material_for(model, settings()).batch.select([0])
    np.testing.assert_allclose(shown, interp.run(model, batch, read=[at])[at][0, 0].numpy(), atol=2e-5)
    assert names[0] == "induction" and "sink profile" in names


def test_a_model_of_images_gets_an_atlas_without_labels(tmp_path: Path) -> None:
    TINY["vit"]().hf.save_pretrained(tmp_path / "vit")
    changes = {**SMALL, "model": str(tmp_path / "vit"), "scores": ["entropy", "induction", "mean_distance_2d"]}
    found = circuits.run("head-atlas", changes, out=tmp_path / "run")
    assert found.facts["scores"] == ["entropy", "mean_distance_2d"] and "no labels were looked for" in found.answer
    assert "induction" in found.facts["do not apply"] and found.facts["patterns"][0] == "L0.H0"


def test_texts_of_ones_own_take_the_place_of_random_tokens(tmp_path: Path) -> None:
    changes = {**SMALL, "texts": ["the cat sat on the mat", "the dog ran ."], "scores": ["entropy"], "label": False}
    found = circuits.run("head-atlas", changes, out=tmp_path / "run")
    assert found.facts["scores"] == ["entropy"] and found.facts["labels"] == {}
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["config"]["texts"] == ["the cat sat on the mat", "the dog ran ."]


def test_prompts_without_any_score_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"No score applies .* hop_profile"):
        circuits.run("head-atlas", {**SMALL, "scores": ["hop_profile"]}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match="Did you mean 'induction'"):
        circuits.load_config("head-atlas", ["scores=[inducton]"])


def test_the_spans_of_the_prompts_are_what_the_page_says() -> None:
    model = interp.load("induction")
    batch = material_for(model, settings(model="induction")).batch
    assert batch.ids is not None and batch.answers is not None
    row = batch.ids[0]
    first, second = row[1:25], row[25:]
    assert torch.equal(first[:-1], second) and int(batch.answers[0, 0]) == int(first[-1])
    assert int(batch.answers[0, 1]) in first.tolist() and int(batch.answers[0, 1]) != int(batch.answers[0, 0])
    needle, answer = row[batch.spans["needle"][0]], row[batch.spans["answer"][0]]
    assert needle.tolist() == answer.tolist() == [int(second[-1])]
    assert torch.equal(row[batch.spans["context"][0]], first) and torch.equal(row[batch.spans["generated"][0]], second)


def test_patterns_are_kept_of_labelled_heads_first_then_of_the_top_of_scores() -> None:
    exists = np.ones((2, 4), dtype=bool)
    exists[1, 3] = False
    one, two = np.arange(8.0).reshape(2, 4), -np.arange(8.0).reshape(2, 4)
    one[1, 3] = two[1, 3] = np.nan
    assert foremost(exists, [], {"one": one}, 10) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    assert foremost(exists, [(0, 2)], {"one": one, "two": two}, 3) == [(0, 0), (0, 2), (1, 2)]
    assert foremost(exists, [(0, 2), (0, 1)], {"one": one}, 1) == [(0, 2)]
    assert foremost(exists, [], {}, 2) == [(0, 0), (0, 1)]


def test_a_band_is_the_central_share_of_the_draws() -> None:
    draws = np.stack([np.full((1, 2), value) for value in np.arange(101.0)])
    draws[:, 0, 1] = np.nan
    low, high = central(draws)
    assert (low[0, 0], high[0, 0]) == pytest.approx((2.5, 97.5)) and np.isnan(low[0, 1]) and np.isnan(high[0, 1])
