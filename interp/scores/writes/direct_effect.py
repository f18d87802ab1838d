"""What each head writes towards the answer by its direct path."""

from __future__ import annotations

import torch

from interp.edits.groups import Group
from interp.errors import BadInput, Unsupported
from interp.metrics import logit_difference, metric_for
from interp.model.direct_paths import DirectPaths, direct_paths
from interp.model.run import Metric
from interp.names import lookup
from interp.scores.ask import Ask, Measured

_ROUNDING, _COARSE = 1e-4, 5e-2  # of the parts' sizes, within which they must sum to the metric: float32, half
_NONLINEAR = {"refuse": "parts that do not sum to the metric", "report": "what is left over, in the metadata"}


def direct_effect(
    ask: Ask, *, metric: Metric | str = logit_difference, pos: Group = None, nonlinear: str = "refuse"
) -> Measured:
    """Each head's direct contribution to a metric of the answer, per prompt: ``sum_i <z_i, dm/dz_i>``, norms held.

    Nothing passes through a later attention or MLP, and every norm divides by the scale of this run; heads, MLPs,
    embeddings and biases then sum to the metric. The same numbers as ``interp.direct_attribution(...).heads``.

    Args:
        ask: what is scored; its prompts need answers (right, wrong) for the default metric.
        metric: linear in the logits: a name or a function.
        pos: only what is written at these positions; all for None.
        nonlinear: ``"refuse"`` models in which the parts do not sum to the metric, or ``"report"`` what is left over.

    Raises:
        BadInput: a metric that is not linear in the logits, or no answers.
        Unsupported: heads that do not write to the stream that makes the logits.

    Elhage et al., 2021; Wang et al., 2022 (direct logit attribution).
    """
    lookup(nonlinear, _NONLINEAR, "nonlinear")
    model, stack = ask.model, ask.stack
    if stack.blocks[0] is not model.stack().blocks[0]:
        raise Unsupported(
            f"{ask.name}: the heads of stack {stack.name!r} do not write to the stream that makes the logits; take "
            f"those of {model.default_stack!r}."
        )
    chosen = None if pos is None else ask.columns(pos, "pos")
    if isinstance(metric, str) or metric is logit_difference:
        _refuse_without_answers(ask, metric)
    paths = direct_paths(model, ask.batch, metric_for(metric, model, ask.batch))
    if ask.progress is not None:
        ask.progress(3)
    if nonlinear == "refuse":
        _refuse_remainder(ask, paths)
    found = paths.heads[stack.name]
    if chosen is not None:
        found = {layer: cells * chosen.to(cells.device)[:, None] for layer, cells in found.items()}
    return Measured(
        {layer: cells.sum(-1) for layer, cells in found.items()},
        metadata={
            "metric": getattr(metric, "__name__", str(metric)),
            "norms": "held at this run",
            "soft_cap": "held at this run" if paths.soft_capped else "none",
            "nonlinear": float(paths.nonlinear.mean()),
        },
    )


def _refuse_without_answers(ask: Ask, metric: Metric | str) -> None:
    if ask.batch.answers is None:
        raise BadInput(
            f"{ask.name}: {metric if isinstance(metric, str) else 'logit_difference'} needs answers; give "
            "encode(..., answers=[(right, wrong), ...]), or metric= a function of the logits that is linear in them."
        )


def _refuse_remainder(ask: Ask, paths: DirectPaths) -> None:
    left = paths.nonlinear.abs() / paths.size.clamp(min=1e-12)
    worst = float(left.max())
    if worst > (_ROUNDING if ask.model.dtype in (torch.float32, torch.float64) else _COARSE):
        raise Unsupported(
            f"{ask.name}: on this model ({ask.model.stack().model_type}) the contributions miss the metric by "
            f"{worst:.1%} of their size: something between the last block and the logits is not linear, such as the "
            "activation in a prediction head. Give nonlinear='report' to have what is left over in the metadata."
        )
