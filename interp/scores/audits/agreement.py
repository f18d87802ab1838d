"""Agreement between a row of attention and an attribution of the same tokens."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from interp.errors import BadInput
from interp.names import lookup

Vector = Float[np.ndarray, " key"]


def _pearson(first: Vector, second: Vector, top: int) -> float:
    one, other = first - first.mean(), second - second.mean()
    if any(np.abs(x).max() <= _ROUNDING * np.abs(own).max() for x, own in ((one, first), (other, second))):
        return math.nan  # one does not vary
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def _spearman(first: Vector, second: Vector, top: int) -> float:
    return _pearson(stats.rankdata(first), stats.rankdata(second), top)


def _kendall(first: Vector, second: Vector, top: int) -> float:
    found: Any = stats.kendalltau(first, second)
    return float(found.statistic)


def _overlap(first: Vector, second: Vector, top: int) -> float:
    k = min(top, len(first))
    return len({*largest(first, k)} & {*largest(second, k)}) / k


AGREEMENTS: Mapping[str, Callable[[Vector, Vector, int], float]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "kendall": _kendall,
    "topk": _overlap,
}
_ROUNDING = 1e-12  # of the largest weight, below which a difference is none
_FEWEST = 2  # tokens, of which a correlation says something


def largest(values: Vector, k: int) -> list[int]:
    """Places of the ``k`` largest, largest first; of equal ones the earlier comes first.

    Example:
        >>> largest(np.array([1.0, 3.0, 3.0, 2.0]), 3)
        [1, 2, 3]
    """
    return np.argsort(-values, kind="stable")[:k].tolist()


def agreement_of_rows(
    attention: Float[Tensor, "*#batch key"],
    attribution: Float[Tensor, "*#batch key"],
    valid: Bool[Tensor, "*#batch key"],
    *,
    how: str = "kendall",
    top: int = 5,
) -> Float[Tensor, ...]:
    """Agreement of two sets of weights over the tokens that are valid, row by row; NaN where one does not vary.

    Args:
        attention: weights of each token.
        attribution: of the same tokens; its leading axes broadcast.
        valid: True at the tokens that are compared (fewer than two: NaN).
        how: ``"pearson"``, ``"spearman"``, ``"kendall"`` (tau-b) or ``"topk"``, the share of the ``top`` largest in
            common (of equal ones the earlier).
        top: how many, for ``"topk"``.

    Example:
        >>> a = torch.tensor([[0.1, 0.2, 0.7]])
        >>> agreement_of_rows(a, 5 * a - 1, torch.ones(1, 3, dtype=torch.bool), how="pearson").tolist()
        [1.0]
    """
    measure = lookup(how, AGREEMENTS, "agreement (how=)")
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise BadInput(f"top={top!r}; expected how many of the largest weights are compared, at least 1.")
    first, second, kept = torch.broadcast_tensors(attention.double(), attribution.double(), valid)
    made = np.full(first.shape[:-1], np.nan)
    arrays = [each.cpu().numpy() for each in (first, second, kept)]
    for place in np.ndindex(made.shape):
        a, b = (each[place][arrays[2][place]] for each in arrays[:2])
        both = np.isfinite(a) & np.isfinite(b)
        if both.sum() >= _FEWEST:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", stats.ConstantInputWarning)
                made[place] = measure(a[both], b[both], top)
    return torch.from_numpy(made)


def agreement_of_maps(
    attention: Float[Tensor, "*#batch row key"],
    attribution: Float[Tensor, "*#batch row key"],
    valid: Bool[Tensor, "*#batch row key"],
) -> Float[Tensor, ...]:
    """Pearson's r of two maps whose rows have been brought to mean 0 and standard deviation 1, all rows together.

    Rows that do not vary in one of the maps say nothing and are left out. Invariant to ``a + b x`` of either map row by
    row (b > 0). Cross-attention against speech saliency: normalised per token, flattened, one r per sentence.

    Example:
        >>> a = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
        >>> agreement_of_maps(a, 3 * a + 1, torch.ones(2, 2, dtype=torch.bool)).item()
        1.0
    """
    first, second, kept = torch.broadcast_tensors(attention.double(), attribution.double(), valid)

    def standard(x: Tensor) -> Tensor:
        number = kept.sum(-1, keepdim=True)
        centred = (x - (x * kept).sum(-1, keepdim=True) / number) * kept
        small = centred.abs().amax(-1, keepdim=True) <= _ROUNDING * x.abs().amax(-1, keepdim=True)
        return (centred / (centred.square().sum(-1, keepdim=True) / number).sqrt()).masked_fill(small, torch.nan)

    one, other = standard(first.masked_fill(~kept, 0)), standard(second.masked_fill(~kept, 0))
    varies = torch.isfinite(one).all(-1) & torch.isfinite(other).all(-1)
    one, other = (torch.where(varies.unsqueeze(-1), each, 0.0).flatten(-2) for each in (one, other))
    return (one * other).sum(-1) / (one.square().sum(-1) * other.square().sum(-1)).sqrt()


def significance(
    attention: Float[Tensor, "*#batch key"],
    attribution: Float[Tensor, "*#batch key"],
    valid: Bool[Tensor, "*#batch key"],
) -> Float[Tensor, ...]:
    """The p-value of Kendall's tau-b of each pair of rows (two-sided); NaN where there is no tau."""
    first, second, kept = torch.broadcast_tensors(attention.double(), attribution.double(), valid)
    made = np.full(first.shape[:-1], np.nan)
    arrays = [each.cpu().numpy() for each in (first, second, kept)]
    for place in np.ndindex(made.shape):
        a, b = (each[place][arrays[2][place]] for each in arrays[:2])
        if len(a) >= _FEWEST:
            found: Any = stats.kendalltau(a, b)
            made[place] = float(found.pvalue)
    return torch.from_numpy(made)
