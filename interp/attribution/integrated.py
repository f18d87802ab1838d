"""Integrated gradients over the gates of the heads: the derivative along the gates, averaged from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import At, Site
from interp.attribution.estimates import (
    Cells,
    counted_rows,
    grid,
    head_table,
    layer_addresses,
    one_of,
    options_of,
    per_unit,
    refuse_freeze,
    smooth_metric,
    summed_or_kept,
)
from interp.attribution.heads_grid import Cell, cells_of, query_heads, unit_of
from interp.attribution.quadrature import quadrature
from interp.attribution.request import Request
from interp.edits.activations import gate, zero
from interp.edits.base import Edit
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import run
from interp.model.sweep import sweep
from interp.results import HeadScores

Members = dict[int, Float[Tensor, "line head"]]  # layer -> 1 where a path moves the head's gate


def integrated_gradients(model: Model, batch: Batch, request: Request) -> HeadScores:
    """What each head contributes on the way from closed to open gates, ``[prompt, layer, head]``.

    ``c_h = sum_k w_k dm/dg_h`` at gates ``alpha_k``, with points and weights of a quadrature rule on [0, 1].

    With ``path="joint"`` all gates move together; the contributions then sum to ``m(all gates 1) - m(all gates 0)`` up
    to the rule's error, which is reported as ``completeness`` in the metadata (mean sum and mean difference over
    prompts, largest residual of a prompt). With ``path="each"`` one gate moves while the others stay 1; in the limit
    that is minus the zero effect of each head, and nothing need sum to anything.

    Few steps miss what happens in a narrow range of the gates (a sharp softmax). In families that normalise what
    attention writes (Gemma 2, OLMo 2) a common factor of all gates cancels: everything happens next to 0, where no rule
    looks, and the residual says so. Use ``path="each"`` there.

    Args:
        model: the handle.
        batch: the prompts; padding never counts.
        request: ``metric``, ``by`` (``"position"`` for the joint path only), ``heads`` (the gates that move; the others
            stay 1), ``pos``, ``batch_size`` (prompts in one forward, copies at other gates counted); options ``steps``
            (16 points), ``rule`` (``"gauss-legendre"``, ``"midpoint"``, ``"trapezoid"``, ``"left"``, ``"right"``) and
            ``path``.

    Raises:
        BadInput: an option that is not one of these, a site other than z, or a metric without a gradient.

    Source: Sundararajan, Taly and Yan, 2017 (arXiv 1703.01365), with the gates as the inputs.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> scores = integrated_gradients(model, batch, Request(options={"steps": 100}))
        >>> (scores.values.round(2) + 0.0).tolist(), round(scores.metadata["completeness"]["difference"], 2)
        ([[5.0, 0.0], [5.0, 0.0]], 10.0)
    """
    refuse_freeze(request)
    options = options_of(request, steps=16, rule="gauss-legendre", path="joint")
    path = one_of(options["path"], ("joint", "each"), "path")
    points, weights = quadrature(options["rule"], options["steps"])
    if request.site is not Site.Z:
        raise BadInput(f"integrated_gradients: site={request.site!r}; a head's gate is on its output, Site.Z.")
    if path == "each" and request.by == "position":
        raise BadInput("integrated_gradients: by='position' goes with path='joint'; with path='each' use by='head'.")
    units = cells_of(model.stack(request.stack), unit_of(request.site, request.by), request.heads, None)
    lines = [units] if path == "joint" else [[unit] for unit in units]
    gates = _Gates(model, batch, request, _members(model, request, lines))
    array = _arranged(model, batch, request, gates.integrals(points, weights), by_row=gates.by_row)
    about: dict[str, Any] = {**options, "cost": f"{len(lines) * len(points)} forwards and backwards"}
    if path == "joint":
        about["completeness"] = _completeness(model, batch, request, array, units)
    return head_table(
        model, batch, request, array, name="integrated_gradients", quantity="contribution", sense=1, **about
    )


def _members(model: Model, request: Request, lines: Sequence[Sequence[Cell]]) -> Members:
    stack, unit = model.stack(request.stack), unit_of(request.site, request.by)
    members = {layer: torch.zeros(len(lines), stack.n_heads(layer)) for layer in layer_addresses(stack, Site.Z)}
    for number, line in enumerate(lines):
        for layer, index, _ in line:
            members[layer][number, list(query_heads(stack, layer, index, unit))] = 1.0
    return members


@dataclass(frozen=True, eq=False)
class _Gates:
    """Gates on heads, moved along lines: on line i the gates of ``members[i]`` are at alpha, all others at 1."""

    model: Model
    batch: Batch
    request: Request
    members: Members

    @property
    def by_row(self) -> bool:
        """Whether there is a gate for every position and not one for all."""
        return self.request.by == "position" or self.request.pos is not None

    def integrals(self, points: np.ndarray, weights: np.ndarray) -> dict[int, Tensor]:
        """Layer -> ``[batch, head, pos or 1]`` the weighted slopes along each gate, of every line that moves it."""
        wide = torch.float64
        size = len(self.batch)
        counted = self._counted()
        totals = {
            layer: torch.zeros(size, member.shape[1], counted.shape[1], dtype=wide)
            for layer, member in self.members.items()
        }
        for jobs in self._jobs(len(points)):
            prompts, lines, nodes = jobs.unbind(1)
            alpha = torch.from_numpy(points)[nodes]
            slopes = self._slopes(prompts, lines, alpha, counted[prompts])
            share = torch.from_numpy(weights)[nodes, None, None]
            for layer, slope in slopes.items():
                moved = self.members[layer][lines].to(wide)[:, :, None]
                totals[layer].index_add_(0, prompts, share * moved * slope.to(wide).cpu())
            if self.request.progress is not None:
                self.request.progress(1)
        return totals

    def _counted(self) -> Tensor:
        """``[batch, pos]`` 1 at the positions whose gates move; one column where a gate is for all of them."""
        if not self.by_row:
            return torch.ones(len(self.batch), 1)
        stack = self.model.stack(self.request.stack)
        mask = self.batch.row_mask(stack.name)
        if mask is None:
            raise BadInput(
                f"Stack {stack.name!r} has no positions that are known before a run; leave pos= and by= out."
            )
        return counted_rows(self.batch, stack, mask.shape[1], self.request).float()

    def _jobs(self, n_points: int) -> Iterator[Tensor]:
        """``[row, 3]`` prompt, line and point of the rows of each forward; prompts fastest."""
        n_lines = next(iter(self.members.values())).shape[0]
        every = torch.cartesian_prod(torch.arange(n_lines), torch.arange(n_points), torch.arange(len(self.batch)))
        yield from every[:, [2, 0, 1]].split(self.request.batch_size or len(self.batch))

    def _slopes(self, prompts: Tensor, lines: Tensor, alpha: Tensor, counted: Tensor) -> dict[int, Tensor]:
        """Layer -> ``[row, head, pos or 1]`` dm/dg at the gates of each row."""
        rows = self.batch if prompts.tolist() == list(range(len(self.batch))) else self.batch.select(prompts)
        wide = torch.promote_types(self.model.dtype, torch.float32)
        leaves: dict[int, Tensor] = {}
        edits: list[Edit] = []
        for layer, at in layer_addresses(self.model.stack(self.request.stack), Site.Z).items():
            moved = self.members[layer][lines][:, None, :] * counted[:, :, None]
            values = (1 - moved * (1 - alpha[:, None, None])).to(self.model.device, wide).requires_grad_()
            leaves[layer] = values
            edits.append(gate(at, values, axes="batch pos head"))
        made = run(self.model, rows, edits=edits, logits=self.request.logits(self.model), graph=True)
        assert made.logits is not None
        with torch.enable_grad():
            total = smooth_metric(self.request)(made.logits, rows).sum()
        # a layer that nothing reads (the last of a vision tower whose features are taken earlier) has slope 0
        slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return {layer: slope.transpose(1, 2) for layer, slope in zip(leaves, slopes, strict=True)}


def _arranged(model: Model, batch: Batch, request: Request, cells: Cells, *, by_row: bool) -> np.ndarray:
    if by_row:
        return summed_or_kept(model, batch, request, cells)
    return grid(model, request, {layer: cell[..., 0] for layer, cell in per_unit(model, request, cells).items()})


def _completeness(
    model: Model, batch: Batch, request: Request, array: np.ndarray, units: Sequence[Cell]
) -> dict[str, float]:
    """How far the contributions are from summing to what closing all gates takes away."""
    stack, unit = model.stack(request.stack), unit_of(request.site, request.by)
    closed: dict[int, list[int]] = {}
    for layer, index, _ in units:
        closed.setdefault(layer, []).extend(query_heads(stack, layer, index, unit))
    edits = [zero(At(Site.Z, layer, heads=heads, pos=request.pos, stack=stack.name)) for layer, heads in closed.items()]
    swept = sweep(model, batch, [edits], request.metric, logits=request.logits(model), batch_size=request.batch_size)
    difference = -swept.effects[0].double().cpu().numpy()
    total = np.nansum(array.reshape(len(batch), -1), axis=1)
    return {
        "sum": float(total.mean()),
        "difference": float(difference.mean()),
        "residual": float(np.abs(total - difference).max()),
    }
