"""All composition scores of a GPT-2-small shape, from the weights, against transformer-lens' all_composition_scores."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
from command import Settings, main
from lines import Line
from models import bridge_of, gpt2_124m
from pairs import median_interval, ratio, time_rounds

import interp

KINDS = "QKV"


def actions(settings: Settings) -> dict[str, Callable[[], np.ndarray]]:
    """Both libraries' scores of the same weights, the projections' own (nothing folded)."""
    hf = gpt2_124m(settings.quick)
    bridge = bridge_of(copy.deepcopy(hf))
    model = interp.load(hf, check=False)

    def ours() -> np.ndarray:
        model.wirings.clear()  # as on a model that has just been loaded
        return interp.composition(model, fold="none").values

    def theirs() -> np.ndarray:
        return np.stack([bridge.all_composition_scores(kind).scores.detach().cpu().numpy() for kind in KINDS])

    return {"ours": ours, "theirs": theirs}


def measure(settings: Settings) -> list[Line]:
    """Seconds, and the ratio of times; the scores are equal."""
    both = actions(settings)
    ours, theirs = both["ours"](), both["theirs"]()
    there = np.isfinite(ours)
    np.testing.assert_allclose(ours[there], theirs[there], rtol=1e-4)
    times = time_rounds(both, rounds=settings.rounds, warmups=1)
    seconds = {name: median_interval(values).median for name, values in times.items()}
    pairs = int(there.sum())
    shape = "2 layers" if settings.quick else "GPT-2 small"
    beside = f"{seconds['ours']:.2f} s, transformer-lens {seconds['theirs']:.2f} s"
    gain = ratio(times, "theirs", "ours")
    return [
        Line(f"all {pairs} composition scores, {shape}", median_interval(times["ours"]), "s", "at most", 4.0, beside),
        Line(f"transformer-lens all_composition_scores x 3 / composition, {shape}", gain, "x", "at least", 8.0, beside),
    ]


if __name__ == "__main__":
    main(__file__, measure)
