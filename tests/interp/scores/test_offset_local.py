"""The rule for offset-local heads, on a vision transformer whose patterns are set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import reduced
from planted_patches import random_maps, seen_by_all, shifted, vision_ask, vision_model, with_class

import interp
from interp import HeadScores
from interp.errors import BadInput
from interp.scores.grids.aligned import aligned_shift
from interp.scores.grids.directed import directed_offsets
from interp.scores.grids.distance_2d import mean_distance_2d
from interp.scores.grids.grid import given_grid
from interp.scores.grids.offset_local import OffsetLocalHeads, offset_local_heads, offset_local_rule

ROWS, COLUMNS = 5, 6
N = ROWS * COLUMNS
MAPS = {
    "right": shifted(ROWS, COLUMNS, 0, 1),
    "up left, weak": 0.6 * shifted(ROWS, COLUMNS, -1, -1) + 0.4 / N,
    "self": torch.eye(N),
    "two right": shifted(ROWS, COLUMNS, 0, 2),
    "both sides": 0.5 * shifted(ROWS, COLUMNS, 0, 1) + 0.5 * shifted(ROWS, COLUMNS, 0, -1),
    "anything": random_maps(N, N),
}


def labelled(**options: Any) -> OffsetLocalHeads:
    """The rule on six heads of one layer whose maps are planted."""
    whole = with_class(torch.stack(list(MAPS.values())))[None]
    made = {"directed_offsets": directed_offsets, "aligned_shift": aligned_shift, "mean_distance_2d": mean_distance_2d}
    tables = {}
    for name, make in made.items():
        reducer = make(vision_ask(ROWS, COLUMNS))
        values = reduced(reducer, whole, **seen_by_all(whole))
        bins = reducer.measured().bins
        tables[name] = HeadScores.from_array(
            values[:, None], name=name, sample_axis="prompt", stack="vision", positions=bins
        )
    return offset_local_rule(tables, given_grid((ROWS, COLUMNS, 1)), **options)


def test_the_rule() -> None:
    """Two heads look at one neighbour: one strongly, one among other places; the others fail one condition each."""
    found = labelled(nearest=0.9)
    assert [str(head) for head in found.heads] == ["L0.H0", "L0.H1"]
    rows = found.rows.set_index("head")
    assert rows.direction[0] == "right" and rows.direction[1] == "up left"
    assert rows.directed[0] == pytest.approx(1) and rows.peak[0] == pytest.approx((COLUMNS - 1) / COLUMNS)
    assert rows.offset[0] == pytest.approx((COLUMNS - 1) / COLUMNS, abs=1e-5), "in patches, border on themselves"
    assert rows.offset[2] == pytest.approx(0, abs=1e-5) and rows.peak[2] == 0
    assert rows.peak[3] == 0 and rows.offset[4] < 0.5 <= rows.peak[4] + 0.1
    assert rows.distance[2] == 0 and rows.distance.idxmax() == 5
    assert found.table().label.tolist()[:2] == ["L0.H0", "L0.H1"]
    assert repr(found) == "OffsetLocalHeads(2 of 6 heads: L0.H0, L0.H1)"


def test_each_threshold_matters() -> None:
    assert [str(h) for h in labelled(nearest=0.9, peak=0.5).heads] == ["L0.H0"]
    assert labelled(nearest=0.9, shift=(1.0, 1.6)).heads == ()
    assert labelled(nearest=1 / 6).heads == (), "the identity alone is nearer"
    assert labelled(nearest=1.0).rule["peak"] == 0.2


@pytest.mark.parametrize("options", [{"peak": 2}, {"shift": (2, 1)}, {"nearest": 0}])
def test_thresholds_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"expected a peak in \[0, 1\]"):
        labelled(**options)


def test_the_parts_are_the_scores() -> None:
    """On the model's own maps: directed scores and distances are those of ``interp.score``."""
    model = vision_model(ROWS, COLUMNS, heads=3)
    batch = interp.encode(model, inputs={"pixel_values": torch.randn(2, 3, 2 * ROWS, 2 * COLUMNS)})
    found = offset_local_heads(model, batch)
    scores = interp.score(model, batch, ["mean_distance_2d", "directed_offsets"])
    assert found.rows.distance.tolist() == pytest.approx(scores["mean_distance_2d"].values[0].tolist())
    assert found.rows.directed.tolist() == pytest.approx(scores["directed_offsets"].values[0].max(-1).tolist())
    assert found.rule["shift"] == [0.5, 1.6] and len(found.rows) == 3


def test_text_models_have_none() -> None:
    model = interp.load("handmade")
    with pytest.raises(BadInput, match="stack 'text'"):
        offset_local_heads(model, interp.encode(model, torch.tensor([[0, 3, 4]])))
