"""Whether a task changes without a head: claims about the batch's answers, or about saying a repeated text again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

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
from interp.scores.labels.judging import beyond_rivals
from interp.scores.labels.kinds import Effect, Removal
from interp.scores.labels.reading import mean_over_prompts
from interp.stats import MOST_SETS

Rule = Literal["discovery", "claim"]
_FEW_SETS = 2  # of random heads, where nothing is made of what heads do together


def task_claims(
    model: Model,
    batch: Batch,
    removal: Removal,
    method: str,
    rule: Rule,
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
        rule: as in :func:`agrees`; only ``"claim"`` needs random sets of heads.
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
        random_sets=MOST_SETS if rule == "claim" else _FEW_SETS,
        edits=None if removal == "head" else blinded,
        batch_size=batch_size,
        progress=progress,
    )


def blinded(heads: Sequence[Head], key: int = 0) -> list[Edit]:
    """The edits that forbid heads to look at one of a prompt's own tokens, the first by default.

    From the row behind it on: the first row has nothing else, and other tokens may look at themselves.
    """
    return [
        knockout(slice(key + 1, None), key, layers=layer, heads=indices, stack=stack)
        for (stack, layer), indices in by_layer(heads).items()
    ]


def agrees(found: Claims, effect: Effect, rule: Rule, *, seed: int) -> Bool[np.ndarray, "layer head"]:
    """``[layer, head]`` True where a head matters by the rule, and in the sense that its type has.

    Args:
        found: the claims of the task.
        effect: helps, hurts, or either.
        rule: ``"claim"`` what ``found`` claims; ``"discovery"`` its effect is rare among its own under reassigned
            answers, after Benjamini-Hochberg over heads, and larger than those of the other heads of its layer, by more
            than the bootstrap leaves open.
        seed: of the bootstrap.
    """
    matters = found.claimed_cells if rule == "claim" else _discovered(found, seed)
    if effect == "either":
        return matters
    importance = found.effects.importance()
    with np.errstate(invalid="ignore"):
        return matters & ((importance > 0) if effect == "helps" else (importance < 0))


def _discovered(found: Claims, seed: int) -> Bool[np.ndarray, "layer head"]:
    effects = found.effects
    means = mean_over_prompts(effects.samples)
    sizes = np.where(means < 0, -1.0, 1.0) * effects.samples
    rare = np.nan_to_num(found.adjusted, nan=1.0) <= found.level
    _, exceeds = beyond_rivals(sizes, np.abs(means), rare, found.level, seed, effects.cluster)
    return rare & exceeds
