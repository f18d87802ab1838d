"""What `run` costs beside the plain forward: with nothing asked, and reading every z. GPT-2 small's shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from command import Action, Settings, main, peak_of
from lines import Line
from models import gpt2_124m, random_ids
from pairs import median_interval, ratio, time_rounds
from peaks import MEGABYTE

import interp
from interp import At, Site

LENGTHS = (128, 1024)
BOUNDS = {"nothing": 1.02, "every z": 1.10}


def actions(settings: Settings, length: int) -> dict[str, Action]:
    """The plain forward and the runs, on the same model and inputs."""
    hf = gpt2_124m(settings.quick)
    model = interp.load(hf, check=False)
    batch = interp.encode(model, random_ids(hf, 1, length))

    def plain() -> object:
        with torch.no_grad():
            return hf(**batch.inputs)

    def nothing() -> object:
        return interp.run(model, batch)

    def every_z() -> object:
        return interp.run(model, batch, read=[At(Site.Z)])

    assert torch.equal(interp.run(model, batch).logits, plain().logits)  # pyright: ignore[reportAttributeAccessIssue]
    return {"plain": plain, "nothing": nothing, "every z": every_z}


def measure(settings: Settings) -> list[Line]:
    """Each run against the plain forward, in pairs of their own."""
    lines = []
    for length in LENGTHS:
        both = actions(settings, length)
        base = peak_of(__file__, f"plain {length}", settings)
        for name, bound in BOUNDS.items():
            times = time_rounds({"plain": both["plain"], name: both[name]}, rounds=settings.rounds)
            grown = peak_of(__file__, f"{name} {length}", settings)
            plain, ours = (median_interval(times[key]).median for key in ("plain", name))
            peaks = f"peak {grown / MEGABYTE:.0f} MB, plain {base / MEGABYTE:.0f} MB"
            beside = f"{1e3 * ours:.1f} ms, plain {1e3 * plain:.1f} ms; {peaks}"
            claim = f"run reading {name} / plain forward, 1x{length}"
            lines.append(Line(claim, ratio(times, name, "plain"), "x", "at most", bound, beside))
    return lines


def _variant(name: str, length: int) -> Callable[[Settings], Action]:
    return lambda settings: actions(settings, length)[name]


VARIANTS = {f"{name} {length}": _variant(name, length) for name in ("plain", *BOUNDS) for length in LENGTHS}

if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
