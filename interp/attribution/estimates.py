"""What the estimates share: prompts taken in chunks, and numbers per head and position brought into a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.attribution.effects import about
from interp.attribution.heads_grid import KV_SITES, unit_of, width_of
from interp.attribution.request import Request
from interp.edits.groups import columns_of
from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.stacks import Stack
from interp.model.sweep import metric_values
from interp.results import HeadScores

Cells = Mapping[int, Float[Tensor, "_batch _head _pos"]]  # by layer; heads as the site, or the unit asked for, has them


def prompt_chunks(batch: Batch, size: int | None) -> Iterator[slice]:
    """Which prompts go into each forward: ``size`` at a time, all at once for ``None``.

    Example:
        >>> import interp
        >>> batch = interp.encode(interp.load("handmade"), torch.zeros(5, 2, dtype=torch.long))
        >>> [(part.start, part.stop) for part in prompt_chunks(batch, 2)]
        [(0, 2), (2, 4), (4, 5)]
    """
    step = len(batch) if size is None else size
    for start in range(0, len(batch), step):
        yield slice(start, min(start + step, len(batch)))


def part_of(batch: Batch, rows: slice) -> Batch:
    """The prompts ``rows`` of ``batch``; the batch itself where those are all of them."""
    return batch if rows == slice(0, len(batch)) else batch.select(rows)


def joined(parts: Sequence[Cells]) -> Cells:
    """The cells of all chunks, prompts one after the other."""
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def layer_addresses(stack: Stack, site: Site) -> dict[int, At]:
    """Layer -> its address, of every layer of ``stack`` that has heads at ``site``.

    Raises:
        Unsupported: the rows of all prompts are packed together, so that none has a number of its own.
    """
    if stack.family.packed:
        raise Unsupported(
            f"Stack {stack.name!r} packs the rows of all images without a batch axis, so that an estimate per prompt "
            "cannot be given there. Use a stack with a batch axis, such as the text's."
        )
    return {layer: At(site, layer, stack=stack.name) for layer in stack.layers_of(At(site, stack=stack.name))}


def refuse_freeze(request: Request) -> None:
    """Refuse to hold anything still.

    Raises:
        BadInput: ``freeze`` is not ``"none"``.
    """
    if request.freeze != "none":
        raise BadInput(
            f"{request.method}: freeze={request.freeze!r} is for exact interventions; estimates take 'none'. What a "
            "head does by its direct path alone is method='direct'."
        )


def counted_rows(batch: Batch, stack: Stack, width: int, request: Request) -> Bool[Tensor, "batch pos"]:
    """True at the positions that count: real tokens, and of those the ones that ``request.pos`` names."""
    mask = (batch.key_mask if request.site in KV_SITES else batch.row_mask)(stack.name)
    real = torch.ones(len(batch), width, dtype=torch.bool) if mask is None else mask.cpu()
    if request.pos is None:
        return real
    return real & columns_of(request.pos, batch, width, real.device, mask=mask).cpu()


def options_of(request: Request, **defaults: Any) -> dict[str, Any]:
    """The method's options, with ``defaults`` for those that were not given."""
    return {name: request.options.get(name, default) for name, default in defaults.items()}


def one_of(value: Any, allowed: Sequence[str], what: str) -> str:
    """``value``, refused unless it is one of ``allowed``."""
    if value not in allowed:
        raise BadInput(f"{what}={value!r}: expected {' or '.join(map(repr, allowed))}.")
    return value


