"""``Gates`` as a table: roles over seeds, missing heads, figures, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interp
from interp import BadInput, UnknownName
from interp.attribution.gating.history import History


def history(n_seeds: int = 2, heads: int = 3) -> History:
    numbers = np.random.default_rng(0).random((3, 4, n_seeds))
    return History(
        ("warm", "retain", "remove"),
        *(numbers + offset for offset in range(4)),
        np.random.default_rng(1).random((3, 2, n_seeds, 1, heads)),
        np.array([0, 2]),
    )


def gates(retain: list[list[float]], remove: list[list[float]]) -> interp.Gates:
    plus, minus = np.array(retain, dtype=float)[:, None], np.array(remove, dtype=float)[:, None]
    return interp.Gates(
        plus, minus, np.full(plus.shape, 0.5), tuple(range(len(plus))), history(len(plus), plus.shape[2]),
        metadata={"model": "none"}, prompt_keys=np.array([7, 9]),
    )  # fmt: skip


def test_corners_are_the_roles_of_the_card() -> None:
    table = gates([[1, 0, 1, 0]], [[1, 0, 0, 1]]).taxonomy().set_index("label")
    roles = ["facilitation", "interference", "irrelevance", "unassigned"]
    assert table["role"].tolist() == roles
    assert table["anomaly_share"].tolist() == [0, 0, 0, 1]


def test_always_any_and_share_count_seeds() -> None:
    table = gates([[1, 1], [1, 1], [1, 1], [1, 1]], [[0.9, 0.4], [0.9, 0.6], [0.5, 0.1], [0.9, 0.2]]).taxonomy()
    assert table["facilitation_always"].tolist() == [True, False]
    assert table["facilitation_any"].tolist() == [True, True]
    assert table["facilitation_share"].tolist() == [1.0, 0.25]
    assert table["facilitation_max"].tolist() == [0.9, 0.6]
    assert table["role"].tolist() == ["facilitation", "irrelevance"]
    strict = gates([[1, 1]], [[0.9, 0.6]]).taxonomy(0.8)
    assert strict["facilitation_any"].tolist() == [True, False]


def test_a_head_that_no_half_of_the_seeds_agrees_on_has_no_role() -> None:
    assert gates([[1], [1]], [[1], [0]]).taxonomy()["role"].tolist() == ["unassigned"]


@pytest.mark.parametrize("threshold", [0, 1, -0.5])
def test_a_threshold_outside_is_refused(threshold: float) -> None:
    with pytest.raises(BadInput, match="threshold"):
        gates([[1]], [[1]]).taxonomy(threshold)


def test_a_cell_without_a_head_stays_empty() -> None:
    made = gates([[1, np.nan]], [[0, np.nan]])
    assert len(made.taxonomy()) == 1 and np.isnan(made.facilitation.values[0, 1])
    assert made.facilitation.exists["text"].tolist() == [[True, False]]
    assert np.isnan(made.strongest().values[0, 1])


def test_the_strongest_is_the_largest_over_seeds() -> None:
    made = gates([[1, 1], [1, 1]], [[0.1, 0.8], [0.9, 0.2]])
    assert made.strongest().values.tolist() == [[0.9, 0.8]]
    assert made.strongest().sample_axis is None


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = gates([[1, 0.25], [0.5, 0.75]], [[0, 1], [0.125, 0]])
    again = interp.Gates.open(made.save(tmp_path / "gates.safetensors"))
    np.testing.assert_array_equal(again.retain, made.retain)
    np.testing.assert_array_equal(again.history.loss, made.history.loss)
    np.testing.assert_array_equal(again.prompt_keys, made.prompt_keys)
    assert again.seeds == (0, 1) and again.history.fits == made.history.fits and again.metadata == made.metadata
    table = interp.HeadScores.from_array(np.zeros((1, 1)), name="other")
    with pytest.raises(BadInput, match="not of gates"):
        interp.Gates.open(table.save(tmp_path / "table.safetensors"))


def test_figures_show_what_they_name() -> None:
    made = gates([[1, 0.25, 1], [0.5, 0.75, 1]], [[0, 1, 0], [0.125, 0, 0]])
    shown = made.plot()
    names = {trace.name for trace in shown.data}
    assert {"warm", "retain", "remove"} <= names
    lines = [trace for trace in shown.data if trace.name == "warm"]
    np.testing.assert_allclose(lines[0].y, made.history.nll[0].mean(1))
    moved = made.plot("gates", heads=2)
    assert {trace.name for trace in moved.data} == {"L0.H0", "L0.H1"}  # one is needed, one interferes
    assert made.plot("interference").data[0].z.shape == (1, 3)
    with pytest.raises(UnknownName, match="history"):
        made.plot("histories")


def test_history_as_a_table_has_a_row_for_each_update_and_seed() -> None:
    table = gates([[1], [1]], [[1], [1]]).history.table()
    assert len(table) == 3 * 4 * 2 and table["fit"].unique().tolist() == ["warm", "retain", "remove"]


def test_gates_of_another_shape_are_refused() -> None:
    with pytest.raises(BadInput, match="warm is"):
        interp.Gates(np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones((1, 1, 3)), (0,), history(1, 2))
    with pytest.raises(BadInput, match="for 2 seeds"):
        interp.Gates(np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones((1, 1, 2)), (0, 1), history(1, 2))


def test_what_is_printed_counts_roles() -> None:
    assert repr(gates([[1, 0, 1]], [[1, 0, 0]])) == (
        "Gates(text 1x3 heads, 1 seeds: 1 facilitation, 1 interference, 1 irrelevance)"
    )
