"""The precision that metrics are computed in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def wide(tensor: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The same numbers in float32 at least: half precision is widened, float64 stays.

    Example:
        >>> wide(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
