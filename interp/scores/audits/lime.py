"""LIME: a linear fit of a metric on which tokens are there. Arithmetic on tensors; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput

WIDTH = 0.25  # of the kernel over cosine distances; ours
RIDGE = 1e-3  # keeps the fit determined where samples are few; ours
_FEWEST = 2  # a line through one point


@dataclass(frozen=True, eq=False)
class LimeFit:
    """A weighted linear fit of a metric on presence.

    Attributes:
        weights: per token, how much the metric rises where it is there.
        intercept: the metric where no token is there, as the line says.
        standard_errors: of the weights, robust to unequal scatter; NaN where samples do not outnumber tokens.
        r_squared: the share of the weighted variance that the line explains; NaN where the metric does not vary.
    """

    weights: Float[Tensor, " token"]
    intercept: float
    standard_errors: Float[Tensor, " token"]
    r_squared: float


def check_samples(name: str, samples: int) -> None:
    """Refuse a number of samples through which no line can be drawn.

    Raises:
        BadInput: fewer than two.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < _FEWEST:
        raise BadInput(f"{name}: samples={samples!r}; LIME fits a line and needs at least two.")


def presence_draws(
    free: Bool[Tensor, "batch key"], keys: Sequence[int], samples: int, seed: int
) -> Bool[Tensor, "sample batch key"]:
    """``[sample, batch, key]`` which free tokens stay; for each prompt a function of its content and the seed alone.

    The number of tokens that go is drawn evenly from none to all, then which ones.

    Args:
        free: True at tokens that may go.
        keys: a number per prompt that depends on its content; see :attr:`interp.Batch.content_keys`.
        samples: how many.
        seed: of the draws.

    Example:
        >>> free = torch.ones(1, 6, dtype=torch.bool)
        >>> presence_draws(free, [17], 100, 0).float().mean() > 0.4
        tensor(True)
    """
    kept = free.repeat(samples, 1, 1)
    for draw in range(samples):
        for row, key in enumerate(keys):
            generator = torch.Generator().manual_seed((key ^ (seed * 1_000_003 + draw)) % 2**63)
            count = int(free[row].sum())
            order = torch.randperm(count, generator=generator)
            chosen = torch.ones(count, dtype=torch.bool)
            chosen[order[: int(torch.randint(0, count + 1, (1,), generator=generator))]] = False
            kept[draw, row, free[row]] = chosen.to(kept.device)
    return kept


def lime_fit(
    present: Bool[Tensor, "sample token"],
    values: Float[Tensor, " sample"],
    *,
    width: float = WIDTH,
    ridge: float = RIDGE,
) -> LimeFit:
    """The line through a metric's values that weighs samples near the whole prompt most.

    ``min_w sum_s exp(-(1 - sqrt(share_s))^2 / width^2) (m_s - w_0 - <w, x_s>)^2 + ridge |w|^2`` with x_s 1 where a
    token is there and share_s their mean; ``1 - sqrt(share)`` is the cosine distance to the whole prompt (Ribeiro et
    al., 2016). Errors are those of White, 1980, with the correction n / (n - p).

    Args:
        present: True where a token is there.
        values: the metric.
        width: of the kernel.
        ridge: the penalty; the intercept has none.

    Example:
        >>> present = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.bool)
        >>> lime_fit(present, torch.tensor([1.0, 4.0, 3.0, 6.0]), width=1e3, ridge=0.0).weights.round(decimals=6)
        tensor([2., 3.], dtype=torch.float64)
    """
    x, y = present.double(), values.double()
    weight = torch.exp(-((1 - x.mean(-1).sqrt()) ** 2) / width**2) if x.shape[1] else torch.ones_like(y)
    design = torch.cat([torch.ones(len(x), 1, dtype=torch.float64, device=x.device), x], dim=1)
    gram = design.mT @ (weight[:, None] * design)
    penalty = ridge * torch.eye(len(gram), dtype=torch.float64, device=x.device)
    penalty[0, 0] = 0
    inverse = torch.linalg.pinv(gram + penalty, hermitian=True)
    found = inverse @ (design.mT @ (weight * y))
    residual = y - design @ found
    samples, fitted = design.shape
    errors = torch.full_like(found, torch.nan)
    if samples > fitted:
        scatter = design.mT @ ((weight * residual).square()[:, None] * design)
        errors = (inverse @ scatter @ inverse).diagonal().clamp(min=0).mul(samples / (samples - fitted)).sqrt()
    middle = (weight @ y) / weight.sum()
    total = float(weight @ (y - middle).square())
    explained = 1 - float(weight @ residual.square()) / total if total > 0 else float("nan")
    return LimeFit(found[1:], float(found[0]), errors[1:], explained)
