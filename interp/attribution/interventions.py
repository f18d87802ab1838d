"""Exact interventions: what the metric really becomes when one head is edited, one forward for each.

Each function answers a :class:`Request`; call them through :func:`interp.attribute`. "Zeroing a head" is ambiguous in
the literature: ``zero`` at z removes the head (the projection's bias stays), ``zero`` at q makes it attend by the
other terms of its scores alone, ``uniform`` makes it attend evenly, ``mean`` leaves its mean in place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.address import At, Site
from interp.attribution.effects import Intervention, head_effects
from interp.attribution.request import Request
from interp.edits import activations, attention
from interp.edits.base import Context, Edit, Preparation
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Run
from interp.names import unknown
from interp.results import HeadScores


def intervention_for(model: Model, batch: Batch, request: Request) -> Intervention:
    """The intervention that ``request.method`` names, with its options checked.

    Raises:
        BadInput: a method that edits no single head, or what it needs is missing.
    """
    known = {
        "zero": _zero,
        "mean": _mean,
        "resample": _resample,
        "uniform": _uniform,
        "noise": _noise,
        "mean_of_others": _mean_of_others,
        "patch": _patch,
        "all_but_one": _all_but_one,
    }
    if request.method not in known:
        raise BadInput(unknown(request.method, known, "intervention"))
    return known[request.method](model, batch, request)


def zero(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of setting each head to 0, at the request's site."""
    return head_effects(model, batch, request, _zero(model, batch, request))


def _zero(model: Model, batch: Batch, request: Request) -> Intervention:
    return Intervention(activations.zero, about={"mode": "zero", "off-distribution": True})


