"""Contextual heads: how much of an answer's attention lies on the document that holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.rewriting import carried
from interp.model.row_blocks import Block
from interp.model.shortening import Shortened, shortened
from interp.names import unknown
from interp.scores.ask import Ask, Measured
from interp.scores.groups.groups import members_of, refuse_shared
from interp.scores.groups.items import spans_beginning
from interp.scores.long_context.chosen_rows import ChosenRowMean, one_before

DOCUMENT = "document "
SINK_TOKENS = 2
COMPANIONS = ("gold", "irrelevant", "largest irrelevant", "sink")


def answer_rows(ask: Ask, answer: Any, rows: str) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` the rows of the answer's tokens, or those that predict them.

    Raises:
        BadInput: another word for ``rows``, an answer without a token, or one at the very start.
    """
    if rows not in ("answer", "predicting"):
        raise BadInput(unknown(rows, ("answer", "predicting"), f"rows of {ask.name}"))
    chosen = members_of(ask, answer, "answer", keys=False)[1].any(0)
    if rows == "answer":
        return chosen
    if ask.mask is None:
        raise BadInput(f"{ask.name}: rows='predicting' needs the order of tokens; use rows='answer'.")
    before, at_start = one_before(chosen, ask.mask)
    if bool(at_start.any()):
        raise BadInput(
            f"{ask.name}: no row predicts the first token of prompts {at_start.nonzero().flatten().tolist()[:5]}; "
            "leave it out of the answer, or use rows='answer'."
        )
    return before


class MassOn(ChosenRowMean):
    """Mean over chosen rows of the mass on some groups of keys.

    Args:
        ask: what is scored.
        chosen: ``[batch, pos]`` the rows.
        groups: ``[group, batch, key]``.
        bins: their names; None for the first group alone, as one number.
    """

    def __init__(self, ask: Ask, chosen: Tensor, groups: Tensor, bins: tuple[str, ...] | None = None) -> None:
        super().__init__(ask, chosen, bins)
        self.columns = groups.permute(1, 2, 0).float()

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "batch key group"]:
        """The groups as columns."""
        return self.columns[:, :n_keys]

    def per_row(self, block: Block, products: Tensor | None) -> Tensor:
        """The mass on the groups."""
        assert products is not None
        return products[..., 0] if self.bins is None else products


class Companions(MassOn):
    """Gold, irrelevant, largest irrelevant and sink mass; see :func:`contextual_companions`."""

    def __init__(self, ask: Ask, chosen: Tensor, gold: Tensor, sink: Tensor, documents: Tensor) -> None:
        names = ("gold", "sink", *map(str, range(len(documents))))
        super().__init__(ask, chosen, torch.cat([gold[None], sink[None], documents]), names)
        self.distracting = ~(documents & gold).any(-1).T  # [batch, document]

    def measured(self) -> Measured:
        """By layer; the two irrelevant bins are NaN in a prompt whose only documents hold the answer."""
        made = {}
        for layer, mass in super().measured().by_layer.items():
            others = self.distracting[:, None].expand_as(mass[..., 2:])
            on_others = torch.where(others, mass[..., 2:], torch.zeros_like(mass[..., 2:]))
            none = ~others.any(-1)
            total = on_others.sum(-1).masked_fill(none, torch.nan)
            largest = on_others.amax(-1).masked_fill(none, torch.nan)
            made[layer] = torch.stack([mass[..., 0], total, largest, mass[..., 1]], dim=-1)
        return Measured(made, bins=COMPANIONS)


def _carried(member: Tensor, part: Shortened) -> Tensor:
    return carried(member[part.rows], part.moved, part.batch)


def contextual(ask: Ask, *, gold: Any = "gold", answer: Any = "generated", rows: str = "answer") -> MassOn:
    """The mean over an answer's rows of the attention on the document that holds it, in [0, 1] (Zhu et al., 2025).

    ``S_h = mean_{i in answer} sum_{j in gold} A_h[i, j]``. Uniform attention over n keys, m of them gold, gives m / n.
    No other row is computed.

    Args:
        ask: what is scored: prompts with their answers behind them (:func:`interp.with_answer`,
            :func:`interp.with_generated`).
        gold: the span of the document, or another group of keys.
        answer: the answer's tokens.
        rows: ``"answer"`` the rows of the answer's own tokens, as the paper's; ``"predicting"`` the rows from which
            they are predicted, one to the left.

    Raises:
        BadInput: a span without a token in some prompt.
        BadAddress: an unknown span.
    """
    return MassOn(ask, answer_rows(ask, answer, rows), _key_group(ask, gold, "gold")[None])


