"""Selection and evaluation: a batch split into disjoint prompts, so that no claim is tested on what it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.results import HeadScores

PROMPT_KEYS = "prompt keys"  # in a table's metadata: the prompts that it was made of


class Halves(NamedTuple):
    """Prompts to choose by and prompts to test on.

    Attributes:
        selection, evaluation: the prompts of each half.
        selection_cluster, evaluation_cluster: the cluster labels of each half, None without.
        selection_places, evaluation_places: which prompts of the batch are in each half.
    """

    selection: Batch
    evaluation: Batch
    selection_cluster: tuple[str, ...] | None
    evaluation_cluster: tuple[str, ...] | None
    selection_places: tuple[int, ...]
    evaluation_places: tuple[int, ...]


def halves(batch: Batch, *, cluster: Sequence[object] | None = None, seed: int = 0) -> Halves:
    """``batch`` in two halves that share no prompt and no cluster, drawn by ``seed``; each keeps the batch's order.

    Args:
        batch: the prompts. Two of the same content count as one, and go to the same half.
        cluster: one label per prompt; prompts with the same label go to the same half.
        seed: of the draw.

    Raises:
        BadInput: not one label per prompt, or nothing to split.

    Example:
        >>> import interp
        >>> batch = interp.encode(interp.load("handmade"), [[0, 3, 4, 3], [0, 5, 6, 5], [0, 7, 8, 7], [0, 9, 3, 9]])
        >>> [len(part) for part in halves(batch)[:2]]
        [2, 2]
    """
    labels = labels_of(batch, cluster)
    groups = labels if labels is not None else tuple(map(str, batch.content_keys.tolist()))
    names = list(dict.fromkeys(groups))
    if len(names) < 2:  # noqa: PLR2004 - one to choose by and one to test on
        kind = "different prompt" if cluster is None else "cluster"
        raise BadInput(
            f"The batch holds one {kind}, and two are the least to choose heads by some prompts and test them on "
            "others; give more, or selection= prompts of their own."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[place] for place in order[: len(names) // 2]}
    chosen = [place for place, name in enumerate(groups) if name in first]
    rest = [place for place, name in enumerate(groups) if name not in first]
    return Halves(
        batch.select(chosen),
        batch.select(rest),
        _picked(labels, chosen),
        _picked(labels, rest),
        tuple(chosen),
        tuple(rest),
    )


def labels_of(batch: Batch, cluster: Sequence[object] | None) -> tuple[str, ...] | None:
    """The cluster labels as text, None without.

    Raises:
        BadInput: not one label per prompt.
    """
    if cluster is None:
        return None
    if len(cluster) != len(batch):
        raise BadInput(f"cluster: {len(cluster)} labels for {len(batch)} prompts; give one label per prompt.")
    return tuple(map(str, cluster))


def share_prompts(first: Batch, second: Batch) -> bool:
    """Whether some prompt stands in both batches."""
    return bool(set(first.content_keys.tolist()) & set(second.content_keys.tolist()))


def _picked(labels: tuple[str, ...] | None, places: list[int]) -> tuple[str, ...] | None:
    return None if labels is None else tuple(labels[place] for place in places)


def refuse_same_prompts(table: HeadScores, batch: Batch, name: str) -> None:
    """Refuse to judge a table's heads by prompts that the table was made of, where it says what they were.

    Raises:
        BadInput: with how many of the prompts.
    """
    used = np.asarray(table.metadata.get(PROMPT_KEYS, []), dtype=np.int64).ravel()
    shared = np.isin(batch.content_keys.numpy(), used).nonzero()[0].tolist()
    if shared:
        raise BadInput(
            f"{name}: {table.name!r} was measured on {len(shared)} of these {len(batch)} prompts (first {shared[:5]}), "
            "so that judging its heads by them is optimistic. Give a method's name (the prompts are then split), "
            "measure one half of interp.split(batch) and judge by the other, or name the heads in a list."
        )
