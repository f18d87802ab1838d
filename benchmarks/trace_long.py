"""Tracing a long prompt by rollout, against the forward and one pass over the maps that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from command import Action, Settings, main, peak_of
from lines import Line
from long_scores import Nobody, Prompt
from pairs import Interval, median_interval, ratio, time_rounds
from peaks import MEGABYTE

import interp
from interp.scores.ask import Ask

LENGTH, QUICK_LENGTH = 4096, 128


def traced(prompt: Prompt) -> Action:
    """The rollout of the last token."""
    return lambda: interp.trace(prompt.model, prompt.batch, "rollout")


def eager(prompt: Prompt) -> Action:
    """Whole maps of eager attention, and the row that is multiplied down through the layers, as one would write it."""
    prompt.hf.set_attn_implementation("eager")

    def whole() -> Any:
        with torch.no_grad():
            maps = prompt.hf(**prompt.batch.inputs, logits_to_keep=1, output_attentions=True).attentions
        row = torch.zeros(maps[0].shape[-1])
        row[-1] = 1
        for pattern in reversed(maps):
            row = 0.5 * row + 0.5 * row @ pattern[0].mean(0)
        return row

    return whole


def measure(settings: Settings) -> list[Line]:
    """Time against a pass that nobody looks at, and against whole maps; peak memory above the plain forward's."""
    length = QUICK_LENGTH if settings.quick else LENGTH
    ours, theirs = Prompt(settings, length), Prompt(settings, length)
    ask = Ask("nobody", ours.model, ours.batch, ours.model.stack())
    whole = eager(theirs)
    found = torch.from_numpy(interp.trace(ours.model, ours.batch, "rollout").row()).float()
    torch.testing.assert_close(found, whole(), rtol=1e-4, atol=1e-6)
    actions: dict[str, Callable[..., Any]] = {
        "trace": traced(ours),
        "pass": lambda: ours.streamed([Nobody(ask)]),
        "plain": ours.plain,
    }
    times = time_rounds(actions, rounds=settings.rounds, warmups=1)
    few = time_rounds({"trace": actions["trace"], "eager": whole}, rounds=min(settings.rounds, 2), warmups=0)
    seconds = {name: median_interval(values).median for name, values in (times | {"eager": few["eager"]}).items()}
    beside = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    peaks = {
        name: peak_of(__file__, name, settings, length, repeats=1) / MEGABYTE for name in ("trace", "plain", "eager")
    }
    sizes = ", ".join(f"{name} {value:.0f} MB" for name, value in peaks.items())
    apart = peaks["eager"] / peaks["trace"]
    return [
        Line(
            f"trace by rollout, last token / forward and one pass over the maps, 1x{length}",
            ratio(times, "trace", "pass"), "x", "at most", 1.3, beside,
        ),
        Line(f"eager maps, a row product / trace, 1x{length}", ratio(few, "eager", "trace"), "x", None, None, beside),
        Line("the same: peak memory", Interval(apart, apart, apart), "x", None, None, sizes),
    ]  # fmt: skip


VARIANTS: dict[str, Callable[[Settings], Action]] = {
    "trace": lambda settings: warmed(Prompt(settings, settings.length)),
    "plain": lambda settings: Prompt(settings, settings.length).plain,
    "eager": lambda settings: eager(Prompt(settings, settings.length)),
}


def warmed(prompt: Prompt) -> Action:
    """The trace, once everything that it imports has been imported."""
    quick = Prompt(Settings(quick=True), QUICK_LENGTH)
    interp.trace(quick.model, quick.batch, "rollout")
    return traced(prompt)


if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