def count_of(value: Any, what: str) -> int:
    """``value``, refused unless it is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{what}={value!r}: expected an int of at least 1.")
    return value


def smooth_metric(request: Request) -> Metric:
    """The request's metric, refused where it gives no gradient.

    Raises:
        BadInput: when called, where it is not one finite number per prompt that changes smoothly with the logits.
    """

    def metric(logits: Tensor, batch: Batch) -> Tensor:
        checked = metric_values(request.metric, logits, batch)
        if checked.ndim != 1:
            raise BadInput(
                f"metric {request.metric_name}: it gave {list(checked.shape)}, and a gradient needs one number per "
                f"prompt [{len(batch)}]."
            )
        values = request.metric(logits, batch)
        if not values.requires_grad:
            raise BadInput(
                f"metric {request.metric_name}: it has no gradient with respect to the logits (a count or a rank); "
                "estimates need one that changes smoothly, such as interp.logit_difference."
            )
        return values

    metric.positions = getattr(request.metric, "positions", None)  # type: ignore[attr-defined]
    metric.__name__ = request.metric_name
    return metric


def per_unit(model: Model, request: Request, cells: Cells) -> Cells:
    """``cells`` per unit of the request: with ``by="kv"`` the query heads of one key/value head are summed.

    What is linear in each query head is linear in their common gate, with their sum as its slope.
    """
    stack = model.stack(request.stack)
    if request.by != "kv" or request.site in KV_SITES:
        return dict(cells)
    return {layer: cell.unflatten(1, (stack.n_kv_heads(layer), -1)).sum(2) for layer, cell in cells.items()}


def counted_cells(model: Model, batch: Batch, request: Request, cells: Cells, *, blank: float) -> Cells:
    """``cells`` per unit of the request, with ``blank`` at positions that do not count."""
    stack = model.stack(request.stack)
    made: dict[int, Tensor] = {}
    for layer, units in per_unit(model, request, cells).items():
        rows = counted_rows(batch, stack, units.shape[2], request)
        made[layer] = units.detach().double().cpu().masked_fill(~rows[:, None], blank)
    return made


def summed_or_kept(model: Model, batch: Batch, request: Request, cells: Cells) -> Float[np.ndarray, "prompt layer ..."]:
    """``[prompt, layer, head]`` sums over the positions that count; with ``by="position"`` a trailing axis of them."""
    if request.by == "position":
        return grid(model, request, counted_cells(model, batch, request, cells, blank=torch.nan))
    counted = counted_cells(model, batch, request, cells, blank=0.0)
    return grid(model, request, {layer: cell.sum(-1) for layer, cell in counted.items()})


def grid(
    model: Model, request: Request, numbers: Mapping[int, Float[Tensor, "sample unit ..."]]
) -> Float[np.ndarray, "sample layer unit ..."]:
    """The layers' numbers in one array, NaN where no head is and for heads that were not asked for."""
    stack, first = model.stack(request.stack), next(iter(numbers.values()))
    widest = max(width_of(stack, layer, unit_of(request.site, request.by)) for layer in numbers)
    array = np.full((first.shape[0], stack.n_layers, widest, *first.shape[2:]), np.nan)
    for layer, part in numbers.items():
        array[:, layer, : part.shape[1]] = part.detach().double().cpu()
    if request.heads is not None:
        wanted = np.zeros(array.shape[1:3], dtype=bool)
        wanted[tuple(np.array([(head.layer, head.index) for head in request.heads]).T)] = True
        array[:, ~wanted] = np.nan
    return array


def head_table(
    model: Model,
    batch: Batch,
    request: Request,
    array: Float[np.ndarray, "sample layer head ..."],
    *,
    name: str,
    quantity: str,
    sense: int,
    sample_axis: str = "prompt",
    cluster: Sequence[object] | None = None,
    weights: Float[np.ndarray, " sample"] | None = None,
    **metadata: Any,
) -> HeadScores:
    """The array as a table that says what it is.

    Args:
        model, batch, request: what it was made from.
        array: ``[sample, layer, head]``, with a trailing position axis with ``by="position"``.
        name: of the method.
        quantity: ``effect`` or ``contribution``.
        sense: +1, -1 or 0 for a metric of which more is better.
        sample_axis: what the samples are.
        cluster: one label per sample, the request's by default where the samples are prompts.
        weights: of the samples in the mean, where it is a ratio of means.
        metadata: how the numbers were made, beyond what the request says.
    """
    return HeadScores.from_array(
        array,
        name=name,
        quantity=quantity,
        sense=sense * request.metric_sense,
        sample_axis=sample_axis,
        stack=model.stack(request.stack).name,
        default_stack=model.default_stack,
        unit=unit_of(request.site, request.by),
        positions=list(range(array.shape[3])) if request.by == "position" else None,
        cluster=request.cluster if cluster is None and sample_axis == "prompt" else cluster,
        weights=weights,
        metadata={**about(model, batch, request), "method": name, **metadata},
    )
