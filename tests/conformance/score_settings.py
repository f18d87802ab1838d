"""What a score needs besides a batch before the conformance sweep can ask for it.

``SETTINGS[name](case, batch) -> (batch, options)``; a score that is not here is asked for with the batch as it is and
no options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from interp import Batch

from .support import Case

Setting = Callable[[Case, Batch], tuple[Batch, dict[str, Any]]]


def with_spans(batch: Batch, **slices: slice) -> Batch:
    """The batch with spans that are slices of each prompt's own tokens."""
    spans = {}
    for name, chosen in slices.items():
        member = torch.zeros_like(batch.mask)
        for row, real in enumerate(batch.mask):
            columns = real.nonzero().flatten()[chosen]
            member[row, columns] = True
        spans[name] = member
    return replace(batch, spans={**batch.spans, **spans})


DOCUMENTS = {"first": slice(1, 3), "second": slice(3, 4)}
ANSWERED = {"gold": slice(1, 3), "answer": slice(-2, None)}


def chain(case: Case, batch: Batch) -> tuple[Batch, dict[str, Any]]:
    """Every token a node, each the neighbour of those beside it."""
    nodes = (batch.mask.cumsum(-1) - 1).masked_fill(~batch.mask, -1)
    places = torch.arange(batch.width)
    return batch, {"nodes": nodes, "adjacency": (places[:, None] - places).abs() == 1}


def told_apart(case: Case, batch: Batch) -> tuple[Batch, dict[str, Any]]:
    """A metric that is linear in the logits, of any model: of two tokens, or of two classes."""

    def two_apart(logits: torch.Tensor, own: Batch) -> torch.Tensor:
        last = logits if logits.ndim == 2 else logits[torch.arange(len(own)), own.read_at]
        return last[:, 0] - last[:, 1]

    return batch, {"metric": two_apart}


SETTINGS: Mapping[str, Setting] = {
    "top_mass": lambda case, batch: (batch, {"n": 2}),
    "separability": lambda case, batch: (batch, {"n": 2}),
    "secondary_sink_mass": lambda case, batch: (batch, {"cosine": 0.3, "shortest": 0.0}),
    "massive_q": lambda case, batch: (batch, {"factor": 1.2}),
    "massive_k": lambda case, batch: (batch, {"factor": 1.2}),
    "massive_v": lambda case, batch: (batch, {"factor": 1.2}),
    "value_weighted_mass": lambda case, batch: (batch, {"keys": slice(1, 3)}),
    "context_divergence": lambda case, batch: (batch, {"span": slice(1, 3)}),
    "span_sensitivity": lambda case, batch: (batch, {"span": slice(1, 3)}),
    "direct_effect": told_apart,
    "sign_disagreement": told_apart,
    "permutation_effect": lambda case, batch: (batch, {"permutations": 3}),
    "class_identifiability": lambda case, batch: (batch, {"of": "predicted"}),
    "class_value_agreement": lambda case, batch: (batch, {"of": "predicted"}),
    "retrieval": lambda case, batch: (batch, {"needle": slice(1, 3), "answer": slice(-2, None), "top_k": 3}),
    "retrieval_generated": lambda case, batch: (batch, {"needle": slice(1, 3), "max_new_tokens": 2}),
    "group_mass": lambda case, batch: (
        batch,
        {"keys": {"one": slice(0, 3), "rest": slice(3, None)}, "queries": {"late": slice(-3, None), "all": None}},
    ),
    "graph_distance": chain,
    "item_attention": lambda case, batch: (batch, {"items": DOCUMENTS, "queries": slice(-2, None)}),
    "lookback_ratio": lambda case, batch: (batch, {"generated": slice(-2, None), "tokens": 3}),
    "contextual": lambda case, batch: (batch, ANSWERED),
    "contextual_companions": lambda case, batch: (batch, {**ANSWERED, "documents": DOCUMENTS}),
    "contextual_gold_only": lambda case, batch: (batch, {**ANSWERED, "documents": DOCUMENTS}),
    "query_retrieval": lambda case, batch: (
        batch,
        {"query": slice(-2, None), "documents": DOCUMENTS, "gold": slice(1, 3), "null": [7]},
    ),
    "long_context": lambda case, batch: (batch, {"sink_tokens": 1, "local_tokens": 2}),
    "long_context_labels": lambda case, batch: (batch, {"sink_tokens": 1, "local_tokens": 2}),
    "negative_attention": lambda case, batch: (batch, {"yes": 0, "no": 1}),
    "future_influence": lambda case, batch: (batch, {"low": 1, "high": 3}),
}
