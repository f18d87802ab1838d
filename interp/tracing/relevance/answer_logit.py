"""The logit of the answer: what gradients explain by default."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interp.metrics import answer_logits, declared
from interp.model.batch import Batch
from interp.model.run import Metric


@declared(positions="answers")
def answer_logit(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    """``[batch]`` logit of the right answer; of what the model itself says where prompts have no answers.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> answer_logit(interp.run(model, batch).logits, batch).round(decimals=3)
        tensor([10.])
    """
    at_answer = answer_logits(logits, batch)
    if batch.answers is None:
        return at_answer.amax(-1)
    return at_answer.gather(1, batch.answers[:, :1].to(at_answer.device))[:, 0]


def metric_or_logit(metric: Metric | None) -> Metric:
    """``metric``, or the logit of the answer for None."""
    return answer_logit if metric is None else metric


def named(metric: Metric) -> str:
    """What a metric is called, for metadata."""
    return str(getattr(metric, "__name__", type(metric).__name__))
