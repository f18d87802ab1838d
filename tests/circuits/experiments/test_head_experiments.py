"""What the experiments on heads find on a model whose circuit is known, by more than one road, and their pages."""

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
from browser import chromium, opened

import circuits
import interp
from circuits.config import load_config
from circuits.experiments.attribution.config import AttributionConfig
from circuits.experiments.checkpoint_comparison.training import chosen_pair
from circuits.experiments.contrast.formats import draw_items
from circuits.experiments.copying.job import Job, copying_job
from circuits.experiments.copying.measuring import measured
from circuits.experiments.gating.checking import checked
from circuits.experiments.pruning.findings import Findings as PruningFindings
from circuits.folder import RunFolder
from circuits.outcome import Workplace
from circuits.progress import Silent
from circuits.runner import Finished
from circuits.units import UnitStore
from interp import At, Head, Site
from interp.errors import BadInput

CIRCUIT = ["L0.H0", "L1.H0"]
FITTING: Mapping[str, Any] = MappingProxyType(
    {"n_prompts": 16, "segment": 8, "fits": 3, "updates": 60, "prompts_per_update": 4, "keep_every": 60}
)
SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "attribute-induction": {"n_prompts": 32, "segment": 16, "draws": 30, "reassignments": 99, "permutations": 8},
        "chg-induction": FITTING,
        "chg-contrastive": {**FITTING, "contrasts": [["once", "twice"]]},
        "pruning-curve": {"n_prompts": 32, "segment": 16, "draws": 30},
        "compare-checkpoints": {"n_prompts": 16, "segment": 12},
    }
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """The run of an experiment, done once."""
    folder = tmp_path_factory.mktemp("runs")
    return lambda name: circuits.run(name, SETTINGS[name], out=folder / name)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = RunFolder(tmp_path)
    folder.units.mkdir()
    place = Workplace(folder, UnitStore(folder.units), Silent())
    config = load_config("attribute-induction", {"n_prompts": 12, "segment": 10, "batch_size": 4}).config
    assert isinstance(config, AttributionConfig)
    return copying_job(config, place, "test/1")


# ---- attribution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["zero", "mean", "patch", "gradient", "gate_gradient_abs", "direct"])
def test_a_table_made_piece_by_piece_is_the_one_made_at_once(job: Job, method: str) -> None:
    pieced = measured(job, job.evaluation, [method], "evaluation")[method]
    clean = job.evaluation.clean_batch(job.model)
    options: dict[str, Any] = {"mean": {"reference": job.reference_batch}}.get(method, {})
    if method == "patch":
        options = {"source": job.evaluation.corrupted_batch(job.model), "direction": "noise"}
    whole = interp.attribute(job.model, clean, method, **options)
    np.testing.assert_allclose(pieced.samples, whole.samples, atol=2e-4)
    assert (pieced.sense, pieced.quantity, pieced.name) == (whole.sense, whole.quantity, whole.name)
    assert len(list(Path(job.pieces.store.folder).iterdir())) == 2 * (2 if method in ("zero", "mean", "patch") else 1)


def test_shapley_values_made_in_groups_of_orders_sum_to_the_whole(job: Job) -> None:
    table = measured(job, job.evaluation, ["shapley"], "evaluation")["shapley"]
    assert table.samples.shape[0] == job.config.model_dump()["permutations"] == 16
    assert table.cluster is not None and len(set(table.cluster)) == 8, "an order and its reverse are one draw"
    clean = job.evaluation.clean_batch(job.model)
    everything = interp.logit_difference(interp.run(job.model, clean).logits, clean).mean()
    nothing = interp.run(job.model, clean, edits=[interp.zero(At(Site.Z))]).logits
    expected = float(everything - interp.logit_difference(nothing, clean).mean())
    np.testing.assert_allclose(table.samples.sum((1, 2)), expected, rtol=1e-4)


