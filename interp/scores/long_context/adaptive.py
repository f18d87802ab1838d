"""Does a query need keys that are far away? A label per query and head from local keys and two moments of the rest."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.groups.groups import members_of
from interp.scores.long_context.chosen_rows import columns_with_filler, standing
from interp.scores.reducer import Reducer

SINK_TOKENS = 16  # of the paper's set-up, as reported
LOCAL_TOKENS = 128  # ours: the paper's long-context runs are reported to use 1024
THRESHOLD = 0.5  # ours: most of the mass
BINS = ("local", "local by oracle", "agreement", "precision", "recall", "false local")


def local_log_mass(scores: Float[Tensor, "*any key"], local: Bool[Tensor, "*#any key"]) -> Float[Tensor, "*any"]:
    """``log sum exp`` of the scores of the local keys: sink and window; -inf without any."""
    return scores.masked_fill(~local, -torch.inf).logsumexp(-1)


def bulk_log_mass(scores: Float[Tensor, "*any key"], bulk: Bool[Tensor, "*#any key"]) -> Float[Tensor, "*any"]:
    """The estimate of ``log sum exp`` over bulk keys from the first two moments of their scores.

    ``log N + mean + variance / 2``: exact in the limit of many keys whose scores are Gaussian. With scores ``c q.k``,
    mean and variance are ``c q.mu`` and ``c^2 q^T S q`` of the keys' mean mu and covariance S (both over N), so that
    this equals :func:`bulk_log_mass_of_moments`.
    """
    seen = bulk & (scores > -torch.inf)
    number = seen.sum(-1).to(scores.dtype)
    kept = torch.where(seen, scores, torch.zeros_like(scores))
    mean = kept.sum(-1) / number
    apart = torch.where(seen, scores - mean.unsqueeze(-1), torch.zeros_like(scores))
    made = number.log() + mean + (apart**2).sum(-1) / number / 2
    return torch.where(number > 0, made, torch.full_like(made, -torch.inf))


def bulk_log_mass_of_moments(
    q: Float[Tensor, "*any d"],
    mean: Float[Tensor, "*#any d"],
    covariance: Float[Tensor, "*#any d d"],
    number: int | Tensor,
    scale: float,
) -> Float[Tensor, "*any"]:
    """``log N + c q.mu + c^2 q^T S q / 2``: the estimate without a look at the bulk keys.

    Args:
        q: queries after RoPE.
        mean, covariance: of the bulk keys after RoPE, one per KV head; covariance over N, not N - 1.
        number: N, how many bulk keys.
        scale: c, ``1 / sqrt(d)`` in most models.

    Example:
        >>> q, mu = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 5.0])
        >>> bulk_log_mass_of_moments(q, mu, torch.eye(2), 1, 0.5).item()
        1.5
    """
    projected = torch.einsum("...d,...d->...", q, mean) * scale
    spread = torch.einsum("...d,...de,...e->...", q, covariance, q) * scale**2
    return torch.as_tensor(number, dtype=q.dtype, device=q.device).log() + projected + spread / 2


def local_share(local: Float[Tensor, "*any"], bulk: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """``sigmoid(log A_local - log A_bulk)``: the share of the mass on local keys; 1 where there is no bulk mass.

    Example:
        >>> local_share(torch.tensor(0.0), torch.tensor(0.0)).item()
        0.5
    """
    return torch.where(torch.isneginf(bulk), torch.ones_like(bulk), torch.sigmoid(local - bulk))


class LocalLabels(Reducer):
    """Counts over query rows of the label by estimate against the label by oracle.

    Args:
        ask: what is scored.
        queries: ``[batch, pos]`` the rows; those without bulk keys do not count.
        sink, local: how many tokens.
        threshold: a query is local where its share is at least this.
        wanted: the bin that is the score, None for all.
    """

    logits = True

    def __init__(
        self, ask: Ask, queries: Tensor, sink: int, local: int, threshold: float, wanted: str | None = None
    ) -> None:
        super().__init__(ask)
        assert ask.mask is not None
        self.sink, self.local, self.threshold, self.wanted = sink, local, threshold, wanted
        self.ordinal = ask.mask.cumsum(-1) - 1
        self.queries = queries & ask.mask & (self.ordinal >= sink + local)
        self.rows = columns_with_filler(self.queries)
        self.counts: dict[int, Tensor] = {}  # [batch, head, estimate, oracle]

    def block(self, block: Block, products: Tensor | None) -> None:
        """Label the block's rows both ways, and count."""
        assert block.logits is not None and self.ask.mask is not None
        scores = block.logits if block.kept is None else block.logits.masked_fill(~block.open_keys, -torch.inf)
        key = self.ordinal[:, None, : block.n_keys]
        row = self.ordinal.gather(1, block.rows)[..., None]
        near = (key < self.sink) | (key > row - self.local)
        far = ~near & self.ask.mask[:, None, : block.n_keys]
        local = local_log_mass(scores, near[:, None])
        exact = local_log_mass(scores, far[:, None])
        by_estimate = local_share(local, bulk_log_mass(scores, far[:, None])) >= self.threshold
        by_oracle = local_share(local, exact) >= self.threshold
        counted = standing(block, self.queries)
        counted = counted if counted.ndim == 3 else counted[:, None]  # noqa: PLR2004 - batch, head, row
        cells = torch.stack([by_estimate & by_oracle, by_estimate & ~by_oracle, ~by_estimate & by_oracle,
                             ~by_estimate & ~by_oracle], dim=-1)  # fmt: skip
        added = (cells & counted[..., None]).sum(2)
        self.counts[block.layer] = self.counts[block.layer] + added if block.layer in self.counts else added

    def measured(self) -> Measured:
        """Shares of rows; NaN where none counts."""
        made = {layer: label_rates(counts) for layer, counts in self.counts.items()}
        about = {"sink_tokens": self.sink, "local_tokens": self.local, "threshold": self.threshold}
        if self.wanted is None:
            return Measured(made, bins=BINS, metadata=about)
        bin_ = BINS.index(self.wanted)
        return Measured({layer: 1 - rates[..., bin_] for layer, rates in made.items()}, metadata=about)


