"""Direct logit attribution: what heads, MLPs, embeddings and biases write towards a metric, in an exact sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.attribution.estimates import (
    Cells,
    head_table,
    joined,
    one_of,
    options_of,
    part_of,
    prompt_chunks,
    refuse_freeze,
    summed_or_kept,
)
from interp.attribution.request import Request
from interp.errors import BadInput, RunFailed, Unsupported
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.direct_paths import DirectPaths, direct_paths
from interp.model.handle import Model
from interp.model.run import Metric
from interp.results import HeadScores
from interp.stats import bootstrap_means

PerPrompt = Float[np.ndarray, " prompt"]
_ROUNDING, _COARSE = 1e-4, 5e-2  # of the parts' sizes, within which the sum must be exact: float32, half precision


@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """The direct contributions to a metric, per prompt: heads + MLPs + embeddings + biases (+ nonlinear) = metric.

    Attributes:
        heads: of the stack that makes the logits, and of the cross-attentions in its blocks.
        mlps: ``[prompt, layer]``, each with its output bias.
        embeddings: ``[prompt]`` of what enters the first block (positions and images counted in).
        biases: ``[prompt]`` of output projections, norms and the unembedding.
        nonlinear: ``[prompt]`` what these leave over: 0 to rounding, unless something between the last block and the
            logits bends (the activation in BERT's prediction head).
        metric: ``[prompt]`` the metric itself.
        default_stack: the stack that makes the logits.
        cluster: one label per prompt.
    """

    heads: HeadScores
    mlps: Float[np.ndarray, "prompt layer"]
    embeddings: PerPrompt
    biases: PerPrompt
    nonlinear: PerPrompt
    metric: PerPrompt
    default_stack: str
    cluster: tuple[str, ...] | None = None

    @property
    def total(self) -> PerPrompt:
        """``[prompt]`` heads + MLPs + embeddings + biases, each computed by itself."""
        heads = sum(np.nansum(samples, axis=(1, 2)) for samples in self.heads.data.values())
        return heads + self.mlps.sum(1) + self.embeddings + self.biases

    def check(self, tolerance: float = _ROUNDING) -> float:
        """The largest gap of a prompt between ``total`` and ``metric``, relative to the parts' sizes.

        Raises:
            RunFailed: it is above ``tolerance``.
        """
        heads = sum(np.nansum(np.abs(samples), axis=(1, 2)) for samples in self.heads.data.values())
        size = heads + np.abs(self.mlps).sum(1) + np.abs(self.embeddings) + np.abs(self.biases)
        gap = float((np.abs(self.total - self.metric) / np.maximum(size, 1e-12)).max())
        if gap > tolerance:
            raise RunFailed(
                f"The direct contributions miss the metric by {gap:.2g} of their size (tolerance {tolerance:g}); what "
                "is left over is in .nonlinear."
            )
        return gap

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per component, in the order of the forward: component, kind, value, low, high.

        ``value`` is the mean over prompts, ``low`` and ``high`` the ends of its bootstrap interval.
        """
        rows: list[tuple[str, str, np.ndarray]] = [("embeddings", "embeddings", self.embeddings)]
        for layer in range(self.mlps.shape[1]):
            for stack, samples in self.heads.data.items():
                prefix = "" if stack == self.default_stack else f"{stack}."
                for head in np.flatnonzero(self.heads.exists[stack][layer]):
                    rows.append((f"{prefix}L{layer}.H{head}", "head", samples[:, layer, head]))
            rows.append((f"L{layer}.MLP", "mlp", self.mlps[:, layer]))
        rows += [("biases", "biases", self.biases), ("nonlinear", "nonlinear", self.nonlinear)]
        values = np.stack([row[2] for row in rows], axis=1)
        low, high = bootstrap_means(values, confidence=confidence, cluster=self.cluster)
        names = {"component": [row[0] for row in rows], "kind": [row[1] for row in rows]}
        return pd.DataFrame({**names, "value": values.mean(0), "low": low, "high": high})

    def __repr__(self) -> str:
        parts = {"MLPs": self.mlps.sum(1), "embeddings": self.embeddings, "biases": self.biases}
        shown = ", ".join(f"{name} {part.mean():.4g}" for name, part in parts.items())
        heads = self.total - sum(parts.values())
        return f"DirectAttribution(metric {self.metric.mean():.4g} = heads {heads.mean():.4g}, {shown})"


def direct_attribution(
    model: Model,
    batch: Batch,
    metric: Metric | str = logit_difference,
    *,
    nonlinear: Literal["refuse", "report"] = "refuse",
    batch_size: int | None = None,
    cluster: Sequence[object] | None = None,
) -> DirectAttribution:
    """What heads, MLPs, embeddings and biases each write towards a metric, per prompt; the parts sum to the metric.

    A component's contribution is ``<what it writes, gradient of the metric at it>`` in the model in which nothing
    passes through a later attention or MLP and every norm divides by the scale that it has in this run (the final norm
    linearised at the run). For pre-norm models with a metric ``w . logits`` this is ``w W_U (gain * centred(write) /
    scale)``. The biases are computed by themselves, from a forward in which every component is 0, so that the sum is a
    check and not a definition. A soft-cap of the logits is held at its ratio ``cap(u) / u``.

    Args:
        model: the handle.
        batch: the prompts.
        metric: linear in the logits, such as ``interp.logit_difference``, or the name of one; others are refused.
        nonlinear: what to do where something between the last block and the logits is not linear, so that the parts do
            not sum to the metric: ``"refuse"``, or ``"report"`` the rest by that name.
        batch_size: prompts in one forward, all by default.
        cluster: one label per prompt; prompts of one label are resampled together.

    Raises:
        BadInput: a metric that is not linear in the logits (Euler's identity ``<dm/dlogits, logits> = m`` fails).
        Unsupported: the sum is not exact on this model, or its blocks cannot be taken apart.

    Source: Elhage et al., 2021 (A mathematical framework for transformer circuits); Wang et al., 2022.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> direct_attribution(model, batch)
        DirectAttribution(metric 10 = heads 10, MLPs 0, embeddings 0, biases 0)
    """
    one_of(nonlinear, ("refuse", "report"), "nonlinear")
    request = Request(metric=metric_for(metric, model, batch), batch_size=batch_size, cluster=cluster, method="direct")
    paths = _in_chunks(model, batch, request)
    if nonlinear == "refuse":
        _refuse_remainder(model, paths)
    tables = [_table(model, batch, replace(request, stack=name), paths) for name in paths.heads]
    return DirectAttribution(
        heads=HeadScores.concat(tables) if len(tables) > 1 else tables[0],
        mlps=paths.mlps.cpu().numpy(),
        embeddings=paths.embeddings.cpu().numpy(),
        biases=paths.biases.cpu().numpy(),
        nonlinear=paths.nonlinear.cpu().numpy(),
        metric=paths.metric.cpu().numpy(),
        default_stack=model.default_stack,
        cluster=tables[0].cluster,
    )


def direct(model: Model, batch: Batch, request: Request) -> HeadScores:
    """What each head writes directly towards the metric, ``[prompt, layer, head]``; see :func:`direct_attribution`.

    Args:
        model: the handle.
        batch: the prompts; padding never counts.
        request: ``metric`` (linear in the logits), ``by``, ``heads``, ``pos``, ``stack`` (the one that makes the
            logits, or the cross-attention in its blocks), ``batch_size``; option ``nonlinear``, ``"refuse"`` or
            ``"report"``.

    Raises:
        BadInput: a metric that is not linear in the logits, or a stack whose heads do not write to them.
        Unsupported: the contributions would not sum to the metric on this model.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> (direct(model, batch, Request()).values.round(3) + 0.0).tolist()
        [[0.0, 0.0], [10.0, 0.0]]
    """
    refuse_freeze(request)
    options = options_of(request, nonlinear="refuse")
    one_of(options["nonlinear"], ("refuse", "report"), "nonlinear")
    stack = model.stack(request.stack)
    if stack.blocks[0] is not model.stack().blocks[0]:
        raise BadInput(
            f"direct: the heads of stack {stack.name!r} do not write to the stream that makes the logits; take those "
            f"of {model.default_stack!r}."
        )
    paths = _in_chunks(model, batch, request)
    if options["nonlinear"] == "refuse":
        _refuse_remainder(model, paths)
    return _table(model, batch, request, paths)


def _table(model: Model, batch: Batch, request: Request, paths: DirectPaths) -> HeadScores:
    array = summed_or_kept(model, batch, request, paths.heads[model.stack(request.stack).name])
    return head_table(
        model,
        batch,
        request,
        array,
        name="direct",
        quantity="contribution",
        sense=1,
        norms="held at this run",
        soft_cap="held at this run" if paths.soft_capped else "none",
        nonlinear=float(paths.nonlinear.mean()),
    )


def _in_chunks(model: Model, batch: Batch, request: Request) -> DirectPaths:
    parts: list[DirectPaths] = []
    for rows in prompt_chunks(batch, request.batch_size):
        parts.append(direct_paths(model, part_of(batch, rows), request.metric))
        if request.progress is not None:
            request.progress(1)
    heads: dict[str, Cells] = {name: joined([part.heads[name] for part in parts]) for name in parts[0].heads}
    return DirectPaths(
        heads=heads,
        mlps=torch.cat([part.mlps for part in parts]),
        embeddings=torch.cat([part.embeddings for part in parts]),
        biases=torch.cat([part.biases for part in parts]),
        metric=torch.cat([part.metric for part in parts]),
        soft_capped=parts[0].soft_capped,
    )


def _refuse_remainder(model: Model, paths: DirectPaths) -> None:
    """Refuse parts that do not sum to the metric.

    Raises:
        Unsupported: with the size of what is left over.
    """
    left = paths.nonlinear.abs() / paths.size.clamp(min=1e-12)
    worst = int(left.argmax())
    if float(left[worst]) > (_ROUNDING if model.dtype in (torch.float32, torch.float64) else _COARSE):
        raise Unsupported(
            f"direct: on this model ({model.stack().model_type}) the contributions miss the metric by "
            f"{float(paths.nonlinear[worst]):.3g} at prompt {worst} ({float(left[worst]):.1%} of their size): "
            "something between the last block and the logits is not linear, such as the activation in a prediction "
            "head. Give nonlinear='report' to have what is left over by that name, or use 'integrated_gradients'."
        )
