"""Selectivity of rows: how separable the selected keys are, and how steep the softmax is where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.names import unknown
from interp.scores.ask import Ask
from interp.scores.shape.distribution import DistributionMean, Queries, distributions
from interp.scores.shape.selection import largest
from interp.scores.shape.support import check_n, wanted_keys

Of = Literal["value", "residual"]
_STEPS = 60
_ENTRIES = 1 << 17
_ROUNDING = 1e-5


def jacobian_norm(pattern: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows"]:
    """``[..., row]`` spectral norm of each row's softmax Jacobian ``diag(p) - p p^T`` at temperature 1, in [0, 1/2].

    The largest root of ``sum_i p_i / (p_i - x) = 0``, which lies between the two largest p; 1/n for a uniform row of n
    keys, 0 for a one-hot one. At temperature tau divide by tau.

    Args:
        pattern: rows that sum to 1; others give NaN if they hold nothing, and the norm of ``p / sum p`` else.

    Example:
        >>> jacobian_norm(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.5000, 0.0000])
    """
    flat = pattern.reshape(-1, pattern.shape[-1])
    step = max(1, _ENTRIES // max(flat.shape[1], 1))  # what stays in the cache is much faster
    return torch.cat([_norms(rows) for rows in flat.split(step)]).view(pattern.shape[:-1])


def _norms(rows: Float[Tensor, "row key"]) -> Float[Tensor, " row"]:
    p = rows / rows.sum(-1, keepdim=True)
    first, place = p.max(-1)
    rest = p.scatter(-1, place.unsqueeze(-1), 0.0)
    others, squares = rest.sum(-1), torch.linalg.vector_norm(rest, dim=-1).square()
    variance = first * others  # p_1 (1 - p_1), the largest diagonal entry; twice it is Gershgorin's bound
    high = torch.minimum(first, 2 * variance)
    low = torch.minimum(torch.maximum(rest.amax(-1), variance), high)
    half = (variance - squares) / 2
    start = half + (half.square() + first * squares).sqrt()  # the root but for the third powers of the others
    found = torch.minimum(torch.maximum(start, low), high)
    _refine(found, first, rest, low, high)
    return found.clamp(max=0.5)


def _refine(found: Tensor, first: Tensor, rest: Tensor, low: Tensor, high: Tensor) -> None:
    """Newton's steps towards ``first = (first - x) sum_i rest_i / (x - rest_i)`` inside ``[low, high]``, in place."""
    at = torch.arange(len(found), device=found.device)
    x, tiny, eps = found, torch.finfo(found.dtype).tiny, torch.finfo(found.dtype).eps
    close = eps**0.5 / 4  # a Newton step of this size leaves an error of its square
    for _ in range(_STEPS):
        inverse = (x.unsqueeze(-1) - rest).clamp_(min=tiny).reciprocal_()
        share = rest * inverse
        total = share.sum(-1)
        value = first - (first - x) * total  # rises through 0 at the root
        slope = total + (first - x) * share.mul_(inverse).sum(-1)
        low, high = torch.where(value < 0, x, low), torch.where(value < 0, high, x)
        ahead = x - value / slope
        inside = (ahead > low) & (ahead < high)
        following = torch.where(inside, ahead, low + (high - low) / 2)
        step = (following - x).abs()
        done = torch.where(inside, step <= close * x, step <= 2 * eps * x) | x.isnan()
        x = torch.where(x.isnan(), x, following)
        found[at] = x
        left = (~done).nonzero().squeeze(-1)
        if not len(left):
            return
        if len(left) <= len(at) // 2:
            at, x, first, rest, low, high = at[left], x[left], first[left], rest[left], low[left], high[left]


class JacobianNorm(DistributionMean):
    """The mean over rows of the softmax Jacobian's spectral norm."""

    def __init__(self, ask: Ask, temperature: float, queries: Queries) -> None:
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
            raise BadInput(f"{ask.name}: temperature={temperature!r}; expected a number above 0.")
        super().__init__(ask, queries)
        self.temperature = float(temperature)

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """The norm of each row."""
        return jacobian_norm(block.pattern) / self.temperature


