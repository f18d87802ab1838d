"""Reading the last query row of every pattern: time at 4096 tokens, and memory as the prompt grows. Llama's shape."""

from __future__ import annotations

from typing import Any

import torch
from command import Action, Settings, main, peak_of
from lines import Line
from models import llama_6x512, random_ids
from pairs import Interval, median_interval, ratio, time_rounds
from peaks import MEGABYTE

import interp
from interp import At, Site

LENGTHS = (2048, 4096, 8192)
QUICK_LENGTHS = (64, 128, 256)


def actions(settings: Settings, length: int) -> dict[str, Action]:
    """The plain forward, and the run that reads one row of every layer's pattern."""
    hf = llama_6x512(settings.quick)
    model = interp.load(hf, check=False)
    batch = interp.encode(model, random_ids(hf, 1, length))

    def plain() -> Any:
        with torch.no_grad():
            return hf(**batch.inputs)

    def rows() -> Any:
        return interp.run(model, batch, read=[At(Site.PATTERN, pos=-1)])

    return {"plain": plain, "rows": rows}


def measure(settings: Settings) -> list[Line]:
    """The ratio at 4096 tokens, and what the rows take on top of the plain forward at three lengths."""
    lengths = QUICK_LENGTHS if settings.quick else LENGTHS
    middle = actions(settings, lengths[1])
    found = middle["rows"]()[At(Site.PATTERN, pos=-1)]
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]), atol=1e-4, rtol=0)
    times = time_rounds(middle, rounds=settings.rounds)
    seconds = {name: median_interval(values).median for name, values in times.items()}
    extra = {
        length: (peak_of(__file__, "rows", settings, length) - peak_of(__file__, "plain", settings, length)) / MEGABYTE
        for length in lengths
    }
    layers, heads = found.shape[0], found.shape[2]
    whole = {length: layers * heads * length**2 * 4 / MEGABYTE for length in lengths}
    claim = f"run reading the last row of every pattern / plain forward, 1x{lengths[1]}"
    beside = f"{seconds['rows']:.2f} s, plain {seconds['plain']:.2f} s"
    lines = [Line(claim, ratio(times, "rows", "plain"), "x", "at most", 1.2, beside)]
    for length, grown in extra.items():
        # O(T): a hundredth of what the whole patterns take is far above every row, and far below one head's pattern.
        bound = whole[length] / 100
        rows = layers * heads * length * 4 / MEGABYTE
        beside = f"the rows themselves {rows:.2f} MB; whole patterns {whole[length]:.0f} MB"
        claim = f"peak memory above the plain forward's, 1x{length}"
        lines.append(Line(claim, Interval(grown, grown, grown), "MB", "at most", round(bound, 1), beside))
    return lines


def _plain(settings: Settings) -> Action:
    return actions(settings, settings.length)["plain"]


def _rows(settings: Settings) -> Action:
    return actions(settings, settings.length)["rows"]


VARIANTS = {"plain": _plain, "rows": _rows}

if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
