"""Head scores of long prompts against whole maps: eager attention that gives its maps, and the bridge's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from command import Action, Settings, main, peak_of
from lines import Line
from models import bridge_of, llama_6x512, random_ids
from pairs import Interval, median_interval, ratio, time_rounds
from peaks import MEGABYTE
from torch import Tensor

import interp
from interp.model.streaming import stream
from interp.scores.ask import Ask
from interp.scores.planning import function_of, wanted_scores
from interp.scores.reducer import Reducer

LENGTH, QUICK_LENGTH = 4096, 128
LONG, QUICK_LONG = 32768, 256
GROUPS = 4
FOUR = ("entropy", "sink", "mean_distance", "group_mass")
LINEAR = ("sink", "mean_distance", "group_mass", "first_mass", "self_mass", "previous_token")
EAGER_ROUNDS = 2  # a run of eager attention takes a quarter of a minute and gigabytes


class Prompt:
    """One long prompt in named groups, and the model that reads it."""

    def __init__(self, settings: Settings, length: int) -> None:
        self.hf = llama_6x512(settings.quick)
        self.model = interp.load(self.hf, check=False)
        self.ids = random_ids(self.hf, 1, length)
        ends = [index * length // GROUPS for index in range(GROUPS + 1)]
        spans = {f"group {index}": [range(ends[index], ends[index + 1])] for index in range(GROUPS)}
        spans["needle"], spans["answer"] = [range(length // 2, length // 2 + 8)], [range(length - 8, length)]
        self.batch = interp.encode(self.model, self.ids, spans=spans)

    def options(self, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """The scores with the options that they need here."""
        own = {"group_mass": {"keys": [f"group {index}" for index in range(GROUPS)]}}
        return {name: own.get(name, {}) for name in names}

    def plain(self) -> Tensor:
        """The model's own forward, its last logits alone."""
        with torch.no_grad():
            return self.hf(**self.batch.inputs, logits_to_keep=1).logits

    def scores(self, names: tuple[str, ...] = FOUR) -> interp.Scores:
        """Ours."""
        return interp.score(self.model, self.batch, self.options(names))

    def streamed(self, reducers: list[Reducer]) -> None:
        """A pass over the maps for reducers, or for nobody."""
        stream(self.model, self.batch, reducers)

    def reducers(self, names: tuple[str, ...]) -> list[Reducer]:
        """The scores' reducers."""
        wanted = wanted_scores(self.model, self.options(names), None)
        return [
            function_of(one.entry.function)(Ask(one.label, self.model, self.batch, one.stack), **one.options)
            for one in wanted
        ]


class Nobody(Reducer):
    """A reducer that looks away: what the pass itself costs."""

    def block(self, block: Any, products: Any) -> None:
        """Nothing."""


