"""A task in tokens: batches of the prompts that belong together, answers as ids, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Int
from torch import Tensor

import interp
from circuits.tasks.answer_sets import AnswerSets
from circuits.tasks.fitting import Drop
from circuits.tasks.task import Task
from interp.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """The items of a task that fit a model.

    Attributes:
        task: these items alone, in the order of the batches' rows.
        clean, corrupted, baseline: the prompts; ``None`` where the task has none or it was not asked for. Their
            ``answers`` are the clean ones throughout: the first right answer, then the wrong ones. Their ``spans`` are
            the positions that every item has.
        right, wrong: ``[item, k]`` ids of all right and all wrong answers (their first tokens), -1 where an item has
            fewer.
        sequences: per item the right and the wrong answers in all their tokens.
        indices: the items' places in the task that was given.
        drops: what was left out.
        given: items in the task that was given.
    """

    task: Task
    clean: interp.Batch
    corrupted: interp.Batch | None
    baseline: interp.Batch | None
    right: Int[Tensor, "item k"]
    wrong: Int[Tensor, "item k"]
    sequences: tuple[tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]], ...]
    indices: tuple[int, ...]
    drops: tuple[Drop, ...]
    given: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def dropped(self) -> pd.DataFrame:
        """One row per item left out: its index in the task given, the rule, the reason in words."""
        import pandas as pd

        rows = [(drop.item, drop.rule, drop.reason) for drop in self.drops]
        return pd.DataFrame(rows, columns=["item", "rule", "reason"])

    def drop_counts(self) -> dict[str, int]:
        """How many items each rule left out, the most first."""
        return dict(Counter(drop.rule for drop in self.drops).most_common())

    def labels(self, name: str) -> list[Any]:
        """One label per item, for ``cluster=``."""
        return self.task.labels(name)

    @cached_property
    def logit_difference(self) -> AnswerSets:
        """The metric: mean logit of the right answers minus mean logit of the wrong ones."""
        return self._metric("logit")

    @cached_property
    def probability_difference(self) -> AnswerSets:
        """The metric: probability of all right answers minus that of all wrong ones, as greater-than is scored."""
        return self._metric("probability")

    @property
    def metric(self) -> AnswerSets:
        """What suits the answers: the probability difference where an item has several right ones, else logits."""
        several = self.right.shape[1] > 1
        return self.probability_difference if several else self.logit_difference

    def _metric(self, kind: Literal["logit", "probability"]) -> AnswerSets:
        batches = [batch for batch in (self.clean, self.corrupted, self.baseline) if batch is not None]
        return AnswerSets.of(batches, self.right, self.wrong, kind)

    def select(self, indices: Sequence[int] | slice) -> TaskBatch:
        """The items at these rows, in that order; what was dropped before stays known."""
        rows = list(range(len(self)))[indices] if isinstance(indices, slice) else [int(index) for index in indices]
        if not rows or not all(-len(self) <= row < len(self) for row in rows):
            raise BadInput(f"select: rows {rows[:8]} of {len(self)}; name at least one of 0 to {len(self) - 1}.")
        sides = [None if batch is None else batch.select(rows) for batch in (self.corrupted, self.baseline)]
        return TaskBatch(
            task=self.task.select(rows),
            clean=self.clean.select(rows),
            corrupted=sides[0],
            baseline=sides[1],
            right=self.right[rows],
            wrong=self.wrong[rows],
            sequences=tuple(self.sequences[row] for row in rows),
            indices=tuple(self.indices[row] for row in rows),
            drops=self.drops,
            given=self.given,
        )

    def __repr__(self) -> str:
        lengths = sorted(set(self.clean.lengths))
        size = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
        gone = ", ".join(f"{count} {rule}" for rule, count in self.drop_counts().items())
        return (
            f"TaskBatch({self.task.name!r}: {len(self)} of {self.given} items, {size} tokens"
            f"{'; dropped: ' + gone if gone else ''})"
        )
