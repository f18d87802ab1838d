"""One source taken away at a time: blank-out, occlusion, leave-one-out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from interp.errors import BadInput
from interp.names import lookup
from interp.scores.grids.grid import Given
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.occlusion.absence import Absence, absence
from interp.tracing.occlusion.explained import Explained, explained, probability_gap
from interp.tracing.occlusion.pixels import Fill
from interp.tracing.occlusion.replaced import Replacement

CHANGES: Mapping[str, str] = {
    "signed": "m(whole) - m(without): positive where the source speaks for the answer",
    "absolute": "|m(whole) - m(without)|",
    "sva": "|(p_right - p_wrong of the whole) - (p_right - p_wrong without)| (Abnar and Zuidema, 2020)",
}

_AT_ONCE = 1 << 26  # entries of the sets of sources that are made at once


def blank_out(
    ask: TraceAsk,
    replacement: Replacement = None,
    change: str = "signed",
    fill: Fill = "mean",
    grid: Given | None = None,
    batch_size: int | None = None,
) -> Traced:
    """How much the metric falls where each token is replaced by one that says nothing, one at a time.

    ``v_j = m(x) - m(x with x_j replaced)`` (Abnar and Zuidema, 2020; Zeiler and Fergus, 2014, for images). Positive:
    the token speaks for the answer. Of an image a patch is covered in the pixels; of a vision-language model the tokens
    that stand one to one for patches are covered there.

    Args:
        ask: what is traced.
        replacement: an id, a token, ``"mask"``, ``"unk"`` or ``"pad"``; the mask token by default, else the unknown
            token. (The paper speaks of the unknown token; its released script puts the mask token.)
        change: ``"signed"``, ``"absolute"``, or ``"sva"``: the paper's for agreement of subject and verb,
            ``|(p_right - p_wrong)(x) - (p_right - p_wrong)(x without)|``.
        fill: what covers a patch: ``"mean"`` of the image, ``"zero"``, ``"blur"``, or a number.
        grid: ``(rows, columns, skip)`` of the patches where it is not known.
        batch_size: prompts in one forward.

    Raises:
        BadInput: no token to put in, or prompts without ids and images.
    """
    _check_change(ask, change)
    gone = absence(
        ask, "replace", replacement=replacement, fill=fill, grid=grid, keep_read=False, batch_size=batch_size
    )
    return _one_at_a_time(ask, gone, change)


def occlusion(
    ask: TraceAsk, change: str = "signed", grid: Given | None = None, batch_size: int | None = None
) -> Traced:
    """How much the metric falls where no other position may look at a source, in any layer, one at a time.

    ``v_j = m(x) - m(x with the key j hidden from all other rows of all layers)``: attention knockout (Geva et al.,
    2023) of one key. Places stay as they are. Positive: the source speaks for the answer. Where the answer is read and
    what the token knows of itself stay, so that column has no number.

    Args:
        ask: what is traced.
        change: as in :func:`blank_out`.
        grid: ``(rows, columns, skip)`` of the patches where it is not known.
        batch_size: prompts in one forward, copies counted.

    Raises:
        Unsupported: attention that cannot be edited.
    """
    _check_change(ask, change)
    return _one_at_a_time(ask, absence(ask, "hide", grid=grid, batch_size=batch_size), change)


def leave_one_out(
    ask: TraceAsk, change: str = "signed", grid: Given | None = None, batch_size: int | None = None
) -> Traced:
    """How much the metric falls where a token is taken out and the prompt closes up, one at a time.

    ``v_j = m(x) - m(x_1 .. x_{j-1} x_{j+1} .. x_n)`` (Li, Monroe and Jurafsky, 2016). Positive: the token speaks for
    the answer. The token at which the answer is read and image tokens of a text, which cannot go alone, have no number.
    Of an image classifier a patch is taken out before the first block, and the others keep their position embeddings.

    Args:
        ask: what is traced.
        change: as in :func:`blank_out`.
        grid: ``(rows, columns, skip)`` of the patches where it is not known.
        batch_size: prompts in one forward.

    Raises:
        Unsupported: the decoder of an encoder-decoder, the tower of a vision-language model, and image classifiers
            whose attention knows where a patch is.
    """
    _check_change(ask, change)
    return _one_at_a_time(ask, absence(ask, "remove", grid=grid, batch_size=batch_size), change)


def _check_change(ask: TraceAsk, change: str) -> None:
    """Refuse a change that these prompts do not have.

    Raises:
        UnknownName: another change.
        BadInput: the protocol's own, without a right and a wrong answer or with another metric.
    """
    lookup(change, CHANGES, "change (change=)")
    if change != "sva":
        return
    if ask.metric is not None:
        raise BadInput(f"{ask.method}: change='sva' has its own metric, p(right) - p(wrong); leave metric= out.")
    answers = ask.batch.answers
    if answers is None or answers.shape[1] == 1 or bool((answers[:, 1] < 0).any()):
        raise BadInput(
            f"{ask.method}: change='sva' compares a right and a wrong answer; give encode(..., answers=[(right, "
            "wrong), ...])."
        )


def _one_at_a_time(ask: TraceAsk, gone: Absence, change: str) -> Traced:
    about = explained(ask.model, ask.batch, probability_gap if change == "sva" else ask.metric)
    values = torch.full(gone.free.shape, torch.nan, dtype=torch.float64)
    number = torch.where(gone.free, gone.free.cumsum(-1) - 1, -1)  # of each source among those that may go
    step = max(1, _AT_ONCE // max(1, number.numel()))
    for first in range(0, int(number.max()) + 1, step):
        members = [number == n for n in range(first, min(first + step, int(number.max()) + 1))]
        without, whole = gone.values(about, torch.stack(members))
        effects = whole - without
        for member, effect in zip(members, effects if change == "signed" else effects.abs(), strict=True):
            values = torch.where(member.cpu(), effect[:, None], values)
    return Traced(values[:, None], metadata=said(about, gone, change=CHANGES[change]))


def said(about: Explained, gone: Absence, **more: Any) -> dict[str, Any]:
    """What a reader of a trace by taking away should know."""
    return {"metric": about.said, "taken_away": gone.way, **gone.about, **more}
