"""Query-focused retrieval heads: what a question adds to the attention on the document that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.rewriting import NEW, carried, rewritten
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.groups.groups import members_of
from interp.scores.long_context.chosen_rows import columns_with_filler, standing
from interp.scores.long_context.contextual import document_members
from interp.scores.reducer import Reducer

NULL_QUERY = "N/A"
DEVIATIONS = 2.0
TWO = 2  # values that a standard deviation needs


def document_scores(
    calibrated: Float[Tensor, "batch *head key"], documents: Bool[Tensor, "document batch key"]
) -> Float[Tensor, "batch *head document"]:
    """``[batch, head, document]`` the sum of a document's calibrated attention without low outliers.

    Of each document the tokens with ``c > mean - 2 sd`` count, mean and standard deviation (unbiased) over the
    document's tokens, per head (Zhang et al., 2025, QRHead). A document of one token counts as it is; one without a
    token is NaN.

    Args:
        calibrated: attention with the query minus attention with an empty one; with a head axis, or summed over heads.
        documents: which keys are each document's.

    Example:
        >>> c = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -5.0]])
        >>> document_scores(c, torch.ones(1, 1, 7, dtype=torch.bool)).tolist()
        [[6.0]]
    """
    made = []
    for member in documents:
        own = member.view(len(member), *[1] * (calibrated.ndim - TWO), -1).expand_as(calibrated)
        number = own.sum(-1, keepdim=True)
        kept = torch.where(own, calibrated, torch.zeros_like(calibrated)).double()
        mean = kept.sum(-1, keepdim=True) / number
        squares = torch.where(own, (calibrated - mean) ** 2, torch.zeros_like(kept)).sum(-1, keepdim=True)
        deviation = (squares / (number - 1).clamp(min=1)).sqrt()
        counted = own & ((calibrated > mean - DEVIATIONS * deviation) | (number < TWO) | (deviation == 0))
        total = torch.where(counted, kept, torch.zeros_like(kept)).sum(-1)
        made.append(torch.where(number[..., 0] > 0, total, torch.full_like(total, torch.nan)))
    return torch.stack(made, dim=-1)


class MeanRow(Reducer):
    """The mean over chosen rows of the whole row: ``[batch, head, key]`` per layer.

    Args:
        ask: what is scored.
        chosen: ``[batch, pos]`` the rows.
    """

    def __init__(self, ask: Ask, chosen: Bool[Tensor, "batch pos"]) -> None:
        super().__init__(ask)
        self.chosen = chosen
        self.rows = columns_with_filler(chosen)
        self.sums: dict[int, Tensor] = {}
        self.numbers: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's chosen rows."""
        counted = standing(block, self.chosen)
        counted = counted if counted.ndim == 3 else counted[:, None]  # noqa: PLR2004 - batch, head, row
        weights = counted.expand(-1, block.pattern.shape[1], -1)
        added = torch.einsum("bhrk,bhr->bhk", block.pattern, weights.to(block.pattern.dtype)).double()
        if block.layer not in self.sums:
            shape = (*added.shape[:2], self.ask.batch.width)
            self.sums[block.layer] = added.new_zeros(shape)
            self.numbers[block.layer] = added.new_zeros(shape[:2])
        self.sums[block.layer][..., : added.shape[-1]] += added
        self.numbers[block.layer] += weights.sum(-1)

    def mean(self, layer: int) -> Float[Tensor, "batch head key"]:
        """Sum over number, NaN where no row counted."""
        return self.sums[layer] / self.numbers[layer].unsqueeze(-1)


class QueryRetrieval(MeanRow):
    """Document scores of every head; the prompts with an empty query are run when the first pass is over.

    Args:
        ask: what is scored.
        query: ``[batch, pos]`` the rows that read the query.
        documents: ``[document, batch, key]``.
        names: of the documents.
        gold: ``[batch, document]`` which documents hold the answer; None for one bin per document.
        null: the prompts with an empty query, their rows, and where the documents' tokens are in them.
    """

    def __init__(
        self,
        ask: Ask,
        query: Tensor,
        documents: Tensor,
        names: tuple[str, ...],
        gold: Tensor | None,
        null: tuple[Batch, Tensor, Tensor],
    ) -> None:
        super().__init__(ask, query)
        self.documents = documents if ask.dropped is None else documents & ~ask.dropped
        self.names, self.gold, self.null = names, gold, null

    def measured(self) -> Measured:
        """By layer: the sum over gold documents, or every document."""
        found = {layer: document_scores(calibrated, self.documents) for layer, calibrated in self.calibrated().items()}
        if self.gold is None:
            return Measured(found, bins=self.names)
        gold = self.gold[:, None]
        return Measured(
            {layer: torch.where(gold, each, torch.zeros_like(each)).sum(-1) for layer, each in found.items()}
        )

    def calibrated(self) -> dict[int, Float[Tensor, "batch head key"]]:
        """Layer -> attention of the query minus that of the empty query, at the documents' keys (0 elsewhere)."""
        batch, rows, moved = self.null
        dropped = None
        if self.ask.dropped is not None:
            dropped = carried(self.ask.dropped, moved, batch)
        ask = replace(self.ask, batch=batch, dropped=dropped)
        empty = MeanRow(ask, rows)
        ask.stream([empty])
        any_document = self.documents.any(0)[:, None]
        place = moved.clamp(min=0)[:, None]
        made = {}
        for layer in self.sums:
            before = empty.mean(layer)
            there = before.gather(-1, place.expand(-1, before.shape[1], -1))
            difference = self.mean(layer) - there
            made[layer] = torch.where(any_document, difference, torch.zeros_like(difference))
        return made


