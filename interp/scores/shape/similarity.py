"""``map_similarity``: how alike the maps of different layers and heads are."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.address import Head
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.names import unknown
from interp.scores.ask import Ask, Measured
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.shape.map_pairs import ENTRIES, Measure, PairSums, best_matching, row_chunks

Heads = Literal["mean", "matched"]


@dataclass(frozen=True, eq=False, repr=False)
class MapSimilarity:
    """Similarities between the maps of layers, or of heads.

    Attributes:
        values: ``[prompt, place, place]`` symmetric, 1 on the diagonal; NaN for a prompt without rows that count.
        places: what the last two axes are: ``(layer, head)``, or ``(layer, None)`` for the mean map of a layer.
        measure: ``cosine``, ``jsd`` or ``top_k``.
        chance: ``[prompt]`` what two random maps would have (top_k alone, else None).
        metadata: how the numbers were made.
    """

    values: Float[np.ndarray, "prompt place place"]
    places: tuple[tuple[int, int | None], ...]
    measure: str
    chance: Float[np.ndarray, " prompt"] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices, in order."""
        return tuple(dict.fromkeys(layer for layer, _ in self.places))

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads of the last two axes; none for mean maps."""
        return tuple(Head(layer, head) for layer, head in self.places if head is not None)

    def between(self, first: int, second: int) -> Float[np.ndarray, "head head"]:
        """``[head, head]`` mean over prompts of the similarity of two layers' heads (``[1, 1]`` for mean maps)."""
        rows, columns = (
            [i for i, (layer, _) in enumerate(self.places) if layer == wanted] for wanted in (first, second)
        )
        if not rows or not columns:
            raise BadInput(f"between({first}, {second}): maps were compared of layers {list(self.layers)}.")
        return _mean(self.values[:, rows][:, :, columns], axis=0)

    def matching(self, first: int, second: int) -> list[tuple[int, int, float]]:
        """Pairs (head of the first layer, head of the second, similarity) of the matching with the largest sum.

        Found by the Hungarian method on the mean over prompts; with unequal numbers of heads some stay alone, and so do
        heads whose similarity has no value.
        """
        return best_matching(torch.as_tensor(self.between(first, second)))

    def matrix(self) -> Float[np.ndarray, "layer layer"]:
        """``[layer, layer]`` mean over prompts: of mean maps, or over matched heads; symmetric, 1 on the diagonal."""
        made = np.full((len(self.layers), len(self.layers)), np.nan)
        for i, first in enumerate(self.layers):
            for j, second in enumerate(self.layers[: i + 1]):
                own = self.between(first, first).diagonal() if i == j else None
                values = [value for _, _, value in self.matching(first, second)] if own is None else own
                made[i, j] = made[j, i] = float(_mean(np.asarray(values, dtype=float), axis=0))
        return made

    def table(self) -> pd.DataFrame:
        """One row per two layers, the most alike first: first, second, value, heads matched (first -> second)."""
        matrix, layers = self.matrix(), self.layers
        rows = []
        for i, first in enumerate(layers):
            for j in range(i + 1, len(layers)):
                matched = "" if self.places[0][1] is None else ", ".join(
                    f"{a} -> {b}" for a, b, _ in self.matching(first, layers[j])
                )  # fmt: skip
                rows.append((first, layers[j], matrix[i, j], matched))
        made = pd.DataFrame(rows, columns=["first", "second", "value", "matched heads"])
        return made.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)

    def __repr__(self) -> str:
        return f"MapSimilarity({self.measure}, {len(self.layers)} layers, {len(self.values)} prompts)"


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where nothing is left."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    return np.where(count > 0, np.where(there, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def map_similarity(
    model: Model,
    batch: Batch,
    measure: Measure = "cosine",
    *,
    heads: Heads = "matched",
    k: int = 8,
    queries: int | None = None,
    exclude_sinks: Sinks = "first",
    stack: str | None = None,
    entries: int = ENTRIES,
) -> MapSimilarity:
    """How alike the maps of every two layers are on the same prompts.

    Args:
        model: the handle.
        batch: the prompts.
        measure: ``"cosine"`` of the flattened maps; ``"jsd"`` 1 minus the mean over rows of the Jensen-Shannon
            divergence over ln 2; ``"top_k"`` the mean over rows of the share of the k largest keys that both have.
        heads: ``"matched"`` compares every two heads, and layers by their best matching; ``"mean"`` each layer's mean
            map.
        k: of ``"top_k"``; rows that see no more than k keys are left out.
        queries: how many rows of each prompt are compared, evenly spread (one: its last); all for None.
        exclude_sinks: columns left out first, since sinks make everything look alike; see :func:`interp.score`.
        stack: whose maps, the default stack for None.
        entries: of all layers' maps held at once (prompts x heads of all layers x rows x keys). It sets the number of
            forwards, ``metadata["forwards"]``: what all rows together have of them over this; it is logged beforehand.

    Rows are taken a few at a time and all layers' maps of these rows are held together, so that memory does not grow
    with the square of the length. Cosine and top_k are one matrix product; jsd of matched heads looks at every entry
    once for each two heads (compare EchoAtt, 2024, and HyLRA).

    Raises:
        BadInput: another measure or kind of heads, k or a number of rows below 1.
        Unsupported: patterns cannot be read on this stack.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> map_similarity(model, interp.encode(model, torch.tensor([[0, 3, 4, 3]]))).matrix().shape
        (2, 2)
    """
    _check(measure, heads, k, queries, entries)
    place = model.stack(stack)
    ask = Ask("map_similarity", model, batch, place, dropped_columns(exclude_sinks, batch, place))
    sums = PairSums(ask, measure, k, mean=heads == "mean")
    n_forwards = _gather(ask, sums, queries, entries)
    values, chance = sums.values()
    return MapSimilarity(
        values=values.cpu().numpy(),
        places=tuple(sums.places),
        measure=measure,
        chance=None if chance is None else chance.cpu().numpy(),
        metadata={
            "model": model.name,
            "exclude_sinks": exclude_sinks if isinstance(exclude_sinks, str | int | None) else "columns given",
            "heads": heads,
            "forwards": n_forwards,
            **({"k": k} if measure == "top_k" else {}),
        },
    )


