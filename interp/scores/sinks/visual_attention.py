"""``visual_sinks``: which tokens are sinks at each layer of prompts with images, and the edit that uses their mass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.edits import custom
from interp.edits.attention import redistribute_mass
from interp.edits.base import Context, Edit
from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.scores.ask import Ask
from interp.scores.reducer import Reducer
from interp.scores.sinks.visual_sinks import (
    LEAST_MASS,
    RHO,
    TAU,
    given_dimensions,
    image_centric_rows,
    image_of,
    sink_dimensions,
    sink_size,
    text_after,
)


class _Sizes(Reducer):
    """Phi of every token at every layer."""

    maps = False
    sites = frozenset({Site.RESID_PRE})

    def __init__(self, ask: Ask, dimensions: Sequence[int]) -> None:
        super().__init__(ask)
        self.dimensions = dimensions
        self.phi: dict[int, Tensor] = {}

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer's sizes."""
        self.phi[layer] = sink_size(seen[Site.RESID_PRE], self.dimensions)


@dataclass(frozen=True, eq=False, repr=False)
class VisualSinks:
    """Sizes of the sink dimensions of every token at every layer.

    Attributes:
        phi: layer -> ``[prompt, pos]`` see :func:`interp.scores.sinks.visual_sinks.sink_size`.
        image: ``[prompt, pos]`` True at image tokens.
        text_rows: ``[prompt, pos]`` True at the tokens after the image.
        mask: ``[prompt, pos]`` real tokens.
        dimensions: the sink dimensions.
        tau: a token whose phi exceeds it is a sink.
        stack: whose residuals.
        metadata: how the numbers were made.
    """

    phi: Mapping[int, Float[Tensor, "prompt pos"]]
    image: Bool[Tensor, "prompt pos"]
    text_rows: Bool[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"]
    dimensions: tuple[int, ...]
    tau: float
    stack: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def sinks(self, layer: int) -> Bool[Tensor, "prompt pos"]:
        """Every sink of a layer."""
        return (self.phi[layer] > self.tau) & self.mask

    def visual(self, layer: int) -> Bool[Tensor, "prompt pos"]:
        """Sinks among the image tokens."""
        return self.sinks(layer) & self.image

    def text(self, layer: int) -> Bool[Tensor, "prompt pos"]:
        """Sinks among the other tokens, the first one above all."""
        return self.sinks(layer) & ~self.image

    def table(self) -> pd.DataFrame:
        """One row per layer, prompt and sink: its column, whether it is an image token, and phi."""
        rows = [
            (layer, prompt, column, bool(self.image[prompt, column]), float(phi[prompt, column]))
            for layer, phi in self.phi.items()
            for prompt, column in self.sinks(layer).nonzero().tolist()
        ]
        return pd.DataFrame(rows, columns=["layer", "prompt", "column", "image", "phi"])

    def redistribution(
        self, p: float = 0.6, *, rho: float = RHO, least_mass: float = LEAST_MASS, last_layer: bool = False
    ) -> list[Edit]:
        """Edits that move mass from sinks to the other image tokens, in heads and rows that are image-centric.

        Args:
            p: what sinks keep of their mass; 1 changes nothing.
            rho, least_mass: of an image-centric row, see :func:`interp.scores.sinks.visual_sinks.image_centric_rows`.
            last_layer: edit the last layer as well.

        At a text row (or a generated token) that is image-centric for a head: ``A'_j = p A_j`` at every sink, text and
        visual, and the other image tokens share what was taken in proportion to what they have (visual attention
        redistribution, Kang et al., 2025). Rows keep their sums. Where an image has no sink nothing is moved.

        Raises:
            BadInput: p outside [0, 1].
        """
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
            raise BadInput(f"redistribution: p={p!r}; expected the share that sinks keep, from 0 to 1.")
        layers = list(self.phi) if last_layer else list(self.phi)[:-1]
        return [
            custom(
                At(Site.PATTERN, layer=layer, stack=self.stack),
                self._mover(layer, 1 - p, rho, least_mass),
                name="visual redistribution",
            )
            for layer in layers
            if bool(self.visual(layer).any())
        ]

    def _mover(self, layer: int, budget: float, rho: float, least_mass: float) -> Any:
        visual, sinks, image = self.visual(layer), self.sinks(layer), self.image

        def columns(member: Tensor, ctx: Context) -> Tensor:
            """``[batch, 1, 1, key]`` over the keys of this call; what was generated since is no member."""
            assert ctx.keys is not None
            held = member.to(ctx.keys.device)[ctx.prompts.to(ctx.keys.device)]
            inside = ctx.keys < held.shape[1]
            return (held[:, ctx.keys.clamp(max=held.shape[1] - 1)] & inside)[:, None, None]

        def move(x: Tensor, ctx: Context) -> Tensor:
            of_visual, of_sinks, of_image = (columns(member, ctx) for member in (visual, sinks, image))
            on_image, on_sinks = ((x * member).float().sum(-1) for member in (of_image, of_visual))
            centric = image_centric_rows(on_image, on_sinks, rho=rho, least_mass=least_mass)
            held = self.text_rows.to(x.device)[ctx.prompts.to(x.device)]
            rows = ctx.rows.to(x.device)
            asked = held[:, rows.clamp(max=held.shape[1] - 1)] | (rows >= held.shape[1])
            chosen = centric & asked[:, None] & of_visual.any(-1)
            moved = redistribute_mass(x, of_sinks, of_image & ~of_visual, budget)
            return torch.where(chosen.unsqueeze(-1), moved, x)

        return move

    def __repr__(self) -> str:
        counts = {layer: int(self.visual(layer).sum()) for layer in self.phi}
        return f"VisualSinks(dimensions {list(self.dimensions)}, visual sinks by layer {counts})"


def visual_sinks(
    model: Model,
    batch: Batch,
    *,
    image: Group = None,
    dimensions: Sequence[int] | None = None,
    tau: float = TAU,
) -> VisualSinks:
    """Which tokens of prompts with images are sinks as they enter each layer.

    Args:
        model: the handle.
        batch: prompts with an image each.
        image: the image tokens, a span's name or columns; by default where the processor left room for the image.
        dimensions: the model's sink dimensions (published ones are in ``KNOWN_DIMENSIONS`` of
            ``interp/scores/sinks/visual_sinks.py``); derived from the first token by one more forward for None.
        tau: a token whose phi exceeds it is a sink (Kang et al., 2025).

    Raises:
        Unsupported: the model takes no images.
        BadInput: a prompt has none, or a dimension that the residual does not have.
    """
    place = model.stack(None)
    ask = Ask("visual_sinks", model, batch, place)
    found = image_of(ask, image)
    chosen = sink_dimensions(ask, tau) if dimensions is None else given_dimensions(ask, dimensions)
    sizes = _Sizes(ask, chosen)
    ask.stream([sizes])
    mask = torch.ones_like(found) if ask.mask is None else ask.mask
    rows = text_after(found, ask.mask)
    phi = dict(sorted(sizes.phi.items()))
    about = {"model": model.name, "derived": dimensions is None}
    return VisualSinks(phi, found, rows, mask, chosen, float(tau), place.name, about)
