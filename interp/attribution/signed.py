"""Signed contributions: which heads carry right answers, and which ones wrong answers (V-SEAM, EMNLP 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from interp.address import At, Head, Site
from interp.attribution.attribute import attribute
from interp.attribution.request import Request
from interp.edits.activations import scale
from interp.edits.base import Edit
from interp.errors import BadInput
from interp.metrics import accuracy, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import run
from interp.results import HeadScores

_LARGEST = 2.0  # factor of a head, the smallest is 0


@dataclass(frozen=True, eq=False)
class SignedContributions:
    """What each head adds to the probability of right answers, by whether the model was right.

    With p_i the probability of the right answer of prompt i and p_i^h the same with head h replaced:

    Attributes:
        positive: mean over prompts answered right of ``max(0, p_i - p_i^h)``; the others are NaN per prompt.
        negative: mean over prompts answered wrong of ``max(0, p_i^h - p_i)``; the others are NaN per prompt.
        signed: mean over all prompts of ``p_i - p_i^h``.
        correct: ``[prompt]`` where the model was right.
    """

    positive: HeadScores
    negative: HeadScores
    signed: HeadScores
    correct: Bool[np.ndarray, " prompt"]


def signed_contributions(
    model: Model, batch: Batch, *, mode: str = "mean", stack: str | None = None, batch_size: int | None = None
) -> SignedContributions:
    """The positive, negative and signed contribution of each head to the probability of the right answer.

    Args:
        model: the handle.
        batch: prompts with answers, the right one first.
        mode: what z of a head is replaced by: the ``"mean"`` of the other heads of its layer at the same position, or
            ``"zero"``.
        stack: whose heads.
        batch_size: prompts in one forward.

    The right answer is its first token: an answer that begins as others do gives false positives.
    V-SEAM (EMNLP 2025).

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> signed_contributions(model, batch, mode="zero").positive.values.round(3).tolist()
        [[0.937, 0.0], [0.937, 0.0]]
    """
    probability = metric_for("probability", model, batch)
    right = run(model, batch, logits=Request(metric=probability).logits(model))
    assert right.logits is not None
    correct = (accuracy(right.logits, batch) == 1).cpu().numpy()
    effects = attribute(
        model, batch, "mean_of_others", metric=probability, mode=mode, stack=stack, batch_size=batch_size
    )
    falls = -effects.samples
    return SignedContributions(
        positive=_part(effects, np.where(correct[:, None, None], np.maximum(falls, 0), np.nan), "positive"),
        negative=_part(effects, np.where(~correct[:, None, None], np.maximum(-falls, 0), np.nan), "negative"),
        signed=_part(effects, falls, "signed"),
        correct=correct,
    )


def _part(effects: HeadScores, samples: np.ndarray, name: str) -> HeadScores:
    stack = effects.stacks[0]
    samples = np.where(effects.exists[stack], samples, np.nan)
    return HeadScores.from_array(
        samples,
        name=f"{name} contribution",
        quantity="contribution",
        sense=-1 if name == "negative" else 1,
        sample_axis="prompt",
        stack=stack,
        default_stack=effects.default_stack,
        exists=effects.exists[stack],
        metadata={**effects.metadata, "contribution": name},
    )


def positive_overlap(levels: Mapping[str, SignedContributions], *, k: int = 10) -> pd.DataFrame:
    """``[level, level]`` Jaccard index of the ``k`` most positive heads of each level: shared / in either.

    Args:
        levels: name of a level (object, attribute, relation ...) -> its contributions.
        k: how many heads of each; heads that add nothing are never among them.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> made = signed_contributions(model, batch)
        >>> positive_overlap({"first": made, "second": made}).loc["first", "second"]
        np.float64(1.0)
    """
    if k < 1:
        raise BadInput(f"k={k}: expected at least one head of each level.")
    sets = {name: _most_positive(found.positive, k) for name, found in levels.items()}
    table = [
        [len(one & other) / len(one | other) if one | other else np.nan for other in sets.values()]
        for one in sets.values()
    ]
    return pd.DataFrame(table, index=list(sets), columns=list(sets))


def _most_positive(positive: HeadScores, k: int) -> set[Head]:
    return set(positive.top_heads(k, by="helps"))


def rescaling(
    signed: HeadScores, *, strength: float = 1.0, at_least: float = 0.0, normalise: bool = False
) -> list[Edit]:
    """The edits that scale z of each head by its signed contribution: more of what helps, less of what hurts.

    Args:
        signed: the signed contributions of one stack.
        strength: 0 leaves every head as it is.
        at_least: heads whose contribution is smaller in size are left as they are.
        normalise: divide by the largest contribution in size first. Contributions are probabilities of the order of
            1e-3, so that without it a strength of 1 hardly moves anything.

    The factor is ``clip(1 + strength * signed, 0, 2)`` (V-SEAM, EMNLP 2025).

    Example:
        >>> scores = HeadScores.from_array([[0.5, -0.25]], name="signed", sense=1)
        >>> rescaling(scores, normalise=True)
        [scale(At(Site.Z, layer=0, heads=(0, 1), stack='text'))]
    """
    values = signed.values
    stack = signed.stacks[0]
    there = signed.exists[stack] & np.isfinite(values)
    largest = float(np.abs(values[there]).max()) if there.any() else 0.0
    sizes = values / largest if normalise and largest > 0 else values
    moved = there & (np.abs(values) >= at_least)
    factors = np.where(moved, np.clip(1 + strength * np.nan_to_num(sizes), 0.0, _LARGEST), 1.0)
    edits = []
    for layer in range(values.shape[0]):
        heads = np.flatnonzero(there[layer]).tolist()
        if heads:
            by = torch.tensor(factors[layer, heads])
            edits.append(scale(At(Site.Z, layer=layer, heads=heads, stack=stack), by, axes="head"))
    return edits
