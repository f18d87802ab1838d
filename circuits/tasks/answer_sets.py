"""Metrics of sets of answers: all right ones against all wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.metrics import answer_logits
from interp.model.batch import Batch


def set_difference(
    logits: Float[Tensor, "item vocab"],
    right: Int[Tensor, "item k"],
    wrong: Int[Tensor, "item m"],
    kind: Literal["logit", "probability"],
) -> Float[Tensor, " item"]:
    """``[item]`` right minus wrong: mean logits, or summed probabilities.

    ``"logit"``: mean of the right logits - mean of the wrong ones (without wrong ones: the right ones alone);
    ``"probability"``: sum of p over the right answers - sum over the wrong ones (Hanna et al. 2023, for greater-than).

    Args:
        logits: at the answer's position.
        right, wrong: token ids, -1 for none.
        kind: of the two.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0, 4.0]])
        >>> set_difference(logits, torch.tensor([[0, 3]]), torch.tensor([[1, -1]]), "logit")
        tensor([3.])
    """
    values = logits.softmax(-1) if kind == "probability" else logits
    sides = []
    for ids in (right, wrong):
        there = (ids >= 0).to(values.dtype)
        total = (values.gather(1, ids.clamp(min=0)) * there).sum(1)
        sides.append(total if kind == "probability" else total / there.sum(1).clamp(min=1))
    return sides[0] - sides[1]


@dataclass(frozen=True, eq=False)
class AnswerSets:
    """A metric ``(logits, batch) -> [batch]`` for the prompts of one task, in any selection and order.

    A prompt is known by its tokens and its ``answers``, so that repeated, selected and re-padded rows keep their sets.

    Attributes:
        rows: what a prompt is known by -> its row in ``right`` and ``wrong``.
        right, wrong: ``[item, k]`` ids, -1 where an item has fewer.
        kind: see :func:`set_difference`.
    """

    rows: Mapping[tuple[int, tuple[int, ...]], int]
    right: Int[Tensor, "item k"]
    wrong: Int[Tensor, "item m"]
    kind: Literal["logit", "probability"]
    positions: Literal["answers"] = "answers"
    sense: Literal[1, -1] = 1

    @staticmethod
    def of(batches: Sequence[Batch], right: Tensor, wrong: Tensor, kind: Literal["logit", "probability"]) -> AnswerSets:
        """The metric for these batches, row by row with the same answers.

        Raises:
            BadInput: the same prompt and answers with other sets: a row would not know which are its own.
        """
        rows: dict[tuple[int, tuple[int, ...]], int] = {}
        for batch in batches:
            for row, key in enumerate(_keys(batch)):
                known = rows.setdefault(key, row)
                same = all(bool((ids[known].sort()[0] == ids[row].sort()[0]).all()) for ids in (right, wrong))
                if not same:
                    raise BadInput(
                        f"Items {known} and {row} have a prompt and first answers in common and other answers beside; "
                        "leave one of them out (task.select)."
                    )
        return AnswerSets(rows, right, wrong, kind)

    def __call__(self, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """``[batch]`` right minus wrong, at the answer's position.

        Raises:
            BadInput: a prompt that is none of the task's.
        """
        at_answer = answer_logits(logits, batch)
        try:
            rows = [self.rows[key] for key in _keys(batch)]
        except KeyError:
            raise BadInput(
                "This metric belongs to one TaskBatch, and a prompt of the batch is none of its clean, corrupted or "
                "baseline prompts; use interp.logit_difference, or the metric of the other TaskBatch."
            ) from None
        right, wrong = (ids[rows].to(at_answer.device) for ids in (self.right, self.wrong))
        return set_difference(at_answer, right, wrong, self.kind)


def _keys(batch: Batch) -> list[tuple[int, tuple[int, ...]]]:
    if batch.answers is None:
        raise BadInput("This metric needs a batch with answers; take those of a TaskBatch.")
    answers = [tuple(token for token in row if token >= 0) for row in batch.answers.tolist()]
    return list(zip(batch.content_keys.tolist(), answers, strict=True))
