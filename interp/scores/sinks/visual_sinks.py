"""Visual sinks: image tokens that draw attention and say nothing, and the heads that look past them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import Site
from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.image_tokens import image_columns
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.long_context.chosen_rows import columns_with_filler
from interp.scores.reducer import Reducer, RowMean
from interp.scores.sinks.sinks import first_columns

TAU = 20.0  # Kang et al., 2025
RHO, LEAST_MASS = 0.5, 0.2
_EPSILON = 1e-6
KNOWN_DIMENSIONS: Mapping[str, tuple[int, ...]] = {
    "LLaMA-2-7B": (1415, 2533),
    "LLaMA-2-13B": (2100, 4743),
    "Qwen2-VL-7B": (458, 2570),
    "InternVL2-8B": (3584,),
}
"""Language model -> its sink dimensions, as published; those of the last two are a third party's."""


def sink_size(residual: Float[Tensor, "*tokens d_model"], dimensions: Sequence[int]) -> Float[Tensor, "*tokens"]:
    """``[...]`` phi: the largest of the sink dimensions of each token, normalised without the learned gain.

    ``phi(x) = max_{d in D} |x_d| / sqrt(mean_d x_d^2 + 1e-6)`` (Kang et al., 2025), at most ``sqrt(d_model)``; 0 where
    there is no sink dimension.

    Args:
        residual: what enters the layer, before its norm.
        dimensions: D.

    Example:
        >>> sink_size(torch.tensor([[3.0, 0.0, 0.0, 4.0]]), [3])
        tensor([1.6000])
    """
    if not len(dimensions):
        return residual.new_zeros(residual.shape[:-1], dtype=torch.float32)
    x = residual.float()
    size = (x.square().mean(-1) + _EPSILON).sqrt()
    return x[..., list(dimensions)].abs().amax(-1) / size


class _FirstStates(Reducer):
    """How large each dimension of the first token's normalised residual is, in the middle layers."""

    maps = False
    sites = frozenset({Site.RESID_PRE})

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        layers = ask.layers
        cut = len(layers) // 4
        self.middle = frozenset(layers[cut : len(layers) - cut])
        self.sizes: list[Tensor] = []

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer's sizes."""
        if layer not in self.middle:
            return
        x = seen[Site.RESID_PRE].float()
        first = x[torch.arange(len(x), device=x.device), first_columns(self.ask, 1)[:, 0].to(x.device)]
        self.sizes.append(first.abs() / (first.square().mean(-1, keepdim=True) + _EPSILON).sqrt())


def sink_dimensions(ask: Ask, tau: float = TAU) -> tuple[int, ...]:
    """The dimensions that exceed tau at the first token in most middle layers, over all prompts; none may.

    The authors' recipe, with the middle half of the layers and "most" as more than half of them (this library's
    numbers). A normalised dimension is at most ``sqrt(d_model)``: below 400 dimensions nothing exceeds 20.

    Args:
        ask: what is scored; one forward of its batch.
        tau: the threshold.
    """
    states = _FirstStates(ask)
    ask.stream([states])
    over = torch.stack(states.sizes) > tau  # [layer, batch, d_model]
    return tuple((over.float().mean((0, 1)) > 0.5).nonzero().flatten().tolist())  # noqa: PLR2004


def given_dimensions(ask: Ask, dimensions: Sequence[int]) -> tuple[int, ...]:
    """The sink dimensions as given, checked against the width of the residual.

    Raises:
        BadInput: none, or one that the residual does not have.
    """
    width = ask.stack.channels(Site.RESULT, ask.layers[0]).get("d_model", (torch.iinfo(torch.long).max,))[0]
    chosen = tuple(int(dimension) for dimension in dimensions)
    if not chosen or min(chosen) < 0 or max(chosen) >= width:
        raise BadInput(
            f"{ask.name}: dimensions={list(chosen)}; expected dimensions of a residual of {width}, 0 to {width - 1}, "
            "or None to derive them."
        )
    return chosen


def image_of(ask: Ask, image: Group) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at image tokens: a group, or the places that the processor left for the image.

    Raises:
        Unsupported: the model takes no images.
        BadInput: a prompt has none.
    """
    if image is not None:
        return ask.columns(image, "image")
    return image_columns(ask.model, ask.batch)


def text_after(image: Bool[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at the tokens after each prompt's last image token.

    Example:
        >>> text_after(torch.tensor([[False, True, True, False]]), None)
        tensor([[False, False, False,  True]])
    """
    last = image.shape[1] - 1 - image.flip(-1).int().argmax(-1, keepdim=True)
    after = torch.arange(image.shape[1], device=image.device) > last
    return after if mask is None else after & mask