def mean(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of replacing each head by its mean over a reference batch, or over the batch's other prompts.

    Without ``reference`` this is the leave-one-prompt-out mean, which the metadata calls ``mean-self``.
    """
    return head_effects(model, batch, request, _mean(model, batch, request))


def _mean(model: Model, batch: Batch, request: Request) -> Intervention:
    reference, positions = request.reference, request.options.get("positions")
    if reference is None and len(batch) < 2:  # noqa: PLR2004 - one prompt has no others
        raise BadInput("mean: one prompt has no others to average over; give reference= a Batch.")
    if positions not in (None, True, False):
        raise BadInput(f"mean: positions={positions!r}; expected True, False, or None to choose by the lengths.")
    both = [batch] if reference is None else [batch, reference]
    lengths = {length for each in both for length in each.lengths}
    aligned = len(lengths) == 1 and all(bool(each.mask.all()) for each in both)
    _check_own_rows(request, both, aligned)
    if positions and not aligned:
        raise BadInput(f"mean: positions=True needs prompts of one length, got lengths {sorted(lengths)}.")
    by_position = aligned if positions is None else positions

    def edit(at: At) -> Edit:
        return activations.mean(at, reference, positions=by_position)

    about = {
        "mode": "mean-self" if reference is None else "mean",
        "mean over": "prompts, one for each position" if by_position else "prompts and positions",
        "reference prompts": len(batch) - 1 if reference is None else len(reference),
    }
    return Intervention(edit, reads=True, about=about)


def _check_own_rows(request: Request, batches: list[Batch], aligned: bool) -> None:
    """Refuse a mean over the rows of a stack that are not the batch's own tokens, where these are padded."""
    for each in batches:
        own = each.key_mask(request.stack) if request.site in (Site.K, Site.V) else each.row_mask(request.stack)
        if own is not each.mask and not (aligned and (own is None or bool(own.all()))):
            raise BadInput(
                f"mean: the rows of stack {request.stack!r} are not the prompts' own tokens, and the prompts differ in "
                "length; a mean over them needs prompts without padding. Encode prompts of one length."
            )


def resample(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of replacing each head by what it was on another prompt, drawn once per seed for all heads."""
    return head_effects(model, batch, request, _resample(model, batch, request))


def _resample(model: Model, batch: Batch, request: Request) -> Intervention:
    source = request.source
    if source is None and len(batch) < 2:  # noqa: PLR2004 - one prompt has no others
        raise BadInput("resample: one prompt has no other to draw from; give source= a Batch.")
    if isinstance(source, Run):
        raise BadInput("resample: source is a Run; expected the Batch to draw from.")

    def edit(at: At) -> Edit:
        return _at_positions(activations.resample(at.with_(pos=None), source, seed=request.seed), at)

    return Intervention(edit, reads=True, about={"mode": "resample" if source is not None else "resample-self"})


def uniform(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of making each head attend evenly to its visible keys."""
    return head_effects(model, batch, request, _uniform(model, batch, request))


def _uniform(model: Model, batch: Batch, request: Request) -> Intervention:
    return Intervention(attention.uniform, about={"mode": "uniform"})


def noise(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of adding Gaussian noise of standard deviation ``std`` to each head."""
    return head_effects(model, batch, request, _noise(model, batch, request))


def _noise(model: Model, batch: Batch, request: Request) -> Intervention:
    std = request.options.get("std")
    if std is None:
        raise BadInput("noise: std= is missing; give the standard deviation of the noise, for example std=0.1.")
    activations.noise(At(request.site), std=std, seed=request.seed)  # refuses what is no standard deviation or seed

    def edit(at: At) -> Edit:
        return activations.noise(at, std=std, seed=request.seed)

    return Intervention(edit, about={"mode": "noise"})


def mean_of_others(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of replacing z of each head by the mean of the other heads of its layer at the same position.

    With H heads, ``z_h <- 1/(H-1) sum_{g != h} z_g``; a layer of one head falls back to 0 (V-SEAM, EMNLP 2025). Heads
    write through different parts of the output projection, so that the mean mixes coordinates that have no common
    meaning: ``mean`` over a reference batch is the principled ablation.
    """
    return head_effects(model, batch, request, _mean_of_others(model, batch, request))


def _mean_of_others(model: Model, batch: Batch, request: Request) -> Intervention:
    mode = request.options.get("mode", "mean")
    if mode not in ("mean", "zero"):
        raise BadInput(unknown(mode, ("mean", "zero"), "mode of 'mean_of_others'"))
    edit = activations.zero if mode == "zero" else replaced_by_others
    return Intervention(edit, about={"mode": f"{mode} of others" if mode == "mean" else "zero"})


def replaced_by_others(at: At) -> Edit:
    """An edit that replaces z of the heads of ``at`` by the mean of the layer's other heads; 0 where there are none.

    Example:
        >>> replaced_by_others(At(Site.Z, layer=0, heads=(1,)))
        mean_of_others(At(Site.Z, layer=0))
    """
    heads = at.heads

    def apply(x: Tensor, ctx: Context) -> Tensor:
        chosen = torch.zeros(x.shape[2], dtype=torch.bool, device=x.device)
        chosen[list(heads) if heads is not None else slice(None)] = True
        others = x[:, :, ~chosen]
        filling = others.mean(2, keepdim=True) if others.shape[2] else torch.zeros_like(x[:, :, :1])
        return torch.where(chosen[None, None, :, None], filling, x)

    return activations.custom(at.with_(heads=None), apply, name="mean_of_others")


def patch(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of replacing each head by what it was in the source run, position by position.

    ``direction="denoise"``: the batch is the corrupted side and the source the clean one, and a head that restores the
    metric matters; ``"noise"``: the batch is clean and the source corrupted, and a head that spoils it matters.
    Denoising finds what suffices (either of two heads), noising what is necessary (both of two): see both.
    """
    return head_effects(model, batch, request, _patch(model, batch, request))


def _patch(model: Model, batch: Batch, request: Request) -> Intervention:
    source = request.source
    stack = model.stack(request.stack)
    if isinstance(source, Run):
        for layer, attention_ in enumerate(stack.layers):
            at = At(request.site, layer=layer, stack=stack.name)
            if attention_ and at not in source:
                raise BadInput(f"patch: the source run has not read {at}; read it there, or give the run's Batch.")
    for mask, other, what in (
        (batch.row_mask(stack.name), _batch_of(source).row_mask(stack.name), "rows"),
        (batch.key_mask(stack.name), _batch_of(source).key_mask(stack.name), "keys"),
    ):
        if mask is not None and other is not None and not torch.equal(mask, other):
            raise BadInput(
                f"patch: the {what} of stack {stack.name!r} are padded otherwise in the source than in the batch; a "
                "pair is aligned position by position."
            )

    def edit(at: At) -> Edit:
        return _at_positions(activations.patch(at.with_(pos=None), source), at)

    sense = 1 if request.direction == "denoise" else -1
    about = {"mode": "patch", "direction": request.direction}
    edited = isinstance(source, Run) and bool(source.edits)  # may differ where its prompts do not
    alike = stack.name == model.default_stack and not edited
    first = _first_difference(model, batch, _batch_of(source)) if alike else 0
    return Intervention(edit, sense=sense, reads=True, first=first, about=about)


_TOKENS_ONLY = frozenset({"input_ids", "attention_mask", "position_ids"})


def _first_difference(model: Model, batch: Batch, source: Batch) -> int:
    """The first column at which a pair differs; 0 where the model could make something else of columns left of it.

    In a causal model of tokens alone every activation left of it is the same in both runs.
    """
    alike = model.stack().causal and set(batch.inputs) | set(source.inputs) <= _TOKENS_ONLY
    if not alike or batch.ids is None or source.ids is None or not bool((batch.mask & source.mask).all()):
        return 0
    different = (batch.ids != source.ids).any(0).nonzero()
    return int(different.min()) if len(different) else 0


def _batch_of(source: Any) -> Batch:
    return source.batch if isinstance(source, Run) else source


def all_but_one(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The effect of keeping each head alone: every other head of its layer is set to 0, or to its mean.

    The head whose effect is least negative can stand for its layer best (Michel, Levy and Neubig, 2019, section 3.3).
    """
    return head_effects(model, batch, request, _all_but_one(model, batch, request))


def _all_but_one(model: Model, batch: Batch, request: Request) -> Intervention:
    mode = request.options.get("mode", "zero")
    if mode not in ("zero", "mean"):
        raise BadInput(unknown(mode, ("zero", "mean"), "mode of 'all_but_one'"))
    if mode == "zero" and request.reference is not None:
        raise BadInput("all_but_one: reference= is for mode='mean'; the others are set to 0 otherwise.")
    base = _zero(model, batch, request) if mode == "zero" else _mean(model, batch, replace(request, options={}))
    return replace(base, sense=1, others=True, about={**base.about, "kept": "one head of the layer"})


def _at_positions(edit: Edit, at: At) -> Edit:
    """``edit``, which reads every position, applied at the positions of ``at`` alone.

    One read of every position serves all positions, where an edit at some would read those only.
    """
    if at.pos is None:
        return edit
    prepare = edit.prepare
    assert prepare is not None, edit

    def narrowed(run: Preparation) -> Edit:
        return replace(prepare(run), at=(at,), prompt_only=False)

    return replace(edit, at=(at,), prepare=narrowed)
