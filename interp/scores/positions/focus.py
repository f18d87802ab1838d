"""Locally and globally focused heads, and what the tokens of a text do by them: look back, be looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import Head
from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.positions.distance import MeanDistance
from interp.scores.positions.places import Places, require_causal, whole_number
from interp.scores.positions.windowed import FutureInfluence, WindowedDistance

_SHARE = 0.3  # of heads at each end (arXiv 2510.13554)
_TOP = 0.4  # of tokens in each set (the same)


@dataclass(frozen=True)
class FocusSplit:
    """Heads by how far they look.

    Attributes:
        local_heads: those that look nearest.
        global_heads: those that look furthest.
        local_cut: largest distance of a local head.
        global_cut: smallest distance of a global head.
        share: the share of heads asked for at each end.
    """

    local_heads: tuple[Head, ...]
    global_heads: tuple[Head, ...]
    local_cut: float
    global_cut: float
    share: float


def focus_split(distances: HeadScores, *, share: float = _SHARE, layers: Iterable[int] | None = None) -> FocusSplit:
    """The ``share`` of heads that look nearest and the ``share`` that look furthest.

    The cut is at the ``floor(share n)``-th head (at least one) from each end of the n heads with a value; a head that
    ties with the one at the cut goes with it, so that the order of heads decides nothing and an end may have more.
    After Attention Illuminates LLM Reasoning (2025, arXiv 2510.13554), which takes 30 % and says nothing of ties.

    Args:
        distances: the score ``mean_distance`` (or another where small means local) of prompts of one length.
        share: of the heads at each end, in (0, 0.5].
        layers: only these; all for None (see :func:`middle_layers`).

    Raises:
        BadInput: a share out of range, no head with a value, or ties that leave nothing between the two ends.

    Example:
        >>> split = focus_split(HeadScores.from_array(np.array([[1.0, 5.0], [2.0, 9.0]]), name="mean_distance"))
        >>> [str(h) for h in split.local_heads], [str(h) for h in split.global_heads]
        (['L0.H0'], ['L1.H1'])
    """
    if not 0 < share <= 0.5:  # noqa: PLR2004 - two ends
        raise BadInput(f"focus_split: share={share}; expected a share of the heads in (0, 0.5].")
    values = distances.values
    if values.ndim != 2:  # noqa: PLR2004 - layer, head
        raise BadInput(
            f"focus_split: {distances.name!r} has several numbers per head; give one, such as mean_distance."
        )
    chosen = np.zeros(len(values), dtype=bool)
    wanted = range(len(values)) if layers is None else list(layers)
    outside = [layer for layer in wanted if not 0 <= layer < len(values)]
    if outside:
        raise BadInput(f"focus_split: layers={outside}; the table has layers 0 to {len(values) - 1}.")
    chosen[list(wanted)] = True
    there = np.isfinite(values) & chosen[:, None]
    ranked = np.sort(values[there])
    if not len(ranked):
        raise BadInput(f"focus_split: {distances.name!r} has no head with a value in layers {list(wanted)}.")
    number = max(1, math.floor(share * len(ranked) + 1e-9))  # 0.29 of 100 is 29, whatever floats say
    low, high = float(ranked[number - 1]), float(ranked[-number])
    if low >= high:
        raise BadInput(
            f"focus_split: {len(ranked)} heads, of which {int((ranked == low).sum())} have the distance {low:.4g} of "
            "the cut: there are no two ends. Use a smaller share, or prompts in which heads differ."
        )
    stack = distances.stacks[0]
    name = None if stack == distances.default_stack else stack

    def heads(member: np.ndarray) -> tuple[Head, ...]:
        return tuple(Head(int(layer), int(index), name) for layer, index in np.argwhere(there & member))

    with np.errstate(invalid="ignore"):
        return FocusSplit(heads(values <= low), heads(values >= high), low, high, share)


def middle_layers(n_layers: int, count: int = 5) -> tuple[int, ...]:
    """At most ``count`` evenly spaced layers of the middle third ``[L / 3, 2 L / 3]`` (arXiv 2510.13554 takes five).

    Example:
        >>> middle_layers(36)
        (12, 15, 18, 21, 24)
    """
    first, last = math.ceil(n_layers / 3), math.floor(2 * n_layers / 3)
    last = min(max(first, last), n_layers - 1)
    return tuple(sorted({round(float(layer)) for layer in np.linspace(min(first, last), last, count)}))


@dataclass(frozen=True, eq=False, repr=False)
class FocusCurves:
    """What tokens do by locally and globally focused heads. Positions are the batch's columns, NaN at padding.

    Attributes:
        split: the two groups of heads.
        distances: the score ``mean_distance`` that split them.
        waad: ``[batch, pos]`` windowed average attention distance of each row of the response, of the local heads.
        fai: ``[batch, pos]`` future attention influence of each token, of the global heads; NaN where no row of the
            response stands far enough behind.
        change: ``[batch, pos]`` ``|WAAD_t - WAAD_{t + 1}|`` of each row that has a next one in the response.
        preplan: ``[batch, pos]`` True at the tokens of the response with the largest change.
        anchors: ``[batch, pos]`` True at the tokens with the largest influence.
        tokens: per prompt, its tokens as text.
        mask: ``[batch, pos]`` real tokens.
        metadata: the constants.
    """

    split: FocusSplit
    distances: HeadScores
    waad: Float[np.ndarray, "batch pos"]
    fai: Float[np.ndarray, "batch pos"]
    change: Float[np.ndarray, "batch pos"]
    preplan: Bool[np.ndarray, "batch pos"]
    anchors: Bool[np.ndarray, "batch pos"]
    tokens: tuple[tuple[str, ...], ...]
    mask: Bool[np.ndarray, "batch pos"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per real token: ``prompt place token waad change preplan fai anchor``."""
        prompt, column = np.nonzero(self.mask)
        place = (self.mask.cumsum(1) - 1)[prompt, column]
        return pd.DataFrame(
            {
                "prompt": prompt,
                "place": place,
                "token": [self.tokens[p][n] if self.tokens else "" for p, n in zip(prompt, place, strict=True)],
                "waad": self.waad[prompt, column],
                "change": self.change[prompt, column],
                "preplan": self.preplan[prompt, column],
                "fai": self.fai[prompt, column],
                "anchor": self.anchors[prompt, column],
            }
        )

    def __repr__(self) -> str:
        local, far = len(self.split.local_heads), len(self.split.global_heads)
        return f"FocusCurves({len(self.mask)} prompts, {local} local and {far} global heads)"


