"""What is explained: a metric of the answer, of what the model itself says where prompts have none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.metrics import answer_logits, answer_logprob
from interp.metrics.declare import declared
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric, run
from interp.model.sweep import logits_for


@dataclass(frozen=True, eq=False)
class Explained:
    """A batch with answers, and the metric of it that is explained.

    Attributes:
        batch: the prompts; where they had no answers, the answer is what the model says of the whole prompt.
        metric: a number per prompt.
        said: what that is, in words.
    """

    batch: Batch
    metric: Metric
    said: str


def explained(model: Model, batch: Batch, metric: Metric | None) -> Explained:
    """What is explained: ``metric``, or for None the log-probability of the right answer.

    Prompts without answers are given the answer that the model prefers on the whole prompt. It stays that answer when
    tokens are taken away, so that a metric of it can fall.

    Raises:
        BadInput: a model without logits.
    """
    if metric is not None:
        return Explained(batch, metric, getattr(metric, "__name__", "metric"))
    if batch.answers is not None:
        return Explained(batch, answer_logprob, "log-probability of the right answer")
    logits = run(model, batch, logits=logits_for(answer_logprob, model)).logits
    if logits is None:
        raise BadInput(f"{model.name!r} gives no logits, so that no change of its answer can be measured.")
    preferred = answer_logits(logits, batch).argmax(-1, keepdim=True)
    own = replace(batch, answers=preferred.to(batch.mask.device))
    return Explained(own, answer_logprob, "log-probability of what the model says of the whole prompt")


@declared(positions="answers")
def probability_gap(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` p(right answer) - mean p(wrong answers), at the answer's position.

    Raises:
        BadInput: a prompt without a wrong answer.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> bool(probability_gap(interp.run(model, batch).logits, batch) > 0.99)
        True
    """
    answers = batch.answers
    if answers is None or answers.shape[1] == 1 or bool((answers[:, 1] < 0).any()):
        raise BadInput("The gap of probabilities needs a right and a wrong answer: answers=[(right, wrong), ...].")
    answers = answers.to(logits.device)
    chosen = torch.softmax(answer_logits(logits, batch), dim=-1).gather(1, answers.clamp(min=0))
    wrong = answers[:, 1:] >= 0
    return chosen[:, 0] - chosen[:, 1:].masked_fill(~wrong, 0.0).sum(1) / wrong.sum(1)
