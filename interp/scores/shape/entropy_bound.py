"""The spectral lower bound of attention entropy: how small it could be, given the size of the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.names import unknown
from interp.scores.ask import Ask
from interp.scores.shape.distribution import DistributionMean, Queries

Version = Literal["rows", "matrix"]


def entropy_bound_of(norm: Float[Tensor, "*rows"], n_keys: Int[Tensor, "*#rows"]) -> Float[Tensor, "*rows"]:
    """The least entropy (nats) of a softmax over n logits whose Euclidean norm is at most s.

    ``log(1 + (n-1) b) + s sqrt(n (n-1)) b / (1 + (n-1) b)`` with ``b = exp(-s sqrt(n / (n-1)))``: log n as s goes to 0,
    0 as it grows, attained by the logits ``(s sqrt((n-1)/n), -s / sqrt(n (n-1)), ...)`` (Zhai et al., 2023). 0 for one
    key.

    Args:
        norm: s, at least the norm of the row's logits over the keys it sees; any constant may be taken off them first.
        n_keys: n, how many keys the row sees.

    Example:
        >>> entropy_bound_of(torch.tensor([0.0, 300.0]), torch.tensor([4, 4]))
        tensor([1.3863, 0.0000])
    """
    n = n_keys.clamp(min=2).to(norm.dtype)
    smallest = torch.exp(-norm * (n / (n - 1)).sqrt())
    total = 1 + (n - 1) * smallest
    weight = norm * (n * (n - 1)).sqrt() * smallest  # 0 for an infinite norm: the exponential wins
    bound = total.log() + torch.where(smallest > 0, weight, torch.zeros_like(weight)) / total
    return torch.where(n_keys > 1, bound, torch.zeros_like(bound))


def centred_norm(logits: Float[Tensor, "*rows key"], visible: Bool[Tensor, "*#rows key"]) -> Float[Tensor, "*rows"]:
    """``[..., row]`` norm of each row's logits about their mean, over the visible keys.

    A softmax does not see a constant, so that this is the smallest s that stands for the row.
    """
    n, blocked = visible.sum(-1).clamp(min=1), ~visible
    held = logits.masked_fill(blocked, 0)
    apart = held.sub_((held.sum(-1) / n).unsqueeze(-1)).masked_fill_(blocked, 0)
    return torch.linalg.vector_norm(apart, dim=-1)


def weight_logit_norm(
    w_query: Float[Tensor, "d_model d_head"],
    w_key: Float[Tensor, "d_model d_head"],
    x: Float[Tensor, "pos d_model"],
    scale: float,
) -> Float[Tensor, ""]:
    """``scale ||W_Q W_K^T||_2 ||X X^T||_2``: the paper's s for a whole head, from its weights and the inputs.

    No row of ``scale X W_Q W_K^T X^T`` has a larger norm. For heads without biases, rotations or position biases.

    Args:
        w_query: the query projection of a head.
        w_key: its key projection.
        x: what both are applied to.
        scale: the factor before the softmax.
    """
    (_, small_query), (_, small_key) = torch.linalg.qr(w_query.double()), torch.linalg.qr(w_key.double())
    weights = torch.linalg.matrix_norm(small_query @ small_key.T, ord=2)
    return (abs(scale) * weights * torch.linalg.matrix_norm(x.double(), ord=2) ** 2).to(x.dtype)


class RowBound(DistributionMean):
    """The mean over rows of the bound by each row's own logits."""

    logits = True

    def of_rows(self, block: Block) -> Float[Tensor, "batch head row"]:
        """The bound of each row."""
        assert block.logits is not None
        return entropy_bound_of(centred_norm(block.logits, block.open_keys), block.n_open)