def test_the_two_heads_of_the_circuit_are_claimed_and_methods_that_miss_one_are_named(
    finished: Callable[[str], Finished],
) -> None:
    found = finished("attribute-induction")
    assert found.facts["claimed"] == CIRCUIT
    assert "gradient" in found.facts["opposite"]["L0.H0"] and "direct" in found.answer
    tops = {tuple(top["heads"]): top for top in found.facts["tops"]}
    assert "mean" in tops[tuple(CIRCUIT)]["methods"]
    assert tops[tuple(CIRCUIT)]["p adjusted"] is None, "15 other sets are too few for a p-value"
    table = pd.read_parquet(found.folder / "heads.parquet")
    assert set(table["quantity"]) == set(load_config("attribute-induction").config.methods)
    assert len(found.facts["agreement on sizes"]) == 45 and len(found.facts["agreement"]) == 36


# ---- gating ---------------------------------------------------------------------------------------------------------


def test_signs_of_gates_agree_with_exact_ablation_outside_the_random_head_band(
    finished: Callable[[str], Finished],
) -> None:
    heads = finished("chg-induction").facts["heads"]
    outside = [name for name, head in heads.items() if head["outside"]]
    assert set(CIRCUIT) <= set(outside) and all(heads[name]["same sign"] for name in outside)
    assert all(heads[name]["effect"][1] > 1 and heads[name]["facilitation"] > 0.4 for name in CIRCUIT)
    assert max(head["facilitation"] for name, head in heads.items() if name not in CIRCUIT) < 0.2
    validation = finished("chg-induction").facts["validation"]
    assert validation["facilitation"][0] < -1 < -0.3 < validation["irrelevance"][0]


def test_a_head_is_outside_the_band_only_where_no_other_of_its_layer_reaches_it() -> None:
    none = interp.HeadScores.from_array(np.zeros((1, 3)), name="none")
    made = [[[5.0, 0.1, 0.0]], [[5.2, 0.0, 0.2]], [[4.8, 0.2, 0.1]]]
    effects = interp.HeadScores.from_array(made, name="zero", quantity="effect", sense=1, sample_axis="prompt")

    class Gates:
        def strongest(self, name: str) -> interp.HeadScores:
            return none if name == "interference" else effects

    checks = {str(one.head): one for one in checked(Gates(), effects, confidence=0.95)}  # pyright: ignore[reportArgumentType]
    assert [name for name, one in checks.items() if one.outside] == ["L0.H0"]
    assert checks["L0.H0"].band == pytest.approx((0.1, 0.1)) and checks["L0.H2"].band == pytest.approx((0.1, 5.0))


def test_the_copying_heads_are_closed_to_lose_what_is_said_twice(finished: Callable[[str], Finished]) -> None:
    (contrast,) = finished("chg-contrastive").facts["contrasts"]
    assert contrast["closed"] == CIRCUIT and contrast["separates"]
    assert contrast["rise"]["twice"][1] > 1 and abs(contrast["rise"]["once"][0]) < 0.3
    assert contrast["random"]["once"][1] is None, "15 other sets are too few for a p-value"


def test_formats_say_the_same_items() -> None:
    model = interp.load("induction", check=False)
    config = load_config("chg-contrastive", {"segment": 5}).config
    items = draw_items(model, n=3, formats=("once", "apart"), config=config, purpose="test")
    once, twice, apart = (items.batch(model, name).ids for name in ("once", "twice", "apart"))
    assert once is not None and twice is not None and apart is not None
    assert all(len(set(row)) == 11 for row in once.tolist())
    torch.testing.assert_close(twice[:, 1:6], twice[:, 6:])
    torch.testing.assert_close(apart, torch.cat([once, once[:, 1:6]], dim=1))
    assert items.batch(model, "apart").spans["loss"][0].nonzero()[:, 0].tolist() == [12, 13, 14, 15]
    with pytest.raises(BadInput, match="At most segment=42 works"):
        too_long = load_config("chg-contrastive", {"segment": 50}).config
        draw_items(model, n=3, formats=("apart",), config=too_long, purpose="test")


# ---- pruning --------------------------------------------------------------------------------------------------------


def test_two_heads_are_enough_and_random_orders_need_more(finished: Callable[[str], Finished]) -> None:
    facts = finished("pruning-curve").facts
    for name in ("mean", "gate_gradient_abs", "recomputed after every cut"):
        assert sorted(facts["curves"][name]["order"][-2:]) == CIRCUIT and facts["curves"][name]["heads enough"] == 2
        assert facts["curves"][name]["lead"][1] > 0
    assert facts["curves"]["gradient"]["heads enough"] > 2, "its estimate of L0.H0 has the wrong sign"
    assert np.median(facts["heads enough at random"]) > 3


