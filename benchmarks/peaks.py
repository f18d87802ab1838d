"""Peak memory of one action, each in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MEGABYTE = 2**20
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
# glibc's malloc keeps what is freed and hands it out again: what a set-up has freed would hide what the action takes.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def report_peak(action: Callable[[], object]) -> None:
    """Print how many bytes the process grew by, at its highest, while ``action`` ran (once, result kept)."""
    gc.collect()
    before = _reset()
    kept = action()
    print(json.dumps({"peak": _highest() - before}))
    del kept


def peak(script: str, variant: str, *arguments: str, repeats: int = 3) -> float:
    """Bytes by which a fresh process grows while it runs a variant of ``script``: the median of ``repeats`` ones."""
    command = [sys.executable, script, "--peak", variant, *arguments]
    environment = os.environ | _GIVE_BACK
    grown = []
    for _ in range(repeats):
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        grown.append(json.loads(printed.strip().splitlines()[-1])["peak"])
    return statistics.median(grown)


def _reset() -> int:
    """Set the highest mark to what is resident now, and give that."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")
        return _field("VmRSS")
    return _highest()


def _highest() -> int:
    if _STATUS.exists():
        return _field("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {name}")
