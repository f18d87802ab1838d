"""Head experiments that are stopped go on where they were, head by head and update by update, to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

import circuits
from circuits.units import Unit, UnitStore

ROOT = Path(__file__).parent.parent.parent
COPYING: Mapping[str, Any] = MappingProxyType({"n_prompts": 8, "segment": 6, "batch_size": 2})
FITTING: Mapping[str, Any] = MappingProxyType(
    {"n_prompts": 8, "segment": 5, "batch_size": 4, "fits": 2, "updates": 6, "keep_every": 2}
)
SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "attribute-induction": {
            **COPYING, "methods": ["mean", "gradient", "shapley"], "draws": 2, "reassignments": 20, "permutations": 4,
        },
        "chg-induction": FITTING,
        "chg-contrastive": {**FITTING, "draws": 2, "contrasts": [["once", "twice"]]},
        "pruning-curve": {**COPYING, "rankings": ["gradient"], "draws": 2, "cuts": 2},
        "retrieval-heads": {
            "lengths": [64], "depths": [0.0, 1.0], "n_facts": 4, "distractors": 1, "batch_size": 2, "counts": [1, 2],
            "draws": 2, "null_draws": 2, "masks": ["zero"],
        },
        "compare-checkpoints": {**COPYING, "draws": 2, "factors": [0.0], "first": 700, "second": 1000},
    }
)  # fmt: skip


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same table, bit for bit, and the same words and numbers."""
    tables = [pd.read_parquet(folder / "heads.parquet") for folder in (first, second)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, second)]
    return summaries[0] == summaries[1]


def counts(folder: Path) -> dict[str, int]:
    return json.loads((folder / "manifest.json").read_text())["units"]


@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_after_any_piece_it_ends_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped twice, a third and two thirds of the way, against a run that nobody stopped."""
    write, written, limit = UnitStore.write, [0], [10**9]

    def stopping(self: UnitStore, unit: Unit, arrays: Mapping[str, np.ndarray]) -> None:
        if written[0] >= limit[0]:
            raise KeyboardInterrupt
        write(self, unit, arrays)
        written[0] += 1

    monkeypatch.setattr(UnitStore, "write", stopping)
    circuits.run(name, SETTINGS[name], out=tmp_path / "whole")
    total = written[0]
    assert total >= 6
    for share in (1, 2):
        limit[0] = total + share * total // 3
        with pytest.raises(KeyboardInterrupt):
            circuits.run(name, SETTINGS[name], out=tmp_path / "run")
        assert not (tmp_path / "run" / "manifest.json").exists()
    limit[0] = 10**9
    circuits.run(name, SETTINGS[name], out=tmp_path / "run")
    assert same(tmp_path / "whole", tmp_path / "run")
    assert counts(tmp_path / "run")["from an earlier run"] >= 1
    assert written[0] - total < 1.5 * total, "what was finished was not written again"


def updates_made(folder: Path) -> int:
    """Updates of the fits whose state lies in a run's folder."""
    made = 0
    for path in folder.glob("units/fit-*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            made += int(file.get_tensor("updates"))
    return made


def test_a_fit_that_is_killed_goes_on_from_its_last_update(tmp_path: Path) -> None:
    folder, settings = tmp_path / "run", {**FITTING, "updates": 80, "keep_every": 1}
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "circuits", "run", "chg-induction", *words, "--out", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while updates_made(folder) < 12 and process.poll() is None:
        assert time.monotonic() < until, "no update was kept in two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == -9, error
    kept = updates_made(folder)
    assert 12 <= kept < 160 and not (folder / "manifest.json").exists()
    seen: list[int] = []
    import interp

    fit = interp.fit_gates

    def watched(*arguments: Any, **options: Any) -> Any:
        told = options["progress"]
        return fit(*arguments, **{**options, "progress": lambda count: (seen.append(count), told(count))[1]})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interp, "fit_gates", watched)
        circuits.run("chg-induction", settings, out=folder)
    assert seen[0] >= 12 and sum(seen) == 160, "the first count is of the updates that were kept"
    circuits.run("chg-induction", settings, out=tmp_path / "whole")
    assert same(tmp_path / "whole", folder)
