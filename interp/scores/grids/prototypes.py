"""``map_prototypes``: the kinds of aligned maps that a vision model's heads have, and a head that stands for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.address import Head
from interp.errors import BadInput
from interp.results import HeadScores

_STARTS, _STEPS = 10, 100  # of k-means: the best start is taken


@dataclass(frozen=True, eq=False, repr=False)
class MapPrototypes:
    """Heads grouped by their aligned maps; kinds in the order of their sizes, the largest first.

    Attributes:
        labels: ``[layer, head]`` the kind of each head, -1 where there is none.
        maps: ``[kind, down, right]`` the mean aligned map of each kind.
        heads: of each kind the head that is nearest to its mean.
        sizes: how many heads each kind has.
        explained: ``[component]`` share of the variance over heads that each principal component holds.
        metadata: how it was made.
    """

    labels: Int[np.ndarray, "layer head"]
    maps: Float[np.ndarray, "kind down right"]
    heads: tuple[Head, ...]
    sizes: tuple[int, ...]
    explained: Float[np.ndarray, " component"]
    metadata: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per kind: its size, its head, and how many of its heads each layer has."""
        rows = []
        for kind, (head, size) in enumerate(zip(self.heads, self.sizes, strict=True)):
            layers = {f"layer {layer}": int((row == kind).sum()) for layer, row in enumerate(self.labels)}
            rows.append({"kind": kind, "heads": size, "prototype": str(head), **layers})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{size} like {head}" for head, size in zip(self.heads, self.sizes, strict=True))
        return f"MapPrototypes({kinds})"


def map_prototypes(aligned: HeadScores, *, kinds: int = 8, components: int = 10, seed: int = 0) -> MapPrototypes:
    """Kinds of heads by where they look from a patch: principal components of aligned maps, then k-means.

    After Li et al., 2023 (how attention works in vision transformers), who cluster the codes of an autoencoder;
    components in place of codes are ours. Maps are means over images, flattened, centred and not scaled.

    Args:
        aligned: the score ``aligned_map``.
        kinds: how many kinds.
        components: how many principal components are kept (fewer where there are fewer).
        seed: of k-means.

    Raises:
        BadInput: another score, fewer different heads than kinds, or no component.
    """
    places = [] if aligned.positions is None else [tuple(label.split(",")) for label in aligned.positions]
    if not places or any(len(place) != 2 for place in places):  # noqa: PLR2004 - down, right
        raise BadInput(
            f"map_prototypes: {aligned.name!r} is no aligned map; give the table of the score 'aligned_map' "
            "(interp.score(model, batch, 'aligned_map')['aligned_map'])."
        )
    down, right = (max(int(place[axis]) for place in places) for axis in (0, 1))
    values = aligned.values
    there = np.isfinite(values).all(-1)
    maps = values[there]
    if not len(maps):
        raise BadInput("map_prototypes: no head has an aligned map; none looks at patches.")
    left, strengths, _ = np.linalg.svd(maps - maps.mean(0), full_matrices=False)
    codes = (left * strengths)[:, : max(components, 0)]
    different = len(np.unique(codes.round(6), axis=0))
    if not 1 <= kinds <= different or components < 1:
        raise BadInput(
            f"map_prototypes: kinds={kinds}, components={components} for {len(maps)} heads, {different} of them "
            "different; expected 1 to that many kinds, and at least one component."
        )
    groups = _groups(codes, kinds, seed)
    order = sorted(range(kinds), key=lambda kind: (-int((groups == kind).sum()), int((groups == kind).argmax())))
    labels = np.full(there.shape, -1)
    labels[there] = [order.index(kind) for kind in groups]
    stack = aligned.stacks[0]
    name = None if stack == aligned.default_stack else stack
    standing = []
    for kind in range(kinds):
        members = np.argwhere(labels == kind)
        own = values[labels == kind]
        nearest = np.square(own - own.mean(0)).sum(-1).argmin()
        standing.append(Head(int(members[nearest][0]), int(members[nearest][1]), name))
    means = np.stack([values[labels == kind].mean(0) for kind in range(kinds)])
    variance = np.square(strengths)
    return MapPrototypes(
        labels=labels,
        maps=means.reshape(kinds, 2 * down + 1, 2 * right + 1),
        heads=tuple(standing),
        sizes=tuple(int((labels == kind).sum()) for kind in range(kinds)),
        explained=variance[:components] / max(variance.sum(), np.finfo(float).tiny),
        metadata={"kinds": kinds, "components": components, "seed": seed},
    )


def _groups(codes: np.ndarray, kinds: int, seed: int) -> np.ndarray:
    """``[head]`` the group of each, by k-means: the best of several starts at heads that lie apart (k-means++)."""
    draw = np.random.default_rng(seed)
    best, least = np.zeros(len(codes), dtype=int), np.inf
    for _ in range(_STARTS):
        centres = codes[[draw.integers(len(codes))]]
        while len(centres) < kinds:
            gaps = _squares(codes, centres).min(1)
            centres = np.concatenate([centres, codes[[draw.choice(len(codes), p=gaps / gaps.sum())]]])
        groups = _squares(codes, centres).argmin(1)
        for _ in range(_STEPS):
            centres = np.stack([codes[groups == kind].mean(0) for kind in range(kinds)])
            moved = _squares(codes, centres).argmin(1)
            if np.array_equal(moved, groups) or len(np.unique(moved)) < kinds:
                break
            groups = moved
        spread = sum(float(_squares(own, own.mean(0, keepdims=True)).sum()) for own in _split(codes, groups, kinds))
        if spread < least:
            best, least = groups, spread
    return best


def _split(codes: np.ndarray, groups: np.ndarray, kinds: int) -> list[np.ndarray]:
    return [codes[groups == kind] for kind in range(kinds)]


def _squares(codes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """``[head, centre]`` squared distances."""
    return np.square(codes[:, None] - centres).sum(-1)
