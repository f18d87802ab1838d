"""From a layer's attention maps to one step of a rollout or of a flow: heads fused, residual added, rows normalised.

A row of the step says where a token's state at the top of a layer comes from: ``a`` times what the heads' fused row
says, and ``o`` from the token itself, through the residual stream. With ``F`` the fused map, ``d`` the mass that its
row lacks and ``r`` the residual's share,

    s_i = (1 - r_i) (sum_j F_ij + d_i) + r_i,   a_i = (1 - r_i) / s_i,   o_i = r_i / s_i,   step = diag(a) F + diag(o)

which is ``(A + I) / rowsum`` for ``r = 1/2`` (Abnar and Zuidema, 2020). What a row lacks goes where ``missing`` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.names import unknown
from interp.tracing.fusion import Fusion

Missing = Literal["sink", "self", "renormalise"]
TOLERANCE = 1e-3  # how far from 1 a row of a map may sum


@dataclass(frozen=True, eq=False)
class Transition:
    """Some rows of one layer's step, as what the fused map is multiplied by and what stays.

    Attributes:
        rows: ``[batch, row]`` columns of the rows.
        fused: ``[batch, row, key]`` the heads' fused rows; keys beyond the last one stand for 0.
        attention: ``[batch, row]`` the factor of each fused row.
        own: ``[batch, row]`` what stays on the token itself.
    """

    rows: Int[Tensor, "batch row"]
    fused: Float[Tensor, "batch row key"]
    attention: Float[Tensor, "batch row"]
    own: Float[Tensor, "batch row"]

    def dense(self, width: int | None = None) -> Float[Tensor, "batch row key"]:
        """The rows of the step themselves: capacities of a flow, factors of a dense product.

        Args:
            width: how many keys; as many as the fused rows have (and the tokens themselves need) for None.
        """
        least = max(self.fused.shape[-1], int(self.rows.max()) + 1 if self.rows.numel() else 0)
        width = least if width is None else width
        made = torch.nn.functional.pad(self.fused * self.attention.unsqueeze(-1), (0, width - self.fused.shape[-1]))
        return made.scatter_add(-1, self.rows.unsqueeze(-1), self.own.unsqueeze(-1))

    def attended(self, vectors: Float[Tensor, "batch vector row"]) -> Float[Tensor, "batch vector key"]:
        """``vectors diag(a) F``: what goes through the heads."""
        return (vectors * self.attention.unsqueeze(1)) @ self.fused


@dataclass(frozen=True, eq=False)
class FusedRows:
    """Some rows of one layer's fused map, with what they lack.

    Attributes:
        rows: ``[batch, row]`` columns of the rows.
        fused: ``[batch, row, key]`` the heads' fused rows.
        totals: ``[batch, row]`` what they sum to.
        gone: ``[batch, row]`` mass that they lack and that leaves the graph.
        stays: ``[batch, row]`` mass that they lack and that stays on the token itself, where that is no key.
        empty: ``[batch, row]`` True at rows that are 0 in every head.
    """

    rows: Int[Tensor, "batch row"]
    fused: Float[Tensor, "batch row key"]
    totals: Float[Tensor, "batch row"]
    gone: Float[Tensor, "batch row"]
    stays: Float[Tensor, "batch row"]
    empty: Bool[Tensor, "batch row"]

    def mixed(self, residual: float | Float[Tensor, "#batch #row"] = 0.5, *, normalise: bool = True) -> Transition:
        """The step: residual added, rows normalised.

        Args:
            residual: the residual stream's share of each row's state, 0 to 1.
            normalise: divide by ``s``; False for ``a = 1 - r``, ``o = r`` as they are.
        """
        share = torch.as_tensor(residual, dtype=self.totals.dtype, device=self.totals.device).expand_as(self.totals)
        whole = torch.ones_like(self.totals)
        if normalise:
            whole = (1 - share) * (self.totals + self.gone + self.stays) + share
            whole = torch.where(whole > 0, whole, torch.ones_like(whole))
        there = (~self.empty).to(whole.dtype)
        attention = there * (1 - share) / whole
        return Transition(self.rows, self.fused, attention, there * share / whole + attention * self.stays)


def fused_rows(
    pattern: Float[Tensor, "batch head row key"],
    rows: Int[Tensor, "batch row"],
    *,
    fusion: Fusion,
    index: int = 0,
    missing: Missing | None = None,
    cross: bool = False,
    kept: Float[Tensor, "batch head row"] | None = None,
    sums: Float[Tensor, "batch head row"] | None = None,
) -> FusedRows:
    """The heads' maps as one, with what becomes of the mass that a head's row lacks.

    Args:
        pattern: the maps, at least 0; rows sum to 1 or less.
        rows: columns of the rows; their own column lies within ``key``, save with ``cross``.
        fusion: how heads are fused; see :func:`interp.tracing.fusion.fusion_of`.
        index: which map of the fusion this is.
        missing: ``"sink"`` the mass leaves the graph (the step's row sums to less than 1), ``"self"`` it stays on the
            token itself, ``"renormalise"`` the head's row is rescaled; None asks for nothing, and the step's row is
            normalised as it is.
        cross: the keys are other tokens than the rows.
        kept: mass of each head's row that stays on the token itself, beside what it puts on keys.
        sums: what the rows sum to, where that is known.
    """
    sums = pattern.sum(-1) if sums is None else sums
    full = sums if kept is None else sums + kept
    empty = (full == 0).all(1)
    lacking, own = torch.zeros_like(sums), kept
    if missing == "renormalise":  # a head's row of nothing cannot be rescaled, what it lacks leaves the graph
        pattern = pattern / torch.where(full == 0, torch.ones_like(full), full).unsqueeze(-1)
        lacking = (full == 0).to(full.dtype)
        sums = 1 - lacking if own is None else sums / torch.where(full == 0, torch.ones_like(full), full)
    elif missing is not None:
        lacking = (1 - full).clamp(min=0)
        if missing == "self" and cross:
            own, lacking = lacking if own is None else own + lacking, torch.zeros_like(lacking)
        elif missing == "self":
            places = rows[:, None, :, None].expand(-1, pattern.shape[1], -1, 1)
            pattern = pattern.scatter_add(-1, places, lacking.unsqueeze(-1))
            sums, lacking = sums + lacking, torch.zeros_like(lacking)
    alone = pattern.shape[1] == 1
    fused = pattern[:, 0] if alone else fusion(pattern, index)
    totals = fusion(sums.unsqueeze(-1), index)[..., 0] if fusion.linear else fused.sum(-1)
    gone = fusion(lacking.unsqueeze(-1), index)[..., 0]
    stays = torch.zeros_like(gone) if own is None else fusion(own.unsqueeze(-1), index)[..., 0]
    return FusedRows(rows, fused, totals, gone, stays, empty)


def transition_rows(
    pattern: Float[Tensor, "batch head row key"],
    rows: Int[Tensor, "batch row"],
    *,
    fusion: Fusion,
    index: int = 0,
    residual: float | Float[Tensor, "#batch #row"] = 0.5,
    missing: Missing | None = None,
    normalise: bool = True,
    cross: bool = False,
) -> Transition:
    """The step of some rows of one layer, of its heads' maps: :func:`fused_rows`, then :meth:`FusedRows.mixed`.

    Rows that are 0 in every head (padding) stay empty.

    Example:
        >>> maps = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
        >>> transition_rows(maps, torch.tensor([[0, 1]]), fusion=Fusion("mean")).dense()
        tensor([[[1.0000, 0.0000],
                 [0.2500, 0.7500]]])
    """
    found = fused_rows(pattern, rows, fusion=fusion, index=index, missing=missing, cross=cross)
    return found.mixed(residual, normalise=normalise)


def discarded(
    fused: Float[Tensor, "batch query key"],
    share: float,
    *,
    keep_first: bool = True,
    rows: Bool[Tensor, "batch query"] | None = None,
    keys: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch query key"]:
    """Whole fused maps with the lowest share of their entries set to 0, in each prompt by exact count.

    Entries are ordered by value, ties by their place (row by row), and the first ``floor(share * rows * keys)`` go,
    entries that are blocked (0) among them. Needs the whole map of a layer at once.

    Args:
        fused: the maps.
        share: of the entries, 0 to below 1.
        keep_first: spare the first token's entry with itself (CLS, CLS) where it is among the lowest.
        rows, keys: real tokens, whose entries alone count; all for None.

    Example:
        >>> discarded(torch.tensor([[[0.1, 0.9], [0.3, 0.7]]]), 0.5)
        tensor([[[0.1000, 0.9000],
                 [0.0000, 0.7000]]])
    """
    if not share:
        return fused
    made = fused.clone()
    for prompt, square in enumerate(fused):
        lines = torch.arange(square.shape[0], device=fused.device) if rows is None else rows[prompt].nonzero()[:, 0]
        columns = torch.arange(square.shape[1], device=fused.device) if keys is None else keys[prompt].nonzero()[:, 0]
        entries = square[lines][:, columns].flatten()
        count = math.floor(share * entries.numel() + 1e-9)  # 0.29 of 100 are 29
        lowest = entries.sort(stable=True).indices[:count]
        if keep_first and len(lines) and len(columns) and bool(lines[0] == columns[0]):
            lowest = lowest[lowest != 0]
        entries[lowest] = 0
        made[prompt, lines[:, None], columns] = entries.view(len(lines), len(columns))
    return made


def check_options(*, discard: float = 0.0, missing: str | None = None, start: int = 0) -> None:
    """Refuse options outside their range.

    Raises:
        BadInput: with what was expected.
    """
    if isinstance(discard, bool) or not isinstance(discard, int | float) or not 0 <= discard < 1:
        raise BadInput(f"discard={discard!r}: expected a share of the entries in [0, 1), such as 0.9.")
    if missing is not None and missing not in get_args(Missing):
        raise BadInput(unknown(missing, get_args(Missing), "rule for missing mass"))
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise BadInput(f"start={start!r}: expected the index of the first layer that counts, 0 or above.")


def check_rows(
    pattern: Float[Tensor, "*head row key"], where: str, *, missing: str | None, rounding: float = TOLERANCE
) -> Float[Tensor, "*head row"]:
    """What each row sums to; rows of maps that are not distributions are refused.

    Args:
        pattern: the rows.
        where: what they are, for the message.
        missing: the rule for rows that sum to less than 1; None refuses them. Rows that are 0 in every head are empty
            and let pass.
        rounding: how far above 1 a sum may be where there is a rule.

    Raises:
        BadInput: NaN or infinite or negative entries, or sums that are not 1.
    """
    least = pattern.amin() if pattern.numel() else torch.zeros(())
    sums = pattern.sum(-1)
    if not sums.numel() or (
        float(least) >= 0 and 1 - TOLERANCE <= float(sums.amin()) <= float(sums.amax()) <= 1 + TOLERANCE
    ):
        return sums
    if not bool(torch.isfinite(sums).all()) or not bool(torch.isfinite(least)):
        raise BadInput(f"{where} has entries that are NaN or infinite; expected attention probabilities.")
    if bool(least < 0):
        raise BadInput(
            f"{where} has negative entries (the least is {float(least):.3g}); expected attention probabilities. Were "
            "scores before the softmax, or signed relevances, given?"
        )
    if missing == "renormalise":
        return sums
    high = float(sums.amax())
    if high > 1 + (TOLERANCE if missing is None else rounding):
        raise BadInput(
            f"{where} has rows that sum to {high:.4f}, more than 1; expected attention probabilities, or "
            "missing='renormalise' to divide each row by its sum."
        )
    low = _least(sums.flatten(0, -2) if sums.ndim > 1 else sums[None])
    if missing is None and low < 1 - TOLERANCE:
        raise BadInput(
            f"{where} has rows that sum to {low:.4f}, less than 1; say what becomes of the missing mass: "
            "missing='sink' (it leaves the graph: sink logits), 'self' (it stays on the token), or 'renormalise' "
            "(rounding)."
        )
    return sums


def _least(sums: Float[Tensor, "head row"]) -> float:
    """The least sum of a row that is not empty in every head, 1 without any."""
    there = sums[:, (sums != 0).any(0)]
    return float(there.amin()) if there.numel() else 1.0