class MatrixBound(DistributionMean):
    """The mean over rows of the bound by one norm for the whole head: ``||Q||_2 ||K||_2`` times the largest scale.

    The scale is what the logits have beside the product of q and k: the largest ``||logits_i|| / ||K q_i||`` over rows
    is the model's factor where attention is a plain product, and holds every row also under position biases and
    soft-caps.
    """

    logits = True
    sites = frozenset({Site.Q, Site.K})

    def __init__(self, ask: Ask, queries: Queries = None) -> None:
        super().__init__(ask, queries)
        self.rows = None  # the scale is that of every row
        for site in self.sites:
            ask.stack.require(site, edit=False)
        self.keys: Tensor = torch.empty(0)
        self.scale: dict[int, Tensor] = {}
        self.norms: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The spectral norms of q and k over real tokens, by small Gram matrices."""
        group = self.ask.stack.n_heads(layer) // self.ask.stack.n_kv_heads(layer)
        q, k = seen[Site.Q].float(), seen[Site.K].float()
        self.keys = k.repeat_interleave(group, 2)
        self.norms[layer] = _spectral(q, self.ask.mask) * _spectral(k, self.ask.key_mask).repeat_interleave(group, 1)
        self.scale.pop(layer, None)

    def block(self, block: Block, products: Tensor | None) -> None:
        """Keep the largest scale, and how many rows that count see how many keys."""
        assert block.logits is not None
        seen = block.open_keys
        index = block.rows[:, :, None, None].expand(-1, -1, *block.seen[Site.Q].shape[2:])
        queries = block.seen[Site.Q].float().gather(1, index)
        plain = torch.einsum("brhd,bkhd->bhrk", queries, self.keys[:, : block.n_keys])
        parts = [
            torch.linalg.vector_norm(torch.where(seen, x, torch.zeros_like(x)), dim=-1) for x in (block.logits, plain)
        ]
        ratio = torch.where(parts[0] > 0, parts[0] / parts[1], torch.zeros_like(parts[0]))  # x / 0: no finite bound
        ratio = torch.where(block.real[:, None], ratio, torch.zeros_like(ratio)).amax(-1)
        known = self.scale.get(block.layer)
        self.scale[block.layer] = ratio if known is None else torch.maximum(known, ratio)
        self._count(block, block.n_open)

    def _count(self, block: Block, n_keys: Tensor) -> None:
        """Add to ``[batch, head, bin, n]`` how many rows that count see n keys."""
        counted = self.counted(block)
        if self.bins is None:
            counted = counted.unsqueeze(-1)
        held = self.counts.get(block.layer)
        if held is None:
            most = self.keys.shape[1] + 1
            held = torch.zeros(*counted.shape[:2], counted.shape[-1], most, device=counted.device)
        index = n_keys.unsqueeze(2).expand(-1, counted.shape[1], counted.shape[-1], -1)
        self.counts[block.layer] = held.scatter_add(-1, index, counted.transpose(2, 3).to(held.dtype))

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The bounds of all rows, which depend on how many keys they see alone."""
        norms, scale, counts = self.norms.pop(layer), self.scale.pop(layer), self.counts.pop(layer)
        norm = torch.where(torch.isinf(scale), scale, norms * scale).unsqueeze(-1)
        n_keys = torch.arange(counts.shape[-1], device=norm.device).expand(*norm.shape[:-1], -1)
        bounds = entropy_bound_of(norm.expand_as(n_keys), n_keys).double()
        total, number = torch.einsum("bhn,bhcn->bhc", bounds, counts.double()), counts.sum(-1)
        self.sums[layer] = total if self.bins is not None else total.squeeze(-1)
        self.numbers[layer] = number if self.bins is not None else number.squeeze(-1)
        self.keys = torch.empty(0)


def _spectral(x: Tensor, mask: Tensor | None) -> Tensor:
    """``[batch, head]`` largest singular value of ``x [batch, pos, head, d_head]`` over the real tokens."""
    real = x if mask is None else torch.where(mask[:, :, None, None], x, torch.zeros_like(x))
    gram = torch.einsum("bphd,bphe->bhde", real.double(), real.double())
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt().to(x.dtype)


def entropy_bound(ask: Ask, version: Version = "rows", queries: Queries = None) -> DistributionMean:
    """The mean over rows of the least entropy that logits of their size allow (Zhai et al., 2023); never above entropy.

    Args:
        ask: what is scored.
        version: ``"rows"`` by each row's own logits, about their mean, which is the tightest; ``"matrix"`` by one norm
            for the head, ``scale ||Q||_2 ||K||_2``, which lies between the rows and the paper's
            ``scale ||W_Q W_K^T||_2 ||X X^T||_2`` (:func:`weight_logit_norm`) and is nearly 0 for trained models.
        queries: the rows that count, or classes of rows.

    Raises:
        BadInput: another version, or one class without rows.
    """
    if version not in get_args(Version):
        raise BadInput(unknown(version, get_args(Version), "version of the entropy bound"))
    return RowBound(ask, queries) if version == "rows" else MatrixBound(ask, queries)