def test_a_point_of_a_curve_is_the_run_without_those_heads(finished: Callable[[str], Finished]) -> None:
    found = finished("pruning-curve")
    order = [Head.parse(name) for name in found.facts["curves"]["mean"]["order"]]
    config = load_config("pruning-curve", SETTINGS["pruning-curve"]).config
    folder = RunFolder(found.folder)
    job = copying_job(config, Workplace(folder, UnitStore(folder.units), Silent()), "other/1")
    batch = job.evaluation.clean_batch(job.model)
    gone = [interp.mean(At(Site.Z, layer=h.layer, heads=(h.index,)), job.reference_batch) for h in order[:5]]
    value = float(interp.logit_difference(interp.run(job.model, batch, edits=gone).logits, batch).mean())
    page = (found.folder / "figures" / "curves.json").read_text()
    traces = {trace["name"]: trace for trace in json.loads(page)["data"] if trace.get("mode") == "lines+markers"}
    ys = traces["mean"]["y"]
    drawn = ys if isinstance(ys, list) else np.frombuffer(__import__("base64").b64decode(ys["bdata"]), ys["dtype"])
    assert float(drawn[5]) == pytest.approx(value, abs=1e-3)


def test_heads_are_enough_until_the_first_cut_that_loses_the_metric() -> None:
    from interp.attribution.pruning import PruningCurve

    means = np.array([10.0, 9.5, 8.0, 9.9, 0.0])
    kept = np.array([4, 3, 2, 1, 0])
    nothing = np.zeros((0, 5, 2))
    curve = PruningCurve("by hand", "m", 1, (), 4, kept, np.stack([means, means], 1), nothing)
    findings = PruningFindings("m", {}, {}, {"by hand": curve}, keep=0.9, confidence=0.95, ablation="zero")
    assert findings.kept("by hand") == 3, "what comes back later does not count"


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_training_made_the_two_heads_and_the_model_uses_them(finished: Callable[[str], Finished]) -> None:
    facts = finished("compare-checkpoints").facts
    assert facts["gained"] == CIRCUIT and facts["lost"] == []
    assert facts["logit difference"][0] < 1 < facts["logit difference"][-1]
    assert all(500 < facts["first active"][name] < 1500 for name in CIRCUIT)
    by_factor = {row["factor"]: row["change"] for row in facts["doses"]}
    assert by_factor[0.0] < by_factor[0.5] < 0 < by_factor[1.3]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model=handmade"], "0 checkpoints; two are the least"),
        (["first=17"], "first=17: no checkpoint of that step; they are 0, 300"),
        (["first=4000", "second=300"], "the earlier checkpoint comes first"),
    ],
)
def test_checkpoints_that_cannot_be_compared_are_refused(overrides: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        circuits.run("compare-checkpoints", overrides, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_and_the_last_checkpoint_are_compared_unless_others_are_named() -> None:
    steps = [0, 10, 20]
    assert chosen_pair(load_config("compare-checkpoints").config, steps) == (0, 20)
    assert chosen_pair(load_config("compare-checkpoints", {"second": 10}).config, steps) == (0, 10)


# ---- pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("name", SETTINGS)
def test_a_page_opens_offline_without_a_complaint_and_nothing_is_cut_off(
    name: str, finished: Callable[[str], Finished]
) -> None:
    chromium()
    found = finished(name)
    assert found.report.stat().st_size <= 8e6
    with opened(found.report, "dark", width=900) as view:  # fails on any console error and on any request
        drawn = view.locator(".plot .main-svg").count()
        assert drawn >= len(list((found.folder / "figures").glob("*.json"))) >= 2
        assert found.answer.split()[0] in view.locator(".verdict").text_content()
        over = view.evaluate(
            "[...document.querySelectorAll('.plot .main-svg')].some(e => e.getBoundingClientRect().right > innerWidth)"
        )
        assert not over
        assert "nan" not in view.locator("main").inner_text().lower().split()
