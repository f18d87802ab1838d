"""``contributions``: from the vectors that tokens bring to a sum to their shares of it, and what measures a share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.names import lookup
from interp.tracing.given_maps import map_tensor

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "norm": "||T_i(x_j)||, the length of what token j brings",
        "alti": "max(0, ||y_i||_1 - ||y_i - T_i(x_j)||_1), how much nearer to 0 the sum is without token j",
    }
)
Vectors = Float[Tensor, "*batch d_model"] | Float[np.ndarray, "*batch d_model"] | Sequence[Any]
NORMS: Mapping[str, int] = MappingProxyType({"norm": 2, "alti": 1})  # as in the papers
_AXES = 3  # query, key, d_model


def contributions(
    vectors: Vectors,
    output: Vectors | None = None,
    *,
    kind: str = "alti",
    norm: int | None = None,
    normalise: bool = True,
) -> Float[Tensor, "*batch query key"]:
    """How much each key brings to each query's sum ``y_i = sum_j T_i(x_j) + biases``, rows summing to 1.

    ``alti``: ``c_ij = max(0, ||y_i||_1 - ||y_i - T_i(x_j)||_1)`` (Ferrando, Gallego and Costa-jussa, 2022).
    ``norm``: ``c_ij = ||T_i(x_j)||_2`` (Kobayashi et al., 2020 and 2021).
    A row to which no key brings anything is 0.

    Args:
        vectors: ``[..., query, key, d_model]`` ``T_i(x_j)``; 0 where a query does not see a key. Tensors, arrays or
            nested lists; 16-bit numbers are read as float32.
        output: ``[..., query, d_model]`` ``y_i``, for ``alti``; the sum of the vectors (no biases) for None.
        kind: ``alti`` or ``norm``.
        norm: 1 or 2; None for the paper's, 1 for ``alti`` and 2 for ``norm``.
        normalise: divide rows by their sum.

    Raises:
        UnknownName: another kind.
        BadInput: another norm, shapes that do not go together, or entries that are NaN or infinite.

    Example:
        >>> vectors = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
        >>> contributions(vectors).tolist(), contributions(vectors, kind="norm").tolist()
        ([[0.75, 0.25, 0.0]], [[0.6000000238418579, 0.20000000298023224, 0.20000000298023224]])
    """
    order = check_kind(kind, norm)
    parts = _finite(vectors, "vectors")
    if parts.ndim < _AXES:
        raise BadInput(f"vectors of shape {list(parts.shape)}; expected [query, key, d_model].")
    made = parts.sum(-2) if output is None else _finite(output, "output").to(parts)
    if made.shape != (*parts.shape[:-2], parts.shape[-1]):
        raise BadInput(
            f"output of shape {list(made.shape)} for vectors of shape {list(parts.shape)}; expected [query, d_model] "
            f"= {[*parts.shape[:-2], parts.shape[-1]]}."
        )
    found = measured(parts, made.unsqueeze(-2), kind=kind, norm=order)
    return shares(found) if normalise else found


def _finite(given: Any, name: str) -> Tensor:
    made = map_tensor(given, name)
    if not bool(torch.isfinite(made).all()):
        raise BadInput(f"{name} has entries that are NaN or infinite.")
    return made if made.dtype == torch.float64 else made.float()


def check_kind(kind: str, norm: int | None) -> int:
    """The order of the norm, checked.

    Raises:
        UnknownName: another kind.
        BadInput: another norm.
    """
    lookup(kind, KINDS, "kind of contribution")
    order = NORMS[kind] if norm is None else norm
    if isinstance(order, bool) or order not in (1, 2):
        raise BadInput(f"norm={norm!r}: expected 1, 2, or None for the paper's own.")
    return order


def measured(
    vectors: Float[Tensor, "*row d_model"], output: Float[Tensor, "*#row d_model"], *, kind: str, norm: int
) -> Float[Tensor, "*row"]:
    """One number per vector, before rows are divided by their sum.

    Args:
        vectors: what tokens bring.
        output: the sums that they are parts of, of a shape that goes with them.
        kind: ``alti`` or ``norm``.
        norm: 1 or 2.
    """
    if kind == "norm":
        return torch.linalg.vector_norm(vectors, norm, dim=-1)
    whole = torch.linalg.vector_norm(output, norm, dim=-1)
    return (whole - torch.linalg.vector_norm(output - vectors, norm, dim=-1)).clamp(min=0)


def shares(found: Float[Tensor, "*row key"]) -> Float[Tensor, "*row key"]:
    """Rows divided by their sum; a row of zeros stays 0.

    Example:
        >>> shares(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
        [[0.25, 0.75], [0.0, 0.0]]
    """
    total = found.sum(-1, keepdim=True)
    return found / torch.where(total > 0, total, torch.ones_like(total))
