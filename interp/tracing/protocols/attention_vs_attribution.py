"""``attention_vs_attribution``: how much of an attribution attention explains: per head, per layer, all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.held_maps import hold_maps
from interp.names import lookup
from interp.numerals import numeral
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.audits.agreement import AGREEMENTS, agreement_of_maps, agreement_of_rows
from interp.scores.audits.head_tables import head_table
from interp.scores.dropping import Sinks, dropped_columns
from interp.stats import mean_interval


@dataclass(frozen=True, eq=False, repr=False)
class AttentionVsAttribution:
    """Correlations of attention with an attribution of the same keys, at three levels.

    Attributes:
        heads: per head, per prompt.
        layers: ``[prompt, layer]`` of the mean over the heads of a layer; NaN where a layer has no attention.
        all: ``[prompt]`` of the mean over all heads of all layers.
        how: the correlation.
        about: how it was made.
    """

    heads: HeadScores
    layers: Float[np.ndarray, "prompt layer"]
    all: Float[np.ndarray, " prompt"]
    how: str
    about: dict[str, Any] = field(default_factory=dict)

    def table(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per layer, then one for all heads: level, layer, mean, low, high, prompts, best_head, best.

        ``best`` is the largest mean of a single head of the layer (of all layers in the last row), which was chosen by
        its value and is optimistic.
        """
        means = self.heads.values
        rows = []
        parts: list[tuple[str, int | None, np.ndarray]] = [
            ("layer", layer, self.layers[:, layer]) for layer in range(self.layers.shape[1])
        ]
        for level, layer, values in (*parts, ("all", None, self.all)):
            own = means if layer is None else np.where(np.arange(len(means))[:, None] == layer, means, np.nan)
            found = mean_interval(values, confidence=confidence, seed=seed)
            place = np.unravel_index(int(np.nanargmax(own)), own.shape) if np.isfinite(own).any() else None
            rows.append(
                {
                    "level": level,
                    "layer": pd.NA if layer is None else layer,
                    "mean": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "prompts": found.n,
                    "best_head": "" if place is None else f"L{place[0]}.H{place[1]}",
                    "best": np.nan if place is None else float(own[place]),
                }
            )
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    def __repr__(self) -> str:
        mean = float(np.nanmean(self.all)) if np.isfinite(self.all).any() else None
        best = float(np.nanmax(self.heads.values)) if np.isfinite(self.heads.values).any() else None
        return f"AttentionVsAttribution({self.how}: all heads {numeral(mean)}, best head {numeral(best)})"


