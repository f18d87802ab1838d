"""Loading a live model against booting transformer-lens's bridge around it. GPT-2 small's shape, already in memory."""

from __future__ import annotations

import copy
from itertools import count

import transformers
from command import Action, Settings, main, peak_of
from lines import Line
from models import bridge_of, gpt2_124m
from pairs import median_interval, ratio, time_rounds
from peaks import MEGABYTE

import interp


def measure(settings: Settings) -> list[Line]:
    """Every round loads two models that nothing has touched; the copies are made outside the clock."""
    hf = gpt2_124m(settings.quick)
    number = count()

    def fresh() -> transformers.PreTrainedModel:
        model = copy.deepcopy(hf)
        model.config.benchmark_round = next(number)  # another config: the outcome of the check is not remembered
        return model

    actions: dict[str, Action] = {
        "checked": interp.load,
        "unchecked": lambda model: interp.load(model, check=False),
        "bridge": bridge_of,
    }
    times = time_rounds(actions, rounds=settings.rounds, prepare=dict.fromkeys(actions, fresh))
    peaks = {name: peak_of(__file__, name, settings) / MEGABYTE for name in VARIANTS}
    medians = {name: 1e3 * median_interval(seconds).median for name, seconds in times.items()}
    return [
        Line(
            f"boot_transformers(hf_model=...) / load, {name}",
            ratio(times, "bridge", name),
            "x",
            "at least" if name == "unchecked" else None,  # a bridge checks nothing: like is compared with like
            2.0 if name == "unchecked" else None,
            f"{medians[name]:.0f} ms, bridge {medians['bridge']:.0f} ms; "
            f"peak {peaks[name]:.1f} MB, bridge {peaks['bridge']:.1f} MB",
        )
        for name in ("checked", "unchecked")
    ]


def _checked(settings: Settings) -> Action:
    hf = gpt2_124m(settings.quick)
    interp.load(gpt2_124m(quick=True))  # what is imported on first use is not the model's
    return lambda: interp.load(hf)


def _unchecked(settings: Settings) -> Action:
    hf = gpt2_124m(settings.quick)
    interp.load(gpt2_124m(quick=True))
    return lambda: interp.load(hf, check=False)


def _bridge(settings: Settings) -> Action:
    hf = gpt2_124m(settings.quick)
    bridge_of(gpt2_124m(quick=True))
    return lambda: bridge_of(hf)


VARIANTS = {"checked": _checked, "unchecked": _unchecked, "bridge": _bridge}

if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
