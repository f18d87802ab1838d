"""LIME as a trace: the weights of a linear fit of the metric on which sources are there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.names import lookup
from interp.scores.audits.lime import RIDGE, WIDTH, check_samples, lime_fit, presence_draws
from interp.scores.grids.grid import Given
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.occlusion.absence import WAYS, absence
from interp.tracing.occlusion.explained import explained
from interp.tracing.occlusion.pixels import Fill
from interp.tracing.occlusion.replaced import Replacement
from interp.tracing.occlusion.single import said

_AT_ONCE = 1 << 26  # entries of the presence of all sources of all prompts in the samples of one part


def lime(
    ask: TraceAsk,
    samples: int = 1000,
    by: str = "hide",
    width: float = WIDTH,
    ridge: float = RIDGE,
    replacement: Replacement = None,
    fill: Fill = "mean",
    grid: Given | None = None,
    batch_size: int | None = None,
) -> Traced:
    """How much the metric rises where each source is there, by a linear fit over random sets of sources.

    ``min_w sum_s exp(-(1 - sqrt(share_s))^2 / width^2) (m_s - w_0 - <w, x_s>)^2 + ridge |w|^2`` with x_s 1 where a
    source is there (Ribeiro et al., 2016). Positive: the source speaks for the answer. Draws are a function of a
    prompt's content and the seed, so that the order of prompts changes nothing. Standard errors stand in the metadata;
    where the metric is no sum over sources they hold what the line misses as well.

    Args:
        ask: what is traced.
        samples: how many random sets; the last of them is always the whole prompt.
        by: ``"hide"`` (no other position may look at it), ``"replace"`` or ``"remove"``. They answer different
            questions; results name the way.
        width: of the kernel over cosine distances.
        ridge: the penalty (ours; it keeps the fit determined where samples are few).
        replacement, fill, grid: as in :func:`interp.tracing.occlusion.single.blank_out`.
        batch_size: prompts in one forward.

    Raises:
        BadInput: fewer than two samples, or a width or penalty that is none.
    """
    check_samples(ask.method, samples)
    lookup(by, WAYS, "way of taking away (by=)")
    for name, number, lowest in (("width", width, "above 0"), ("ridge", ridge, "at least 0")):
        wrong = isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number)
        if wrong or number < 0 or (name == "width" and number == 0):
            raise BadInput(f"{ask.method}: {name}={number!r}; expected a number {lowest}.")
    gone = absence(ask, by, replacement=replacement, fill=fill, grid=grid, batch_size=batch_size)
    free = gone.free.cpu()
    kept = presence_draws(free, ask.batch.content_keys.tolist(), samples, ask.seed)
    kept[-1] = free
    if by == "remove":
        _keep_one(kept, free)
    about = explained(ask.model, ask.batch, ask.metric)
    step = max(1, _AT_ONCE // max(1, free.numel()))
    parts = [gone.values(about, (free & ~some).to(ask.model.device))[0] for some in kept.split(step)]
    found = torch.cat(parts)
    values, errors = (torch.full(free.shape, torch.nan, dtype=torch.float64) for _ in range(2))
    explained_share = []
    for row, here in enumerate(free):
        fit = lime_fit(kept[:, row, here], found[:, row], width=width, ridge=ridge)
        values[row, here], errors[row, here] = fit.weights.cpu(), fit.standard_errors.cpu()
        explained_share.append(_plain(fit.r_squared))
    return Traced(
        values[:, None],
        metadata=said(
            about,
            gone,
            samples=samples,
            seed=ask.seed,
            r_squared=explained_share,
            standard_error=[[_plain(x) for x in row] for row in errors.tolist()],
        ),
    )


def _keep_one(kept: Tensor, free: Tensor) -> None:
    """Where the whole prompt may go, its last free token stays: a prompt needs a token."""
    if bool((free.sum(-1) == 0).any()):
        return
    last = (torch.arange(free.shape[1]) * free).argmax(-1)
    for row, column in enumerate(last.tolist()):
        empty = ~kept[:, row].any(-1)
        kept[empty, row, column] = True


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
