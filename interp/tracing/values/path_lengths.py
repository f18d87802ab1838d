"""What paths through 0, 1, 2, ... heads bring to an answer, with maps, norms and MLPs held at a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import Head
from interp.errors import BadInput
from interp.metrics import metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.path_logits import SOURCES, Hop, length_logits, path_logits
from interp.model.run import Metric
from interp.model.sweep import logits_for, metric_values
from interp.names import unknown
from interp.stats import bootstrap_means
from interp.tracing.relevance.answer_logit import metric_or_logit, named


@dataclass(frozen=True, eq=False)
class PathLengths:
    """A metric by how many heads the paths pass.

    Attributes:
        values: ``[prompt, length]`` what paths of that length add to the metric, shorter ones being there: for a metric
            that is linear in the logits, what they add whatever else is there.
        up_to: ``[prompt, length]`` the metric with paths of at most that length alone.
        base: ``[prompt]`` the metric without any path (biases of the final norm and the unembedding).
        whole: ``[prompt]`` the model's own.
        counts: how many ways through heads each length has, where a path starts at the embeddings.
        metadata: what a reader should know; JSON.
    """

    values: Float[np.ndarray, "prompt length"]
    up_to: Float[np.ndarray, "prompt length"]
    base: Float[np.ndarray, " prompt"]
    whole: Float[np.ndarray, " prompt"]
    counts: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per length: length, paths, value, low, high (a bootstrap interval over prompts), up_to."""
        low, high = bootstrap_means(self.values, confidence=confidence)
        return pd.DataFrame(
            {
                "length": np.arange(self.values.shape[1]),
                "paths": [float(count) for count in self.counts],  # some have more digits than an integer column
                "value": self.values.mean(0),
                "low": low,
                "high": high,
                "up_to": self.up_to.mean(0),
            }
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.3g}" for value in self.values.mean(0))
        return f"PathLengths({self.whole.mean():.3g} = {self.base.mean():.3g} + by length [{shown}])"


def path_lengths(
    model: Model,
    batch: Batch,
    metric: Metric | str | None = None,
    *,
    sources: str | Collection[str] = SOURCES,
) -> PathLengths:
    """What paths through no head, one, two and so on bring to a metric of the answer.

    A path starts at a writer of the residual stream, passes some heads by their values, skips the other layers, and
    ends at the logits. Maps, the scales of all norms and the MLPs' outputs are those of the run: with them held the
    sum over all ``(H + 1)^L`` paths is exact, and MLPs are writers like the embeddings, so that a path never passes
    through an MLP. All paths of a length are summed at once: ``L + 3`` copies of the batch run through the model.
    After Dong et al., 2021 (Attention is not all you need), whose layers are attention alone.

    Args:
        model: the handle: pre-norm blocks of attention and MLP, whose maps can be edited.
        batch: the prompts.
        metric: of the logits, or its name; the logit of the answer for None.
        sources: writers that count: ``embeddings``, ``mlps``, ``constants`` (biases of attention). With fewer than all,
            ``up_to`` never reaches the model's own metric.

    Raises:
        BadInput: unknown sources.
        Unsupported: a model that is no sum over paths even so: post-norm blocks, capped logits, cross-attention, norms
            of the values.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> found = path_lengths(model, batch, interp.logit_difference)  # an induction head reads a previous-token head
        >>> (found.values.round(3) + 0.0).tolist(), [float(count) for count in found.counts]
        ([[0.0, 10.0, 0.0]], [1.0, 4.0, 4.0])
    """
    chosen = _sources(sources)
    measure = _metric(metric, model, batch)
    found = length_logits(model, batch, sources=chosen, logits=logits_for(measure, model))
    lengths = torch.cat([torch.zeros_like(found.parts[:1]), found.parts]).cumsum(0) + found.constant
    up_to = torch.stack([_values(measure, part, batch) for part in lengths], dim=1).cpu().numpy()
    return PathLengths(
        values=np.diff(up_to, axis=1),
        up_to=up_to[:, 1:],
        base=up_to[:, 0],
        whole=_values(measure, found.whole, batch).cpu().numpy(),
        counts=_counts([model.stack().n_heads(layer) for layer in range(model.stack().n_layers)]),
        metadata={
            "metric": named(measure),
            "sources": list(chosen),
            "held": "maps, norms and MLP outputs of the run",
            "gap": found.gap() if set(chosen) == set(SOURCES) else None,
        },
    )