def reduce_whole(maps: list[Tensor]) -> list[Tensor]:
    """The same four scores from whole maps ``[batch, head, query, key]``, as one would write them."""
    made = []
    for pattern in maps:
        length = pattern.shape[-1]
        place = torch.arange(length, dtype=torch.float32)
        made.append(torch.special.entr(pattern).sum(-1).mean(-1))
        made.append((pattern[..., 0]).mean(-1))
        made.append((place - pattern @ place).mean(-1))
        made += [part.sum(-1).mean(-1) for part in pattern.split(length // GROUPS, dim=-1)]
    return made


def eager(prompt: Prompt) -> Action:
    """Eager attention that gives every map, and the four scores of them."""
    prompt.hf.set_attn_implementation("eager")

    def whole() -> Any:
        with torch.no_grad():
            found = prompt.hf(**prompt.batch.inputs, logits_to_keep=1, output_attentions=True)
        return reduce_whole(found.attentions)

    return whole


def bridge(settings: Settings, length: int) -> Action:
    """transformer-lens's bridge, its cached patterns, and the four scores of them."""
    made = bridge_of(llama_6x512(settings.quick))
    ids = random_ids(llama_6x512(settings.quick), 1, length)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(made.cfg.n_layers)]

    def whole() -> Any:
        with torch.no_grad():
            _, cache = made.run_with_cache(ids, names_filter=names)
        return reduce_whole([cache[name] for name in names])

    return whole


def measure(settings: Settings) -> list[Line]:
    """Time and memory at one length, the cost of linear scores and of a few rows, and a prompt of 32,768 tokens."""
    length, long = (QUICK_LENGTH, QUICK_LONG) if settings.quick else (LENGTH, LONG)
    return [*against_whole_maps(settings, length), *shares(settings, length), *very_long(settings, long)]


def against_whole_maps(settings: Settings, length: int) -> list[Line]:
    """Ours against eager maps and the bridge's cache, time and peak memory."""
    ours, theirs = Prompt(settings, length), Prompt(settings, length)
    actions: dict[str, Callable[..., Any]] = {
        "scores": ours.scores,
        "eager": eager(theirs),
        "bridge": bridge(settings, length),
    }
    found = ours.scores()
    whole = actions["eager"]()
    torch.testing.assert_close(
        torch.tensor(found["mean_distance"].per_prompt[:, 0]).float(), whole[2], rtol=1e-4, atol=1e-2
    )
    times = time_rounds(actions, rounds=min(settings.rounds, EAGER_ROUNDS), warmups=1)
    peaks = {name: peak_of(__file__, name, settings, length, repeats=1) / MEGABYTE for name in actions}
    seconds = {name: median_interval(values).median for name, values in times.items()}
    what = f"entropy, sink, distance and group masses of every head, 1x{length}"
    lines = []
    for rival, faster, smaller in (("eager", 2.2, 6.0), ("bridge", None, None)):
        name = "eager attention with output_attentions" if rival == "eager" else "bridge.run_with_cache"
        beside = f"scores {seconds['scores']:.1f} s, {rival} {seconds[rival]:.1f} s"
        sense = None if faster is None else "at least"
        lines.append(Line(f"{name} / score: time of {what}", ratio(times, rival, "scores"), "x", sense, faster, beside))
        apart = peaks[rival] / peaks["scores"]
        beside = f"scores {peaks['scores']:.0f} MB, {rival} {peaks[rival]:.0f} MB"
        lines.append(Line(f"{name} / score: peak memory", Interval(apart, apart, apart), "x", sense, smaller, beside))
    return lines


def shares(settings: Settings, length: int) -> list[Line]:
    """What linear scores add to a pass, and what scores of a few rows add to a plain forward."""
    prompt = Prompt(settings, length)
    ask = Ask("nobody", prompt.model, prompt.batch, prompt.model.stack())
    rows = prompt.options(("retrieval", "contextual"))
    rows["retrieval"] = {"needle": "needle", "answer": "answer"}
    rows["contextual"] = {"gold": "needle", "answer": "answer"}
    actions: dict[str, Callable[..., Any]] = {
        "pass": lambda: prompt.streamed([Nobody(ask)]),
        "linear": lambda: prompt.streamed(prompt.reducers(LINEAR)),
        "plain": prompt.plain,
        "rows": lambda: interp.score(prompt.model, prompt.batch, rows),
    }
    times = time_rounds(actions, rounds=settings.rounds, warmups=1)
    seconds = {name: median_interval(values).median for name, values in times.items()}
    beside = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    return [
        Line(
            f"a pass with {len(LINEAR)} linear scores / a pass that nobody looks at, 1x{length}",
            ratio(times, "linear", "pass"), "x", "at most", 1.1, beside,
        ),
        Line(
            f"retrieval and contextual scores of 8 answer rows / plain forward, 1x{length}",
            ratio(times, "rows", "plain"), "x", "at most", 1.15, beside,
        ),
    ]  # fmt: skip


def very_long(settings: Settings, length: int) -> list[Line]:
    """Peak memory of the four scores above the plain forward's, where whole maps would take hundreds of gigabytes."""
    peaks = {name: peak_of(__file__, name, settings, length, repeats=1) / MEGABYTE for name in ("plain", "scores")}
    apart = peaks["scores"] / peaks["plain"]
    whole = 6 * 8 * length**2 * 4 / 2**30
    beside = f"scores {peaks['scores']:.0f} MB, plain {peaks['plain']:.0f} MB; whole maps {whole:.0f} GB"
    return [
        Line(
            f"score / plain forward: peak memory, 1x{length}",
            Interval(apart, apart, apart),
            "x",
            "at most",
            2.0,
            beside,
        )
    ]


def warmed(prompt: Prompt) -> Action:
    """The four scores, once everything that they import has been imported."""
    Prompt(Settings(quick=True), QUICK_LENGTH).scores()
    return prompt.scores


VARIANTS: dict[str, Callable[[Settings], Action]] = {
    "scores": lambda settings: warmed(Prompt(settings, settings.length)),
    "plain": lambda settings: Prompt(settings, settings.length).plain,
    "eager": lambda settings: eager(Prompt(settings, settings.length)),
    "bridge": lambda settings: bridge(settings, settings.length),
}

if __name__ == "__main__":
    main(__file__, measure, VARIANTS)
