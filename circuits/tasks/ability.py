"""Whether a model can do a task at all: accuracy and difference of the answers with their doubt, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import interp
from circuits.tasks.answer_sets import AnswerSets
from circuits.tasks.task_batch import TaskBatch
from interp.errors import BadInput
from interp.metrics import answer_logits
from interp.names import unknown
from interp.numerals import numeral
from interp.stats import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Ability:
    """How well a model does a task.

    Attributes:
        name: the task and the model, in words.
        accuracy: share of the items where the largest logit of the whole vocabulary is a right answer's.
        choice: share where the best right answer is above the best wrong one; ``None`` without wrong answers.
        chance: what ``choice`` (without wrong answers: ``accuracy``) would be for logits in random order.
        difference: right minus wrong, in the task's own metric; ``None`` without wrong answers.
        metric: ``"logit"`` or ``"probability"``, see ``TaskBatch.metric``.
        corrupted: the same difference of the same answers on the corrupted prompts; ``None`` without.
        reason: why the model is held unable, ``None`` where it is able.
        per_item: column -> ``[item]``.
        labels: per item what it was made from.
    """

    name: str
    accuracy: Interval
    choice: Interval | None
    chance: float
    difference: Interval | None
    metric: str
    corrupted: Interval | None
    reason: str | None
    per_item: dict[str, Float[np.ndarray, " item"]]
    labels: tuple[dict[str, Any], ...]

    @property
    def able(self) -> bool:
        """Whether the model does the task better than chance, beyond doubt."""
        return self.reason is None

    def check(self, *, go_on: bool = False) -> Ability:
        """Itself, where the model can do the task or one wants to go on regardless.

        Raises:
            BadInput: the model cannot do it and ``go_on`` is false; with the numbers.
        """
        if self.able or go_on:
            return self
        raise BadInput(
            f"{self}\nA circuit of a task that the model cannot do explains nothing. Choose another model, other "
            "options of the task, or say go_on=True to go on regardless."
        )

    def table(self) -> pd.DataFrame:
        """One row per item: its numbers and its labels."""
        import pandas as pd

        return pd.concat([pd.DataFrame(self.per_item), pd.DataFrame(list(self.labels))], axis=1)

    def by(self, label: str) -> pd.DataFrame:
        """The means for each value of a label, such as the template: where the model fails, if it does.

        Raises:
            BadInput: no item has that label.
        """
        import pandas as pd

        known: set[str] = set().union(*self.labels)
        if label not in known:
            raise BadInput(unknown(label, known, "label"))
        values = [str(one.get(label)) for one in self.labels]
        rows: list[dict[str, Any]] = []
        for value in dict.fromkeys(values):
            own = [place for place, found in enumerate(values) if found == value]
            told = {name: column[own] for name, column in self.per_item.items()}
            means = {name: float(column[np.isfinite(column)].mean()) for name, column in told.items()
                     if np.isfinite(column).any()}  # fmt: skip
            rows.append({label: value, "items": len(own), **means})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        lines = [f"{self.name}: {'able' if self.able else f'not able, since {self.reason}'}."]
        lines.append(f"  accuracy over the vocabulary {self.accuracy}")
        if self.choice is not None:
            lines.append(f"  right above wrong {self.choice}; chance {numeral(self.chance)}")
        if self.difference is not None:
            lines.append(f"  {self.metric} difference {self.difference}")
        if self.corrupted is not None:
            lines.append(f"  the same answers after the corrupted prompt {self.corrupted}")
        return "\n".join(lines)

    __repr__ = __str__


def task_ability(
    model: interp.Model,
    batch: TaskBatch,
    *,
    cluster: str | Sequence[Any] | None = None,
    least: float | None = None,
    confidence: float = 0.95,
    batch_size: int = 64,
) -> Ability:
    """Accuracy and difference of the answers, each with a bootstrap interval over items, and a verdict.

    The verdict is ours: a model is able when the interval of ``choice`` lies above chance, that of ``difference`` above
    0, and, where ``least`` is given, the mean of ``choice`` reaches it. Chance of an item is the probability that the
    largest of its right and wrong answers in random order is a right one, ``n_right / (n_right + n_wrong)``.

    Args:
        model: the handle.
        batch: from ``encode_task``.
        cluster: a label (or one value per item): items with the same value are resampled together.
        least: the smallest mean of ``choice`` (of ``accuracy`` without wrong answers) that will do.
        confidence: of the intervals.
        batch_size: prompts in one forward.

    Raises:
        BadInput: an unknown label, or values out of range.

    Example:
        >>> import interp
        >>> from circuits.tasks import make_task
        >>> from circuits.tasks.encode import encode_task
        >>> model = interp.load("induction")
        >>> task = make_task("induction-random", n=16, vocabulary=(4, 390), length=20, first=0)
        >>> task_ability(model, encode_task(model, task)).able
        True
    """
    if batch_size < 1:
        raise BadInput(f"batch_size={batch_size!r}: expected 1 or more.")
    if least is not None and not 0 <= least <= 1:
        raise BadInput(f"least={least!r}: expected a share from 0 to 1.")
    groups = batch.labels(cluster) if isinstance(cluster, str) else cluster
    groups = None if groups is None else [str(group) for group in groups]
    metric = batch.metric
    vocabulary, columns = _measured(model, batch, metric, batch_size)

    def interval(name: str) -> Interval | None:
        values = columns.get(name)
        if values is None or not np.isfinite(values).any():
            return None
        return mean_interval(values, confidence=confidence, cluster=groups)

    accuracy, choice = interval("accuracy"), interval("choice")
    assert accuracy is not None
    chance = _chance(batch, vocabulary)
    difference = interval("difference")
    return Ability(
        name=f"{model.name} on {len(batch)} items of {batch.task.name}",
        accuracy=accuracy,
        choice=choice,
        chance=chance,
        difference=difference,
        metric=metric.kind,
        corrupted=interval("corrupted_difference"),
        reason=_reason(accuracy, choice, chance, difference, metric.kind, least),
        per_item=columns,
        labels=tuple(dict(item.labels) for item in batch.task.items),
    )


def _measured(
    model: interp.Model, batch: TaskBatch, metric: AnswerSets, batch_size: int
) -> tuple[int, dict[str, np.ndarray]]:
    parts: dict[str, list[Tensor]] = {}
    vocabulary = 1
    for start in range(0, len(batch), batch_size):
        part = batch.select(slice(start, start + batch_size))
        logits = _logits(model, part.clean)
        at_answer = answer_logits(logits, part.clean).cpu()
        vocabulary = at_answer.shape[-1]
        has_wrong = (part.wrong >= 0).any(1)
        best_right, best_wrong = (_best(at_answer, ids) for ids in (part.right, part.wrong))
        found = {
            "accuracy": (at_answer.argmax(-1, keepdim=True) == part.right).any(1).double(),
            "choice": _where((best_right > best_wrong).double(), has_wrong),
            "difference": _where(metric(logits, part.clean).double().cpu(), has_wrong),
        }
        if part.corrupted is not None:
            other = _logits(model, part.corrupted)
            found["corrupted_difference"] = _where(metric(other, part.corrupted).double().cpu(), has_wrong)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return vocabulary, {name: torch.cat(values).numpy() for name, values in parts.items()}


def _logits(model: interp.Model, batch: interp.Batch) -> Tensor:
    logits = interp.run(model, batch, logits="answers").logits
    if logits is None:
        raise BadInput(f"{model.name!r} gives no logits; a task needs a language model.")
    return logits


def _best(logits: Tensor, ids: Tensor) -> Tensor:
    """``[item]`` the largest logit of the ids of each row that are there."""
    return logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -math.inf).amax(1)


def _where(values: Tensor, there: Tensor) -> Tensor:
    return values.masked_fill(~there, math.nan)


def _chance(batch: TaskBatch, vocabulary: int) -> float:
    right, wrong = ((ids >= 0).sum(1).double() for ids in (batch.right, batch.wrong))
    with_wrong = wrong > 0
    if not bool(with_wrong.any()):
        return float((right / vocabulary).mean())
    return float((right / (right + wrong))[with_wrong].mean())


def _reason(
    accuracy: Interval, choice: Interval | None, chance: float, difference: Interval | None, kind: str,
    least: float | None,
) -> str | None:  # fmt: skip
    share, word = (choice, "share of right above wrong") if choice is not None else (accuracy, "accuracy")
    if not math.isfinite(share.low):
        return f"{share.n} item(s) give no interval; ask for more items"
    if share.low <= chance:
        return f"its {word} {share} is not above chance ({numeral(chance)})"
    if difference is not None and not difference.low > 0:
        return f"its {kind} difference {difference} is not above 0"
    if least is not None and share.mean < least:
        return f"its {word} {numeral(share.mean)} is below least={least:g}"
    return None
