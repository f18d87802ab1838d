"""The metrics by name. The registry is data: it can be listed without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class MetricEntry:
    """One metric.

    Attributes:
        summary: what it is, in one line.
        unit: of its numbers.
        sense: +1 where larger is better, -1 where lower is.
        needs: what the batch must have: ``answers``, ``answers with a wrong one``, ``span 'answer'``, ``ids``, or the
            ``clean run`` that it is compared with.
        function: ``module:function`` that computes it; with ``clean run``, that makes it from the clean run.
    """

    summary: str
    unit: str
    sense: Literal[1, -1]
    needs: str
    function: str

    def __str__(self) -> str:
        return self.summary


METRICS: Mapping[str, MetricEntry] = MappingProxyType(
    {
        "logit_difference": MetricEntry(
            "logit of the right answer minus the mean logit of the wrong ones",
            "logits",
            1,
            "answers with a wrong one",
            "interp.metrics.answers:logit_difference",
        ),
        "probability": MetricEntry(
            "probability of the right answer among the whole vocabulary",
            "probability",
            1,
            "answers",
            "interp.metrics.answers:probability",
        ),
        "answer_logprob": MetricEntry(
            "log-probability of the right answer",
            "nats",
            1,
            "answers",
            "interp.metrics.answers:answer_logprob",
        ),
        "sequence_logprob": MetricEntry(
            "log-probability of an answer of several tokens that stands in the prompt (span 'answer')",
            "nats",
            1,
            "span 'answer'",
            "interp.metrics.tokens:sequence_logprob",
        ),
        "accuracy": MetricEntry(
            "1 where the right answer has the largest logit, else 0",
            "share",
            1,
            "answers",
            "interp.metrics.answers:accuracy",
        ),
        "rank": MetricEntry(
            "how many tokens have a larger logit than the right answer: 0 is the top",
            "tokens",
            -1,
            "answers",
            "interp.metrics.answers:rank",
        ),
        "loss": MetricEntry(
            "mean next-token cross-entropy over the prompt's tokens, or over its span 'loss'",
            "nats per token",
            -1,
            "ids",
            "interp.metrics.tokens:loss",
        ),
        "kl": MetricEntry(
            "divergence of the next-token distribution from that of the clean run, at the answer's position",
            "nats",
            -1,
            "clean run",
            "interp.metrics.divergence:kl_divergence",
        ),
    }
)
