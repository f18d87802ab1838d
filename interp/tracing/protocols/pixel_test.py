"""``pixel_test``: whether the pixels of patches that are not kept reach the answer of a masked forward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp.model.batch import Batch
from interp.model.handle import Model
from interp.numerals import numeral
from interp.scores.grids.grid import Given
from interp.tracing.protocols.masked_forward import Layers, masked_forward, masking, pixels_replaced

_BY_TOKEN = 3  # axes of logits at every token


@dataclass(frozen=True, eq=False, repr=False)
class PixelTest:
    """How far the answer moves when pixels that the model should not see are overwritten.

    Attributes:
        leakage: ``[prompt]`` the largest change of a logit.
        how: the kind of mask.
    """

    leakage: Float[np.ndarray, " prompt"]
    how: str

    @property
    def passed(self) -> bool:
        """Whether no logit changed by a single bit."""
        return bool((self.leakage == 0).all())

    def table(self) -> pd.DataFrame:
        """One row per prompt: prompt, leakage, passed."""
        return pd.DataFrame(
            {"prompt": np.arange(len(self.leakage)), "leakage": self.leakage, "passed": self.leakage == 0}
        )

    def __repr__(self) -> str:
        said = "passed" if self.passed else f"failed in {int((self.leakage > 0).sum())}"
        return (
            f"PixelTest({self.how}: {said}, {len(self.leakage)} images, leakage {numeral(float(self.leakage.max()))})"
        )


def pixel_test(
    model: Model,
    batch: Batch,
    keep: Tensor,
    *,
    layers: Layers = "all",
    drop: bool = False,
    soft: bool = False,
    stack: str | None = None,
    grid: Given | None = None,
    seed: int = 0,
) -> PixelTest:
    """How far the logits of a masked forward move when the pixels of the patches not kept are overwritten by noise.

    Zero, to the bit, where the mask holds in every layer: the answer cannot depend on what is hidden. Masking from a
    layer above the first fails: patches have mixed below. Of a vision-language model the logits at the hidden image
    tokens themselves do not count.

    Args:
        model: the handle.
        batch: prompts with images.
        keep, layers, drop, soft, stack, grid: as in :func:`interp.masked_forward`.
        seed: of the noise.

    Raises:
        BadInput, Unsupported: see :func:`interp.masked_forward`; pixels that are not those of patches.

    Inherently faithful attention maps (iFAM), 2025.

    Example:
        >>> import interp
        >>> from interp.zoo.digits import digit_images, pixel_values
        >>> model = interp.load("digits-vit")
        >>> images = digit_images(2).images
        >>> batch = interp.encode(model, inputs={"pixel_values": pixel_values(images)})
        >>> pixel_test(model, batch, images.flatten(1) > 0, drop=True)
        PixelTest(drop: passed, 2 images, leakage 0.000)
    """
    mask = masking(model, batch, keep, layers=layers, drop=drop, soft=soft, stack=stack, grid=grid)
    other = pixels_replaced(model, batch, mask, seed=seed)
    found = [
        masked_forward(model, one, keep, layers=layers, drop=drop, soft=soft, stack=stack, grid=grid)
        for one in (batch, other)
    ]
    change = (found[0].logits.double() - found[1].logits.double()).abs()
    if mask.tokens is not None and change.ndim == _BY_TOKEN:
        hidden = mask.spread(mask.tokens, batch.width) == 0  # what a hidden token says of itself is its own
        change = change.masked_fill(hidden.to(change.device)[:, :, None], 0.0)
    leakage = change.reshape(len(batch), -1).amax(-1).cpu().numpy()
    return PixelTest(np.asarray(leakage), found[0].how)


def leakage_by_layer(model: Model, batch: Batch, keep: Tensor, *, seed: int = 0) -> pd.DataFrame:
    """One row per first masked layer l0 (keys hidden from l0 up): first_layer, leakage (mean), largest, passed.

    Args:
        model: the handle.
        batch: prompts with images.
        keep: ``[batch, patch]`` True at what the model may see.
        seed: of the noise.

    Raises:
        BadInput, Unsupported: see :func:`pixel_test`.

    Example:
        >>> import interp
        >>> from interp.zoo.digits import digit_images, pixel_values
        >>> model = interp.load("digits-vit")
        >>> images = digit_images(2).images
        >>> batch = interp.encode(model, inputs={"pixel_values": pixel_values(images)})
        >>> leakage_by_layer(model, batch, images.flatten(1) > 0)["passed"].tolist()[:2]
        [True, False]
    """
    name = model.default_stack if model.default_stack.startswith("vision") else "vision"
    place = model.stack(name)
    known = [layer for layer in range(place.n_layers) if place.n_heads(layer)]
    rows = []
    for first in range(len(known)):
        found = pixel_test(model, batch, keep, layers=known[first:], stack=name, seed=seed)
        rows.append(
            {
                "first_layer": known[first],
                "leakage": float(found.leakage.mean()),
                "largest": float(found.leakage.max()),
                "passed": found.passed,
            }
        )
    return pd.DataFrame(rows)
