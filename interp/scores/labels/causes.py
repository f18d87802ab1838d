"""Whether a task changes without a head: claims about the batch's answers, or about saying a repeated text again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from interp.address import Head
from interp.attribution.claim_table import Claims
from interp.attribution.claims import claims
from interp.attribution.removal import by_layer
from interp.edits.attention import knockout
from interp.edits.base import Edit
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.scores.labels.kinds import Effect, Removal


def task_claims(
    model: Model,
    batch: Batch,
    removal: Removal,
    method: str,
    *,
    metric: Metric | str,
    cluster: Sequence[object] | None,
    level: float,
    seed: int,
    batch_size: int | None,
    progress: Callable[[int], Any] | None,
) -> Claims:
    """What removing each head, or its sight of the first token, is claimed to do to the metric.

    Where all prompts have the same answers, random pairs of tokens take the place of reassigned answers.

    Args:
        model: the handle.
        batch: the prompts of the task, with answers.
        removal: what is taken away.
        method: how heads are put out of the way, as in :func:`interp.claims`.
        metric, cluster, level, seed, batch_size, progress: as in :func:`interp.claims`.
    """
    assert batch.answers is not None
    alike = bool((batch.answers == batch.answers[:1]).all())
    return claims(
        model,
        batch,
        method if removal == "head" else "first key knocked out",
        metric=metric,
        null="vocabulary" if alike else "answers",
        cluster=cluster,
        level=level,
        seed=seed,
        edits=None if removal == "head" else blinded,
        batch_size=batch_size,
        progress=progress,
    )


def blinded(heads: Sequence[Head]) -> list[Edit]:
    """The edits that forbid heads to look at the first token, from the second row on (the first has nothing else)."""
    return [
        knockout(slice(1, None), 0, layers=layer, heads=indices, stack=stack)
        for (stack, layer), indices in by_layer(heads).items()
    ]


def agrees(found: Claims, effect: Effect) -> Bool[np.ndarray, "layer head"]:
    """``[layer, head]`` True where a head is claimed to matter, and in the sense that its type has."""
    if effect == "either":
        return found.claimed_cells
    importance = found.effects.importance()
    with np.errstate(invalid="ignore"):
        return found.claimed_cells & ((importance > 0) if effect == "helps" else (importance < 0))
