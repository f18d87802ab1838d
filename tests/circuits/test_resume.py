"""A run that is stopped, however rudely, goes on where it was and ends with the same bits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import circuits
from circuits.cli import app
from circuits.units import Unit, UnitStore
from interp.errors import BadInput, RunFailed

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {
    "n_prompts": 8,
    "segment": 12,
    "draws": 30,
    "top_k": 2,
    "shown": 1,
    "batch_size": 2,
    "emergence": False,
    "texts": ["the old man saw the dog ."],
}


def table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "heads.parquet")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same table, bit for bit, and the same words and numbers."""
    pd.testing.assert_frame_equal(table(first), table(second), check_exact=True)
    return summary(first) == summary(second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    circuits.run("induction", SETTINGS, out=folder)
    return folder


def copy_of(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.mark.parametrize("after", [0, 7, 19])
def test_stopped_after_any_unit_it_ends_the_same(
    after: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = UnitStore.write, []

    def stopping(self: UnitStore, unit: Unit, arrays: Mapping[str, np.ndarray]) -> None:
        if len(written) == after:
            raise KeyboardInterrupt
        write(self, unit, arrays)
        written.append(unit)

    with monkeypatch.context() as patched:
        patched.setattr(UnitStore, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            circuits.run("induction", SETTINGS, out=tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()
    circuits.run("induction", SETTINGS, out=tmp_path / "run")
    assert same(whole, tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["units"]
    assert counts["from an earlier run"] >= after and counts["computed now"] > 0


@pytest.mark.parametrize(("rudely", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_process_leaves_a_run_that_goes_on(
    rudely: signal.Signals, code: int, whole: Path, tmp_path: Path
) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    for attempt in range(8):  # a run takes a fraction of a second: on a busy machine it may end before the signal comes
        folder = tmp_path / f"run{attempt}"
        process = subprocess.Popen(
            [sys.executable, "-m", "circuits", "run", "induction", *words, "--out", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 120
        while len(list((folder / "units").glob("*.safetensors"))) < 6 and process.poll() is None:
            assert time.monotonic() < until, "no unit was finished in two minutes"
            time.sleep(0.002)
        process.send_signal(rudely)
        out, error = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == code, error
    assert not (folder / "manifest.json").exists() and out == ""
    if rudely == signal.SIGINT:
        assert "run the same command again" in error and "Traceback" not in error
    circuits.run("induction", SETTINGS, out=folder)
    assert same(whole, folder)
    assert json.loads((folder / "manifest.json").read_text())["units"]["from an earlier run"] >= 6


def test_a_full_disk_stops_the_run_with_a_sentence_and_keeps_what_was_finished(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import circuits.units

    write, room = circuits.units.write_whole, [12]

    def filling(path: Path, content: bytes | str) -> Path:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        return write(path, content)

    words = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    with monkeypatch.context() as patched:
        patched.setattr(circuits.units, "write_whole", filling)
        result = CliRunner().invoke(app, ["run", "induction", *words, "--out", str(tmp_path / "run"), "-q"])
    assert result.exit_code == 1 and "The disk is full" in result.stderr and "12 finished pieces" in result.stderr
    circuits.run("induction", SETTINGS, out=tmp_path / "run")
    assert same(whole, tmp_path / "run")


def test_a_disk_that_fills_while_the_report_is_written_leaves_an_unfinished_run(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import circuits.runner

    def full(path: Path, content: bytes | str) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = copy_of(whole, tmp_path)
    (folder / "manifest.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(circuits.runner, "write_whole", full)
        with pytest.raises(RunFailed, match="The disk is full"):
            circuits.run("induction", SETTINGS, out=folder)
    assert not (folder / "manifest.json").exists()
    circuits.run("induction", SETTINGS, out=folder)
    assert json.loads((folder / "manifest.json").read_text())["units"]["computed now"] == 0


def test_a_finished_run_is_not_redone_unless_asked(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import interp

    folder = copy_of(whole, tmp_path)
    with monkeypatch.context() as patched:
        patched.delattr(interp, "load")
        again = circuits.run("induction", SETTINGS, out=folder)
        assert again.reused and again.answer == summary(whole)["answer"]
    redone = circuits.run("induction", SETTINGS, out=folder, force=True)
    assert not redone.reused and same(whole, folder)
    assert json.loads((folder / "manifest.json").read_text())["units"]["from an earlier run"] == 0


def test_other_settings_do_not_go_into_a_folder_that_is_taken(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    with pytest.raises(BadInput, match=r"other settings \(seed: 0 there, 1 asked\)"):
        circuits.run("induction", {**SETTINGS, "seed": 1}, out=folder)
    assert same(whole, folder)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(BadInput, match=r"already holds report\.html"):
        circuits.run("induction", SETTINGS, out=tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_changed_weights_are_not_taken_for_a_finished_run(tmp_path: Path) -> None:
    import interp
    from interp.zoo import path

    model = Path(shutil.copytree(path("induction"), tmp_path / "model"))
    settings = {**SETTINGS, "model": str(model), "texts": []}
    first = circuits.run("induction", settings, out=tmp_path / "run")
    loaded = interp.load(str(model), check=False).hf
    with torch.no_grad():
        next(loaded.parameters()).mul_(1.5)
    loaded.save_pretrained(model)
    second = circuits.run("induction", settings, out=tmp_path / "run")
    assert not second.reused and second.facts != first.facts


def test_the_default_folder_is_a_function_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from circuits.config import load_config
    from circuits.folder import default_folder

    monkeypatch.chdir(tmp_path)
    first = default_folder(load_config("induction", SETTINGS))
    assert first == default_folder(load_config("induction", SETTINGS)) and first.parts[0] == "runs"
    assert first != default_folder(load_config("induction", {**SETTINGS, "seed": 1}))


def test_the_manifest_says_what_made_the_numbers_and_nothing_about_the_machine_s_owner(whole: Path) -> None:
    text = (whole / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["finished"] is True and manifest["seed"] == 0 and manifest["config"]["n_prompts"] == 8
    assert manifest["versions"].keys() >= {"python", "torch", "transformers", "headscope"}
    assert manifest["model"]["device"] == "cpu" and manifest["model"]["dtype"] == "float32"
    assert len(manifest["model"]["weights"]["sha256"]) == 64 and manifest["model"]["tokenizer"]
    assert set(manifest["times"]) == {"began", "seconds", "stages"} and manifest["machine"]["threads"] >= 1
    assert str(ROOT) not in text and str(Path.home()) not in text and str(whole) not in text
