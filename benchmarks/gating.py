"""Gating every head at 4096 tokens against the plain forward and against transformer-lens's bridge. Llama's shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from command import Action, Settings, main, peak_of
from lines import Line
from models import bridge_of, llama_6x512, random_ids
from pairs import median_interval, ratio, time_rounds
from peaks import MEGABYTE
from torch import Tensor

import interp
from interp import At, Site


def actions(settings: Settings, *, check: bool = True) -> dict[str, Action]:
    """The plain sdpa forward, the gated run and the gated bridge, on one set of weights and gates."""
    bridge = bridge_of(llama_6x512(settings.quick))
    model = interp.load(bridge, check=False)
    assert model.hf.config._attn_implementation == "sdpa"
    config = model.hf.config
    ids = random_ids(model.hf, 1, 256 if settings.quick else 4096)
    batch = interp.encode(model, ids)
    shape = (config.num_hidden_layers, config.num_attention_heads)
    gates = torch.rand(shape, generator=torch.Generator().manual_seed(2))

    def gated_by(layer: int) -> Callable[..., Tensor]:
        return lambda z, hook: z * gates[layer][:, None]

    hooks = [(f"blocks.{layer}.attn.hook_z", gated_by(layer)) for layer in range(shape[0])]
    edits = [interp.gate(At(Site.Z), gates)]

    def plain() -> Any:
        with torch.no_grad():
            return model.hf(**batch.inputs).logits

    def gated() -> Any:
        return interp.run(model, batch, edits=edits).logits

    def theirs() -> Any:
        with torch.no_grad():
            return bridge.run_with_hooks(ids, fwd_hooks=hooks)

    if check:
        torch.testing.assert_close(gated(), theirs(), atol=1e-3, rtol=1e-3)
        assert (gated() - plain()).abs().max() > 1e-3
    return {"plain": plain, "gated": gated, "bridge": theirs}


def measure(settings: Settings) -> list[Line]:
    """Gated against plain in pairs of their own; the bridge, which takes several times longer, against gated."""
    all_three = actions(settings)
    near = time_rounds({name: all_three[name] for name in ("plain", "gated")}, rounds=settings.rounds)
    far = time_rounds({name: all_three[name] for name in ("gated", "bridge")}, rounds=settings.rounds, warmups=1)
    peaks = {name: peak_of(__file__, name, settings) / MEGABYTE for name in VARIANTS}
    times = {name: median_interval(seconds).median for name, seconds in [*far.items(), *near.items()]}
    shown = {name: f"{name} {times[name]:.2f} s, peak {peaks[name]:.0f} MB" for name in times}
    return [
        Line("run gating every head / plain forward, 1x4096", ratio(near, "gated", "plain"), "x", "at most", 1.05,
             f"{shown['gated']}; {shown['plain']}"),
        Line("bridge gating every head / run, 1x4096", ratio(far, "bridge", "gated"), "x", "at least", 3.5,
             shown["bridge"]),
    ]  # fmt: skip


def _variant(name: str) -> Callable[[Settings], Action]:
    return lambda settings: actions(settings, check=False)[name]


VARIANTS = {name: _variant(name) for name in ("plain", "gated", "bridge")}

if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
