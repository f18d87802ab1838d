"""Every named experiment: its file loads, is what it says, and its settings are checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from typer.testing import CliRunner

from circuits.cli import app
from circuits.config import config_files, load_config
from circuits.experiments import EXPERIMENTS
from interp.errors import BadInput, UnknownName

NAMES = sorted(config_files())


def test_there_are_named_experiments_and_every_file_is_one() -> None:
    folder = Path(__file__).parent.parent / "configs"
    assert NAMES == sorted(path.stem for path in folder.iterdir()) and "induction" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_loads_and_its_first_line_is_the_command(name: str) -> None:
    named = load_config(name)
    assert named.command.split()[:3] == ["circuits", "run", name]
    assert named.config.experiment in EXPERIMENTS
    assert 20 <= len(named.config.about) <= 140


@pytest.mark.parametrize("name", NAMES)
def test_a_config_writes_out_every_setting(name: str) -> None:
    """What the file leaves out a reader would have to look up in the code; device and dtype belong to the machine."""
    named = load_config(name)
    written = set(yaml.safe_load(named.source.read_text(encoding="utf-8")))
    assert set(type(named.config).model_fields) - written == {"device", "dtype"}


@pytest.mark.parametrize("kind", sorted(EXPERIMENTS))
def test_a_kind_of_experiment_has_its_class_its_function_and_a_config(kind: str) -> None:
    record = EXPERIMENTS[kind]
    assert callable(record.load_run())
    assert record.load_config_class().model_fields["experiment"].annotation.__args__ == (kind,)
    assert any(load_config(name).config.experiment == kind for name in NAMES)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("attribute-induction", ["methods=[zero, mena]"], "Unknown attribution method 'mena'. Did you mean 'mean'"),
        ("attribute-induction", ["methods=[zero, zero]"], "methods: zero stands there twice"),
        ("attribute-induction", ["methods=[]"], "methods: .*at least 1 item"),
        ("attribute-induction", ["ablation=noise"], "Unknown ablation 'noise'"),
        ("attribute-induction", ["reassignment=20"], "Unknown key 'reassignment'. Did you mean 'reassignments'"),
        ("chg-induction", ["lam=0"], "lam: input should be greater than 0"),
        ("chg-induction", ["schedule=papers"], "Unknown value 'papers'. Did you mean 'paper'"),
        ("chg-induction", ["updates=1.5"], "updates: expected a whole number, got 1.5"),
        ("chg-contrastive", ["contrasts=[[once, once]]"], "'once' cannot be kept and lost at once"),
        ("chg-contrastive", ["contrasts=[[once, thrice]]"], "Unknown value 'thrice'"),
        ("chg-contrastive", ["contrasts=[[once]]"], "contrasts"),
        ("pruning-curve", ["keep=1.5"], "keep: input should be less than 1"),
        ("pruning-curve", ["recompute=1"], "recompute: expected true or false, got 1"),
        ("compare-checkpoints", ["method=ablation"], "Unknown attribution method 'ablation'"),
        ("compare-checkpoints", ["threshold=0"], "threshold: input should be greater than 0"),
        ("compare-checkpoints", ["factors=0.5"], "factors: expected a list"),
    ],
)
def test_a_wrong_setting_of_a_head_experiment_is_refused(name: str, overrides: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says.replace("[", r"\[").replace("(", r"\(")):
        load_config(name, overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["n_promts=3"], "Unknown key 'n_promts'. Did you mean 'n_prompts'"),
        (["n_prompts=many"], "n_prompts: expected a whole number, got 'many'"),
        (["n_prompts=2.5"], "n_prompts: expected a whole number, got 2.5"),
        (["n_prompts=true"], "n_prompts: expected a whole number, got True"),
        (["n_prompts=1"], "n_prompts: input should be greater than or equal to 4, got 1"),
        (["confidence=high"], "confidence: expected a number, got 'high'"),
        (["emergence=1"], "emergence: expected true or false, got 1"),
        (["model=7"], "model: expected text, got 7"),
        (["scores=[inducton]"], "Unknown score 'inducton'. Did you mean 'induction'"),
        (["scores=induction"], "scores.*list"),
        (["ablation=men"], "Unknown ablation 'men'. Did you mean 'mean'"),
        (["dtype=float"], "Unknown value 'float'. Did you mean"),
        (["device=GPU 0"], "device: string should match pattern"),
        (["model=inducton"], "Unknown model 'inducton'. Did you mean 'induction'"),
        (["model=/no/such/folder"], "Unknown model '/no/such/folder'"),
        (["experiment=probing"], "the kind is fixed by induction.yaml"),
        (["scores.first=induction"], "scores is a single value"),
        (["n_prompts"], "write key=value"),
        (["=3"], "write key=value"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(overrides: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says.replace("[", r"\[").replace("(", r"\(")):
        load_config("induction", overrides)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        load_config("induction", ["n_prompts=many", "seed=-1"])
    assert "n_prompts" in str(caught.value) and "seed" in str(caught.value)


def test_an_unknown_experiment_names_its_neighbours() -> None:
    with pytest.raises(UnknownName, match=r"Unknown experiment 'inducton'. Did you mean 'induction'"):
        load_config("inducton")


def test_overrides_are_read_as_yaml() -> None:
    config = load_config("induction", ["n_prompts=4", "texts=[a b, c]", "threshold=5e-1", "model=gpt2"]).config
    assert (config.n_prompts, config.texts, config.threshold, config.model) == (4, ("a b", "c"), 0.5, "gpt2")


def test_a_mapping_of_overrides_says_the_same_as_texts() -> None:
    assert load_config("induction", {"n_prompts": 4}).config == load_config("induction", ["n_prompts=4"]).config


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("induction").config.n_prompts = 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("experiment: inductive\nabout: x\n", "Unknown kind of experiment 'inductive'. Did you mean 'induction'"),
        ("about: x\n", "the key 'experiment' names the kind"),
        ("- 1\n- 2\n", "holds list, expected `key: value` lines"),
        ("experiment: induction\nabout: [\n", "is not YAML"),
        ("experiment: induction\nabout: x\nseed: 1\nseed: 2\n", "seed stands there twice"),
        ("experiment: induction\n", "about is missing"),
    ],
)
def test_a_broken_file_of_ones_own_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        load_config(path)


def test_a_file_of_ones_own_is_a_named_experiment(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("experiment: induction\nabout: my own\nn_prompts: 6\n")
    named = load_config(path, ["seed=5"])
    assert (named.name, named.config.n_prompts, named.config.seed) == ("mine", 6, 5)
    with pytest.raises(BadInput, match="There is no file"):
        load_config(tmp_path / "yours.yaml")


COPYING = ("n_prompts=8", "segment=6", "batch_size=4")
FITTING = ("n_prompts=8", "segment=5", "batch_size=4", "fits=2", "updates=4", "keep_every=2")
SMALLEST: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "induction": ("n_prompts=4", "segment=8", "draws=2", "top_k=1", "shown=1", "emergence=false"),
        "attribution": (*COPYING, "draws=2", "reassignments=20", "steps=2", "permutations=4"),
        "gating": FITTING,
        "contrast": (*FITTING, "draws=2", "contrasts=[[once, twice]]"),
        "contextual": (
            *("n_questions=4", "n_documents=3", "length=64", "places=[0.0, 1.0]"),
            *("counts=[1]", "draws=2", "null_draws=2", "max_new_tokens=4"),
        ),
        "pruning": (*COPYING, "rankings=[gradient]", "draws=2", "cuts=2", "recompute=false"),
        "checkpoints": (*COPYING, "draws=2", "factors=[0.0]", "first=700", "second=1000"),
        "retrieval": (
            "lengths=[64]",
            "depths=[0.0]",
            "n_facts=4",
            "distractors=1",
            "counts=[1]",
            "draws=2",
            "null_draws=2",
            "masks=[zero]",
        ),
        "vision": (
            *("n_prompts=16", "ablation=zero", "top=[1]", "per_layer=[]", "random_sets=2"),
            *("reinforce_draws=1", "batch_size=8"),
        ),
        "trace_text": (
            *("n_prompts=4", "length=32", "methods=[raw, rollout]", "references=[blank-out]", "options={}"),
            *("gate_updates=0", "random_orders=4", "shown=1"),
        ),
        "trace_image": (
            *("n_images=4", "methods=[raw, rollout]", "references=[blank-out]", "options={}", "curves=4"),
            *("curve_draws=2", "shares=[0.0, 0.5, 1.0]", "randomised=[raw]", "random_orders=4", "shown=1"),
        ),
        "explanation": (
            *("n_prompts=4", "length=32", "traced=[rollout]", "explanations=[gradient]", "important=gradient"),
            *("options={}", "audited=2", "battery=2", "permutations=2", "starts=1", "steps=2", "curves=2", "draws=2"),
        ),
        "sinks": ("n_prompts=4", "tokens=16", "random_sets=2", "batch_size=4", "compare=[entropy]"),
        "atlas": (
            "n_prompts=4",
            "segment=6",
            "null_draws=2",
            "batch_size=4",
            "scores=[induction, sink_profile, ov_copying]",
        ),
    }
)


def test_every_kind_has_smallest_settings() -> None:
    assert SMALLEST.keys() == EXPERIMENTS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_runs_on_the_smallest_settings(name: str, tmp_path: Path) -> None:
    small = SMALLEST[load_config(name).config.experiment]
    result = CliRunner().invoke(app, ["run", name, *small, "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "report.html").stat().st_size < 8e6