def focus_curves(
    model: Model,
    batch: Batch,
    *,
    response: Group = None,
    stack: str | None = None,
    layers: Iterable[int] | None = None,
    share: float = _SHARE,
    split: FocusSplit | None = None,
    window: int = 10,
    ahead: tuple[int, int] = (10, 50),
    top: float = _TOP,
    exclude_sinks: Sinks = None,
) -> FocusCurves:
    """WAAD and FAI of every token, and the preplan and anchor tokens, from one forward.

    Attention Illuminates LLM Reasoning (2025, arXiv 2510.13554). Heads are split by their mean distance over the rows
    of the response (:func:`focus_split`, the mean over prompts); ``A_loc`` and ``A_glob`` are the plain means over each
    group's heads, and::

        WAAD_t = sum_{s <= t} A_loc[t, s] min(t - s, window)
        FAI_s  = mean_{t in T(s)} A_glob[t, s],  T(s) = {t in response : s + low <= t <= s + high}

    The ``top`` share of response tokens by ``|WAAD_t - WAAD_{t + 1}|`` are preplan tokens, by FAI anchors: the
    ``floor(top n)`` first (at least one) of those with a value, ties going to the earlier token.

    Args:
        model: the handle.
        batch: prompts with their responses.
        response: the rows that count (a span, a slice ...); all for None.
        stack: a causal stack; the default one for None.
        layers: whose heads; all for None (the paper trains on five of the middle third, :func:`middle_layers`).
        share: of heads at each end, 0.3 in the paper.
        split: a split made elsewhere, in place of ``share`` and ``layers``.
        window: 10 is a third party's constant.
        ahead: nearest and furthest distance of ``T``; 10 and 50 are a third party's constants.
        top: share of tokens in each set, 0.4 in the paper.
        exclude_sinks: columns to leave out; without it heads that rest on the first token look global.

    Raises:
        BadInput: an option out of range, an empty response, heads that do not differ.
        Unsupported: a stack that sees both ways.
    """
    place = model.stack(stack)
    ask = Ask("focus_curves", model, batch, place, dropped_columns(exclude_sinks, batch, place))
    require_causal(ask)
    low, high = ahead
    whole_number(ask.name, "window", window, 1)
    if whole_number(ask.name, "ahead[1]", high, 0) < whole_number(ask.name, "ahead[0]", low, 0):
        raise BadInput(f"focus_curves: ahead={ahead}; expected (nearest, furthest).")
    if not 0 < top <= 1:
        raise BadInput(f"focus_curves: top={top}; expected a share of the tokens in (0, 1].")
    member = ask.mask if response is None else ask.columns(response, "response")
    if member is None:
        raise BadInput(f"focus_curves: the positions of stack {place.name!r} are not tokens; score a text stack.")
    span = MeanDistance(ask, response)
    back = WindowedDistance(ask, window, response, curves=True)
    influence = FutureInfluence(ask, low, high, response)
    ask.stream([span, back, influence])
    distances = _table(model, ask, span)
    found = focus_split(distances, share=share, layers=layers) if split is None else split
    assert back.curves is not None
    waad = _mean_curve(found.local_heads, back.curves)
    fai = _mean_curve(found.global_heads, {layer: influence.curve(layer) for layer in influence.sums})
    places = Places.among(ask.mask)
    change = _changes(waad, member, places)
    return FocusCurves(
        split=found,
        distances=distances,
        waad=waad.cpu().numpy(),
        fai=fai.cpu().numpy(),
        change=change.cpu().numpy(),
        preplan=top_tokens(change, member, top).cpu().numpy(),
        anchors=top_tokens(fai, member, top).cpu().numpy(),
        tokens=batch.tokens,
        mask=(ask.mask if ask.mask is not None else member).cpu().numpy(),
        metadata={"window": window, "ahead": list(ahead), "top": top, "share": found.share, "model": model.name},
    )