def softmax_jacobian(ask: Ask, temperature: float = 1.0, queries: Queries = None) -> JacobianNorm:
    """The mean over rows of ``||diag(p) - p p^T||_2 / tau``: how much the row can move when a logit does.

    Args:
        ask: what is scored.
        temperature: tau. At 1 the norm is at most 1/2 (two keys with half each); 1/n on uniform rows, 0 on one-hot.
        queries: the rows that count, or classes of rows.

    Raises:
        BadInput: a temperature that is not above 0.
    """
    return JacobianNorm(ask, temperature, queries)


def separable_share(
    pattern: Float[Tensor, "*rows key"],
    selected: Bool[Tensor, "*rows key"],
    others: Bool[Tensor, "*rows key"],
    products: Float[Tensor, "*rows key"],
    squares: Float[Tensor, "*#rows key"],
) -> Float[Tensor, "*rows"]:
    """``[..., row]`` share of the selected keys that lie closer to ``c = sum_selected A_j x_j`` than any other key.

    Distances are compared by ``|x|^2 - 2 x.c``, which leaves out what is the same for all keys. NaN without others.

    Args:
        pattern: rows of attention.
        selected: the keys that were selected.
        others: the visible keys that were not.
        products: ``x_j . c`` of each row and key.
        squares: ``|x_j|^2``.
    """
    distance = squares - 2 * products
    rounding = _ROUNDING * squares.amax(-1, keepdim=True)  # copies of one vector are not closer than each other
    nearest = torch.where(others, distance, torch.full_like(distance, torch.inf)).amin(-1, keepdim=True)
    found = (selected & (distance < nearest - rounding)).sum(-1) / selected.sum(-1)
    return torch.where(others.any(-1), found, torch.full_like(found, torch.nan))


class Separability(DistributionMean):
    """The mean over rows of the share of selected keys that lie closer to their sum than every other key."""

    def __init__(self, ask: Ask, n: int | float, of: Of, queries: Queries) -> None:
        check_n(ask, n)
        if of not in get_args(Of):
            raise BadInput(unknown(of, get_args(Of), f"representation of {ask.name}"))
        super().__init__(ask, queries, fewest=n + 1 if isinstance(n, int) else 2)
        self.n, self.site = n, Site.V if of == "value" else Site.RESID_PRE
        self.sites = frozenset({self.site})
        ask.stack.require(self.site, edit=False)
        self.points: Float[Tensor, "batch head key d"] = torch.empty(0, 0, 0, 0)

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """What each key holds: ``[batch, head or 1, key, d]``."""
        points = seen[self.site].float()
        if self.site is Site.RESID_PRE:
            self.points = points.unsqueeze(1)
            return
        group = self.ask.stack.n_heads(layer) // self.ask.stack.n_kv_heads(layer)
        self.points = points.transpose(1, 2).repeat_interleave(group, 1)

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Forget the layer."""
        self.points = torch.empty(0, 0, 0, 0)

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """The share of each row."""
        pattern, n_open = distributions(block), block.n_open
        selected = largest(pattern, torch.minimum(wanted_keys(self.n, n_open), n_open))
        points = self.points[:, :, : block.n_keys]
        centre = torch.matmul(pattern * selected, points)
        products = torch.matmul(centre, points.transpose(-2, -1))
        squares = points.square().sum(-1).unsqueeze(2)
        return separable_share(pattern, selected, block.open_keys & ~selected, products, squares)


def separability(ask: Ask, n: int | float = 5, of: Of = "value", queries: Queries = None) -> Separability:
    """The mean over rows of the share of the n keys with most mass that lie closer to their sum than every other key.

    ``c = sum_selected A_j x_j``; a selected key counts where ``|x_j - c|`` is below that of the nearest key that was
    not selected (this library's reading of geometric separability). About 0.70 to 0.85 is reported of GPT-2 heads by a
    third party, and a fall to 0 where n grows with the number of keys.

    Args:
        ask: what is scored.
        n: a number of keys, or a share of the keys that a row sees; rows that see no more are left out.
        of: what a key holds: the head's ``"value"`` vector, or the ``"residual"`` that enters the layer.
        queries: the rows that count, or classes of rows.

    Raises:
        BadInput: n or ``of`` is something else.
    """
    return Separability(ask, n, of, queries)
