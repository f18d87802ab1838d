"""Rankings of heads: from a table or a list to the order in which heads are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from interp.address import Head
from interp.attribution.attribute import attribute
from interp.attribution.halves import halves, labels_of, refuse_same_prompts
from interp.errors import BadAddress, BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.names import unknown
from interp.results import HeadScores

RankBy = Literal["signed", "abs"]
RANK_BY = ("signed", "abs")


@dataclass(frozen=True, eq=False)
class Ranking:
    """Heads with how important each is; ties are broken by layer and index.

    Attributes:
        name: what the importance was measured by.
        heads: the heads, layer by layer.
        importance: ``[head]`` larger is more important.
    """

    name: str
    heads: tuple[Head, ...]
    importance: Float[np.ndarray, " head"]

    def ascending(self, *, keep_per_layer: int = 0) -> tuple[Head, ...]:
        """The heads, least important first, without the ``keep_per_layer`` most important ones of each layer.

        Example:
            >>> ranking = Ranking("by hand", (Head(0, 0), Head(0, 1), Head(1, 0)), np.array([3.0, 1.0, 2.0]))
            >>> [str(head) for head in ranking.ascending()], [str(head) for head in ranking.ascending(keep_per_layer=1)]
            (['L0.H1', 'L1.H0', 'L0.H0'], ['L0.H1'])
        """
        order = [self.heads[place] for place in np.argsort(self.importance, kind="stable")]
        seen: dict[tuple[str | None, int], int] = {}
        kept: set[Head] = set()
        for head in reversed(order):
            layer = (head.stack, head.layer)
            if seen.get(layer, 0) < keep_per_layer:
                seen[layer] = seen.get(layer, 0) + 1
                kept.add(head)
        return tuple(head for head in order if head not in kept)

    def descending(self) -> tuple[Head, ...]:
        """The heads, most important first."""
        return tuple(self.heads[place] for place in np.argsort(-self.importance, kind="stable"))

    def shuffled(self, generator: np.random.Generator) -> Ranking:
        """A ranking of the same heads in random order."""
        return replace(self, name="random", importance=generator.permutation(len(self.heads)).astype(float))


def ranking_of(ranking: Any, model: Model, *, by: RankBy | str = "signed") -> Ranking:
    """The ranking that a table or a list stands for.

    Args:
        ranking: a table, of which the heads that have a value take part; or heads, least important first.
        model: the heads have to be in it.
        by: ``"signed"`` by ``importance()``, so that heads that hurt the metric come last (an unsigned table by its
            values); ``"abs"`` by the absolute value.

    Raises:
        BadInput: a table of KV heads or of positions, one without a value, a head twice, or something else entirely.
        BadAddress: a head that the model does not have.

    Example:
        >>> import interp
        >>> table = HeadScores.from_array([[-2.0, 0.5], [0.0, 0.1]], name="zero", quantity="effect", sense=-1)
        >>> [str(head) for head in ranking_of(table, interp.load("handmade")).descending()]
        ['L0.H0', 'L1.H0', 'L1.H1', 'L0.H1']
    """
    if by not in RANK_BY:
        raise BadInput(unknown(by, RANK_BY, "order of heads"))
    if isinstance(ranking, HeadScores):
        made = _of_table(ranking, by)
    elif isinstance(ranking, Ranking):
        made = ranking
    elif isinstance(ranking, Sequence) and not isinstance(ranking, str) and len(ranking):
        heads = [Head.parse(head) for head in ranking]
        named = [head._replace(stack=None) if head.stack == model.default_stack else head for head in heads]
        made = Ranking("given order", tuple(named), np.arange(len(named), dtype=float))
    else:
        raise BadInput(f"ranking: {ranking!r}; expected HeadScores, a method's name, or heads, least important first.")
    refuse_strange_heads(made.heads, model)
    return made


class Ranked(NamedTuple):
    """A ranking, and the prompts to judge it by.

    Attributes:
        ranking: the heads.
        selection: the prompts that ranked them, None where the ranking was given.
        evaluation: the prompts to judge it by.
        cluster: one label per prompt of ``evaluation``, or None.
    """

    ranking: Ranking
    selection: Batch | None
    evaluation: Batch
    cluster: tuple[str, ...] | None


def ranked_apart(
    ranking: Any,
    model: Model,
    batch: Batch,
    *,
    metric: Metric | str,
    by: str,
    selection: Batch | None,
    needs_selection: bool = False,
    cluster: Sequence[object] | None = None,
    reference: Batch | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Ranked:
    """A ranking measured on one half of the prompts, with the other half to judge it by; all of them for a given one.

    Args:
        ranking: as in ``ranking_of``, and what has to be measured: a method's name, or a function from a batch to a
            table.
        model, batch, metric: what is measured, and on what.
        by: as in ``ranking_of``.
        selection: the prompts that rank, in which case ``batch`` is not split, and a table may be of any prompts.
        needs_selection: split the prompts for a given ranking too.
        cluster: one label per prompt of ``batch``; those of one label go to the same half.
        reference: for a method that takes means.
        batch_size, seed: of the measurement and the halves.

    Raises:
        BadInput: a ranking or an order of heads that cannot be, too few prompts to split, or a table that was
            measured on the prompts that are to judge it.
    """
    if by not in RANK_BY:
        raise BadInput(unknown(by, RANK_BY, "order of heads"))
    chosen_elsewhere = selection is not None  # the caller says what ranked
    to_measure = isinstance(ranking, str) or (callable(ranking) and not isinstance(ranking, HeadScores | Ranking))
    labels = labels_of(batch, cluster)
    if selection is None and (to_measure or needs_selection):
        split = halves(batch, cluster=cluster, seed=seed)
        selection, batch, labels = split.selection, split.evaluation, split.evaluation_cluster
    if to_measure and selection is not None:
        options: dict[str, Any] = {"metric": metric, "reference": reference, "batch_size": batch_size, "seed": seed}
        measure: Any = ranking
        ranking = attribute(model, selection, measure, **options) if isinstance(ranking, str) else measure(selection)
        if not isinstance(ranking, HeadScores):
            raise BadInput(f"ranking: the function gave a {type(ranking).__name__}; expected HeadScores of the batch.")
    if isinstance(ranking, HeadScores) and not chosen_elsewhere:
        refuse_same_prompts(ranking, batch, "ranking")
    return Ranked(ranking_of(ranking, model, by=by), selection, batch, labels)


def refuse_strange_heads(heads: Sequence[Head], model: Model) -> None:
    """Refuse a head that stands twice, or that the model does not have.

    Raises:
        BadInput: a head twice.
        BadAddress: a head that is not there.
    """
    if len(set(heads)) != len(heads):
        raise BadInput(f"A head stands twice in {', '.join(map(str, heads))}.")
    known = {
        head._replace(stack=None) if head.stack == model.default_stack else head
        for name in model.stacks
        for head in model.heads(name)
    }
    strange = [str(head) for head in heads if head not in known]
    if strange:
        raise BadAddress(
            f"{', '.join(strange)} {'is' if len(strange) == 1 else 'are'} not in {model!r}; rank heads of this model."
        )


def _of_table(table: HeadScores, by: str) -> Ranking:
    if table.unit != "query" or table.positions is not None:
        kind = "KV heads" if table.unit != "query" else "heads by position"
        raise BadInput(f"ranking: {table.name!r} is a table of {kind}; give one value per query head.")
    heads: list[Head] = []
    importance: list[float] = []
    for stack in table.stacks:
        part = table.of(stack)
        signed = part.importance() if part.sense else part.values
        values = np.abs(part.values) if by == "abs" else signed
        for layer, index in np.argwhere(np.isfinite(values)).tolist():
            heads.append(Head(layer, index, None if stack == table.default_stack else stack))
            importance.append(float(values[layer, index]))
    if not heads:
        raise BadInput(f"ranking: {table.name!r} has no value for any head.")
    return Ranking(table.name, tuple(heads), np.array(importance))
