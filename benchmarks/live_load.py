"""What `interp.load` of a live model takes: time and memory. GPT-2 small's shape, already in memory."""

from __future__ import annotations

import copy

from command import Action, Settings, main, peak_of
from lines import Line
from models import gpt2_124m
from pairs import median_interval, time_rounds
from peaks import MEGABYTE

import interp


def measure(settings: Settings) -> list[Line]:
    """Milliseconds of loading models that nothing has touched; megabytes by which a process grows that loads one."""
    hf = gpt2_124m(settings.quick)
    actions: dict[str, Action] = {"load": lambda model: interp.load(model, check=False)}
    times = time_rounds(actions, rounds=settings.rounds, prepare={"load": lambda: copy.deepcopy(hf)})
    grown = [peak_of(__file__, "load", settings) / MEGABYTE for _ in range(max(1, settings.rounds // 3))]
    return [
        Line(
            "load(check=False) of a live model", median_interval([1e3 * t for t in times["load"]]), "ms", "at most", 100
        ),
        Line("peak memory of load(check=False)", median_interval(grown), "MB", "at most", 1),
    ]


def _load(settings: Settings) -> Action:
    hf = gpt2_124m(settings.quick)
    interp.load(gpt2_124m(quick=True), check=False)  # what is imported on first use is not the model's
    return lambda: interp.load(hf, check=False)


VARIANTS = {"load": _load}

if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
