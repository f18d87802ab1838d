"""Slopes of a metric in the strength of many edits, from one forward and one backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.base import Context, Edit, EditFunction
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric, prepared_edits, run
from interp.model.sweep import logits_for, metric_values


def edit_slopes(
    model: Model, batch: Batch, edits: Sequence[Sequence[Edit]], metric: Metric, *, base: Sequence[Edit] = ()
) -> Float[np.ndarray, "variant prompt"]:
    """``[variant, prompt]`` dm/du at u = 0, where a variant's edits are blended in: ``x + u (edit(x) - x)``.

    Args:
        model, batch, metric: as in ``interp.run``.
        edits: the edits of each variant, at full strength.
        base: edits that are in force throughout.

    It is the first-order estimate of each variant's effect, from one forward and one backward for all of them. Equal to
    the effect where the metric is linear in u.

    Raises:
        BadInput: an edit that leads to infinity (a knockout), which has no slope.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3]], answers=[(4, 5)])
        >>> edits = [[interp.zero(interp.At("z", layer=1, heads=(index,)))] for index in (0, 1)]
        >>> edit_slopes(model, batch, edits, interp.logit_difference).round(3) + 0.0
        array([[-10.],
               [  0.]])
    """
    flat = [edit for variant in edits for edit in variant]
    ready, _ = prepared_edits(model, batch, [*base, *flat])
    strengths = torch.zeros(len(batch), len(edits), device=model.device, requires_grad=True)
    owners = [place for place, variant in enumerate(edits) for _ in variant]
    blends = [
        replace(edit, function=_blend(edit, edit.function, strengths, owner))
        for edit, owner in zip(ready[len(base) :], owners, strict=True)
        if edit.function is not None
    ]
    assert len(blends) == len(flat), "a prepared edit has a function"
    found = run(model, batch, edits=[*ready[: len(base)], *blends], logits=logits_for(metric, model), graph=True)
    checked = metric_values(metric, found.logits, batch)
    if checked.ndim != 1 or found.logits is None:
        raise BadInput(f"A slope needs one number per prompt; the metric gives {list(checked.shape[1:])} of them.")
    with torch.enable_grad():
        total = metric(found.logits, batch).sum()
    (slopes,) = torch.autograd.grad(total, [strengths])
    return slopes.T.double().cpu().numpy()


def _blend(edit: Edit, function: EditFunction, strengths: Tensor, owner: int) -> EditFunction:
    def apply(x: Tensor, ctx: Context) -> Tensor:
        strength = strengths[:, owner].to(x.device, x.dtype)[ctx.prompts.to(x.device)]
        made = function(x, ctx)
        # blocked scores stay blocked: minus infinity less minus infinity is not a number
        change = torch.where(made == x, torch.zeros_like(x), made - x)
        if not bool(torch.isfinite(change.detach()).all()):
            raise BadInput(f"{edit} leads to infinity, so the metric has no slope in its strength; run it exactly.")
        return x + strength.view(-1, *[1] * (x.ndim - 1)) * change

    return apply