def attention_vs_attribution(
    model: Model,
    batch: Batch,
    attribution: Float[Tensor, "batch row key"],
    *,
    stack: str | None = None,
    how: Literal["pearson", "spearman", "kendall", "topk"] = "pearson",
    normalise: bool = True,
    top: int = 5,
    exclude_sinks: Sinks = None,
    progress: Callable[[int], Any] | None = None,
) -> AttentionVsAttribution:
    """The correlation of attention maps with an attribution of the same rows and keys, prompt by prompt.

    ``r = corr(flatten(C'), flatten(S'))``, where each row of the map C and of the attribution S has been brought to
    mean 0 and standard deviation 1 over its keys. At the level of layers and of all heads, C is the mean map.

    Args:
        model: the handle.
        batch: the prompts.
        attribution: ``[batch, row, key]`` of the stack's rows and keys, NaN at keys without a number; from
            :func:`interp.token_saliency` for cross-attention.
        stack: whose attention: ``"cross"`` where there is one, else the default stack.
        how: ``"pearson"``, ``"spearman"``, ``"kendall"`` or ``"topk"`` over all rows and keys together.
        normalise: bring rows to one mean and deviation before; without, rows with large numbers decide.
        top: for ``"topk"``.
        exclude_sinks: keys that are compared in neither; one column that is large in every row moves Pearson's r.
        progress: called with the number of forwards just finished.

    One attribution is not ground truth. How fast the answer goes when positions are hidden in the order of a map is
    what :func:`interp.removal_curves` measures (``stack="cross"``). For the row of the answer alone there is the score
    ``attention_attribution_agreement``.

    Raises:
        UnknownName: another correlation.
        BadInput: an attribution of another shape.
        Unsupported: attention that cannot be read.

    Cross-attention against saliency in speech-to-text models, 2025 (rows normalised, flattened, Pearson's r per
    sentence); rank correlations are ours.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3], [0, 5, 4, 6, 5]]))
        >>> own = interp.run(model, batch, [interp.At(interp.Site.PATTERN, 1)])[interp.At(interp.Site.PATTERN, 1)]
        >>> found = attention_vs_attribution(model, batch, own[:, 0])
        >>> round(float(found.heads.values[1, 0]), 3)
        1.0
    """
    lookup(how, AGREEMENTS, "agreement (how=)")
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise BadInput(f"attention_vs_attribution: top={top!r}; expected how many are compared, at least 1.")
    cross = next((name for name, one in model.stacks.items() if one.cross), None)
    place = model.stack(cross if stack is None else stack)
    dropped = dropped_columns(exclude_sinks, batch, place)
    _check_shape(attribution, batch.row_mask(place.name), batch.key_mask(place.name))
    held = hold_maps(model, batch, stacks=[place.name], dropped=dropped)
    if progress is not None:
        progress(1)
    layers = [layer for layer in range(place.n_layers) if place.n_heads(layer)]
    shape = held.shape(layers[0])
    if tuple(attribution.shape) != (shape[0], shape[2], shape[3]):
        raise BadInput(
            f"attention_vs_attribution: the attribution has shape {list(attribution.shape)}; expected "
            f"{[shape[0], shape[2], shape[3]]} [batch, row, key] of stack {place.name!r}."
        )
    numbers = attribution.double().to(model.device)[:, None]
    valid = _valid(batch, place.name, numbers, dropped, causal=place.causal and not place.cross)
    numbers = numbers.nan_to_num(0.0)

    def compared(maps: Tensor) -> Tensor:
        return _correlation(maps, numbers, valid, how=how, normalise=normalise, top=top)

    by_head: dict[int, Tensor] = {}
    by_layer = torch.full((len(batch), place.n_layers), torch.nan, dtype=torch.float64)
    total, heads = torch.zeros(()).double(), 0
    for layer in layers:
        parts = [torch.nn.functional.pad(block.pattern, (0, shape[3] - block.n_keys)) for block in held.blocks(layer)]
        maps = torch.cat(parts, dim=2).double()
        by_head[layer] = compared(maps)
        by_layer[:, layer] = compared(maps.mean(1, keepdim=True))[:, 0].cpu()
        total, heads = total.to(maps.device) + maps.sum(1, keepdim=True), heads + maps.shape[1]
    ask = Ask("attention_vs_attribution", model, batch, place, dropped)
    whole = compared(total / heads)[:, 0]
    said = {"normalise": normalise, "top": top if how == "topk" else None, "stack": place.name}
    table = head_table(ask, f"{how} with attribution", by_head)
    return AttentionVsAttribution(table, by_layer.numpy(), whole.cpu().numpy(), how, said)


def _check_shape(attribution: Tensor, rows: Tensor | None, keys: Tensor | None) -> None:
    """Refuse before any forward what cannot fit."""
    wrong = attribution.ndim != 3  # noqa: PLR2004 - batch, row, key
    for axis, mask in ((1, rows), (2, keys)):
        wrong = wrong or (mask is not None and attribution.shape[axis] != mask.shape[1])
    if wrong:
        sides = ["?" if mask is None else mask.shape[1] for mask in (rows, keys)]
        raise BadInput(
            f"attention_vs_attribution: the attribution has shape {list(attribution.shape)}; expected [batch, row, "
            f"key] with {sides[0]} rows and {sides[1]} keys."
        )


def _valid(
    batch: Batch, stack: str, numbers: Tensor, dropped: Tensor | None, *, causal: bool
) -> Bool[Tensor, "batch 1 row key"]:
    made = torch.isfinite(numbers)
    rows, keys = batch.row_mask(stack), batch.key_mask(stack)
    if rows is not None:
        made = made & rows.to(made.device)[:, None, :, None]
    if keys is not None:
        made = made & keys.to(made.device)[:, None, None, :]
    if dropped is not None:
        made = made & ~dropped.to(made.device)[:, None, None, :]
    return made.tril() if causal else made


def _correlation(
    maps: Tensor, numbers: Tensor, valid: Tensor, *, how: str, normalise: bool, top: int
) -> Float[Tensor, "batch head"]:
    if how == "pearson" and normalise:
        return agreement_of_maps(maps, numbers, valid)
    one, other, kept = torch.broadcast_tensors(maps, numbers, valid)
    if normalise:
        one, other = (_standard(x, kept) for x in (one, other))
    flat = [x.flatten(-2) for x in (one, other, kept)]
    return agreement_of_rows(flat[0], flat[1], flat[2] & flat[0].isfinite() & flat[1].isfinite(), how=how, top=top)


def _standard(x: Tensor, kept: Tensor) -> Tensor:
    """Rows brought to mean 0 and standard deviation 1 over the keys that are kept; NaN where they do not vary."""
    number = kept.sum(-1, keepdim=True)
    centred = (x - (x * kept).sum(-1, keepdim=True) / number) * kept
    return centred / (centred.square().sum(-1, keepdim=True) / number).sqrt()
