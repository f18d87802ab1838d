"""``faithfulness_gap``: how far the answer moves when a model sees only what an explanation points at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.numerals import numeral
from interp.scores.audits.deletion import foremost
from interp.scores.grids.grid import Given
from interp.stats import FEWEST_SETS, Interval, mean_interval, p_value
from interp.tracing.occlusion.explained import explained
from interp.tracing.protocols.masked_forward import Layers, masked_forward, masking
from interp.tracing.protocols.patch_columns import patch_columns
from interp.tracing.protocols.removal_curves import last_target, random_orders
from interp.tracing.result import Trace

Explanation = Trace | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessGap:
    """How far the answer moves when a model sees only what explanations point at.

    Attributes:
        gaps: name -> ``[prompt]`` ``|m(whole) - m(masked)|``.
        changes: name -> ``[prompt]`` ``m(masked) - m(whole)``, signed.
        random: name -> ``[draw, prompt]`` gaps of random sets of as many sources.
        whole: ``[prompt]`` the metric of the whole prompts.
        about: how it was made.
    """

    gaps: Mapping[str, Float[np.ndarray, " prompt"]]
    changes: Mapping[str, Float[np.ndarray, " prompt"]]
    random: Mapping[str, Float[np.ndarray, "draw prompt"]]
    whole: Float[np.ndarray, " prompt"]
    about: Mapping[str, Any] = field(default_factory=dict)

    def interval(self, name: str, *, confidence: float = 0.95, seed: int = 0) -> Interval:
        """The mean gap over prompts with its bootstrap interval."""
        if name not in self.gaps:
            raise BadInput(f"There is no explanation {name!r}; there are {', '.join(map(repr, self.gaps))}.")
        return mean_interval(self.gaps[name], confidence=confidence, seed=seed)

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per explanation: gap with its interval, mean signed change, prompts, random sets' gap, p.

        ``p`` is the share of random sets with a mean gap as small, ``(1 + #) / (1 + draws)``; NaN below 20 draws.
        """
        rows = []
        for name, gap in self.gaps.items():
            found = self.interval(name, confidence=confidence, seed=seed)
            null = self.random[name].mean(1)
            rows.append(
                {
                    "explanation": name,
                    "gap": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "change": float(self.changes[name].mean()),
                    "prompts": found.n,
                    "random": float(null.mean()) if len(null) else math.nan,
                    "p": p_value(float(gap.mean()), null, tail="less") if len(null) >= FEWEST_SETS else math.nan,
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {numeral(float(gap.mean()))}" for name, gap in self.gaps.items())
        return f"FaithfulnessGap({self.about.get('how', '')}: {shown}; {len(self.whole)} prompts)"


def faithfulness_gap(
    model: Model,
    batch: Batch,
    explanations: Mapping[str, Explanation] | Explanation,
    *,
    share: float | None = None,
    columns: Tensor | None = None,
    layers: Layers = "all",
    drop: bool = False,
    soft: bool = False,
    metric: Metric | None = None,
    stack: str | None = None,
    grid: Given | None = None,
    draws: int = 20,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> FaithfulnessGap:
    """``|m(whole) - m(masked)|`` of each explanation, beside random sets of as many sources.

    Args:
        model: the handle.
        batch: the prompts.
        explanations: name -> a mask ``[batch, source]`` of what is kept (sources as :func:`interp.masked_forward` takes
            them), or a trace or numbers of which the foremost ``share`` is kept.
        share: of the sources, for traces and numbers; above 0, up to 1.
        columns: ``[batch, source]`` the trace's column of each source; found for a vision stack.
        layers, drop, soft, stack, grid: as in :func:`interp.masked_forward`. Soft masks are the numbers themselves.
        metric: by default the log-probability of the right answer, or of what the model says of the whole prompt.
        draws: random sets per explanation, each a function of the prompt's content and the seed.
        seed: of the random sets.
        progress: called with the number of forwards just finished.

    Of tokens, the one at which the answer is read is always kept, but where a mask says otherwise. A gap of 0 says that
    what was kept suffices for the answer. Whether the masked model really cannot see the rest is
    what :func:`interp.pixel_test` tells.

    Raises:
        BadInput: no explanation, or one of another shape; a share that is missing or none.
        Unsupported: see :func:`interp.masked_forward`.

    Inherently faithful attention maps (iFAM), 2025.

    Example:
        >>> import interp
        >>> from interp.zoo.digits import digit_images, pixel_values
        >>> model = interp.load("digits-vit")
        >>> images = digit_images(4).images
        >>> batch = interp.encode(model, inputs={"pixel_values": pixel_values(images)})
        >>> found = faithfulness_gap(model, batch, {"ink": images.flatten(1) > 0}, draws=2)
        >>> bool(found.gaps["ink"].mean() < found.random["ink"].mean())
        True
    """
    named = explanations if isinstance(explanations, Mapping) else {"explanation": explanations}
    if not named:
        raise BadInput("faithfulness_gap: no explanation was given; give name -> a mask, a trace or numbers.")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 0:
        raise BadInput(f"faithfulness_gap: draws={draws!r}; expected how many random sets, 0 for none.")
    how: dict[str, Any] = {"layers": layers, "drop": drop, "soft": soft, "stack": stack, "grid": grid}
    keeps = {name: _keep(model, batch, name, one, share, columns, how) for name, one in named.items()}
    about = explained(model, batch, metric)

    def told(values: Tensor) -> np.ndarray:
        if progress is not None:
            progress(1)
        return values.double().cpu().numpy()

    everything = torch.ones_like(next(iter(keeps.values())))  # the whole prompts, through the same kernels
    whole = told(masked_forward(model, about.batch, everything, **how).metric(about.metric))
    free = _free(model, batch, everything, stack)
    changes, randoms = {}, {}
    for name, keep in keeps.items():
        made = [keep, *_random_sets(keep, free, batch, draws, seed)]
        found = [told(masked_forward(model, about.batch, one, **how).metric(about.metric)) - whole for one in made]
        changes[name] = found[0]
        randoms[name] = np.abs(np.array(found[1:])).reshape(draws, len(batch))
    gaps = {name: np.abs(change) for name, change in changes.items()}
    said = {"how": "drop" if drop else "soft" if soft else "hard", "metric": about.said, "share": share, "seed": seed}
    return FaithfulnessGap(gaps, changes, randoms, whole, said)


def _keep(
    model: Model,
    batch: Batch,
    name: str,
    given: Explanation,
    share: float | None,
    columns: Tensor | None,
    how: Mapping[str, Any],
) -> Tensor:
    """The mask of an explanation, checked."""
    place = model.stack(how["stack"])
    if isinstance(given, Trace) and given.stack != place.name:
        raise BadInput(
            f"faithfulness_gap: {name!r} is a trace of stack {given.stack!r}, and stack {place.name!r} is masked; give "
            f"stack={given.stack!r}."
        )
    numbers = last_target("faithfulness_gap", name, given) if isinstance(given, Trace) else given.cpu()
    if isinstance(given, Tensor) and (given.dtype == torch.bool or how["soft"]):
        return masking(model, batch, given, **how).keep.cpu()
    everything = columns
    if isinstance(given, Trace) and everything is None and place.name.startswith("vision"):
        everything = patch_columns(model, batch, how["stack"], grid=how["grid"])
    if everything is not None:
        numbers = numbers.gather(1, everything.cpu())
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise BadInput(
            f"faithfulness_gap: {name!r} is a trace or numbers, of which the foremost share is kept, and share="
            f"{share!r}; give a share above 0, up to 1, or a mask."
        )
    real = batch.key_mask(place.name)
    expected = numbers.shape if real is None else real.shape
    if numbers.shape != expected:
        raise BadInput(
            f"faithfulness_gap: {name!r} came as {list(numbers.shape)}; expected {list(expected)} [batch, source]."
        )
    free = _free(model, batch, numbers, how["stack"])
    return masking(model, batch, foremost(numbers, free, share) | ~free, **how).keep.cpu()


def _free(model: Model, batch: Batch, like: Tensor, stack: str | None) -> Bool[Tensor, "batch source"]:
    """Sources that may be hidden: not padding, nor the token at which the answer is read."""
    place = model.stack(stack)
    real = batch.key_mask(place.name)
    if real is None:
        return torch.ones(like.shape, dtype=torch.bool)
    return real.cpu() if place.cross else real.scatter(1, batch.read_at[:, None], False).cpu()


def _random_sets(keep: Tensor, free: Bool[Tensor, "batch source"], batch: Batch, draws: int, seed: int) -> list[Tensor]:
    """The same mask with the entries of free sources in another order, prompt by prompt."""
    made = []
    for order in random_orders(free, batch.content_keys.tolist(), draws, seed):
        other = keep.clone()
        for row, here in enumerate(free):
            places = here.nonzero().flatten()
            other[row, places] = keep[row, places[order[row, places].long()]]
        made.append(other)
    return made
