"""``removal_curves``: the metric as sources go, or come, in the order of a trace, beside random orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.numerals import numeral
from interp.scores.audits.deletion import SHARES, foremost
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.grids.grid import Given
from interp.stats import FEWEST_SETS, mean_interval, p_value
from interp.tracing.ask import TraceAsk
from interp.tracing.occlusion.absence import Absence, absence
from interp.tracing.occlusion.explained import Explained, explained
from interp.tracing.occlusion.pixels import Fill
from interp.tracing.occlusion.replaced import Replacement
from interp.tracing.result import Trace
from interp.tracing.trace import target_columns

Direction = Literal["deletion", "insertion"]
DIRECTIONS: tuple[Direction, Direction] = ("deletion", "insertion")
Curve = Float[np.ndarray, "prompt share"]


@dataclass(frozen=True, eq=False, repr=False)
class RemovalCurves:
    """A metric as sources go (deletion) and come (insertion), those with the largest numbers first.

    Attributes:
        shares: of the sources that may go.
        values: direction -> name of the order -> ``[prompt, share]`` the metric.
        random: direction -> ``[draw, prompt, share]`` the same in random orders.
        about: how it was made.
    """

    shares: tuple[float, ...]
    values: Mapping[str, Mapping[str, Curve]]
    random: Mapping[str, Float[np.ndarray, "draw prompt share"]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def area(self, direction: Direction = "deletion") -> dict[str, Float[np.ndarray, " prompt"]]:
        """Name -> ``[prompt]`` area under the curve over shares 0 to 1.

        A good order has a small area of deletion and a large one of insertion.
        """
        return {name: np.trapezoid(curve, self.shares, axis=1) for name, curve in self._of(direction).items()}

    def random_area(self, direction: Direction = "deletion") -> Float[np.ndarray, "draw prompt"]:
        """``[draw, prompt]`` areas of random orders."""
        self._of(direction)
        return np.trapezoid(self.random[direction], self.shares, axis=2)

    def band(
        self, direction: Direction = "deletion", *, confidence: float = 0.95
    ) -> tuple[Float[np.ndarray, " share"], Float[np.ndarray, " share"]]:
        """Lower and upper end of the band in which the mean over prompts lies for random orders, per share."""
        self._of(direction)
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        if not len(self.random[direction]):
            raise BadInput("removal_curves drew no random orders; give draws= at least 1 for a band.")
        low, high = np.quantile(self.random[direction].mean(1), ends, axis=0)
        return low, high

    def p(self, direction: Direction = "deletion") -> dict[str, float]:
        """Name -> share of random orders at least as good, ``(1 + #) / (1 + draws)``; NaN below 20 draws."""
        null = self.random_area(direction).mean(1)
        tail = "less" if direction == "deletion" else "greater"
        return {
            name: p_value(float(area.mean()), null, tail=tail) if len(null) >= FEWEST_SETS else math.nan
            for name, area in self.area(direction).items()
        }

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per direction and order: the mean area with its interval over prompts, beside random orders.

        Columns: direction, weights, area, low, high, prompts, random (mean area), random_low, random_high (where the
        middle ``confidence`` of random orders lies), better (share of prompts in which the order is better than random
        orders on average), p.
        """
        rows = []
        for direction in self.values:
            found: Direction = "deletion" if direction == "deletion" else "insertion"
            null = self.random_area(found)
            means, chances = null.mean(1), self.p(found)
            ends = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]) if len(means) else (math.nan,) * 2
            for name, area in self.area(found).items():
                interval = mean_interval(area, confidence=confidence, seed=seed)
                gain = (null.mean(0) - area) * (1 if direction == "deletion" else -1) if len(means) else None
                rows.append(
                    {
                        "direction": direction,
                        "weights": name,
                        "area": interval.mean,
                        "low": interval.low,
                        "high": interval.high,
                        "prompts": interval.n,
                        "random": float(means.mean()) if len(means) else math.nan,
                        "random_low": float(ends[0]),
                        "random_high": float(ends[1]),
                        "better": math.nan if gain is None else float((gain > 0).mean()),
                        "p": chances[name],
                    }
                )
        return pd.DataFrame(rows)

    def points(self) -> pd.DataFrame:
        """One row per direction, order and share: direction, weights, share, the mean of the metric, the band."""
        rows = []
        for direction, curves in self.values.items():
            found: Direction = "deletion" if direction == "deletion" else "insertion"
            drawn = len(self.random[direction]) > 0
            low, high = self.band(found) if drawn else (np.full(len(self.shares), np.nan),) * 2
            for name, curve in curves.items():
                rows += [
                    {"direction": direction, "weights": name, "share": share, "value": float(curve[:, place].mean()),
                     "random_low": float(low[place]), "random_high": float(high[place])}
                    for place, share in enumerate(self.shares)
                ]  # fmt: skip
        return pd.DataFrame(rows)

    def _of(self, direction: str) -> Mapping[str, Curve]:
        if direction not in self.values:
            raise BadInput(f"direction={direction!r}; these curves have {', '.join(map(repr, self.values))}.")
        return self.values[direction]

    def __repr__(self) -> str:
        parts = []
        for direction in self.values:
            areas = self.area("deletion" if direction == "deletion" else "insertion")
            parts.append(f"{direction} " + ", ".join(f"{name} {numeral(area.mean())}" for name, area in areas.items()))
        return f"RemovalCurves(area under the curve: {'; '.join(parts)}; {self.about.get('draws', 0)} random orders)"


def removal_curves(
    model: Model,
    batch: Batch,
    weights: Mapping[str, Trace | Float[Tensor, "batch source"]],
    *,
    by: Literal["hide", "replace", "remove"] = "hide",
    directions: Sequence[Direction] = DIRECTIONS,
    shares: Sequence[float] = SHARES,
    draws: int = 20,
    metric: Metric | None = None,
    stack: str | None = None,
    replacement: Replacement = None,
    fill: Fill = "mean",
    grid: Given | None = None,
    exclude_sinks: Sinks = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> RemovalCurves:
    """The metric while sources are taken away, or brought back, in decreasing order of each of ``weights``.

    Deletion at share s: the metric without the first s of the sources. Insertion at share s: with the first s and none
    of the others. The token at which the answer is read always stays. Of equal weights the earlier source goes first;
    sources without a number go last.

    Args:
        model: the handle.
        batch: the prompts.
        weights: name -> a trace (its last target), or a number per source ``[batch, source]``.
        by: ``"hide"`` (attention knockout), ``"replace"`` (by a token that says little; patches are covered in the
            pixels) or ``"remove"``.
        directions: ``"deletion"``, ``"insertion"``.
        shares: of the sources, from 0 to 1, rounded to whole sources.
        draws: random orders, the same number in each prompt; each a function of the prompt's content and the seed.
        metric: by default the log-probability of the right answer, or of what the model says of the whole prompt.
        stack: whose sources; the default stack for None.
        replacement, fill, grid: as in :func:`interp.tracing.occlusion.single.blank_out`.
        exclude_sinks: sources that always stay.
        seed: of the random orders.
        batch_size: prompts in one forward.
        progress: called with the number of forwards just finished.

    Raises:
        BadInput: weights of another shape, or shares that do not rise from 0 to 1.
        Unsupported: sources that cannot be taken away so.

    Petsiuk et al., 2018 (deletion and insertion in pixels); Samek et al., 2017.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
        >>> order = torch.tensor([[0.0, 8.0, 9.0, 1.0, 0.0]])
        >>> found = removal_curves(model, batch, {"right": order}, draws=4, metric=interp.logit_difference)
        >>> (found.values["deletion"]["right"] > 5).tolist()
        [[True, True, False, False, False, False, False]]
    """
    chosen = _checked(weights, shares, directions, draws)
    place = model.stack(stack)
    dropped = dropped_columns(exclude_sinks, batch, place)
    columns, _ = target_columns(batch, place, None)
    ask = TraceAsk("removal_curves", model, batch, place, columns, metric, False, dropped, seed, progress)
    given = {name: _numbers(name, one, place.name) for name, one in weights.items()}
    known = ask.key_mask
    if known is not None:
        _check_shapes(given, known)
    gone = absence(ask, by, replacement=replacement, fill=fill, grid=grid, batch_size=batch_size)
    _check_shapes(given, gone.free)
    about = explained(model, batch, metric)
    orders = [one.to(gone.free.device) for one in given.values()]
    orders += random_orders(gone.free, batch.content_keys.tolist(), draws, seed)
    firsts = torch.stack([foremost(order, gone.free, share) for order in orders for share in chosen])
    values, randoms = {}, {}
    for direction in directions:
        members = firsts if direction == "deletion" else gone.free & ~firsts
        found = _distinct(gone, about, members).view(len(orders), len(chosen), len(batch)).transpose(1, 2).numpy()
        values[direction] = dict(zip(given, found, strict=False))
        randoms[direction] = found[len(given) :]
    told = {"by": by, "metric": about.said, "draws": draws, "seed": seed, **gone.about}
    return RemovalCurves(chosen, values, randoms, told)


def random_orders(
    free: Bool[Tensor, "batch source"], keys: Sequence[int], draws: int, seed: int
) -> list[Float[Tensor, "batch source"]]:
    """``draws`` random weights of the free sources, for each prompt a function of its content and the seed alone."""
    made = []
    for draw in range(draws):
        order = torch.zeros(free.shape, dtype=torch.float64)
        for row, key in enumerate(keys):
            generator = torch.Generator().manual_seed((key ^ (seed * 1_000_003 + draw)) % 2**63)
            here = free[row].cpu()
            order[row, here] = torch.randperm(int(here.sum()), generator=generator).double()
        made.append(order.to(free.device))
    return made


def _distinct(
    gone: Absence, about: Explained, members: Bool[Tensor, "variant batch source"]
) -> Float[Tensor, "variant batch"]:
    """The metric without ``members``; sets that come several times (nothing, everything) are run once."""
    different, place = torch.unique(members.cpu(), dim=0, return_inverse=True)
    return gone.values(about, different.to(members.device))[0][place]


def _numbers(name: str, given: Trace | Tensor, stack: str) -> Tensor:
    if not isinstance(given, Trace):
        return given
    if given.stack != stack:
        raise BadInput(
            f"removal_curves: {name!r} is a trace of stack {given.stack!r}, and sources of stack {stack!r} go; give "
            f"stack={given.stack!r}."
        )
    return last_target("removal_curves", name, given)


def last_target(asked_by: str, name: str, given: Trace) -> Float[Tensor, "batch source"]:
    """``[batch, source]`` the numbers of a trace's last target.

    Raises:
        BadInput: a prompt has no number there: it has fewer targets than the longest, so that no order is known.
    """
    numbers = given.values[:, -1]
    without = np.flatnonzero(~np.isfinite(numbers).any(-1)).tolist()
    if without:
        raise BadInput(
            f"{asked_by}: the last target of trace {name!r} has no numbers in prompts {without[:5]}, which have fewer "
            "targets than others; trace the row of the answer alone (leave targets= out)."
        )
    return torch.from_numpy(numbers)


def _check_shapes(given: Mapping[str, Tensor], known: Tensor) -> None:
    for name, one in given.items():
        if tuple(one.shape) != tuple(known.shape):
            raise BadInput(
                f"removal_curves: weights {name!r} have shape {list(one.shape)}; expected [batch, source] "
                f"{list(known.shape)}."
            )


def _checked(
    weights: Mapping[str, Any], shares: Sequence[float], directions: Sequence[str], draws: int
) -> tuple[float, ...]:
    chosen = tuple(float(share) for share in shares)
    if len(chosen) < 2 or chosen[0] != 0 or chosen[-1] != 1 or list(chosen) != sorted(set(chosen)):  # noqa: PLR2004
        raise BadInput(f"removal_curves: shares={list(shares)}; expected numbers that rise from 0 to 1.")
    if not weights:
        raise BadInput("removal_curves: no weights were given; give name -> a trace, or numbers [batch, source].")
    if isinstance(directions, str) or not directions or not set(directions) <= set(DIRECTIONS):
        raise BadInput(f"removal_curves: directions={directions!r}; expected a list of {', '.join(DIRECTIONS)}.")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 0:
        raise BadInput(f"removal_curves: draws={draws!r}; expected how many random orders, 0 for none.")
    return chosen
