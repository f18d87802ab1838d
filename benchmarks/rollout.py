"""A target's rollout of long maps against the product of whole matrices, and of a run against a pass over its maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from command import Settings, main
from lines import Line
from models import llama_6x512, random_ids
from pairs import Interval, median_interval, ratio, time_rounds
from torch import Tensor

import interp
from interp.model.streaming import stream
from interp.scores.ask import Ask
from interp.scores.reducer import Reducer

LAYERS, LENGTH, QUICK_LENGTH = 24, 4096, 256
PRODUCTS = 2  # layers whose dense product is timed: all of them would take a quarter of a minute each time
ROUNDS = 7
CLOSE = 1e-6


class Nobody(Reducer):
    """A reducer that looks away: what a pass over the maps itself costs."""

    def block(self, block: object, products: object) -> None:
        """Nothing."""


def random_maps(length: int) -> Tensor:
    """``[layer, query, key]`` causal maps of random logits."""
    maps = torch.empty(LAYERS, length, length)
    blocked = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer, one in enumerate(maps):
        one.normal_(generator=torch.Generator().manual_seed(layer)).masked_fill_(blocked, -torch.inf)
        one.copy_(torch.softmax(one, dim=-1))
    return maps


def dense(maps: Tensor) -> Tensor:
    """The rollout as the paper's code makes it: every step a matrix, every product whole."""
    itself = torch.eye(maps.shape[-1])
    state = itself
    for layer in maps:
        mixed = layer + itself
        mixed = mixed / mixed.sum(-1, keepdim=True)
        state = mixed if state is itself else mixed @ state
    return state


def measure(settings: Settings) -> list[Line]:
    """The last row of given maps, and of a run."""
    return [*of_maps(settings), *of_a_run(settings)]


def of_maps(settings: Settings) -> list[Line]:
    """Time of the last token's row, of all layers, against dense products of a few layers."""
    length = QUICK_LENGTH if settings.quick else LENGTH
    maps = random_maps(length)
    few = maps[: PRODUCTS + 1]
    ours = interp.rollout(few, targets=[-1])
    apart = float((ours - dense(few)[-1:]).abs().max())
    if apart > CLOSE:
        raise AssertionError(f"the last row is off the dense product by {apart}")
    actions: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: interp.rollout(maps, targets=[-1]),
        "one layer": lambda: dense(few[:1]),
        "products": lambda: dense(few),
    }
    times = time_rounds(actions, rounds=min(settings.rounds, ROUNDS), warmups=1)
    # the first layer takes no product; each further one takes what each of the timed products did
    product = [(more - one) / PRODUCTS for more, one in zip(times["products"], times["one layer"], strict=True)]
    times["dense"] = [one + (LAYERS - 1) * each for one, each in zip(times["one layer"], product, strict=True)]
    gain = ratio(times, "dense", "ours")
    seconds = {name: median_interval(values).median for name, values in times.items()}
    beside = f"{seconds['ours']:.3f} s, dense {seconds['dense']:.1f} s ({PRODUCTS} products timed and scaled)"
    return [
        Line(f"dense product / rollout, last row, {LAYERS}x{length}", gain, "x", "at least", 100.0, beside),
        Line("largest difference from the dense product", Interval(apart, apart, apart), "", "at most", CLOSE, ""),
    ]


def of_a_run(settings: Settings) -> list[Line]:
    """Time of a trace, end to end, against a forward with one streamed pass over its maps."""
    length = QUICK_LENGTH if settings.quick else LENGTH
    hf = llama_6x512(settings.quick)
    model = interp.load(hf, check=False)
    batch = interp.encode(model, random_ids(hf, 1, length))
    actions = {
        "trace": lambda: interp.trace(model, batch, "rollout"),
        "pass": lambda: stream(model, batch, [Nobody(Ask("pass", model, batch, model.stack()))]),
        "heads": lambda: interp.trace_heads(model, batch),
    }
    times = time_rounds(actions, rounds=min(settings.rounds, ROUNDS), warmups=1)
    seconds = {name: median_interval(values).median for name, values in times.items()}
    beside = f"trace {seconds['trace']:.2f} s, forward with pass {seconds['pass']:.2f} s"
    each = f"{seconds['heads']:.2f} s for {len(list(model.heads()))} heads"
    gain, heads = ratio(times, "trace", "pass"), ratio(times, "heads", "pass")
    return [
        Line(
            f"trace by rollout / forward with one pass, 1x{length}",
            gain,
            "x",
            "at most",
            1.3,
            beside,
        ),
        Line(f"trace_heads / forward with one pass, 1x{length}", heads, beside=each),
    ]


if __name__ == "__main__":
    main(__file__, measure)
