"""The mass on the n largest keys of attention rows: thresholds by bisection against sorting and torch.topk."""

from __future__ import annotations

from typing import Any

import torch
from command import Action, Settings, main
from lines import Line
from pairs import median_interval, ratio, time_rounds
from torch import Tensor

from interp.scores.shape.selection import keys_holding, top_mass_of

HEADS, ROWS = 8, 64  # of one block of maps
LENGTH, QUICK_LENGTH = 4096, 256
SHARE = 0.06  # of the keys: what is said to stay apart


def rows(length: int) -> Tensor:
    """``[head, row, key]`` softmax of normal logits of standard deviation 3."""
    draw = torch.Generator().manual_seed(0)
    return (3 * torch.randn(HEADS, ROWS, length, generator=draw)).softmax(-1)


def actions(pattern: Tensor, n: int) -> dict[str, Action]:
    """Three ways to the mass on the n largest keys, and two to the number of keys that hold nine tenths."""
    wanted, share = torch.tensor(n), torch.tensor(0.9)

    def cumulated() -> Any:
        return (pattern.sort(-1, descending=True).values.cumsum(-1) < share).sum(-1) + 1

    return {
        "bisection": lambda: top_mass_of(pattern, wanted),
        "topk": lambda: pattern.topk(n).values.sum(-1),
        "sort": lambda: pattern.sort(-1, descending=True).values[..., :n].sum(-1),
        "keys by bisection": lambda: keys_holding(pattern, share),
        "keys by sort": cumulated,
    }


def measure(settings: Settings) -> list[Line]:
    """Ratios of times at n = 5 and n = 6 % of the keys; the values agree to rounding."""
    length = QUICK_LENGTH if settings.quick else LENGTH
    pattern = rows(length)
    lines = []
    for n in (5, round(SHARE * length)):
        made = actions(pattern, n)
        for other in ("topk", "sort"):
            torch.testing.assert_close(made["bisection"](), made[other](), rtol=1e-5, atol=1e-6)
        times = time_rounds(made, rounds=settings.rounds)
        seconds = {name: median_interval(values).median * 1000 for name, values in times.items()}
        beside = f"{seconds['bisection']:.1f} ms; topk {seconds['topk']:.1f}, sort {seconds['sort']:.1f}"
        claim = f"top-{n} mass, sorting / bisection, {HEADS * ROWS} rows of {length} keys"
        lines.append(Line(claim, ratio(times, "sort", "bisection"), "x", "at least", 2.0, beside))
        against = ratio(times, "topk", "bisection")
        lines.append(Line(f"the same, topk / bisection (n = {n})", against))
        if n == 5:
            beside = f"{seconds['keys by bisection']:.1f} ms; sort and cumsum {seconds['keys by sort']:.1f}"
            claim = f"keys that hold 90 %, sorting / bisection, {HEADS * ROWS} rows of {length} keys"
            lines.append(Line(claim, ratio(times, "keys by sort", "keys by bisection"), "x", "at least", 1.5, beside))
    return lines


if __name__ == "__main__":
    main(__file__, measure)
