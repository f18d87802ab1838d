"""How long it takes to import the toolkit, and to list, show and get help on the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys

from command import Settings, main
from lines import Line
from pairs import Interval, median_interval, time_rounds

PYTHON = [sys.executable, "-c"]
IMPORTS = {
    "torch, transformers": [*PYTHON, "import torch, transformers"],
    "import interp": [*PYTHON, "import interp"],
    "import interp; interp.load": [*PYTHON, "import interp; interp.load"],
}
COMMANDS = (["--help"], ["list"], ["show", "induction"])


def measure(settings: Settings) -> list[Line]:
    """Wall-clock seconds of whole processes."""
    times = time_rounds(
        {name: _process(command) for name, command in IMPORTS.items()}, rounds=settings.rounds, warmups=1
    )
    base = times["torch, transformers"]
    lines = []
    for name in ("import interp", "import interp; interp.load"):
        more = median_interval([ours - theirs for ours, theirs in zip(times[name], base, strict=True)])
        beside = (
            f"{median_interval(times[name]).median:.2f} s, torch and transformers {median_interval(base).median:.2f} s"
        )
        lines.append(Line(f"{name}, more than import torch, transformers", more, "s", "at most", 0.3, beside))
    for arguments in COMMANDS:
        name = "circuits " + " ".join(arguments)
        lines.append(Line(name, _seconds([*_circuits(), *arguments], settings), "s", "at most", 1.0))
    return lines


def _circuits() -> list[str]:
    found = shutil.which("circuits")
    return [found] if found else [*PYTHON, "from circuits.cli import main; main()"]


def _seconds(command: list[str], settings: Settings) -> Interval:
    return median_interval(time_rounds({"it": _process(command)}, rounds=settings.rounds, warmups=1, shortest=0)["it"])


def _process(command: list[str]):
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(__file__, measure)
