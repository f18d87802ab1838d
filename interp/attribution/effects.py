"""Effects of edits on a metric, one for each head of a stack: what all exact interventions share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.address import At, Site
from interp.attribution.freezing import check_freeze, freezing_edits, norms_held
from interp.attribution.halves import PROMPT_KEYS
from interp.attribution.heads_grid import Cell, cells_of, grid_of, heads_at, query_heads, unit_of, width_of
from interp.attribution.normalising import differences, shares
from interp.attribution.request import Request
from interp.edits.base import Edit
from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.plan import Plan
from interp.model.run import Metric, kernels_of, run
from interp.model.stacks import Stack
from interp.model.sweep import sweep
from interp.results import HeadScores


@dataclass(frozen=True, eq=False)
class Intervention:
    """How heads are edited.

    Attributes:
        edit: the edit at an address of one layer, with its heads.
        sense: of the effect, for a metric of which more is better.
        reads: the edit takes something from an unedited run.
        others: every other head of the layer is edited, and not the head itself.
        first: columns left of it would be edited to what they are, so that they are left alone.
        about: what the result's metadata says of it.
    """

    edit: Callable[[At], Edit]
    sense: int = -1
    reads: bool = False
    others: bool = False
    first: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


def head_effects(model: Model, batch: Batch, request: Request, intervention: Intervention) -> HeadScores:
    """The effect of an intervention on each head, per prompt: ``metric(edited) - metric(unedited)``.

    Args:
        model: the handle.
        batch: the prompts.
        request: which heads, where, what is held, and the metric.
        intervention: how a head is edited.
    """
    stack, unit = model.stack(request.stack), unit_of(request.site, request.by)
    check_place(stack, request)
    check_freeze(model, request)
    real = _rows(model, batch, stack) if request.by == "position" else None
    columns = None if real is None else real.shape[1]
    cells = cells_of(stack, unit, request.heads, None if columns is None else range(columns))
    if not cells:
        raise BadInput(f"{request.method}: stack {stack.name!r} has no heads to edit.")
    places = None if columns is None else [torch.tensor([[column]]) for column in range(columns)]
    variants = [
        [] if not heads else variant_edits(model, batch, request, intervention, {cell.layer: heads}, pos)
        for cell in cells
        for heads, pos in [_addressed(stack, cell, unit, request, intervention, places, batch.width)]
    ]
    Plan(model, batch, next((edits for edits in variants if edits), []))  # refuses what cannot be, before any forward
    denominators = differences(model, batch, request) if request.normalise else None
    effects, notes = swept_effects(model, batch, request, intervention, variants, [cell.layer for cell in cells])
    if real is not None:
        for row, cell in enumerate(cells):
            effects[row, ~real[:, cell.column].cpu().numpy()] = np.nan
    sense, more, weights = intervention.sense * request.metric_sense, {}, None
    if denominators is not None:
        shared = shares(effects, denominators)
        effects, weights, more, sense = shared.values, shared.weights, shared.about, sense * shared.sign
    return HeadScores.from_array(
        grid_of(effects, cells, stack, unit, columns),
        name=request.method,
        quantity="effect",
        sense=sense,
        sample_axis="prompt",
        stack=stack.name,
        default_stack=model.default_stack,
        unit=unit,
        positions=None if columns is None else range(columns),
        exists=_asked(cells, stack, unit),
        cluster=request.cluster,
        weights=weights,
        metadata={**about(model, batch, request), **intervention.about, **more, "notes": notes},
    )


def check_place(stack: Stack, request: Request) -> None:
    """Refuse what the stack cannot offer at the site, before any forward.

    Raises:
        Unsupported: with the reason.
    """
    stack.require(request.site, edit=True)
    by_row = request.by == "position" or request.pos is not None
    if by_row and stack.family.packed:
        raise Unsupported(
            f"{request.method}: stack {stack.name!r} packs the rows of all images without a batch axis; positions "
            "cannot be told apart by prompt there. Leave out pos= and by='position'."
        )
    if by_row and stack.cross and request.site in (Site.K, Site.V):
        raise Unsupported(
            f"{request.method}: keys and values of cross-attention are the encoder's; leave out pos= and "
            "by='position' there."
        )


def _rows(model: Model, batch: Batch, stack: Stack) -> Tensor:
    """``[batch, pos]`` the real tokens of the stack's rows."""
    mask = batch.row_mask(stack.name)
    if mask is not None:
        return mask
    layer = next(index for index, attention in enumerate(stack.layers) if attention)
    at = At(Site.Z, layer=layer, stack=stack.name)
    z = run(model, batch, read=[at], logits=fewest_logits(model))[at]
    if z.shape[0] != len(batch):
        raise Unsupported(
            f"by='position': stack {stack.name!r} runs {z.shape[0]} rows for {len(batch)} prompts; its positions "
            "cannot be told apart by prompt."
        )
    return torch.ones(z.shape[:2], dtype=torch.bool)


def _addressed(
    stack: Stack,
    cell: Cell,
    unit: str,
    request: Request,
    intervention: Intervention,
    places: Sequence[Tensor] | None,
    width: int,
) -> tuple[tuple[int, ...], Any]:
    """The heads of the site, and the positions, that are edited for a cell."""
    heads = heads_at(stack, cell.layer, cell.head, site=request.site, unit=unit)
    if intervention.others:
        heads = tuple(head for head in range(stack.width(request.site, cell.layer)) if head not in heads)
    if places is not None and cell.column is not None:
        return heads if cell.column >= intervention.first else (), places[cell.column]
    if request.pos is None and intervention.first:
        return heads, torch.arange(intervention.first, width)[None]
    return heads, request.pos


