"""The softmax's Jacobian and separability: eigenvalues, planted geometry, loops over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import ask_for, reduced, uniform_causal

import interp
from interp.address import Site
from interp.errors import BadInput, Unsupported
from interp.scores.shape.selectivity import jacobian_norm, separability, softmax_jacobian


@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 5.0, 40.0])
def test_the_jacobian_norm_is_the_largest_eigenvalue(size: float) -> None:
    draw = torch.Generator().manual_seed(int(size * 10))
    for n in (2, 3, 17):
        p = (size * torch.randn(50, n, generator=draw, dtype=torch.float64)).softmax(-1)
        p[:10, 1] = p[:10, 0]
        p = p / p.sum(-1, keepdim=True)
        matrix = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        expected = torch.linalg.eigvalsh(matrix)[:, -1]
        torch.testing.assert_close(jacobian_norm(p), expected, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(jacobian_norm(p.float()), expected.float(), rtol=1e-5, atol=1e-6)


def test_corners_of_the_jacobian() -> None:
    """1/n for uniform rows, 0 for one-hot ones, 1/2 for two keys with half each, never more."""
    found = jacobian_norm(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.0] * 4]))
    assert found[:3].tolist() == [0.25, 0, 0.5] and found[3].isnan()
    mean = (0 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    assert reduced(softmax_jacobian(ask_for(4)), uniform_causal(4)).item() == pytest.approx(mean)
    half = reduced(softmax_jacobian(ask_for(4), temperature=2.0), uniform_causal(4)).item()
    assert half == pytest.approx(mean / 2)


@pytest.mark.parametrize("temperature", [0, -1.0, True, "1"])
def test_a_temperature_that_is_none_is_refused(temperature: Any) -> None:
    with pytest.raises(BadInput, match="above 0"):
        softmax_jacobian(ask_for(4), temperature=temperature)


def by_loops(pattern: torch.Tensor, points: torch.Tensor, n: int) -> list[float]:
    """Per head: the definition, row by row and key by key."""
    made = []
    for head in range(len(pattern)):
        shares = []
        for row in range(n, pattern.shape[1]):
            weights = pattern[head, row, : row + 1]
            order = sorted(range(row + 1), key=lambda key: (-float(weights[key]), key))
            chosen = order[:n]
            centre = sum(weights[key] * points[head, key] for key in chosen)
            away = [float((points[head, key] - centre).norm()) for key in range(row + 1)]
            nearest = min(away[key] for key in order[n:])
            shares.append(sum(away[key] < nearest for key in chosen) / n)
        made.append(sum(shares) / len(shares))
    return made


@pytest.mark.parametrize("split", [1, 4, 50])
@pytest.mark.parametrize("n", [1, 3])
def test_separability_by_loops(n: int, split: int) -> None:
    draw = torch.Generator().manual_seed(2)
    pattern = (
        torch.randn(2, 12, 12, generator=draw).masked_fill(~torch.ones(12, 12).tril().bool(), -torch.inf).softmax(-1)
    )
    values = torch.randn(1, 12, 2, 5, generator=draw)
    found = reduced(separability(ask_for(12), n), pattern, rows_per_block=split, seen={Site.V: values})[0]
    np.testing.assert_allclose(found, by_loops(pattern, values[0].transpose(0, 1), n), atol=1e-7)


def test_clusters_and_copies() -> None:
    """Two selected keys in a cluster at their sum, the others far away: 1. All keys the same point: 0."""
    pattern = torch.zeros(1, 4, 4)
    pattern[0, :, 0] = 1
    pattern[0, 3] = torch.tensor([0.5, 0.5, 0, 0])
    points = torch.tensor([[1.0, 0], [1, 0.1], [9, 9], [-9, 9]])
    seen = {Site.V: points[None, :, None].expand(-1, -1, 2, -1)}
    rows = {"queries": slice(-1, None)}
    assert reduced(separability(ask_for(4), 2, **rows), pattern.expand(2, -1, -1), seen=seen)[0].tolist() == [1, 1]
    same = {Site.V: torch.ones(1, 4, 2, 3) * 0.3}
    assert reduced(separability(ask_for(4), 2, **rows), pattern.expand(2, -1, -1), seen=same)[0].tolist() == [0, 0]


def test_grouped_values_belong_to_their_query_heads(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = case.batch(1, 9)
    found = interp.score(case.model, batch, {"separability": {"n": 2}})["separability"]
    run = interp.run(case.model, batch, read=[interp.At(Site.PATTERN, layer=1), interp.At(Site.V, layer=1)])
    values = run[interp.At(Site.V, layer=1)][0].transpose(0, 1).repeat_interleave(2, 0)
    expected = by_loops(run[interp.At(Site.PATTERN, layer=1)][0], values, 2)
    np.testing.assert_allclose(found.values[1], expected, atol=1e-6)
    residual = interp.score(case.model, batch, {"separability": {"n": 2, "of": "residual"}})["separability"]
    assert np.isfinite(residual.values).all()


def test_impossible_requests_are_refused(case_of: Callable[[str], Case]) -> None:
    with pytest.raises(BadInput, match="Did you mean 'value'"):
        separability(ask_for(4), of="values")  # type: ignore[arg-type]
    case = case_of("bloom")
    with pytest.raises(Unsupported, match="attention interface"):
        interp.score(case.model, case.batch(), "separability")
