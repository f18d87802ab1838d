"""``interp.trace``: what it refuses before a forward, whose rows it takes, and what its result keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2

import interp
from interp import At, Model, Site, Trace

IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_gpt2(layers=2)


def maps(model: Model, batch: interp.Batch, layer: int) -> torch.Tensor:
    at = At(Site.PATTERN, layer=layer)
    return interp.run(model, batch, read=[at])[at].mean(1).double()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "rolout"}, "rollout"),
        ({"method": "raw", "hed": "mean"}, "heads"),
        ({"method": "raw", "heads": "median"}, "mean"),
        ({"method": "raw", "layer": 7}, "layers with attention"),
        ({"method": "raw", "targets": 9}, "9"),
        ({"method": "raw", "targets": "subject"}, "subject"),
        ({"method": "raw", "stack": "vision"}, "text"),
    ],
)
def test_what_cannot_be_is_refused_before_a_forward(
    model: Model, call: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = interp.encode(model, IDS)
    monkeypatch.setattr(model.hf, "forward", lambda *a, **k: pytest.fail("a forward ran"))
    with pytest.raises(interp.HeadscopeError, match=message):
        interp.trace(model, batch, **call)


def test_a_batch_is_no_tensor(model: Model) -> None:
    with pytest.raises(interp.BadInput, match=r"interp\.encode"):
        interp.trace(model, IDS, "raw")  # type: ignore[arg-type]


def test_targets_are_rows_of_the_map(model: Model) -> None:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    batch = interp.encode(model, IDS, mask=mask)
    truth = maps(model, batch, 1).numpy()
    read = interp.trace(model, batch, "raw")
    np.testing.assert_allclose(read.values[0, 0], truth[0, 4], rtol=1e-5)
    np.testing.assert_allclose(read.values[1, 0, :3], truth[1, 2, :3], rtol=1e-5)
    assert np.isnan(read.values[1, 0, 3:]).all() and read.targets.tolist() == [[4], [2]]
    every = interp.trace(model, batch, "raw", targets="all", layer=0)
    first = maps(model, batch, 0).numpy()
    np.testing.assert_allclose(every.values[0], first[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(every.values[1, :3, :3], first[1, :3, :3], rtol=1e-5, atol=1e-7)
    assert np.isnan(every.values[1, 3:]).all()  # targets that the shorter prompt lacks
    some = interp.trace(model, batch, "raw", targets=torch.tensor([[0, 2], [1, 2]]))
    np.testing.assert_allclose(some.values[1, 0, :3], truth[1, 1, :3], rtol=1e-5)


def test_left_out_sinks_are_left_out_of_the_rows(model: Model) -> None:
    batch = interp.encode(model, IDS)
    found = interp.trace(model, batch, "raw", exclude_sinks="first", layer=1)
    whole = interp.run(model, batch, read=[At(Site.PATTERN, layer=1)])[At(Site.PATTERN, layer=1)][:, :, -1].double()
    whole[..., 0] = 0
    expected = (whole / whole.sum(-1, keepdim=True)).mean(1).numpy()
    np.testing.assert_allclose(found.values[:, 0], expected, rtol=1e-5)


def test_layers_are_kept_where_they_are_asked_for(model: Model) -> None:
    batch = interp.encode(model, IDS)
    found = interp.trace(model, batch, "raw", each_layer=True)
    for layer in range(2):
        np.testing.assert_allclose(found.row(1, 0, layer=layer), maps(model, batch, layer)[1, -1], rtol=1e-5)
    with pytest.raises(interp.BadInput, match="each_layer"):
        interp.trace(model, batch, "raw").row(0, layer=0)
    with pytest.raises(interp.BadAddress, match="layer 2"):
        found.row(0, layer=2)
    with pytest.raises(interp.BadAddress, match="prompt 5"):
        found.row(5)


def test_table_top_weights_and_words(model: Model) -> None:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    batch = interp.encode(model, IDS, mask=mask)
    found = interp.trace(model, batch, "raw")
    table = found.table()
    assert len(table) == 8 and list(table.columns) == [
        *("prompt", "target", "target_token", "source", "source_token", "value"),
    ]
    for row in table.itertuples():
        assert row.value == found.values[row.prompt, 0, row.source]
    top = found.top(2, prompt=1)
    assert top.value.tolist() == sorted(found.row(1)[:3].tolist(), reverse=True)[:2]
    weights = found.weights()
    assert weights.shape == (2, 5) and not weights[1, 3:].any() and weights.dtype == torch.float64
    assert "raw" in repr(found) and "2 prompts" in repr(found)


def test_a_trace_is_saved_and_opened(model: Model, tmp_path: Path) -> None:
    batch = interp.encode(model, IDS)
    found = interp.trace(model, batch, "raw", each_layer=True, heads="max")
    again = Trace.open(found.save(tmp_path / "trace.safetensors"))
    np.testing.assert_array_equal(again.values, found.values)
    assert found.layers is not None and again.layers is not None
    np.testing.assert_array_equal(again.layers, found.layers)
    assert again.sources == found.sources and again.target_words == found.target_words
    assert dict(again.metadata) == dict(found.metadata) and again.metadata["heads"] == "max"
    with pytest.raises(interp.BadInput, match="not a file"):
        Trace.open(tmp_path / "nothing")
