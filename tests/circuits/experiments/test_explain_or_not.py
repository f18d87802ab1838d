"""The experiment on attention as an explanation: numbers by a second road, resuming, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

import circuits
import interp
from circuits.config import load_config
from circuits.experiments.trace_text.prompts import prompts_of
from circuits.runner import Finished
from interp.errors import BadInput

_stats: Any = scipy_stats
SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "n_prompts": 6, "length": 40, "traced": ["rollout"],
        "explanations": ["gradient", "gradient-input", "occlusion"], "important": "occlusion", "options": {},
        "audited": 3, "battery": 2, "permutations": 4, "starts": 1, "steps": 4,
        "curves": 3, "shares": [0.0, 0.2, 1.0], "draws": 4,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return circuits.run("explain-or-not", SMALL, out=tmp_path_factory.mktemp("runs") / "explain")


def test_agreement_and_signs_by_a_second_road(finished: Finished) -> None:
    """The last layer's row where the answer is read, its mean and maximum over heads, by scipy."""
    model = interp.load("needle")
    prompts = prompts_of(model, load_config("explain-or-not", SMALL).config).prompts
    batch = prompts.batch(model)
    maps = interp.run(model, batch, read=[interp.At(interp.Site.PATTERN, layer=2)])
    rows = maps[interp.At(interp.Site.PATTERN, layer=2)][:, :, -1, 1:].double().numpy()
    slope = interp.trace(model, batch, "gradient-input", metric=interp.logit_difference).values[:, 0, 1:]
    pairs = pd.read_parquet(finished.folder / "pairs.parquet").set_index(["attention", "explanation"])
    for name, row in (("attention, mean", rows.mean(1)), ("attention, maximum", rows.max(1))):
        tau = [_stats.kendalltau(a, np.abs(b)).statistic for a, b in zip(row, slope, strict=True)]
        assert pairs.loc[(name, "gradient-input"), "kendall"] == pytest.approx(np.mean(tau), abs=1e-3)
        against = [np.mean(b[np.argsort(-a)[:5]] < 0) for a, b in zip(row, slope, strict=True)]
        assert pairs.loc[(name, "gradient-input"), "signs"] == pytest.approx(np.mean(against), abs=1e-6)
    assert np.isnan(pairs.loc[("rollout", "gradient"), "signs"])


def test_the_value_aware_weights_sum_to_the_direct_effect_of_all_heads(finished: Finished) -> None:
    from circuits.experiments.explanation.measuring import explanation_job, value_aware
    from circuits.folder import RunFolder
    from circuits.outcome import Workplace
    from circuits.progress import Silent
    from circuits.units import UnitStore

    place = Workplace(RunFolder(finished.folder), UnitStore(finished.folder / "units"), Silent())
    job = explanation_job(load_config("explain-or-not", SMALL).config, place, "explanation/1")
    weights = value_aware(job)
    direct = interp.attribute(job.model, job.prompts.batch(job.model), "direct", metric=interp.logit_difference)
    np.testing.assert_allclose(weights.sum(1), np.nansum(direct.samples, axis=(1, 2)), rtol=1e-3, atol=1e-3)


def test_the_audit_is_that_of_the_tokens_that_matter_most(finished: Finished) -> None:
    import torch

    model = interp.load("needle")
    prompts = prompts_of(model, load_config("explain-or-not", SMALL).config).prompts.select([0, 1, 2])
    batch = prompts.batch(model)
    worth = np.abs(interp.trace(model, batch, "occlusion", metric=interp.logit_difference).values[:, 0])
    worth[:, 0] = np.nan
    member = torch.zeros(3, batch.width, dtype=torch.bool)
    for row, own in enumerate(worth):
        member[row, np.argsort(-np.nan_to_num(own, nan=-1.0), kind="stable")[:5].copy()] = True
    audit = interp.deception_audit(model, batch, member)
    told = {row["quantity"]: row["mean"] for row in finished.facts["hidden"] if row["tokens"] == "tokens that matter"}
    assert told["effect of hiding them"] == pytest.approx(float(audit.effect.mean()), abs=1e-4)
    assert told["largest attention of a head"] == pytest.approx(float(audit.largest_mass.mean()), abs=1e-4)
    random = [row["mean"] for row in finished.facts["hidden"] if row["tokens"] == "random tokens"]
    assert random[2] < told["effect of hiding them"]


def test_there_is_a_sentence_per_question_and_everything_is_kept(finished: Finished) -> None:
    for words in ("Kendall's tau", "speak against the answer", "deception index", "permuted", "As tokens are hidden"):
        assert words in finished.answer
    assert finished.report.stat().st_size < 8e6
    tests = {row["test"] for row in finished.facts["other weights"]}
    assert len(tests) == 4 and not finished.facts["refused"]
    heads = pd.read_parquet(finished.folder / "heads.parquet")
    assert {"permutation", "gradient: kendall", "value_aware: signs"} <= set(heads["quantity"])
    (area,) = [row for row in finished.facts["curves"] if row["weights"] == "occlusion"]
    assert area["area"] < area["random"], "tokens whose absence costs most, hidden first"


def test_a_stopped_run_goes_on_where_it_was(finished: Finished) -> None:
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    (finished.folder / "manifest.json").unlink()
    again = circuits.run("explain-or-not", SMALL, out=finished.folder)
    units = json.loads((finished.folder / "manifest.json").read_text())["units"]
    assert units["computed now"] == 0 and units["from an earlier run"] == sum(manifest["units"].values())
    assert again.facts == finished.facts


def test_what_is_not_asked_for_is_left_out(tmp_path: Path) -> None:
    settings = {**SMALL, "explanations": ["gradient"], "value_aware": False, "audited": 0, "battery": 0, "curves": 0}
    found = circuits.run("explain-or-not", settings, out=tmp_path / "run")
    assert found.facts["hidden"] == [] == found.facts["other weights"] and found.facts["gap"] is None
    assert "deception" not in found.answer and "permuted" not in found.answer
    with pytest.raises(BadInput, match="rise from 0 to 1"):
        load_config("explain-or-not", {"shares": [0.5, 1.0]})
