"""The experiment on traces of texts: its numbers by a second road, a user's own texts, resuming, and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

import circuits
import interp
from circuits.config import load_config
from circuits.experiments.trace_text.prompts import counted_sources, prompts_of
from circuits.runner import Finished
from interp.errors import BadInput
from interp.zoo.needle_text import needle_vocabulary

_stats: Any = scipy_stats
SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "n_prompts": 6, "length": 40, "methods": ["raw", "rollout", "gradient-input", "occlusion"],
        "references": ["blank-out", "gradient"], "options": {}, "gate_updates": 2, "gate_fits": 1, "random_orders": 20,
        "shown": 1,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return circuits.run("trace-text", SMALL, out=tmp_path_factory.mktemp("runs") / "text")


def test_the_correlations_by_a_second_road(finished: Finished) -> None:
    """Traces straight from interp.trace, correlated by scipy over the tokens that are no special ones."""
    model = interp.load("needle")
    prompts = prompts_of(model, load_config("trace-text", SMALL).config).prompts
    batch = prompts.batch(model)
    counted = counted_sources(model, prompts, special=False)
    assert counted.shape == (6, batch.width) and not counted[:, 0].any() and counted[:, 1:].all()
    given = {"blank-out": {}, "gradient": {}, "rollout": {}, "raw": {}}
    rows = {name: interp.trace(model, batch, name, metric=interp.logit_difference).values[:, 0] for name in given}
    for reference in ("blank-out", "gradient"):
        for name in ("raw", "rollout"):
            found = []
            for row, against in zip(rows[name], rows[reference], strict=True):
                found.append(_stats.spearmanr(np.abs(row[1:]), np.abs(against[1:])).statistic)
            told = finished.facts["correlations"][reference][name][0]
            assert told == pytest.approx(float(np.nan_to_num(found).mean()), abs=1e-4), (reference, name)


def test_the_drawn_prompts_ask_for_a_fact_that_they_tell() -> None:
    model, words = interp.load("needle", check=False), list(needle_vocabulary())
    prompts = prompts_of(model, load_config("trace-text", SMALL).config).prompts
    assert prompts.where is not None and prompts.contrasted
    for ids, answer, where in zip(prompts.ids, prompts.answers, prompts.where, strict=True):
        said = [words[token] for token in ids]
        assert said[-2] == "recall" and said[where - 1] == said[-1] and said[where - 2] == "remember"
        assert ids[where] == answer[0] and answer[1] in ids and answer[1] != answer[0]


def test_it_keeps_every_number_and_says_what_it_found(finished: Finished) -> None:
    folder = finished.folder
    assert "needle" in finished.answer and "Spearman's rho" in finished.answer
    methods = pd.read_parquet(folder / "methods.parquet")
    assert set(methods["method"]) == {"raw", "rollout", "gradient", "gradient-input", "occlusion"}
    traces = pd.read_parquet(folder / "traces.parquet")
    assert set(traces["method"]) == {*methods["method"], "blank-out"}
    layers = pd.read_parquet(folder / "layers.parquet")
    every: list[Any] = layers.to_dict(orient="records")
    own = [row for row in every if (row["trace"], row["reference"]) == ("rollout", "blank-out")]
    assert [row["layer"] for row in own] == [0, 1, 2]
    assert own[-1]["mean"] == pytest.approx(finished.facts["correlations"]["blank-out"]["rollout"][0])
    heads = pd.read_parquet(folder / "heads.parquet")
    assert set(heads["quantity"]) == {"traced, rollout", "ablated, zero", "gated"}
    page = finished.report.read_text(encoding="utf-8")
    assert finished.report.stat().st_size < 8e6
    for words in ("Layer by layer", "Does the trace depend on its target?", "Head by head", "remember"):
        assert words in page
    assert finished.facts["verdicts"]["blank-out"]["best"] in ("gradient", "rollout", "raw", "gradient-input")


def test_a_stopped_run_goes_on_where_it_was(finished: Finished) -> None:
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    (finished.folder / "manifest.json").unlink()
    again = circuits.run("trace-text", SMALL, out=finished.folder)
    units = json.loads((finished.folder / "manifest.json").read_text())["units"]
    assert units["computed now"] == 0 and units["from an earlier run"] == sum(manifest["units"].values())
    assert again.facts == finished.facts


def test_a_users_own_texts_and_a_method_that_the_model_cannot_do(tmp_path: Path) -> None:
    texts = ["the dog ran to the", "a cat sat on the red", "we walked to the old", "she gave him the"]
    settings = {
        **SMALL, "model": "induction", "texts": texts, "methods": ["raw", "class-explanation"], "heads": False,
        "special": True,
    }  # fmt: skip
    found = circuits.run("trace-text", settings, out=tmp_path / "run")
    assert list(found.facts["refused"]) == ["class-explanation"] and found.facts["refused"]["class-explanation"]
    assert "What this model cannot do" in found.report.read_text(encoding="utf-8")
    model = interp.load("induction", check=False)
    drawn = prompts_of(model, load_config("trace-text", settings).config).prompts
    said = interp.run(model, drawn.select([0]).batch(model), logits="last").logits
    assert said is not None and drawn.answers[0][0] == int(said[0, -1].argmax())


def test_encoders_without_a_head_are_given_sentences(tmp_path: Path) -> None:
    """A random BERT on disk: every text is told by its own embedding, and rows are means over tokens."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=310, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    interp.load("needle", check=False).tokenizer.save_pretrained(tmp_path / "bert")
    texts = ["the dog ran .", "a cat sat on it .", "we walked to the house .", "she gave him the book ."]
    settings = {**SMALL, "model": str(tmp_path / "bert"), "texts": texts, "methods": ["raw", "rollout"]}
    found = circuits.run("trace-text", settings, out=tmp_path / "run")
    assert set(found.facts["correlations"]["blank-out"]) == {"raw", "rollout", "gradient"}
    assert "mean-pooled embedding" in found.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "digits-vit"}, "reads no texts"),
        ({"texts": ["a", "b"]}, "give at least 4"),
        ({"texts": ["a"] * 4, "answers": [["b"]]}, "1 for 4 texts"),
        ({"methods": ["rolout"]}, "Did you mean 'rollout'"),
        ({"options": {"lime": {"samples": 3}}}, "method of this run"),
        ({"metric": "logit_difference", "texts": ["the dog"] * 4, "answers": [[" ran"]] * 4}, "needs a wrong answer"),
    ],
)
def test_what_does_not_do_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        circuits.run("trace-text", {**SMALL, **settings}, out=tmp_path / "run")