def query_retrieval(
    ask: Ask,
    *,
    query: Any = "query",
    rows: Any = None,
    documents: Any = None,
    gold: Any = "gold",
    null: Any = NULL_QUERY,
    by_document: bool = False,
) -> QueryRetrieval:
    """How much more a query looks at the documents that answer it than an empty query does.

    ``a(j)`` is the mean attention of the query's rows to token j, ``c = a - a_null``; each document's score is the sum
    of its ``c`` without low outliers (:func:`document_scores`), the head's score the sum over gold documents (Zhang et
    al., 2025, QRHead). 0 where the query is the empty one.

    Args:
        ask: what is scored. Documents stand before the query, so that an empty query leaves them as they are.
        query: the span of the query's text, which ``null`` replaces.
        rows: the rows that read the query: its text and what follows it (the chat's suffix) for None.
        documents: names of the documents' spans, or a mapping; those that begin with ``"document "`` for None.
        gold: the span that holds the answer: a document that shares a token with it is gold.
        null: the empty query: a text, or token ids.
        by_document: one bin per document in place of the sum over gold ones, for ranking documents.

    Raises:
        BadInput: a document behind the query, no gold document in a prompt, an empty query without tokens.
    """
    if not ask.stack.causal or ask.stack.cross or ask.stack.name != ask.batch.default_stack:
        raise BadInput(
            f"{ask.name}: an empty query must leave the documents before it as they are, which holds in the causal "
            f"stack of the prompts' tokens alone, not in stack {ask.stack.name!r}."
        )
    mask = ask.mask
    assert mask is not None
    asked = members_of(ask, query, "query", keys=False)[1].any(0)
    names, members = document_members(ask, documents)
    start = torch.where(asked, torch.arange(mask.shape[1], device=mask.device), mask.shape[1]).min(-1).values
    behind = members.any(0) & (torch.arange(mask.shape[1], device=mask.device) >= start[:, None])
    if bool(behind.any()):
        prompt, column = behind.nonzero()[0].tolist()
        raise BadInput(
            f"{ask.name}: a document of prompt {prompt} holds column {column}, and its query begins at column "
            f"{int(start[prompt])}; put the documents before the query."
        )
    reading = mask & (torch.arange(mask.shape[1], device=mask.device) >= start[:, None])
    if rows is not None:
        reading = members_of(ask, rows, "rows", keys=False)[1].any(0)
    golden = None if by_document else _gold(ask, gold, members)
    return QueryRetrieval(ask, reading, members, names, golden, _null(ask, asked, reading, null))


def _gold(ask: Ask, gold: Any, members: Tensor) -> Bool[Tensor, "batch document"]:
    golden = (members & members_of(ask, gold, "gold", keys=True)[1].any(0)).any(-1).T
    none = (~golden.any(-1)).nonzero().flatten().tolist()
    if none:
        raise BadInput(f"{ask.name}: no document of prompts {none[:5]} shares a token with gold={gold!r}.")
    return golden


def _null(ask: Ask, asked: Tensor, reading: Tensor, null: Any) -> tuple[Batch, Tensor, Int[Tensor, "batch pos"]]:
    """The prompts with the empty query, the rows that read it, and where every old token is in them."""
    tokens = _null_tokens(ask, null)
    batch = ask.batch
    assert batch.ids is not None
    ids, source, is_new = [], [], []
    for row in range(len(batch)):
        columns = batch.mask[row].nonzero()[:, 0].tolist()
        replaced = [bool(asked[row, column]) for column in columns]
        at = replaced.index(True)
        before = [column for column, gone in zip(columns[:at], replaced[:at], strict=True) if not gone]
        after = [column for column, gone in zip(columns[at:], replaced[at:], strict=True) if not gone]
        ids.append([*batch.ids[row, before].tolist(), *tokens, *batch.ids[row, after].tolist()])
        source.append([*before, *[NEW] * len(tokens), *after])
        is_new.append((len(before), len(tokens)))
    made, moved = rewritten(ask.model, batch, ids, source)
    rows = carried(reading, moved, made)
    for prompt, (start, count) in enumerate(is_new):
        own = made.mask[prompt].nonzero()[:, 0]
        rows[prompt, own[start : start + count]] = True
    return made, rows, moved


def _null_tokens(ask: Ask, null: Any) -> list[int]:
    if isinstance(null, str):
        if ask.model.tokenizer is None:
            raise BadInput(f"{ask.name}: null={null!r} needs a tokenizer; give the empty query as token ids.")
        null = ask.model.tokenizer(null, add_special_tokens=False)["input_ids"]
    if not isinstance(null, Sequence | Tensor) or not len(null):
        raise BadInput(f"{ask.name}: null={null!r}; expected the empty query as a text or as token ids.")
    return [int(token) for token in null]