def top_tokens(
    values: Float[Tensor, "batch pos"], member: Bool[Tensor, "batch pos"], share: float
) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at the ``floor(share n)`` largest (at least one) of the n members with a value, per prompt.

    Ties go to the earlier token.

    Example:
        >>> top_tokens(torch.tensor([[1.0, 3.0, 3.0, torch.nan]]), torch.ones(1, 4, dtype=torch.bool), 0.4)
        tensor([[False,  True, False, False]])
    """
    there = member & ~values.isnan()
    ranked = values.masked_fill(~there, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    counts = there.sum(-1)
    number = (counts * share + 1e-9).floor().clamp(min=1).minimum(counts)  # 0.4 x 5 is 2, whatever floats say
    first = torch.arange(values.shape[1], device=values.device) < number[:, None]
    return torch.zeros_like(there).scatter(1, ranked, first)


def _changes(waad: Tensor, member: Tensor, places: Places) -> Tensor:
    """``|WAAD_t - WAAD_{t + 1}|`` where both tokens belong to the response."""
    columns = torch.arange(waad.shape[1], device=waad.device).expand(len(waad), -1)
    if places.column is None or places.length is None:
        following, there = columns + 1, columns + 1 < waad.shape[1]
        column = following.clamp(max=waad.shape[1] - 1)
    else:
        following = places.at(columns) + 1
        there = following < places.length
        column = places.column.gather(1, following.clamp(max=waad.shape[1] - 1))
    both = member & there & member.gather(1, column)
    return (waad - waad.gather(1, column)).abs().masked_fill(~both, torch.nan)


def _mean_curve(heads: Iterable[Head], curves: Mapping[int, Tensor]) -> Tensor:
    """``[batch, pos]`` the plain mean over heads."""
    return torch.stack([curves[head.layer][:, head.index].double() for head in heads]).mean(0)


def _table(model: Model, ask: Ask, span: MeanDistance) -> HeadScores:
    found = span.measured().by_layer
    widest = max(map(ask.stack.n_heads, range(ask.stack.n_layers)))
    exists = np.array(
        [[head < ask.stack.n_heads(layer) for head in range(widest)] for layer in range(ask.stack.n_layers)]
    )
    grid = np.full((len(ask.batch), *exists.shape), np.nan)
    for layer, values in found.items():
        grid[:, layer, : values.shape[1]] = values.cpu().numpy()
    return HeadScores.from_array(
        grid,
        name="mean_distance",
        sample_axis="prompt",
        stack=ask.stack.name,
        default_stack=model.default_stack,
        exists=exists,
        metadata={"model": model.name, "tokens": ask.batch.lengths},
    )
