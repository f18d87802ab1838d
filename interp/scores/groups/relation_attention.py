"""The relation scores: mean attention of each class of pairs, and the log ratio of two classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from interp.errors import BadInput
from interp.scores.ask import Ask, Measured
from interp.scores.groups.groups import members_of
from interp.scores.groups.relations import (
    Relation,
    RelationSums,
    compared_classes,
    edges_of,
    mean_by_class,
    relation_of,
)


class RelationMeans(RelationSums):
    """The mean attention of each class, or the log ratio of two, per prompt.

    Args:
        ask, relations, queries, edges: of :class:`RelationSums`.
        compared: the two classes that are matched or set against each other.
        epsilon: added to both means; None for the means themselves.
    """

    def __init__(
        self,
        ask: Ask,
        relations: Sequence[Relation],
        queries: Tensor | None,
        edges: Sequence[int] | None,
        compared: Sequence[int],
        epsilon: float | None,
    ) -> None:
        super().__init__(ask, relations, queries, edges)
        self.compared, self.epsilon, self.matched = compared, epsilon, edges is not None

    def measured(self) -> Measured:
        """By layer."""
        made = {
            layer: mean_by_class(sums[0], self.counts[layer][0], self.compared if self.matched else None)
            for layer, sums in self.sums.items()
        }
        if self.epsilon is None:
            return Measured(made, bins=self.classes)
        first, second = self.compared
        ratio = {
            layer: ((mean[..., first] + self.epsilon) / (mean[..., second] + self.epsilon)).log()
            for layer, mean in made.items()
        }
        return Measured(ratio, metadata={"compared": [self.classes[first], self.classes[second]]})


def relation_attention(
    ask: Ask,
    *,
    labels: Any = None,
    relation: Any = None,
    classes: Sequence[str] | None = None,
    queries: Any = None,
    stratify: Any = None,
    compare: Sequence[str] | None = None,
) -> RelationMeans:
    """The mean attention of a visible pair of each relation class, in [0, 1] (Li et al., 2023).

    ``M_r = sum_{i,j: rel = r} A_ij / #{(i, j): rel = r}`` per prompt; :func:`interp.attention_by_relation`
    pools prompts (sum of sums over sum of counts) and has the permutation null.

    Args:
        ask: what is scored.
        labels: one label per token (:func:`label_codes`): classes ``itself``, ``same token``, ``same label``,
            ``different label``. Without labels and relation: ``itself``, ``same token``, ``other token``.
        relation, classes: classes of your own (:func:`relation_of`).
        queries: the query rows that count; all for None.
        stratify: ``"distance"`` or distances at which strata begin: the compared classes are matched by distance, the
            others are NaN.
        compare: the two classes; the last two for None.

    Raises:
        BadInput: an option that does not fit the prompts.
    """
    return _means(ask, labels, relation, classes, queries, stratify, compare, None)


def relation_log_ratio(
    ask: Ask,
    *,
    labels: Any = None,
    relation: Any = None,
    classes: Sequence[str] | None = None,
    queries: Any = None,
    stratify: Any = None,
    compare: Sequence[str] | None = None,
    epsilon: float = 1e-6,
) -> RelationMeans:
    """``log((M_first + epsilon) / (M_second + epsilon))`` of two relation classes, in nats (Li et al., 2023).

    Args:
        ask: what is scored.
        labels, relation, classes, queries, stratify, compare: as in :func:`relation_attention`.
        epsilon: keeps the ratio finite where a class gets no attention; its size is this library's choice.

    Raises:
        BadInput: an option that does not fit the prompts.
    """
    if not isinstance(epsilon, float | int) or not 0 < epsilon < 1:
        raise BadInput(f"{ask.name}: epsilon={epsilon!r}; expected a small number above 0.")
    return _means(ask, labels, relation, classes, queries, stratify, compare, float(epsilon))


def _means(
    ask: Ask,
    labels: Any,
    relation: Any,
    classes: Sequence[str] | None,
    queries: Any,
    stratify: Any,
    compare: Sequence[str] | None,
    epsilon: float | None,
) -> RelationMeans:
    found = relation_of(ask, labels=labels, relation=relation, classes=classes)
    rows = None if queries is None else members_of(ask, queries, "queries", keys=False)[1].any(0)
    needed = epsilon is not None or stratify is not None or compare is not None
    compared = compared_classes(ask.name, found.classes, compare) if needed else ()
    return RelationMeans(ask, [found], rows, edges_of(ask.name, stratify, ask.batch.width), compared, epsilon)
