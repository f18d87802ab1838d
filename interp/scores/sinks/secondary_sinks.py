"""Secondary sinks: tokens inside a prompt that point like its first token for some layers, and what they receive.

A token is a candidate at a layer where the residual that enters it points like the first token's. Tokens that do so for
a part of the depth are secondary sinks, born where they first do; those that do so for most of it are copies of the
primary sink. The published constants are numbers of layers of deep models; here they are shares of the depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer
from interp.scores.shape.distribution import column_sums, lengths, summed
from interp.scores.sinks.sinks import first_columns

COSINE, SHORTEST, LONGEST = 0.9, 1 / 16, 3 / 4
CLASSES = ("first", "secondary", "copy")


class Lives(NamedTuple):
    """What became of each token.

    Attributes:
        secondary: ``[batch, pos]`` True at secondary sinks.
        copy: ``[batch, pos]`` True at copies of the primary sink.
        birth: ``[batch, pos]`` place of the first layer at which the token is a candidate, -1 where it never is.
        lifetime: ``[batch, pos]`` at how many layers it is.
        window: ``[batch, 2]`` the layers compared: from the first number on, before the second.
    """

    secondary: Bool[Tensor, "batch pos"]
    copy: Bool[Tensor, "batch pos"]
    birth: Int[Tensor, "batch pos"]
    lifetime: Int[Tensor, "batch pos"]
    window: Int[Tensor, "batch 2"]


def sink_window(norms: Float[Tensor, "batch depth"]) -> Int[Tensor, "batch 2"]:
    """``[batch, 2]`` the layers at which the first token is a sink: from the first number on, before the second.

    From after the layer at which its norm grows most to after the one at which it falls most from there on.

    Args:
        norms: of the first token's residual entering each layer, and leaving the last.

    Example:
        >>> sink_window(torch.tensor([[1.0, 1.0, 9.0, 9.0, 9.0, 2.0]]))
        tensor([[2, 5]])
    """
    growth = norms[:, 1:] - norms[:, :-1]
    start = growth.argmax(-1) + 1
    places = torch.arange(growth.shape[1], device=norms.device)
    later = torch.where(places >= start[:, None], growth, torch.inf)
    end = torch.where(start < growth.shape[1], later.argmin(-1) + 1, growth.shape[1])
    return torch.stack([start, end], dim=-1)


def lives_of(
    cosines: Float[Tensor, "batch layer pos"],
    norms: Float[Tensor, "batch depth"],
    candidates: Bool[Tensor, "batch pos"],
    *,
    cosine: float = COSINE,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
) -> Lives:
    """Which tokens are secondary sinks, which copies of the primary one, with their birth and lifetime.

    Args:
        cosines: of each token's residual entering a layer with the first token's.
        norms: of the first token's residual entering each layer, and leaving the last.
        candidates: real tokens without the first.
        cosine: a token is a candidate at a layer where ``|cos|`` exceeds it.
        shortest: a secondary sink lives at more than this share of the layers.
        longest: and at fewer than this share; from there on it is a copy.
    """
    window, depth = sink_window(norms), cosines.shape[1]
    places = torch.arange(depth, device=cosines.device)
    inside = (places >= window[:, :1]) & (places < window[:, 1:])
    alike = (cosines.abs() > cosine) & inside.unsqueeze(-1) & candidates.unsqueeze(1)
    lifetime = alike.sum(1)
    birth = torch.where(lifetime > 0, alike.int().argmax(1), -1)
    copy = (lifetime > 0) & (lifetime >= longest * depth)
    secondary = (lifetime > shortest * depth) & ~copy
    return Lives(secondary, copy, birth, lifetime, window)


class SinkClasses(Reducer):
    """Residuals beside the first token's, and what every key receives, for classes that are known after the last layer.

    Args:
        ask: what is scored.
        cosine, shortest, longest: see :func:`lives_of`.
    """

    sites = frozenset({Site.RESID_PRE, Site.RESID_POST})

    def __init__(self, ask: Ask, cosine: float, shortest: float, longest: float) -> None:
        super().__init__(ask)
        shares = {"cosine": cosine, "shortest": shortest, "longest": longest}
        for name, given in shares.items():
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
                raise BadInput(f"{ask.name}: {name}={given!r}; expected a number from 0 to 1.")
        if not shortest < longest:
            raise BadInput(f"{ask.name}: shortest={shortest} and longest={longest}; expected shortest below longest.")
        for site in self.sites:
            ask.stack.require(site, edit=False)
        self.shares = shares
        self.first = first_columns(ask, 1)[:, 0]
        self.directions: dict[int, Tensor] = {}  # layer -> [batch, d_model] the first token's residual
        self.cosines: dict[int, Tensor] = {}
        self.sizes: dict[int, Tensor] = {}  # layer -> [batch, pos] norms of residuals
        self.last_norm: Tensor = torch.empty(0)
        self.mass: dict[int, Tensor] = {}
        self.seen_by: dict[int, Tensor] = {}
        self.rows_seen: dict[int, Tensor] = {}

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Where each token's residual points, beside the first token's."""
        x = seen[Site.RESID_PRE].float()
        first = self._first_of(x)
        self.directions[layer], self.sizes[layer] = first, torch.linalg.vector_norm(x, dim=-1)
        self.cosines[layer] = torch.nn.functional.cosine_similarity(x, first.unsqueeze(1), dim=-1)

    def _first_of(self, x: Tensor) -> Tensor:
        return x[torch.arange(len(x), device=x.device), self.first.to(x.device)]

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add what each key receives, and from how many queries."""
        seen = (block.open_keys & block.real[:, None, :, None]).any(1).sum(1)
        parts = {"mass": column_sums(block.pattern), "seen_by": seen}
        for name, part in parts.items():
            held = getattr(self, name)
            held[block.layer] = summed(held.get(block.layer), part)
        counted = ((block.kept_mass > 0) & block.real[:, None]).sum(-1)
        self.rows_seen[block.layer] = self.rows_seen.get(block.layer, 0) + counted

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The norm after the last layer."""
        self.last_norm = torch.linalg.vector_norm(self._first_of(seen[Site.RESID_POST].float()), dim=-1)

    @property
    def norms(self) -> Float[Tensor, "batch depth"]:
        """Of the first token's residual entering each layer and leaving the last."""
        entering = [torch.linalg.vector_norm(x, dim=-1) for _, x in sorted(self.directions.items())]
        return torch.stack([*entering, self.last_norm], dim=-1)

    def lives(self) -> Lives:
        """What became of each token; births are places among the layers with attention."""
        cosines = torch.stack([x for _, x in sorted(self.cosines.items())], dim=1)
        mask = self.ask.mask
        real = torch.ones_like(cosines[:, 0], dtype=torch.bool) if mask is None else mask.to(cosines.device)
        candidates = real.scatter(1, self.first.to(real.device).expand(len(real))[:, None], False)
        return lives_of(cosines, self.norms, candidates, **self.shares)

    def members(self) -> Bool[Tensor, "batch pos 3"]:
        """Which class each token belongs to, in the order of ``CLASSES``."""
        lives = self.lives()
        place = self.first.to(lives.copy.device).expand(len(lives.copy))[:, None]
        first = torch.zeros_like(lives.copy).scatter(1, place, True)
        return torch.stack([first, lives.secondary, lives.copy], dim=-1)

    def measured(self) -> Measured:
        """The mean over rows of the mass on each class; NaN where a prompt has no token of it but left-out ones."""
        members = self.members()
        left = members if self.ask.dropped is None else members & ~self.ask.dropped.to(members.device).unsqueeze(-1)
        there = left.any(1)[:, None]
        made = {}
        for layer, mass in self.mass.items():
            member = members[:, : mass.shape[-1]].double()
            share = torch.einsum("bhk,bkc->bhc", mass, member) / self.rows_seen[layer].unsqueeze(-1)
            made[layer] = torch.where(there, share, torch.nan)
        counts = members.sum((0, 1)).tolist()
        about = {"tokens": lengths(self.ask), **self.shares}
        totals = {"classes": dict(zip(CLASSES, counts, strict=True))}
        return Measured(made, bins=CLASSES, metadata=about, totals=totals)


def secondary_sink_mass(
    ask: Ask, cosine: float = COSINE, shortest: float = SHORTEST, longest: float = LONGEST
) -> SinkClasses:
    """What a head gives to the first token, to secondary sinks and to copies of the primary sink: means over rows.

    See :func:`interp.secondary_sinks` for the tokens themselves.

    Args:
        ask: what is scored.
        cosine: a token is a candidate at a layer where its residual's ``|cos|`` with the first token's exceeds it.
        shortest: a secondary sink is a candidate at more than this share of the layers (the published numbers, 4 and
            all but 15 layers, are those of models of 40 to 64; the shares are this library's).
        longest: at fewer than this share; from there on the token is a copy of the primary sink.

    Raises:
        BadInput: shares outside [0, 1] or out of order.
        Unsupported: residuals cannot be read on this stack.
    """
    return SinkClasses(ask, cosine, shortest, longest)
