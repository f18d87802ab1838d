"""``reinforced_heads``: the heads of each layer that rest most on the image, and the edits that amplify them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Head, Site
from interp.edits.activations import custom, scale
from interp.edits.base import Context, Edit
from interp.edits.groups import Group
from interp.errors import BadAddress, BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.image_tokens import image_columns
from interp.model.inputs import fewest_logits
from interp.model.run import run
from interp.model.shortening import shortened
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.divergence.divergence import aware_divergence, check_rule
from interp.scores.divergence.head_outputs import Outputs, moved_columns, named_tokens, outputs_without, token_stack


@dataclass(frozen=True, eq=False)
class Reinforcement:
    """Heads chosen for each prompt, and the edits that amplify them.

    Attributes:
        divergence: vision divergence of every head, outliers 0, each layer measured with the chosen heads of the layers
            below amplified.
        chosen: ``[prompt, layer, head]`` True at the heads that are amplified.
        edits: for these prompts in their order: ``interp.run(model, batch, edits=found.edits)``, and in
            ``interp.generate`` for all later steps.
        by: the factor.
    """

    divergence: HeadScores
    chosen: Bool[np.ndarray, "prompt layer head"]
    edits: tuple[Edit, ...]
    by: float

    def heads(self, prompt: int = 0) -> list[Head]:
        """The heads chosen for one prompt."""
        return [Head(int(layer), int(head)) for layer, head in np.argwhere(self.chosen[prompt])]

    def __repr__(self) -> str:
        prompts, layers, heads = self.chosen.shape
        share = self.chosen.mean()
        return f"Reinforcement({share:.0%} of {layers}x{heads} heads by {self.by:g}, {prompts} prompts)"


def above_median(divergence: Float[Tensor, "*batch head"]) -> Bool[Tensor, "*batch head"]:
    """True at heads strictly above the median of their layer (the mean of the two in the middle, of an even number).

    Of distinct values that is the upper half, rounded down; a tie at the median leaves out all that are tied. A head
    set to 0 as an outlier is never above it.

    Example:
        >>> above_median(torch.tensor([0.0, 1.0, 2.0, 3.0])).tolist()
        [False, False, True, True]
    """
    return divergence > divergence.quantile(0.5, dim=-1, keepdim=True)


def reinforced_heads(
    model: Model,
    batch: Batch,
    *,
    by: float = 2.0,
    layers: Iterable[int] | None = None,
    image: Group = None,
    outliers: bool = True,
    ddof: int = 0,
) -> Reinforcement:
    """For each prompt the heads above the median of vision divergence in their layer, and the edits that scale them.

    One forward without the image, then one with it in which each layer's heads are chosen as the forward comes by and
    scaled at once, so that a layer is judged with those below it amplified already. Scaled is z from the position
    where the answer is read on: of the prompt that position alone, in generation every later step.

    Args:
        model: a vision-language model.
        batch: prompts with images.
        by: the factor; 1 changes nothing.
        layers: where heads are amplified, all layers by default. The paper takes the second layer and the last 14 of
            LLaVA-1.5's 32, and the last 18 of InstructBLIP's.
        image: the tokens to take out of the second prompt, by default those of the images.
        outliers, ddof: as in :func:`interp.scores.divergence.divergence.vision_divergence`.

    Raises:
        Unsupported: a model without image tokens.
        BadInput: a factor that is not finite and positive, or an option of another kind.
        BadAddress: a layer that is not there.

    Source: He et al., 2025 (VHR, arXiv 2412.13949).

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> reinforced_heads(model, batch, image=slice(1, 2))
        Reinforcement(50% of 2x2 heads by 2, 1 prompts)
    """
    if not (isinstance(by, int | float) and 0 < by < float("inf")):
        raise BadInput(f"reinforced_heads: by={by!r}; expected a positive factor such as 2.0.")
    ask = Ask("reinforced_heads", model, batch, model.stack())
    check_rule(ask, outliers=outliers, relative=False, ddof=ddof)
    token_stack(ask)
    wanted = ask.layers if layers is None else tuple(layers)
    wrong = [layer for layer in wanted if layer not in ask.layers]
    if wrong:
        raise BadAddress(f"reinforced_heads: layers {wrong} have no heads here; those that do: {list(ask.layers)}.")
    removed = image_columns(model, batch, edges=True) if image is None else named_tokens(ask, image, "image")
    column = batch.read_at[:, None]
    parts = shortened(model, batch, removed)
    without = outputs_without(ask, parts, moved_columns(ask, parts, column, torch.ones_like(column, dtype=torch.bool)))
    measured = _measured(ask, without, set(wanted), by, outliers=outliers, ddof=ddof)
    shape = (len(batch), ask.stack.n_layers, max(map(ask.stack.n_heads, ask.layers)))
    values, chosen = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    edits: list[Edit] = []
    for layer, divergence in measured.items():
        heads = divergence.shape[-1]
        values[:, layer, :heads] = divergence.cpu().numpy()
        if layer not in wanted:
            continue
        picked = above_median(divergence)
        chosen[:, layer, :heads] = picked.cpu().numpy()
        factor = torch.where(picked, float(by), 1.0)
        edits.append(scale(At(Site.Z, layer, pos=column), factor, axes="batch head", phase="prefill"))
        edits.append(scale(At(Site.Z, layer), factor, axes="batch head", phase="decode"))
    table = HeadScores.from_array(
        values,
        name="vision_divergence",
        sample_axis="prompt",
        stack=ask.stack.name,
        exists=_exists(ask),
        metadata={"model": model.name, "source": "He et al., 2025 (arXiv 2412.13949)", "by": by, "layers": wanted},
    )
    return Reinforcement(table, chosen, tuple(edits), float(by))


def _exists(ask: Ask) -> Bool[np.ndarray, "layer head"]:
    counts = np.array([ask.stack.n_heads(layer) for layer in range(ask.stack.n_layers)])
    return np.arange(counts.max())[None, :] < counts[:, None]


def _measured(
    ask: Ask, without: Outputs, wanted: set[int], by: float, *, outliers: bool, ddof: int
) -> dict[int, Float[Tensor, "batch _"]]:
    """Layer -> divergence of each head in a forward that scales the heads above the median as it goes."""
    found: dict[int, Tensor] = {}
    column = ask.batch.read_at[:, None]

    def amplify(x: Tensor, ctx: Context) -> Tensor:
        prompts = torch.arange(len(x), device=x.device)
        z = x[prompts, ask.batch.read_at.to(x.device)].float()
        found[ctx.layer] = aware_divergence(z, without[ctx.layer][:, 0], outliers=outliers, ddof=ddof)
        if ctx.layer not in wanted:
            return x
        factor = torch.where(above_median(found[ctx.layer]), float(by), 1.0)
        return x * factor.to(x.dtype)[:, None, :, None]

    edit = custom(At(Site.Z, pos=column, stack=ask.stack.name), amplify, name="amplify")
    run(ask.model, ask.batch, edits=[edit], logits=fewest_logits(ask.model))
    return found