def contextual_companions(
    ask: Ask,
    *,
    gold: Any = "gold",
    answer: Any = "generated",
    documents: Any = None,
    sink: int = SINK_TOKENS,
    rows: str = "answer",
) -> Companions:
    """What goes with the contextual score: mass on the gold, on the other documents, on the largest of them, and sunk.

    Bins, all means over the answer's rows: ``gold``; ``irrelevant`` the sum over documents that share no token with the
    gold; ``largest irrelevant`` the one of them with the most; ``sink`` the prompt's first tokens (Zhu et al., 2025).

    Args:
        ask: what is scored.
        gold, answer, rows: as in :func:`contextual`.
        documents: names of the documents' spans, or a mapping name -> group; the spans that begin with ``"document "``
            for None.
        sink: how many first tokens are the sink.

    Raises:
        BadInput: no documents, or a span without a token in some prompt.
    """
    if isinstance(sink, bool) or not isinstance(sink, int) or sink < 1:
        raise BadInput(f"{ask.name}: sink={sink!r}; expected how many first tokens are the sink, at least 1.")
    mask = ask.key_mask
    if mask is None:
        raise BadInput(f"{ask.name}: stack {ask.stack.name!r} has no first tokens; score a stack of tokens.")
    first = mask & (mask.cumsum(-1) <= sink)
    chosen = answer_rows(ask, answer, rows)
    return Companions(ask, chosen, _key_group(ask, gold, "gold"), first, document_members(ask, documents)[1])


def contextual_gold_only(
    ask: Ask, *, gold: Any = "gold", answer: Any = "generated", documents: Any = None, rows: str = "answer"
) -> Measured:
    """The contextual score in the same prompts without the other documents, in [0, 1] (Zhu et al., 2025).

    Args:
        ask: what is scored.
        gold, answer, documents, rows: as in :func:`contextual_companions`; documents that share no token with the gold
            are taken out.

    Raises:
        BadInput: a prompt has no other document, or tokens cannot be taken out of it.
        Unsupported: an encoder-decoder, whose answer is no part of the prompt.
    """
    if ask.batch.encoder_mask is not None:
        raise Unsupported(
            f"{ask.name}: it takes documents out of prompts with their answers behind them, and an encoder-decoder "
            "keeps the two apart; encode prompts without the documents and ask for contextual on stack 'cross'."
        )
    golden = _key_group(ask, gold, "gold")
    members = document_members(ask, documents)[1]
    others = (members & ~(members & golden).any(-1, keepdim=True)).any(0) & ~golden
    chosen = answer_rows(ask, answer, rows)
    bare = (~others.any(-1)).nonzero().flatten().tolist()
    if bare:
        raise BadInput(
            f"{ask.name}: prompts {bare[:5]} have no document besides the gold one; leave them out, or use contextual."
        )
    if bool((others & chosen).any()):
        raise BadInput(f"{ask.name}: the answer shares tokens with a document; mark the answer behind the prompt.")
    made: dict[int, Tensor] = {}
    for part in shortened(ask.model, ask.batch, others):
        dropped = None if ask.dropped is None else _carried(ask.dropped, part)
        own = replace(ask, batch=part.batch, dropped=dropped)
        mass = MassOn(own, _carried(chosen, part), _carried(golden, part)[None])
        own.stream([mass])
        for layer, values in mass.measured().by_layer.items():
            if layer not in made:
                made[layer] = values.new_full((len(ask.batch), values.shape[1]), torch.nan)
            made[layer][part.rows] = values
    return Measured(made)


def document_members(ask: Ask, documents: Any) -> tuple[tuple[str, ...], Bool[Tensor, "document batch key"]]:
    """Names and members of the documents.

    Raises:
        BadInput: none, one without a token in some prompt, or two that share a token.
    """
    given = spans_beginning(ask, DOCUMENT, "documents") if documents is None else documents
    names, members = members_of(ask, given, "documents", keys=True)
    names = names or (str(given),)
    refuse_shared(ask, names, members)
    return names, members


def _key_group(ask: Ask, group: Any, what: str) -> Bool[Tensor, "batch key"]:
    return members_of(ask, group, what, keys=True)[1].any(0)
