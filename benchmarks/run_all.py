"""Run every benchmark, one after the other, and gather the results into one table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lines import RESULTS, markdown, read

SCRIPTS = (
    "run_overhead",
    "live_load",
    "bridge_load",
    "bridge_cache",
    "gating",
    "sweeps",
    "gate_fits",
    "last_rows",
    "composition",
    "long_scores",
    "top_mass",
    "rollout",
    "flow",
    "trace_long",
    "relevance",
    "imports",
)


def gather(folder: Path) -> str:
    """One page: the machine, and the lines of every result in ``folder``."""
    found = [read(path) for name in SCRIPTS if (path := folder / f"{name}.json").exists()]
    machine = ", ".join(f"{key} {value}" for key, value in found[0][0].items())
    lines = [line for _, group in found for line in group]
    claims = [line for line in lines if line.holds is not None]
    held = f"{sum(bool(line.holds) for line in claims)} of {len(claims)} lines hold"
    return (
        f"# What was measured\n\nMachine: {machine}.\n\n"
        "A ratio is the median over interleaved pairs of runs in one process; its 95 % interval is distribution-free.\n"
        "A line holds when the better end of its interval meets the claim. Peak memory is of a process of its own,\n"
        f"above what it held before. `python benchmarks/run_all.py` makes this page. {held}.\n\n" + markdown(lines)
    )


def main() -> int:
    """Run all; options are passed on to each script. The exit code is 1 if one of them failed to run."""
    options = sys.argv[1:]
    folder = Path(options[options.index("--output") + 1]) if "--output" in options else RESULTS
    failed = []
    for name in SCRIPTS:
        print(f"== {name}", flush=True)
        if subprocess.run(
            [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options], check=False
        ).returncode:
            failed.append(name)
    if any((folder / f"{name}.json").exists() for name in SCRIPTS):
        (folder / "README.md").write_text(gather(folder))
    if failed:
        print(f"failed to run: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