def label_rates(counts: Tensor) -> Float[Tensor, "*any rate"]:
    """What the labels by estimate are worth against those by oracle, in the order of ``BINS``.

    ``local`` and ``local by oracle`` the shares of queries; ``agreement``; ``precision`` of the label local, its
    ``recall``; ``false local`` the share of queries that need far keys and are labelled local. NaN for 0 / 0.

    Args:
        counts: ``[..., 4]`` queries that are (local, local), (local, far), (far, local), (far, far) by (estimate,
            oracle).
    """
    both, wrong, missed, neither = counts.double().unbind(-1)
    total = both + wrong + missed + neither
    return torch.stack(
        [
            (both + wrong) / total,
            (both + missed) / total,
            (both + neither) / total,
            both / (both + wrong),
            both / (both + missed),
            wrong / (wrong + neither),
        ],
        dim=-1,
    )


def long_context(
    ask: Ask,
    *,
    oracle: bool = False,
    queries: Any = None,
    sink_tokens: int = SINK_TOKENS,
    local_tokens: int = LOCAL_TOKENS,
    threshold: float = THRESHOLD,
) -> LocalLabels:
    """The share of queries at which a head needs keys that are neither sink nor local, in [0, 1].

    A query is local where ``sigmoid(log A_local - log A_bulk) >= threshold``, with ``A_local = sum exp`` of the scores
    of the first ``sink_tokens`` and the last ``local_tokens`` keys, and A_bulk that of all keys between, estimated from
    their two moments (:func:`bulk_log_mass`; "Unveiling Simplicities of Attention", 2025, arXiv 2502.09647, whose
    formula this follows as reconstructed). Rows without bulk keys do not count.

    Args:
        ask: what is scored.
        oracle: take the exact mass of the bulk keys in place of the estimate.
        queries: the query rows; all with bulk keys for None.
        sink_tokens: first tokens that are local to every query (16 is reported of the paper).
        local_tokens: the last ones, the query's own among them. 128 is this library's choice; the paper's long-context
            runs are reported to use 1024, which was not checked.
        threshold: this library's choice: most of the mass.

    Raises:
        BadInput: windows that leave no bulk key to any query row of a prompt.
        Unsupported: a stack that is not causal, or whose keys are not tokens.
    """
    rows, sizes = _rows(ask, queries, sink_tokens, local_tokens, threshold)
    return LocalLabels(ask, rows, *sizes, threshold, "local by oracle" if oracle else "local")


def long_context_labels(
    ask: Ask,
    *,
    queries: Any = None,
    sink_tokens: int = SINK_TOKENS,
    local_tokens: int = LOCAL_TOKENS,
    threshold: float = THRESHOLD,
) -> LocalLabels:
    """What the label of :func:`long_context` is worth against its oracle, in [0, 1].

    Bins: ``local``, ``local by oracle`` (shares of queries), ``agreement``, ``precision`` and ``recall`` of the label
    local, and ``false local``: the share of the queries that need far keys which are labelled local. One far key with a
    large score (a needle) is what two moments miss: give ``queries=`` the rows that ask for it.

    Args:
        ask: what is scored.
        queries, sink_tokens, local_tokens, threshold: as in :func:`long_context`.

    Raises:
        BadInput, Unsupported: as :func:`long_context`.
    """
    rows, sizes = _rows(ask, queries, sink_tokens, local_tokens, threshold)
    return LocalLabels(ask, rows, *sizes, threshold)


def _rows(
    ask: Ask, queries: Any, sink_tokens: int, local_tokens: int, threshold: float
) -> tuple[Bool[Tensor, "batch pos"], tuple[int, int]]:
    if not ask.stack.causal or ask.stack.cross or ask.mask is None:
        raise Unsupported(
            f"{ask.name}: local keys are the last ones before a query; stack {ask.stack.name!r} is not a causal stack "
            "of tokens."
        )
    for name, value, least in (("sink_tokens", sink_tokens, 0), ("local_tokens", local_tokens, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BadInput(f"{ask.name}: {name}={value!r}; expected a number of tokens, at least {least}.")
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise BadInput(f"{ask.name}: threshold={threshold!r}; expected a share of the mass between 0 and 1.")
    rows = ask.mask if queries is None else members_of(ask, queries, "queries", keys=False)[1].any(0)
    far = (ask.mask.cumsum(-1) > sink_tokens + local_tokens) & rows & ask.mask
    short = (~far.any(-1)).nonzero().flatten().tolist()
    if short:
        lengths = ask.batch.lengths
        raise BadInput(
            f"{ask.name}: sink_tokens={sink_tokens} and local_tokens={local_tokens} leave no bulk key to any query row "
            f"of prompts {short[:5]} ({[lengths[row] for row in short[:5]]} tokens); give longer prompts or smaller "
            "windows."
        )
    return rows, (sink_tokens, local_tokens)