class VisualLooking(RowMean):
    """A number per text row from its mass on image tokens and on those that are sinks at the layer.

    Args:
        ask: what is scored.
        kind: ``ratio`` of the mass on the image that is not on sinks; ``sinks`` the mass on visual sinks; ``centric``
            whether the row is image-centric.
    """

    sites = frozenset({Site.RESID_PRE})
    layered = True

    def __init__(
        self,
        ask: Ask,
        kind: Literal["ratio", "sinks", "centric"],
        image: Group,
        dimensions: Sequence[int] | None,
        tau: float,
        queries: Group,
        rho: float = RHO,
        least_mass: float = LEAST_MASS,
    ) -> None:
        super().__init__(ask)
        for name, given, most in (("tau", tau, torch.inf), ("rho", rho, 1), ("least_mass", least_mass, 1)):
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= most:
                raise BadInput(f"{ask.name}: {name}={given!r}; expected a number from 0 to {most}.")
        if ask.stack.name not in ("text", ask.model.default_stack) or ask.stack.cross:
            raise BadInput(f"{ask.name}: image tokens stand among the text's; score stack {ask.model.default_stack!r}.")
        ask.stack.require(Site.RESID_PRE, edit=False)
        self.kind, self.tau, self.rho, self.least_mass = kind, float(tau), float(rho), float(least_mass)
        self.image = image_of(ask, image)
        self.rows_wanted = text_after(self.image, ask.mask) if queries is None else ask.columns(queries, "queries")
        if not bool(self.rows_wanted.any(-1).all()):
            raise BadInput(f"{ask.name}: a prompt ends with its image; give text after it, or name rows with queries=.")
        self.dimensions = sink_dimensions(ask, tau) if dimensions is None else given_dimensions(ask, dimensions)
        self.rows = columns_with_filler(self.rows_wanted)
        self.sinks: Tensor = torch.empty(0)
        self.there: dict[int, Tensor] = {}

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Which image tokens are sinks at this layer."""
        x = seen[Site.RESID_PRE]
        self.sinks = (sink_size(x, self.dimensions) > self.tau) & self.image.to(x.device)
        self.there[layer] = self.sinks.sum(-1)

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "batch key feature"]:
        """Image tokens, and visual sinks."""
        image = self.image.to(self.sinks.device)
        return torch.stack([image, self.sinks], dim=-1)[:, :n_keys].float()

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The number of each row."""
        assert products is not None
        on_image, on_sinks = products.unbind(-1)
        if self.kind == "sinks":
            return on_sinks
        ratio = nonsink_ratio(on_image, on_sinks)
        if self.kind == "ratio":
            return ratio
        return image_centric_rows(on_image, on_sinks, rho=self.rho, least_mass=self.least_mass).to(ratio.dtype)

    def counted(self, block: Block) -> Bool[Tensor, "batch head row"]:
        """Text rows; for ratios, those that look at the image at all."""
        rows = block.real & self.rows_wanted.to(block.rows.device).gather(1, block.rows)
        rows = rows[:, None].expand(-1, block.whole.shape[1], -1)
        if self.kind != "ratio":
            return rows
        image = self.image[:, : block.n_keys].to(block.pattern)
        return rows & (torch.einsum("bhrk,bk->bhr", block.pattern, image) > 0)

    def about(self) -> dict[str, object]:
        """What was taken for a sink."""
        layers = {str(layer): number.tolist() for layer, number in self.there.items()}
        return {"dimensions": list(self.dimensions), "tau": self.tau, "visual sinks by layer and prompt": layers}


def nonsink_ratio(on_image: Float[Tensor, "*rows"], on_sinks: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """``r = 1 - (mass on visual sinks) / (mass on the image)``, in [0, 1]; NaN for rows that do not look at it."""
    return torch.where(on_image > 0, (1 - on_sinks / on_image).clamp(0, 1), torch.nan)


def image_centric_rows(
    on_image: Float[Tensor, "*rows"],
    on_sinks: Float[Tensor, "*rows"],
    *,
    rho: float = RHO,
    least_mass: float = LEAST_MASS,
) -> Bool[Tensor, "*rows"]:
    """True where the mass on the image is at least ``least_mass`` and its share off the sinks at least rho.

    rho is a bound from below on what is not on sinks, as in the paper; the authors' program bounds the complement from
    above, so that its rho is 1 minus this one.
    """
    return (on_image >= least_mass) & (nonsink_ratio(on_image, on_sinks) >= rho)


def visual_nonsink_ratio(
    ask: Ask,
    image: Group = None,
    dimensions: Sequence[int] | None = None,
    tau: float = TAU,
    queries: Group = None,
) -> VisualLooking:
    """The mean over text rows of the share of their mass on the image that is not on visual sinks (Kang et al., 2025).

    Args:
        ask: what is scored.
        image: the image tokens, a span's name or columns; by default where the processor left room for the image.
        dimensions: the model's sink dimensions; derived from the first token by one more forward for None (see
            :func:`sink_dimensions`). With none the ratio is 1.
        tau: an image token whose :func:`sink_size` exceeds it as it enters the layer is a sink there.
        queries: the rows that count, by default the tokens after the image.

    Raises:
        BadInput: no image in a prompt, no text after it, or other numbers.
    """
    return VisualLooking(ask, "ratio", image, dimensions, tau, queries)


def visual_sink_mass(
    ask: Ask,
    image: Group = None,
    dimensions: Sequence[int] | None = None,
    tau: float = TAU,
    queries: Group = None,
) -> VisualLooking:
    """The mean over text rows of the mass on visual sinks; arguments as of :func:`visual_nonsink_ratio`."""
    return VisualLooking(ask, "sinks", image, dimensions, tau, queries)


def image_centric(
    ask: Ask,
    image: Group = None,
    dimensions: Sequence[int] | None = None,
    tau: float = TAU,
    queries: Group = None,
    rho: float = RHO,
    least_mass: float = LEAST_MASS,
) -> VisualLooking:
    """The share of text rows in which a head is image-centric: enough mass on the image, enough of it off the sinks.

    Args:
        ask: what is scored.
        image, dimensions, tau, queries: as of :func:`visual_nonsink_ratio`.
        rho: least share of the image's mass off the sinks (0.8 in general, 0.5 against hallucination, 0.9 for questions
            about the picture, in the paper).
        least_mass: least mass on the image, 0.2 in the authors' program.

    Raises:
        BadInput: no image in a prompt, no text after it, or other numbers.
    """
    return VisualLooking(ask, "centric", image, dimensions, tau, queries, rho, least_mass)
