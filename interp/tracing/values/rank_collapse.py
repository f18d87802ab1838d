"""How near the states of a prompt's tokens are to being all the same: the distance to equal rows, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.run import run
from interp.names import lookup
from interp.scores.dropping import Sinks, dropped_columns
from interp.stats import bootstrap_means

NORMS: Mapping[str, str] = MappingProxyType(
    {
        "frobenius": "the root of the sum of squares",
        "1-inf": "sqrt(||X||_1 ||X||_inf): largest column sum times largest row sum, as in the theorem",
    }
)


@dataclass(frozen=True, eq=False)
class RankCollapse:
    """Relative distances to equal rows.

    Attributes:
        values: ``[prompt, depth]`` ``||res(X)|| / ||X||`` of the residual stream that enters each block, and last of
            the one that leaves the last block.
        ranks: ``[prompt, depth]`` singular values above the tolerance, None where it was not asked for.
        norm: which norm.
        stack: whose tokens.
        metadata: what a reader should know; JSON.
    """

    values: Float[np.ndarray, "prompt depth"]
    ranks: Float[np.ndarray, "prompt depth"] | None
    norm: str
    stack: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per depth: depth (blocks passed), value, low, high (a bootstrap interval over prompts), rank."""
        low, high = bootstrap_means(self.values, confidence=confidence)
        columns: dict[str, Any] = {
            "depth": np.arange(self.values.shape[1]),
            "value": self.values.mean(0),
            "low": low,
            "high": high,
        }
        if self.ranks is not None:
            columns["rank"] = self.ranks.mean(0)
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.3g}" for value in self.values.mean(0))
        return f"RankCollapse({self.norm}, {len(self.values)} prompts: {shown})"


def relative_residual(
    x: Float[Tensor, "*batch token d_model"],
    mask: Bool[Tensor, "*batch token"] | None = None,
    *,
    norm: str = "frobenius",
    normalise_rows: bool = False,
) -> Float[Tensor, "*batch"]:
    """``||X - 1 m^T|| / ||X||`` with m the mean row: 0 where all rows are equal, 1 where they sum to 0.

    The mean row is what makes the Frobenius distance smallest. For ``1-inf`` it is not, so that the number is at least
    what the best row would give (Dong et al., 2021, define the residual by the best one). An X of zeros has 0.

    Args:
        x: states.
        mask: the tokens that count, all for None.
        norm: ``frobenius`` or ``1-inf``.
        normalise_rows: divide each row by its length first, so that no token outweighs the others.

    Raises:
        UnknownName: another norm.

    Example:
        >>> same = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
        >>> float(relative_residual(same)), float(relative_residual(torch.eye(2), norm="1-inf"))
        (0.0, 1.0)
    """
    lookup(norm, NORMS, "norm")
    wide = x.double()
    if normalise_rows:
        wide = torch.nn.functional.normalize(wide, dim=-1)
    weight = torch.ones_like(wide[..., :1]) if mask is None else mask.unsqueeze(-1).to(wide)
    wide = torch.where(weight > 0, wide, torch.zeros_like(wide))
    mean = wide.sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1)
    left, whole = _size((wide - mean) * weight, norm), _size(wide, norm)
    return torch.where(whole > 0, left / whole.clamp(min=torch.finfo(whole.dtype).tiny), torch.zeros_like(whole))


def collapse_bound(residual: float, *, beta: float, heads: int, d_qk: int, layers: int) -> float:
    """The bound on the residual of attention layers without skip connections, in the norm ``1-inf``.

    ``||res(SAN(X))|| <= (4 H beta / sqrt(d))^((3^L - 1) / 2) ||res(X)||^(3^L)`` where ``||W_QK||_1 ||W_V||_{1,inf} <=
    beta`` for every head (Dong et al., 2021): doubly exponential where ``4 H beta ||res(X)||^2 / sqrt(d) < 1``, and
    saying nothing otherwise.

    Args:
        residual: ``||res(X)||`` of the input.
        beta: of the weights.
        heads: H, in each layer.
        d_qk: d, width of queries and keys.
        layers: L.

    Raises:
        BadInput: numbers below 0, or no layer.

    Example:
        >>> collapse_bound(0.5, beta=0.25, heads=1, d_qk=1, layers=2) == 0.5**9
        True
    """
    if min(residual, beta) < 0 or heads < 1 or d_qk < 1 or layers < 0:
        raise BadInput(
            f"collapse_bound: residual={residual}, beta={beta}, heads={heads}, d_qk={d_qk}, layers={layers}; expected "
            "norms of 0 or more and at least one head and channel."
        )
    if residual == 0 or beta == 0:
        return 0.0 if layers or residual == 0 else residual
    power = 3**layers
    exponent = (power - 1) / 2 * math.log(4 * heads * beta / math.sqrt(d_qk)) + power * math.log(residual)
    return math.exp(exponent) if exponent < math.log(np.finfo(float).max) else math.inf


