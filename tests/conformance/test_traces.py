"""Every way of tracing on every family: its range and sums, and what may not change it; or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp import Batch
from interp.tracing import METHODS

from .support import DECODERS, REPRESENTATIVE, Case, families, fingerprint

LENGTH = 6
# options that make a method quick, or that it needs to run at all
OPTIONS: dict[str, dict[str, Any]] = {
    "lime": {"samples": 12},
    "integrated-gradients": {"steps": 3},
    "blank-out": {"replacement": 1},
}


def first_logit(logits: Tensor, batch: Batch) -> Tensor:
    """A number per prompt, of any shape of logits, that padding does not touch."""
    if logits.ndim == 3:
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, batch.read_at.to(logits.device), 3] - logits[rows, batch.read_at.to(logits.device), 5]
    return logits[:, 0]


def traced(case: Case, batch: Batch, method: str, **more: Any) -> interp.Trace:
    return interp.trace(case.model, batch, method, metric=first_logit, **{**OPTIONS.get(method, {}), **more})


@families
@pytest.mark.parametrize("method", METHODS)
def test_a_trace_or_a_reason(case_of: Callable[[str], Case], name: str, method: str) -> None:
    case = case_of(name)
    batch = case.batch(2, LENGTH)
    entry = METHODS[method]
    before = fingerprint(case.hf)
    try:
        found = traced(case, batch, method, each_layer=entry.layered)
    except interp.HeadscopeError as error:
        assert len(str(error)) > 30
        assert fingerprint(case.hf) == before
        if name in ("gpt2", "llama") and method != "class-explanation":  # of image classifiers alone
            raise
        return
    assert fingerprint(case.hf) == before
    low, high = entry.range
    values = found.values[np.isfinite(found.values)]
    assert len(values)
    if entry.needs != "edits":  # tokens that cannot be taken away are left blank
        assert np.isfinite(found.values[found.mask[:, None].repeat(found.values.shape[1], 1)]).all()
    assert ((values >= low - 1e-4) & (values <= high + 1e-4)).all(), (values.min(), values.max())
    if entry.stochastic:
        assert (np.nansum(found.values, -1) <= 1 + 1e-4).all()
    if found.layers is not None:
        np.testing.assert_allclose(found.layers[-1], found.values, rtol=1e-5, atol=1e-6, equal_nan=True)
    again = traced(case, batch, method)
    np.testing.assert_array_equal(again.values, found.values)


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVE if name in DECODERS])
@pytest.mark.parametrize("method", METHODS)
def test_padding_batch_order_and_company_change_nothing(case_of: Callable[[str], Case], name: str, method: str) -> None:
    case = case_of(name)
    ids = case.tiny.inputs(3, LENGTH, 0)["input_ids"]
    short = ids[:, : LENGTH - 2]

    def of(rows: Tensor, mask: Tensor | None = None) -> interp.Trace:
        return traced(case, interp.encode(case.model, rows, mask=mask), method)

    try:
        truth = of(short).values
    except interp.HeadscopeError:
        pytest.skip("refused, as the other test says")
    size = max(1.0, float(np.abs(truth).max()))
    close = {"rtol": 2e-3, "atol": 2e-4 * size}
    np.testing.assert_allclose(of(short.flip(0)).values[::-1], truth, **close)
    np.testing.assert_allclose(of(short[1:2]).values, truth[1:2], **close)
    blank = torch.zeros(3, 2, dtype=torch.long)
    for side in ("left", "right"):
        parts, masks = [short, blank], [torch.ones_like(short), blank]
        if side == "left":
            parts, masks = parts[::-1], masks[::-1]
        padded = of(torch.cat(parts, dim=1), torch.cat(masks, dim=1).bool())
        real = slice(2, None) if side == "left" else slice(0, -2)
        np.testing.assert_allclose(padded.values[..., real], truth, **close)
        rest = np.delete(padded.values, np.arange(padded.values.shape[-1])[real], axis=-1)
        assert np.isnan(rest).all()
