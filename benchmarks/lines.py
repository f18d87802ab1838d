"""One line of the results: a claim, what was measured, and whether it holds; the files that lines are written to."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from pairs import Interval

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Line:
    """A claim beside its measurement.

    Attributes:
        claim: what is compared, in words.
        measured: median and interval.
        unit: "x" for ratios, else "s", "ms" or "MB".
        sense: on which side of ``bound`` the measurement has to lie; ``None`` for a number without a claim.
        bound: the number claimed.
        beside: times and memory that belong to it.
    """

    claim: str
    measured: Interval
    unit: str = "x"
    sense: Literal["at most", "at least"] | None = None
    bound: float | None = None
    beside: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the better end of the interval meets the bound; ``None`` where nothing is claimed."""
        if self.bound is None or self.sense is None:
            return None
        return self.measured.low <= self.bound if self.sense == "at most" else self.measured.high >= self.bound

    def row(self) -> list[str]:
        """The cells of the line in a table."""
        unit = "" if self.unit == "x" else f" {self.unit}"
        median, low, high = (f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" for value in self.measured)
        bound = f"{self.sense} {self.bound:g}{unit}" if self.sense else ""
        verdict = {True: "holds", False: "fails", None: ""}[self.holds]
        return [self.claim, f"{median}{unit}", f"{low} to {high}", bound, verdict, self.beside]


HEADER = ["what", "median", "95 % interval", "claimed", "", "beside"]


def markdown(lines: Sequence[Line]) -> str:
    """The lines as a markdown table."""
    rows = [HEADER, ["---"] * len(HEADER), *(line.row() for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system() + " " + platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "transformer-lens": _version("transformer-lens"),
    }


def write(name: str, lines: Sequence[Line], settings: dict[str, Any], folder: Path) -> None:
    """Write ``name.json`` (everything) and ``name.md`` (the table) into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "machine": machine(settings["threads"]),
        "settings": settings,
        "lines": [asdict(line) | {"measured": line.measured._asdict(), "holds": line.holds} for line in lines],
    }
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(lines))


def read(path: Path) -> tuple[dict[str, Any], list[Line]]:
    """The machine and the lines of a ``.json`` file that :func:`write` made."""
    record = json.loads(path.read_text())
    lines = []
    for entry in record["lines"]:
        entry.pop("holds")
        lines.append(Line(**entry | {"measured": Interval(**entry["measured"])}))
    return record["machine"], lines


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
