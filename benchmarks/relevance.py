"""Gradient-weighted relevance of long prompts against whole maps with their gradients: peak memory and time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from command import Action, Settings, main, peak_of
from lines import Line
from models import random_ids
from pairs import Interval, median_interval, ratio, time_rounds
from peaks import MEGABYTE
from torch import Tensor

import interp

LENGTH, QUICK_LENGTH = 4096, 96
TIMED, QUICK_TIMED = 1024, 64  # of the plain way, too, whose memory grows with the square
GIGABYTE = 1024 * MEGABYTE


def gpt2_long(quick: bool) -> hf.GPT2LMHeadModel:
    """GPT-2 small's shape with 4096 positions: 12 layers, 12 heads, d_model 768 (``quick``: 2 layers of 64)."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 500}
    config = hf.GPT2Config(n_positions=LENGTH, **(small if quick else {}))
    config.architectures = ["GPT2LMHeadModel"]
    return hf.GPT2LMHeadModel(config).eval()


class Prompt:
    """One prompt, and the model that reads it."""

    def __init__(self, settings: Settings, length: int) -> None:
        self.hf = gpt2_long(settings.quick)
        self.model = interp.load(self.hf, check=False)
        self.ids = random_ids(self.hf, 1, length)
        self.batch = interp.encode(self.model, self.ids, answers=[(7,)])

    def ours(self) -> interp.Trace:
        """Relevance of the last token, by the later rule."""
        return interp.trace(self.model, self.batch, "chefer2021b")

    def step(self) -> Tensor:
        """The model's own forward and backward to its embeddings, its last logits alone."""
        inputs = self.hf.transformer.wte(self.ids).detach().requires_grad_()
        logits = self.hf(inputs_embeds=inputs, logits_to_keep=1, use_cache=False).logits
        return torch.autograd.grad(logits[0, -1, 7], inputs)[0]

    def whole(self) -> Tensor:
        """The plain way: eager maps with their gradients kept, then a product of ``[query, key]`` matrices."""
        self.hf.set_attn_implementation("eager")
        found = self.hf(self.ids, output_attentions=True, logits_to_keep=1, use_cache=False)
        slopes = torch.autograd.grad(found.logits[0, -1, 7], found.attentions)
        made = torch.eye(self.ids.shape[1])
        for maps, slope in zip(found.attentions, slopes, strict=True):
            made = made + (slope * maps)[0].clamp(min=0).mean(0).detach() @ made
        return made[-1]


def measure(settings: Settings) -> list[Line]:
    """Time at a length that the plain way reaches, and peak memory at that length and at 4096 tokens."""
    timed, long = (QUICK_TIMED, QUICK_LENGTH) if settings.quick else (TIMED, LENGTH)
    prompt, plain = Prompt(settings, timed), Prompt(settings, timed)
    found = torch.from_numpy(prompt.ours().values[0, 0]).float()
    torch.testing.assert_close(found, plain.whole(), rtol=1e-3, atol=1e-4)
    actions: dict[str, Callable[..., Any]] = {"ours": prompt.ours, "whole": plain.whole, "step": prompt.step}
    times = time_rounds(actions, rounds=min(settings.rounds, 5), warmups=1)
    seconds = {name: median_interval(values).median for name, values in times.items()}
    beside = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    peaks = {name: peak_of(__file__, name, settings, timed, repeats=1) for name in ("ours", "whole")}
    apart = peaks["whole"] / peaks["ours"]
    at_length = peak_of(__file__, "ours", settings, long, repeats=1) / GIGABYTE
    config = prompt.hf.config
    kept_bytes = 2 * config.n_layer * config.n_head * long**2 * 4 / GIGABYTE  # every map and its gradient, alone
    larger = kept_bytes / at_length
    beside_peaks = f"trace {peaks['ours'] / MEGABYTE:.0f} MB, kept {peaks['whole'] / MEGABYTE:.0f} MB"
    kept, steps = ratio(times, "whole", "ours"), ratio(times, "ours", "step")
    return [
        Line(f"maps and gradients kept / trace: time, 1x{timed}", kept, beside=beside),
        Line(f"trace / a forward and a backward: time, 1x{timed}", steps, beside=beside),
        Line(
            f"maps and gradients kept / trace: peak memory, 1x{timed}",
            Interval(apart, apart, apart), beside=beside_peaks,
        ),
        Line(
            f"trace: peak memory above the loaded model, 1x{long}, GPT-2 small's shape",
            Interval(at_length, at_length, at_length), "GB", "at most", 7.0,
            f"maps and their gradients alone would take {kept_bytes:.1f} GB",
        ),
        Line(
            f"bytes of all maps and their gradients / trace: peak memory, 1x{long}",
            Interval(larger, larger, larger), sense="at least", bound=3.0,
        ),
    ]  # fmt: skip


VARIANTS: dict[str, Callable[[Settings], Action]] = {
    "ours": lambda settings: warmed(settings, "ours"),
    "whole": lambda settings: warmed(settings, "whole"),
}


def warmed(settings: Settings, name: str) -> Action:
    """An action, once everything that it imports has been imported."""
    getattr(Prompt(Settings(quick=True), QUICK_TIMED), name)()
    return getattr(Prompt(settings, settings.length), name)


if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
