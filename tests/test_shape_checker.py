"""The checker of `make check` sees a wrong shape, and nothing else."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, jaxtyped
from shape_checker import check
from torch import Tensor


def test_a_wrong_shape_is_seen_and_another_type_is_left_alone() -> None:
    def inner(x: Float[Tensor, "row column"], y: Float[Tensor, " column"], name: str) -> Float[Tensor, " row"]:
        return x @ y

    checked = jaxtyped(inner, typechecker=check)
    assert checked(torch.ones(2, 3), torch.ones(3), name=5).tolist() == [3.0, 3.0]  # pyright: ignore[reportArgumentType]
    with pytest.raises(Exception, match="column"):
        checked(torch.ones(2, 3), torch.ones(4), name="x")
    with pytest.raises(Exception, match="row column"):
        checked(torch.ones(2), torch.ones(2), name="x")


def test_a_wrong_result_is_seen() -> None:
    def wrong(x: Float[Tensor, "row column"]) -> Float[Tensor, " row"]:
        return x[0]

    with pytest.raises(Exception, match="row"):
        jaxtyped(wrong, typechecker=check)(torch.ones(2, 3))
