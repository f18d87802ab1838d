"""First-order estimates of what heads do: the derivative of the metric along each head's gate, of all heads at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.address import Site
from interp.attribution.estimates import (
    Cells,
    counted_cells,
    grid,
    head_table,
    joined,
    layer_addresses,
    one_of,
    options_of,
    part_of,
    prompt_chunks,
    refuse_freeze,
    smooth_metric,
    summed_or_kept,
)
from interp.attribution.request import Request
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import run
from interp.results import HeadScores


def gradient(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The zero effect of every head to first order, ``[prompt, layer, head]``: one forward and one backward for all.

    ``-<z_h, dm/dz_h>``, summed over positions and channels. With a gate g on the head's output (1 in the model) this is
    ``-dm/dg``, the slope of what happens as the head is faded out; it equals the zero effect where the metric is linear
    in the gate. A head at a stationary point gets 0 however large its effect is.

    Args:
        model: the handle.
        batch: the prompts; padding never counts.
        request: ``metric``, ``by`` (``"position"`` keeps positions, ``"kv"`` sums over the query heads of a key/value
            head, whose common gate it is the slope of), ``heads``, ``pos``, ``batch_size`` (prompts in one forward).

    Raises:
        BadInput: a site other than z, something to freeze, or a metric without a gradient.

    Source: Michel, Levy and Neubig, 2019 (arXiv 1905.10650), with its sign kept; Molchanov et al., 2017.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> gradient(model, batch, Request()).top(1).label.tolist()
        ['L1.H0']
    """
    array = -summed_or_kept(model, batch, request, gate_slopes(model, batch, request))
    return head_table(model, batch, request, array, name="gradient", quantity="effect", sense=-1)


def gate_gradient_abs(model: Model, batch: Batch, request: Request) -> HeadScores:
    """How strongly the metric answers to each head's gate, ``[prompt, layer, head]``, unsigned.

    ``|sum_pos <z, dm/dz>|`` per prompt with ``abs="example"`` (the paper's formula), or ``sum_pos |<z, dm/dz>|`` with
    ``abs="token"`` (its released code). The table's values are means over prompts of absolute values, so that heads
    whose influence changes sign between prompts do not cancel.

    Args:
        model: the handle.
        batch: the prompts; padding never counts.
        request: ``metric``, ``by="head"`` or ``"kv"``, ``heads``, ``pos``, ``batch_size``; options ``abs`` and
            ``normalise_layers`` (True divides each layer by the l2 norm over its heads of their means; a layer whose
            heads are all 0 stays 0).

    Raises:
        BadInput: an option that is not one of these, a site other than z, or a metric without a gradient.

    Source: Michel, Levy and Neubig, 2019 (arXiv 1905.10650), section 4.1.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> scores = gate_gradient_abs(model, batch, Request(options={"normalise_layers": True}))
        >>> [round(float(value), 6) for value in (scores.values**2).sum(1)]
        [1.0, 1.0]
    """
    options = options_of(request, abs="example", normalise_layers=False)
    where = one_of(options["abs"], ("example", "token"), "abs")
    if not isinstance(options["normalise_layers"], bool):
        raise BadInput(f"normalise_layers={options['normalise_layers']!r}: expected True or False.")
    if request.by == "position":
        raise BadInput("gate_gradient_abs: by='position' is not offered; use method='gradient', which keeps the sign.")
    cells = counted_cells(model, batch, request, gate_slopes(model, batch, request), blank=0.0)
    array = grid(model, request, {layer: gate_slope_sizes(cell, where) for layer, cell in cells.items()})
    if options["normalise_layers"]:
        norms = np.sqrt(np.nansum(np.nanmean(array, axis=0, keepdims=True) ** 2, axis=2, keepdims=True))
        array = array / np.where(norms > 0, norms, 1.0)
    return head_table(
        model, batch, request, array, name="gate_gradient_abs", quantity="contribution", sense=0, **options
    )


def gate_slope_sizes(products: Float[Tensor, "batch head pos"], abs: str) -> Float[Tensor, "batch head"]:
    """``[batch, head]`` size of ``<z, dm/dz>``, taken after (``"example"``) or before the sum over positions.

    Args:
        products: ``<z, dm/dz>`` over channels, 0 at positions that do not count.
        abs: ``"example"`` or ``"token"``.

    Example:
        >>> import torch
        >>> products = torch.tensor([[[0.25, -0.5]]])
        >>> gate_slope_sizes(products, "example").item(), gate_slope_sizes(products, "token").item()
        (0.25, 0.75)
    """
    return products.sum(-1).abs() if abs == "example" else products.abs().sum(-1)


def gate_products(
    z: Float[Tensor, "batch pos head d_head"], slope: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch head pos"]:
    """``[batch, head, pos]`` ``<z, dm/dz>`` over channels: the derivative along a gate on one head at one position.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, -2.0], [0.5, 1.0]]).view(1, 2, 1, 2)
        >>> slope = torch.tensor([[0.3, 0.1], [-0.4, -0.2]]).view(1, 2, 1, 2)
        >>> [round(value, 6) for value in gate_products(z, slope).flatten().tolist()]
        [0.1, -0.4]
    """
    return (z.double() * slope.double()).sum(-1).transpose(1, 2)


def gate_slopes(model: Model, batch: Batch, request: Request) -> Cells:
    """Layer -> ``[batch, head, pos]`` derivative of each prompt's metric along a gate on one head at one position."""
    refuse_freeze(request)
    if request.site is not Site.Z:
        raise BadInput(
            f"{request.method or 'gradient'}: site={request.site!r}; a head's gate is on its output, Site.Z."
        )
    places = layer_addresses(model.stack(request.stack), Site.Z)
    parts: list[Cells] = []
    for rows in prompt_chunks(batch, request.batch_size):
        seen = run(
            model, part_of(batch, rows), places.values(), logits=request.logits(model), grad=smooth_metric(request)
        )
        assert seen.grad is not None
        parts.append({layer: gate_products(seen[at], seen.grad[at]) for layer, at in places.items()})
        if request.progress is not None:
            request.progress(1)
    return joined(parts)
