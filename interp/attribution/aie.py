"""Average indirect effect: how far a head's mean output on clean prompts restores the answer on shuffled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.address import At, Head, Site
from interp.attribution.heads_grid import cells_of, grid_of
from interp.attribution.request import Request
from interp.edits.activations import patch
from interp.errors import BadInput
from interp.metrics import metric_for, probability
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.run import Metric, run
from interp.model.sweep import sweep
from interp.results import HeadScores

DEVIATIONS = 3.0


def average_indirect_effect(
    model: Model,
    shuffled: Batch,
    clean: Batch,
    *,
    metric: Metric | str = probability,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> HeadScores:
    """The average indirect effect of every head of the default stack, ``[prompt, layer, head]`` over shuffled prompts.

    ``AIE_h = mean over shuffled prompts of m(z_h at the last token <- mean over clean prompts of z_h at their last
    token) - m``, where m is the probability of the first token of the answer. Clean prompts show a task by correct
    examples; shuffled ones show the same with labels shuffled, so that the model does not know the task, and a head
    that carries it raises the answer.

    Args:
        model: the handle.
        shuffled: the prompts that are patched, with answers.
        clean: the prompts that the mean is taken over; they may be others, of other lengths.
        metric: the probability of the right answer by default; a callable or a name.
        batch_size: prompts in one forward, copies counted.
        progress: called with the number of heads finished.

    The last token is the one that predicts the answer (``batch.read_at``). Every head is patched alone, H forwards over
    ``shuffled``. The output projection's bias is no part of z, so that it is not counted.

    Raises:
        BadInput: an argument that is not a batch, or shuffled prompts without answers.

    Source: Todd et al., 2024 (Function vectors in large language models, arXiv 2310.15213).

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> clean = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> shuffled = interp.encode(model, torch.tensor([[0, 3, 5, 6]]), answers=[(4,)])
        >>> average_indirect_effect(model, shuffled, clean).top(1).label.tolist()
        ['L1.H0']
    """
    for name, given in (("shuffled", shuffled), ("clean", clean)):
        if not isinstance(given, Batch):
            raise BadInput(
                f"average_indirect_effect: {name} is a {type(given).__name__}; expected what interp.encode returns."
            )
    request = Request(metric=metric_for(metric, model, shuffled))
    stack = model.stack()
    cells = cells_of(stack, "query", None, None)
    means = mean_at_answer(model, clean)
    last = shuffled.read_at[:, None]
    variants = [
        [patch(At(Site.Z, layer, heads=(head,), pos=last), means[layer][:, :, head : head + 1])]
        for layer, head, _ in cells
    ]
    swept = sweep(
        model,
        shuffled,
        variants,
        request.metric,
        logits=request.logits(model),
        batch_size=batch_size,
        progress=progress,
    )
    if swept.values.ndim != 2:  # noqa: PLR2004 - [variant, prompt]
        raise BadInput(
            f"average_indirect_effect: metric {request.metric_name} gives {list(swept.values.shape[2:])} numbers per "
            "prompt; it needs one."
        )
    return HeadScores.from_array(
        grid_of(swept.effects.double().cpu().numpy(), cells, stack, "query", None),
        name="average indirect effect",
        quantity="effect",
        sense=request.metric_sense,
        sample_axis="prompt",
        stack=stack.name,
        default_stack=model.default_stack,
        metadata={
            "method": "average_indirect_effect",
            "metric": request.metric_name,
            "clean_prompts": len(clean),
            "model": model.name,
        },
    )


def mean_at_answer(model: Model, clean: Batch) -> dict[int, Float[Tensor, "1 1 head d_head"]]:
    """Layer -> ``[1, 1, head, d_head]`` mean over the prompts of z at the token that predicts the answer."""
    stack = model.stack()
    places = [At(Site.Z, layer, pos=clean.read_at[:, None]) for layer in stack.layers_of(At(Site.Z))]
    seen = run(model, clean, places, logits=fewest_logits(model))
    return {
        layer: seen[at].mean(0, keepdim=True) for layer, at in zip(stack.layers_of(At(Site.Z)), places, strict=True)
    }


def mediating_heads(effects: HeadScores, deviations: float = DEVIATIONS) -> list[Head]:
    """The heads whose average indirect effect lies more than ``deviations`` standard deviations above the mean of all.

    The standard deviation is over heads (divided by their number); largest effect first, none where no head stands out.

    Source: the criterion of Nam et al., 2025 (causal head gating), for the heads of Todd et al.

    Example:
        >>> table = HeadScores.from_array(np.array([[9.0, *[0.0] * 15]]), name="average indirect effect", sense=1)
        >>> [str(head) for head in mediating_heads(table)]
        ['L0.H0']
    """
    values = effects.importance()
    there = np.isfinite(values)
    border = values[there].mean() + deviations * values[there].std()
    order = np.argsort(-np.where(there, values, -np.inf), axis=None, kind="stable")
    found = [np.unravel_index(place, values.shape) for place in order if values.flat[place] > border]
    return [Head(int(layer), int(head)) for layer, head in found]