def _gather(ask: Ask, sums: PairSums, queries: int | None, entries: int) -> int:
    """Run the forwards that the rows take, and say how many."""
    chunks = row_chunks(ask, queries, entries)
    logging.getLogger("interp.scores").info(
        "%s: %d forwards of the prompts, since all layers' maps of some rows at a time are held (entries=%d); more "
        "entries, fewer prompts or queries= take fewer.",
        ask.name,
        len(chunks),
        entries,
    )
    for rows in chunks:
        sums.rows = rows
        ask.stream([sums])
    return len(chunks)


def _check(measure: Any, heads: Any, k: Any, queries: Any, entries: Any) -> None:
    for name, given, allowed in (("measure", measure, get_args(Measure)), ("heads", heads, get_args(Heads))):
        if given not in allowed:
            raise BadInput(unknown(given, allowed, f"{name} of map similarity"))
    for name, count in (("k", k), ("queries", 1 if queries is None else queries), ("entries", entries)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise BadInput(f"map similarity: {name}={count!r}; expected a whole number from 1 on.")


def layer_similarity(
    ask: Ask, measure: Measure = "cosine", k: int = 8, queries: int | None = None, entries: int = ENTRIES
) -> Measured:
    """How alike a head's map is to that of its partner in the attention layer before; NaN at the first.

    Partners are those of the matching of the two layers' heads with the largest sum, on each prompt by itself; a head
    without one is NaN. Sinks make everything look alike: leave them out with ``exclude_sinks``.

    Args:
        ask: what is scored.
        measure, k, queries, entries: as of :func:`interp.map_similarity`.

    Raises:
        BadInput: another measure, or numbers below 1.
    """
    _check(measure, "matched", k, queries, entries)
    sums = PairSums(ask, measure, k, mean=False)
    n_forwards = _gather(ask, sums, queries, entries)
    values, _ = sums.values()
    made = {layer: Measured.nowhere(ask.stack, layer, len(values)) for layer in ask.layers}
    ends = torch.tensor([0, *(ask.stack.n_heads(layer) for layer in ask.layers)]).cumsum(0).tolist()
    for place in range(1, len(ask.layers)):
        own, before = slice(ends[place], ends[place + 1]), slice(ends[place - 1], ends[place])
        for prompt, grid in enumerate(values[:, before, own].cpu()):
            for _, head, value in best_matching(grid):
                made[ask.layers[place]][prompt, head] = value
    about = {"measure": measure, "forwards": n_forwards, **({"k": k} if measure == "top_k" else {})}
    return Measured(made, metadata=about)
