"""Forward and cache of every head's output against transformer-lens's bridge, on the very same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from command import Action, Settings, main, peak_of
from lines import Line
from models import bridge_of, gpt2_124m, random_ids
from pairs import median_interval, ratio, time_rounds
from peaks import MEGABYTE

import interp
from interp import At, Site

SHAPES = {(4, 24): 1.0, (1, 1024): 1.3}


def actions(settings: Settings, shape: tuple[int, int], *, check: bool = True) -> dict[str, Action]:
    """Both sides on one set of weights: the bridge, and the plain model that shares the bridge's parameters."""
    bridge = bridge_of(gpt2_124m(settings.quick))
    model = interp.load(bridge, check=False)
    ids = random_ids(model.hf, *shape)
    batch = interp.encode(model, ids)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.hf.config.n_layer)]

    def ours() -> Any:
        return interp.run(model, batch, read=[At(Site.Z)])

    def theirs() -> Any:
        with torch.no_grad():
            return bridge.run_with_cache(ids, names_filter=names)

    if check:
        found, (logits, cache) = ours(), theirs()
        torch.testing.assert_close(found.logits, logits, atol=1e-3, rtol=1e-3)
        for layer, name in enumerate(names):
            torch.testing.assert_close(found[At(Site.Z, layer=layer)], cache[name], atol=1e-3, rtol=1e-3)
    return {"run": ours, "bridge": theirs}


def measure(settings: Settings) -> list[Line]:
    """The bridge's time by ours at each shape."""
    lines = []
    for (batch, length), bound in SHAPES.items():
        times = time_rounds(actions(settings, (batch, length)), rounds=settings.rounds)
        beside = "; ".join(
            f"{name} {1e3 * median_interval(times[name]).median:.1f} ms, "
            f"peak {peak_of(__file__, f'{name} {batch}x{length}', settings) / MEGABYTE:.0f} MB"
            for name in ("run", "bridge")
        )
        claim = f"bridge.run_with_cache / run, every z, {batch}x{length}"
        lines.append(Line(claim, ratio(times, "bridge", "run"), "x", "at least", bound, beside))
    return lines


def _variant(name: str, shape: tuple[int, int]) -> Callable[[Settings], Action]:
    return lambda settings: actions(settings, shape, check=False)[name]


VARIANTS = {f"{name} {b}x{t}": _variant(name, (b, t)) for name in ("run", "bridge") for b, t in SHAPES}

if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