def path_effects(
    model: Model,
    batch: Batch,
    paths: Sequence[Sequence[Head]],
    metric: Metric | str | None = None,
    *,
    sources: str | Collection[str] = SOURCES,
) -> Float[np.ndarray, "prompt path"]:
    """What single paths through given heads bring to a metric, the rest held: ``m(path alone) - m(nothing)``.

    The path of one head is its contribution by values of the embeddings and earlier MLPs alone; over all paths of a
    length these sum to :func:`path_lengths` for a metric that is linear in the logits.

    Args:
        model: as for :func:`path_lengths`.
        batch: the prompts.
        paths: heads of the default stack in ascending layers; an empty path is the direct one.
        metric: of the logits, or its name; the logit of the answer for None.
        sources: writers at which a path may start.

    Raises:
        BadInput: heads of one layer, or out of order, on a path.
        Unsupported: as :func:`path_lengths`.

    Example:
        >>> import interp, torch
        >>> from interp import Head
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> found = path_effects(model, batch, [[], [Head(1, 0)], [Head(0, 0), Head(1, 0)]], interp.logit_difference)
        >>> (found.round(3) + 0.0).tolist()
        [[0.0, 10.0, 0.0]]
    """
    chosen = _sources(sources)
    measure = _metric(metric, model, batch)
    for path in paths:
        layers = [head.layer for head in path]
        if sorted(set(layers)) != layers:
            raise BadInput(f"path {[str(head) for head in path]}: expected heads in ascending layers, one in each.")
        for head in path:
            if not 0 <= head.index < model.stack().layer(head.layer).n_heads:
                raise BadInput(f"path {[str(each) for each in path]}: {head} is not there.")
    made = []
    for path in paths:
        place = {head.layer: (number, head.index) for number, head in enumerate(path, start=1)}

        def hops(layer: int, place: dict[int, tuple[int, int]] = place) -> list[Hop]:
            return [Hop(place[layer][0], place[layer][0] - 1, place[layer][1])] if layer in place else []

        found = path_logits(model, batch, len(path) + 1, hops, sources=chosen, logits=logits_for(measure, model))
        made.append(
            _values(measure, found.parts[len(path)] + found.constant, batch) - _values(measure, found.constant, batch)
        )
    return torch.stack(made, dim=1).cpu().numpy()


def _metric(metric: Metric | str | None, model: Model, batch: Batch) -> Metric:
    return metric_or_logit(None) if metric is None else metric_for(metric, model, batch)


def _sources(sources: str | Collection[str]) -> tuple[str, ...]:
    chosen = (sources,) if isinstance(sources, str) else tuple(sources)
    for name in chosen:
        if name not in SOURCES:
            raise BadInput(unknown(name, SOURCES, "source of paths"))
    return chosen


def _values(metric: Metric, logits: Tensor, batch: Batch) -> Float[Tensor, " prompt"]:
    return metric_values(metric, logits, batch).double()


def _counts(heads: Sequence[int]) -> tuple[int, ...]:
    """Paths by length: the elementary symmetric sums of the layers' numbers of heads."""
    counts = [1]
    for number in heads:
        longer = [0, *(count * number for count in counts)]
        counts = [old + new for old, new in zip([*counts, 0], longer, strict=True)]
    assert sum(counts) == math.prod(number + 1 for number in heads)
    return tuple(counts)
