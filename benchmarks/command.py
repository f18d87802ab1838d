"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lines import RESULTS, Line, markdown, write
from pairs import Action, pin
from peaks import peak, report_peak


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: how many interleaved pairs.
        threads: to how many threads and cores the process is held.
        quick: small shapes, to see that a script works; the numbers mean nothing.
        length: tokens, for variants whose peak memory is measured at several lengths.
    """

    rounds: int = 15
    threads: int = 2
    quick: bool = False
    length: int = 0


Measure = Callable[[Settings], Sequence[Line]]
Variants = Mapping[str, Callable[[Settings], Action]]  # name -> what sets it up and gives the action to measure


def main(script: str, measure: Measure, variants: Variants | None = None) -> None:
    """Parse the command line, measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rounds", type=int, help="interleaved pairs (15; 3 with --quick)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="small shapes, nothing is written unless --output says where"
    )
    parser.add_argument("--output", type=Path, help=f"folder for the results ({RESULTS})")
    parser.add_argument("--peak", choices=sorted(variants or {}), help="only the peak memory of one variant")
    parser.add_argument("--length", type=int, default=0)
    given = parser.parse_args()
    rounds = given.rounds or (3 if given.quick else 15)
    settings = Settings(rounds, given.threads, given.quick, given.length)
    pin(settings.threads)
    if given.peak and variants:
        report_peak(variants[given.peak](settings))
        return
    lines = list(measure(settings))
    print(markdown(lines))
    output = given.output or (None if given.quick else RESULTS)
    if output:
        write(Path(script).stem, lines, asdict(settings), output)


def peak_of(script: str, variant: str, settings: Settings, length: int = 0, *, repeats: int = 3) -> float:
    """Bytes by which a fresh process grows while it runs a variant of ``script``: the median of ``repeats`` ones."""
    arguments = ["--threads", str(settings.threads), "--length", str(length), *(["--quick"] if settings.quick else [])]
    return peak(script, variant, *arguments, repeats=1 if settings.quick else repeats)
