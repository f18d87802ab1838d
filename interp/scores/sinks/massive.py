"""Massive values: dimensions of a head's queries, keys or values that are far larger than the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.edits import custom
from interp.edits.base import Context, Edit
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.names import unknown
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer

Pairs = Literal["half", "interleaved"]
FACTOR = 5.0  # Jin et al., 2025
_SITES = {"Q": Site.Q, "K": Site.K, "V": Site.V}


def dimension_norms(
    x: Float[Tensor, "batch pos head d_head"], mask: Bool[Tensor, "batch pos"] | None = None
) -> Float[Tensor, "batch head d_head"]:
    """``[batch, head, d_head]`` ``M[h, d] = ||X[h, :, d]||_2`` over the real tokens.

    Args:
        x: queries, keys or values of each head.
        mask: real tokens, all for None.

    Example:
        >>> dimension_norms(torch.tensor([[[[3.0, 0.0]], [[4.0, 1.0]]]]))
        tensor([[[5., 1.]]])
    """
    real = x.float() if mask is None else torch.where(mask[:, :, None, None], x.float(), 0.0)
    return torch.linalg.vector_norm(real, dim=1)


def ratios(norms: Float[Tensor, "*heads d_head"]) -> Float[Tensor, "*heads d_head"]:
    """Each dimension's norm over the mean of its head's; at most d_head, 1 where all are alike, 0 if all are 0."""
    mean = norms.mean(-1, keepdim=True)
    return norms / mean.where(mean > 0, torch.ones_like(mean))


def pair_norms(
    norms: Float[Tensor, "*heads d_head"], pairs: Pairs, rotary: int | None = None
) -> Float[Tensor, "*heads d_head"]:
    """``sqrt(M_d^2 + M_d'^2)`` at both members d, d' of each pair that a rotary embedding turns together.

    A constant on a fast dimension is split between the two after the rotation, and whole in the pair's norm.

    Args:
        norms: per dimension.
        pairs: ``"half"`` pairs d with d + r/2 (Llama and most others), ``"interleaved"`` 2d with 2d + 1 (GPT-J).
        rotary: r, how many of the first dimensions are turned; all by default. The others stay as they are.

    Raises:
        BadInput: another convention, or an odd number of dimensions.

    Example:
        >>> pair_norms(torch.tensor([3.0, 0.0, 4.0, 1.0]), "half")
        tensor([5., 1., 5., 1.])
    """
    if pairs not in get_args(Pairs):
        raise BadInput(unknown(pairs, get_args(Pairs), "convention of rotary pairs"))
    size = norms.shape[-1] if rotary is None else rotary
    if size % 2 or not 0 < size <= norms.shape[-1]:
        raise BadInput(
            f"rotary={rotary}: pairs among {size} of {norms.shape[-1]} dimensions; expected an even number of them."
        )
    turned, rest = norms[..., :size], norms[..., size:]
    two = turned.unflatten(-1, (2, size // 2) if pairs == "half" else (size // 2, 2))
    axis = -2 if pairs == "half" else -1
    both = torch.linalg.vector_norm(two, dim=axis, keepdim=True).expand_as(two).flatten(-2)
    return torch.cat([both, rest], dim=-1)


class DimensionNorms(Reducer):
    """Norms of every dimension of one site, and how many are massive."""

    maps = False

    def __init__(self, ask: Ask, site: Site, factor: float, pairs: Pairs | None, rotary: int | None) -> None:
        super().__init__(ask)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
            raise BadInput(f"{ask.name}: factor={factor!r}; expected a number above 0 (5 in the paper).")
        if pairs is not None:
            for layer in ask.layers:  # refused before the forward
                pair_norms(torch.zeros(ask.stack.d_head(layer)), pairs, rotary)
        ask.stack.require(site, edit=False)
        self.site, self.factor, self.rotary = site, float(factor), rotary
        self.pairs: Pairs | None = pairs
        self.sites = frozenset({site})
        self.norms: dict[int, Tensor] = {}

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer's norms."""
        mask = self.ask.mask if self.site is Site.Q else self.ask.key_mask
        self.norms[layer] = dimension_norms(seen[self.site], mask)

    def compared(self, layer: int) -> Tensor:
        """``[batch, head, d_head]`` what is compared with its mean: norms of dimensions, or of pairs."""
        norms = self.norms[layer]
        return norms if self.pairs is None else pair_norms(norms, self.pairs, self.rotary)

    def measured(self) -> Measured:
        """How many dimensions exceed ``factor`` times the mean."""
        made = {layer: (ratios(self.compared(layer)) > self.factor).sum(-1).double() for layer in self.norms}
        about = {"factor": self.factor, "pairs": self.pairs}
        return Measured(made, unit="query" if self.site is Site.Q else "kv", metadata=about)


def massive_q(
    ask: Ask, factor: float = FACTOR, pairs: Pairs | None = None, rotary: int | None = None
) -> DimensionNorms:
    """How many dimensions d of a head's queries have ``M[h, d] > factor * mean_d' M[h, d']`` (Jin et al., 2025).

    ``M[h, d]`` is the norm over a prompt's tokens, after the rotary embedding and any norm of queries.

    Args:
        ask: what is scored.
        factor: lambda; at most d_head can be reached.
        pairs: compare norms of rotary pairs (``"half"`` or ``"interleaved"``) in place of single dimensions.
        rotary: how many of the first dimensions are turned, all by default.

    Raises:
        BadInput: a factor that is not above 0, or pairs that do not fit.
    """
    return DimensionNorms(ask, Site.Q, factor, pairs, rotary)


def massive_k(
    ask: Ask, factor: float = FACTOR, pairs: Pairs | None = None, rotary: int | None = None
) -> DimensionNorms:
    """The same of keys, per key/value head."""
    return DimensionNorms(ask, Site.K, factor, pairs, rotary)


def massive_v(ask: Ask, factor: float = FACTOR) -> DimensionNorms:
    """The same of values, per key/value head, where none are expected."""
    return DimensionNorms(ask, Site.V, factor, None, None)


@dataclass(frozen=True, eq=False, repr=False)
class MassiveDimensions:
    """Norms of the dimensions of queries, keys and values, and which are massive.

    Attributes:
        norms: ``"Q"``, ``"K"``, ``"V"`` -> layer -> ``[prompt, head, d_head]``; K and V have key/value heads.
        factor: how many times the mean counts as massive.
        stack: whose heads.
        metadata: how the numbers were made.
    """

    norms: Mapping[str, Mapping[int, Float[np.ndarray, "prompt head d_head"]]]
    factor: float
    stack: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def ratio(self, site: str, layer: int, *, pairs: Pairs | None = None, rotary: int | None = None) -> np.ndarray:
        """``[head, d_head]`` mean over prompts of the norm over its head's mean; of pairs where they are named."""
        norms = torch.as_tensor(self._of(site)[layer])
        return ratios(norms if pairs is None else pair_norms(norms, pairs, rotary)).mean(0).numpy()

    def mask(self, site: str, layer: int, *, pairs: Pairs | None = None, rotary: int | None = None) -> np.ndarray:
        """``[head, d_head]`` True at massive dimensions."""
        return self.ratio(site, layer, pairs=pairs, rotary=rotary) > self.factor

    def count(self, site: str) -> int:
        """How many dimensions of all heads are massive."""
        return int(sum(self.mask(site, layer).sum() for layer in self._of(site)))

    def table(self) -> pd.DataFrame:
        """One row per massive dimension, the largest first: site, layer, head, dimension, ratio to the mean."""
        rows = [
            (site, layer, int(head), int(place), float(self.ratio(site, layer)[head, place]))
            for site, layers in self.norms.items()
            for layer in layers
            for head, place in zip(*np.nonzero(self.mask(site, layer)), strict=True)
        ]
        made = pd.DataFrame(rows, columns=["site", "layer", "head", "dimension", "ratio"])
        return made.sort_values("ratio", ascending=False, kind="stable").reset_index(drop=True)

    def edits(self, site: str = "Q", *, top: int = 1, smallest: bool = False) -> list[Edit]:
        """Edits that replace the top dimensions of every head by their means over a prompt's tokens, at prefill.

        Args:
            site: ``"Q"`` or ``"K"``.
            top: how many dimensions of each head.
            smallest: the smallest in place of the largest, for comparison.

        Raises:
            BadInput: another site, or more dimensions than a head has.

        Disrupting the largest is reported to ruin what is read from the context and to spare what is recalled
        (Jin et al., 2025).
        """
        if site not in ("Q", "K"):
            raise BadInput(f"edits: site={site!r}; expected 'Q' or 'K'.")
        made = []
        for layer in self._of(site):
            ratio = self.ratio(site, layer)
            if not 1 <= top <= ratio.shape[1]:
                raise BadInput(f"edits: top={top}; the heads of layer {layer} have {ratio.shape[1]} dimensions.")
            order = np.argsort(ratio if smallest else -ratio, axis=1, kind="stable")[:, :top]
            chosen = torch.zeros(ratio.shape, dtype=torch.bool).scatter(1, torch.as_tensor(order.copy()), True)
            made.append(custom(At(_SITES[site], layer=layer, stack=self.stack), _averaged(chosen), phase="prefill"))
        return made

    def _of(self, site: str) -> Mapping[int, np.ndarray]:
        if site not in self.norms:
            raise BadInput(unknown(site, self.norms, "site"))
        return self.norms[site]

    def __repr__(self) -> str:
        counts = ", ".join(f"{site} {self.count(site)}" for site in self.norms)
        return f"MassiveDimensions(over {self.factor:g} times the mean: {counts})"


def _averaged(chosen: Bool[Tensor, "head d_head"]) -> Any:
    def apply(x: Tensor, ctx: Context) -> Tensor:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if ctx.row_mask is not None:
            real = ctx.row_mask.to(x.device).repeat_interleave(len(x) // len(ctx.row_mask), 0)
        counted = real[:, :, None, None]
        mean = torch.where(counted, x, torch.zeros_like(x)).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        return torch.where(chosen.to(x.device) & counted, mean.to(x.dtype), x)

    return apply


def massive_dimensions(
    model: Model, batch: Batch, factor: float = FACTOR, *, stack: str | None = None
) -> MassiveDimensions:
    """Norms of every dimension of queries, keys and values, and which exceed ``factor`` times their head's mean.

    Args:
        model: the handle.
        batch: the prompts; norms are over each one's tokens.
        factor: lambda.
        stack: whose heads, the default stack for None.

    ``M[h, d] = ||X[h, :, d]||_2`` after the rotary embedding; massive where it exceeds ``factor * mean_d' M[h, d']``
    (Jin et al., 2025). Massive dimensions are reported in queries and keys, in the same slow rotary dimensions from the
    first layer on, and not in values; 1476, 1497 and 174 of Llama-2-7B by a third party's count.

    Raises:
        BadInput: a factor that is not above 0.
        Unsupported: queries and keys cannot be read on this stack.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> massive_dimensions(model, interp.encode(model, torch.tensor([[0, 3, 4, 3]]))).norms["K"][0].shape[:2]
        (1, 2)
    """
    place = model.stack(stack)
    ask = Ask("massive_dimensions", model, batch, place)
    reducers = {name: DimensionNorms(ask, site, factor, None, None) for name, site in _SITES.items()}
    ask.stream(list(reducers.values()))
    norms = {
        name: {layer: norm.cpu().numpy() for layer, norm in sorted(reducer.norms.items())}
        for name, reducer in reducers.items()
    }
    return MassiveDimensions(norms, float(factor), place.name, {"model": model.name, "prompts": len(batch)})