def rank_collapse(
    model: Model,
    batch: Batch,
    *,
    norm: str = "frobenius",
    stack: str | None = None,
    exclude_sinks: Sinks = None,
    normalise_rows: bool = False,
    rank_tolerance: float | None = None,
) -> RankCollapse:
    """How near the tokens' states are to being all the same, before each block and after the last.

    ``||X - 1 m^T|| / ||X||`` over the real tokens of each prompt, with m their mean. Attention alone drives it to 0
    doubly exponentially with depth; skip connections and MLPs work against that (Dong et al., 2021). A sink's massive
    state can outweigh all others: leave sinks out, or normalise rows, and say so.

    Args:
        model: the handle.
        batch: the prompts.
        norm: ``frobenius`` or ``1-inf``; see :func:`relative_residual`.
        stack: whose tokens; the default stack for None.
        exclude_sinks: tokens that do not count; see :func:`interp.score`.
        normalise_rows: divide each token's state by its length first.
        rank_tolerance: count singular values above this besides; 0.5 in the authors' code.

    Raises:
        UnknownName: another norm.
        BadInput: a tolerance that is no positive number, or sinks that leave no token in a prompt.
        Unsupported: a stack whose stream cannot be read, or rows without a batch axis.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> rank_collapse(model, interp.encode(model, torch.tensor([[0, 3, 4, 5]]))).values.shape
        (1, 3)
    """
    lookup(norm, NORMS, "norm")
    if rank_tolerance is not None and not rank_tolerance > 0:
        raise BadInput(f"rank_collapse: rank_tolerance={rank_tolerance!r}; expected a positive number, such as 0.5.")
    place = model.stack(stack)
    for site in (Site.RESID_PRE, Site.RESID_POST):
        place.require(site, edit=False)
    if place.family.packed:
        raise BadInput(
            f"rank_collapse: stack {place.name!r} packs the rows of all images without a batch axis, so that no prompt "
            "stands apart."
        )
    mask, dropped = batch.row_mask(place.name), dropped_columns(exclude_sinks, batch, place)
    reads = [At(Site.RESID_PRE, layer=layer, stack=place.name) for layer in range(place.n_layers)]
    reads.append(At(Site.RESID_POST, layer=place.n_layers - 1, stack=place.name))
    made = run(model, batch, reads, logits=fewest_logits(model))
    values, ranks = [], []
    for at in reads:
        x = made[at]
        counted = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        if dropped is not None:
            counted = counted & ~dropped.cpu()
        counted = counted.to(x.device)
        values.append(relative_residual(x, counted, norm=norm, normalise_rows=normalise_rows))
        if rank_tolerance is not None:
            ranks.append(_ranks(x, counted, normalise_rows, rank_tolerance))
    said = {"excluded": str(exclude_sinks), "normalise_rows": normalise_rows, "rank_tolerance": rank_tolerance}
    return RankCollapse(
        torch.stack(values, dim=1).cpu().numpy(),
        torch.stack(ranks, dim=1).cpu().double().numpy() if ranks else None,
        norm,
        place.name,
        said,
    )


def _size(x: Tensor, norm: str) -> Tensor:
    if norm == "frobenius":
        return x.square().sum((-1, -2)).sqrt()
    size = x.abs()
    return (size.sum(-2).amax(-1) * size.sum(-1).amax(-1)).sqrt()


def _ranks(x: Tensor, mask: Tensor, normalise_rows: bool, tolerance: float) -> Tensor:
    wide = torch.nn.functional.normalize(x.double(), dim=-1) if normalise_rows else x.double()
    wide = torch.where(mask.unsqueeze(-1), wide, torch.zeros_like(wide))
    return (torch.linalg.svdvals(wide) > tolerance).sum(-1)