def variant_edits(
    model: Model,
    batch: Batch,
    request: Request,
    intervention: Intervention,
    heads: Mapping[int, tuple[int, ...]],
    pos: Any,
) -> list[Edit]:
    """The edits of one variant: the intervention on some heads, and what is held meanwhile.

    Args:
        model: the handle.
        batch: the prompts.
        request: the site, the stack, and what is held.
        intervention: how a head is edited.
        heads: layer -> heads of the site.
        pos: the positions that are edited, as in :class:`interp.At`.
    """
    stack = model.stack(request.stack)
    kv = request.site in (Site.K, Site.V)
    queries = {
        layer: tuple(query for head in those for query in query_heads(stack, layer, head, "kv" if kv else "query"))
        for layer, those in heads.items()
    }
    edits = [
        intervention.edit(At(request.site, layer=layer, heads=those, pos=pos, stack=stack.name))
        for layer, those in heads.items()
    ]
    return edits + freezing_edits(model, batch, request, queries)


def swept_effects(
    model: Model,
    batch: Batch,
    request: Request,
    intervention: Intervention,
    variants: Sequence[list[Edit]],
    layers: Sequence[int],
) -> tuple[np.ndarray, list[str]]:
    """``([variant, prompt] effects, notes)`` of the variants; an empty one has no effect.

    Args:
        model: the handle.
        batch: the prompts.
        request: the metric and what is held.
        intervention: how heads are edited.
        variants: the edits of each.
        layers: the first edited layer of each.
    """
    effects = np.zeros((len(variants), len(batch)))
    notes: list[str] = []
    metric = _one_per_prompt(request.metric)
    for numbers in _groups(request, intervention, variants, layers):
        eager = _eager(model, request, [variants[number] for number in numbers])
        with norms_held(model, batch, request, eager) as handle:
            swept = sweep(
                handle,
                batch,
                [variants[number] for number in numbers],
                metric,
                logits=request.logits(model),
                batch_size=request.batch_size,
                progress=request.progress,
            )
        effects[numbers] = swept.effects.double().cpu().numpy()
        notes += swept.notes
    return effects, list(dict.fromkeys(notes))


def _groups(
    request: Request, intervention: Intervention, variants: Sequence[list[Edit]], layers: Sequence[int]
) -> Iterator[list[int]]:
    """The variants that one sweep takes: all, or those of one layer where each layer runs other attention kernels.

    What is read through the kernels of one layer's variants is of no use to another's, and is let go before the next.
    """
    wanted = [number for number, edits in enumerate(variants) if edits]
    inside = request.site.inside_attention and (intervention.reads or request.freeze != "none")
    if not inside and request.freeze != "patterns":
        if wanted:
            yield wanted
        return
    for layer in dict.fromkeys(layers[number] for number in wanted):
        yield [number for number in wanted if layers[number] == layer]


def _eager(model: Model, request: Request, variants: Sequence[list[Edit]]) -> set[tuple[str, int]]:
    """The attentions that the edits of a group move to the eager function."""
    found = set()
    for at in (at for edits in variants for edit in edits for at in edit.at):
        stack = model.stack(at.stack)
        if at.site.inside_attention and stack.family.interface:
            found |= {(stack.name, layer) for layer in stack.layers_of(at)}
    return found


def _one_per_prompt(metric: Metric) -> Metric:
    """``metric``, refused where it gives several numbers for a prompt."""

    @functools.wraps(metric)
    def checked(logits: Tensor, batch: Batch) -> Tensor:
        values = metric(logits, batch)
        if isinstance(values, Tensor) and values.ndim > 1:
            name = getattr(metric, "__name__", repr(metric))
            raise BadInput(
                f"metric {name}: it gave {list(values.shape)}, expected one number per prompt, a tensor [{len(batch)}]."
            )
        return values

    return checked


def _asked(cells: Sequence[Cell], stack: Stack, unit: str) -> np.ndarray:
    """``[layer, head]`` True at the heads that were asked for."""
    widest = max(width_of(stack, layer, unit) for layer in range(stack.n_layers))
    asked = np.zeros((stack.n_layers, widest), dtype=bool)
    for cell in cells:
        asked[cell.layer, cell.head] = True
    return asked


def about(model: Model, batch: Batch, request: Request) -> dict[str, Any]:
    """What the metadata of a result says of how it was asked for."""
    own = sorted(
        {name for (stack, _), name in kernels_of(model, ()).items() if stack == model.stack(request.stack).name}
    )
    moved = request.site.inside_attention or request.freeze == "patterns"
    return {
        "method": request.method,
        "metric": request.metric_name,
        "model": model.name,
        "prompts": len(batch),
        PROMPT_KEYS: batch.content_keys.tolist(),
        "site": request.site.value,
        "by": request.by,
        "freeze": request.freeze,
        "kernels": ", ".join(own) + (" (eager where attention is edited)" if moved and own != ["eager"] else ""),
        "seed": request.seed,
        **{f"option {name}": value for name, value in request.options.items()},
    }
