"""HeadScores: shapes, means, orders, joining and files, each against plain numpy or by hand."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from interp import Head, HeadScores
from interp.errors import BadInput
from interp.stats import mean_interval


@pytest.fixture
def samples() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(20, 3, 4))
    values[:, 2, 3] = np.nan  # no such head
    values[3, 0, 1] = np.nan  # a prompt without a value
    return values


def make(values: np.ndarray, **changes: object) -> HeadScores:
    settings = {"name": "zero", "quantity": "effect", "sense": -1, "sample_axis": "prompt", **changes}
    return HeadScores.from_array(values, **settings)


def test_values_are_the_mean_over_samples_without_nan(samples: np.ndarray) -> None:
    table = make(samples)
    by_hand = np.array([[samples[:, layer, head] for head in range(4)] for layer in range(3)])
    for layer, head in np.ndindex(3, 4):
        present = by_hand[layer, head][np.isfinite(by_hand[layer, head])]
        expected = present.sum() / len(present) if len(present) else np.nan
        np.testing.assert_allclose(table.values[layer, head], expected, rtol=1e-12)
    assert np.isnan(table.values[2, 3])
    np.testing.assert_array_equal(table.per_prompt, samples)


def test_the_table_lists_the_heads_that_exist_with_their_intervals(samples: np.ndarray) -> None:
    table = make(samples)
    rows = table.table()
    assert list(rows.columns) == ["stack", "layer", "head", "value", "low", "high"]
    assert [(row.layer, row.head) for row in rows.itertuples()] == [(n, h) for n in range(3) for h in range(4)][:-1]
    alone = mean_interval(samples[:, 1, 2])
    row = rows[(rows.layer == 1) & (rows["head"] == 2)].iloc[0]
    assert (row.value, row.low, row.high) == pytest.approx((alone.mean, alone.low, alone.high), rel=1e-12)
    assert (rows.low < rows.value).all() and (rows.value < rows.high).all()


def test_the_long_table_holds_every_value_once(samples: np.ndarray) -> None:
    rows = make(samples).long()
    assert list(rows.columns) == ["stack", "layer", "head", "unit", "sample", "value"]
    assert len(rows) == 20 * 11
    back = np.full(samples.shape, np.nan)
    back[rows["sample"], rows["layer"], rows["head"]] = rows["value"]
    np.testing.assert_array_equal(back, samples)
    assert set(rows["unit"]) == {"query"}


def test_without_a_sample_axis_there_is_no_interval() -> None:
    table = HeadScores.from_array(np.array([[0.1, 0.9]]), name="induction")
    assert table.table()[["low", "high"]].isna().all(axis=None)
    assert table.samples.shape == (1, 1, 2)
    with pytest.raises(BadInput, match="no value per prompt"):
        _ = table.per_prompt


@pytest.mark.parametrize(
    ("sense", "helps", "hurts"), [(-1, ["L0.H1"], ["L0.H2", "L0.H0"]), (1, ["L0.H2", "L0.H0"], ["L0.H1"])]
)
def test_top_orders_by_help_and_hurt(sense: int, helps: list[str], hurts: list[str]) -> None:
    table = HeadScores.from_array(np.array([[0.2, -3.0, 1.0, 0.0]]), name="zero", quantity="effect", sense=sense)
    assert table.top(10, by="helps").label.tolist() == helps
    assert table.top(10, by="hurts").label.tolist() == hurts
    assert table.top(2).label.tolist() == ["L0.H1", "L0.H2"]
    assert table.top(2, by="value").label.tolist() == ["L0.H2", "L0.H0"]
    assert table.top_heads(1) == [Head(0, 1)]
    np.testing.assert_array_equal(table.importance(), sense * np.array([[0.2, -3.0, 1.0, 0.0]]))


def test_ties_keep_the_order_of_layers_and_heads() -> None:
    table = HeadScores.from_array(np.ones((2, 2)), name="flat")
    assert table.top(4).label.tolist() == ["L0.H0", "L0.H1", "L1.H0", "L1.H1"]


def test_an_unsigned_score_does_not_say_who_helps() -> None:
    table = HeadScores.from_array(np.ones((2, 2)), name="entropy")
    with pytest.raises(BadInput, match="'entropy' is unsigned"):
        table.top(1, by="helps")
    with pytest.raises(BadInput, match=r"Unknown order 'help'\. Did you mean 'helps'"):
        table.top(1, by="help")


def test_agreement_compares_importance_and_refuses_signed_with_unsigned() -> None:
    values = np.arange(6.0).reshape(2, 3) - 2
    helps = HeadScores.from_array(values, name="direct", quantity="contribution", sense=1)
    ablated = HeadScores.from_array(-(values**3), name="zero", quantity="effect", sense=-1)
    assert helps.agreement(ablated).spearman == 1.0
    unsigned = HeadScores.from_array(np.abs(values), name="entropy")
    assert unsigned.agreement(unsigned).kendall == 1.0
    with pytest.raises(BadInput, match=r"'direct' says whether .* and 'entropy' does not"):
        unsigned.agreement(helps)


def test_clusters_widen_the_interval() -> None:
    repeated = np.repeat(np.random.default_rng(1).normal(size=(5, 1, 1)), 10, axis=0)
    free = make(repeated).table().iloc[0]
    tied = make(repeated, cluster=np.repeat(np.arange(5), 10)).table().iloc[0]
    assert tied.high - tied.low > 2 * (free.high - free.low)


def test_a_table_comes_back_from_its_file_as_it_was(samples: np.ndarray, tmp_path: object) -> None:
    path = f"{tmp_path}/deep/zero.safetensors"
    table = make(samples, cluster=["a", "b"] * 10, metadata={"kernels": ("sdpa",), "n": 3}, stack="decoder")
    assert str(table.save(path)) == path
    back = HeadScores.open(path)
    np.testing.assert_array_equal(back.samples, samples)
    assert back.samples.dtype == samples.dtype
    for name in ("name", "quantity", "sense", "unit", "sample_axis", "default_stack", "cluster", "metadata", "stacks"):
        assert getattr(back, name) == getattr(table, name), name
    pd.testing.assert_frame_equal(back.table(), table.table())
    with safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == ["exists.decoder", "samples.decoder"]


def test_a_damaged_or_foreign_file_is_refused(tmp_path: object, samples: np.ndarray) -> None:
    path = make(samples).save(f"{tmp_path}/a.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"a\.safetensors cannot be read"):
        HeadScores.open(path)
    path.write_text("layer,head\n")
    with pytest.raises(BadInput, match="cannot be read"):
        HeadScores.open(path)
    with pytest.raises(BadInput, match="is not a file"):
        HeadScores.open(f"{tmp_path}/none.safetensors")


def test_saving_leaves_no_half_file(samples: np.ndarray, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(samples).save(f"{tmp_path}/a.safetensors")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        make(samples + 1).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["a.safetensors"]


def test_concat_joins_samples_and_stacks(samples: np.ndarray) -> None:
    first, second = make(samples[:5], metadata={"seed": 1, "kernels": "eager"}), make(samples[5:], metadata={"seed": 2})
    both = HeadScores.concat([first, second])
    np.testing.assert_array_equal(both.samples, samples)
    assert both.metadata == {"seed": [1, 2], "kernels": ["eager", None]}
    vision = make(samples[:, :2, :2], stack="vision", default_stack="text")
    assert vision.top(1).label[0].startswith("vision.L")
    wide = HeadScores.concat([make(samples), vision])
    assert wide.stacks == ("text", "vision")
    np.testing.assert_array_equal(wide.of("vision").samples, samples[:, :2, :2])
    assert set(wide.table()["stack"]) == {"text", "vision"}
    with pytest.raises(BadInput, match=r"choose one, such as \.of\('text'\)"):
        _ = wide.values


def test_concat_refuses_what_does_not_belong_together(samples: np.ndarray) -> None:
    table = make(samples)
    with pytest.raises(BadInput, match="tables of one sense"):
        HeadScores.concat([table, make(samples, sense=1)])
    with pytest.raises(BadInput, match="stacks or shapes"):
        HeadScores.concat([table, make(samples[:, :2])])
    single = HeadScores.from_array(np.ones((2, 2)), name="flat")
    with pytest.raises(BadInput, match="no sample axis to join"):
        HeadScores.concat([single, single])
    with pytest.raises(BadInput, match="got no table"):
        HeadScores.concat([])
    with pytest.raises(BadInput, match="cluster labels"):
        HeadScores.concat([table, make(samples, cluster=["a"] * 20)])


def test_wrong_shapes_and_words_are_refused() -> None:
    with pytest.raises(BadInput, match=r"values came as \[2, 3, 4\]; expected \[layer, head\]"):
        HeadScores.from_array(np.ones((2, 3, 4)), name="x")
    with pytest.raises(BadInput, match=r"expected \[sample, layer, head\]"):
        HeadScores.from_array(np.ones((3, 4)), name="x", sample_axis="prompt")
    with pytest.raises(BadInput, match="Unknown quantity 'scores'"):
        HeadScores.from_array(np.ones((3, 4)), name="x", quantity="scores")
    with pytest.raises(BadInput, match="sense=2"):
        HeadScores.from_array(np.ones((3, 4)), name="x", sense=2)
    with pytest.raises(BadInput, match="2 labels for 1 samples"):
        HeadScores.from_array(np.ones((3, 4)), name="x", cluster=["a", "b"])
    with pytest.raises(BadInput, match="metadata cannot be written as JSON"):
        HeadScores.from_array(np.ones((3, 4)), name="x", metadata={"model": object()})


def test_a_tensor_is_taken_and_the_table_cannot_be_changed() -> None:
    source = torch.tensor([[1.0, 2.0]], requires_grad=True)
    table = HeadScores.from_array(source, name="x")
    np.testing.assert_array_equal(table.values, [[1.0, 2.0]])
    with pytest.raises(ValueError, match="read-only"):
        table.samples[0, 0, 0] = 5


def test_a_head_without_a_value_stays_in_the_table_when_said_to_exist() -> None:
    values = np.array([[1.0, np.nan, np.nan]])
    assert len(HeadScores.from_array(values, name="x").table()) == 1
    table = HeadScores.from_array(values, name="x", exists=np.array([[True, True, False]]))
    assert table.table()["head"].tolist() == [0, 1]
    assert table.top(5).label.tolist() == ["L0.H0"]


def test_positions_add_an_axis_everywhere() -> None:
    values = np.random.default_rng(0).normal(size=(6, 2, 3, 4))
    table = make(values, positions=["a", "b", "c", "d"])
    assert table.values.shape == (2, 3, 4)
    rows = table.table()
    assert list(rows.columns) == ["stack", "layer", "head", "pos", "value", "low", "high"]
    np.testing.assert_allclose(rows.value, values.mean(0).ravel())
    assert len(table.long()) == values.size
    assert table.plot().data[0].z.shape == (6, 4)


def test_the_views_show_labels_and_values(samples: np.ndarray) -> None:
    table = make(samples, name="<b>zero</b>")
    assert repr(table).startswith("HeadScores('<b>zero</b>', effect, text 3x4 heads, 20 prompts, ")
    html = table._repr_html_()
    assert html.count("<rect") == 11 and "<table" in html and "<script" not in html
    assert "<b>zero</b>" not in html and "&lt;b&gt;zero" in html
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert all(label in text for label in table.top(10).label)


def test_the_plot_outlines_the_marked_heads(samples: np.ndarray) -> None:
    figure = make(samples).plot(marked=[Head(1, 2)])
    shape = figure.layout.shapes[0]
    assert (shape.x0, shape.x1, shape.y0, shape.y1) == (1.5, 2.5, 0.5, 1.5)


@pytest.mark.parametrize("changes", [{}, {"cluster": ["a"]}])
def test_one_prompt_shows_no_interval_and_refuses_one_that_is_asked_for(changes: dict[str, object]) -> None:
    table = make(np.arange(4.0).reshape(1, 2, 2), **changes)
    assert table.table()[["low", "high"]].isna().all(axis=None) and table.top(1)["value"].tolist() == [3.0]
    assert "1 prompt (too few for an interval)" in repr(table) and len(table.plot().data) == 1
    for ask in (lambda: table.table(confidence=0.95), lambda: table.top(2, confidence=0.9)):
        with pytest.raises(
            BadInput, match=r"'zero' has 1 prompt.*; an interval needs two at least\. Leave confidence="
        ):
            ask()


def test_prompts_of_one_cluster_have_no_interval_either() -> None:
    table = make(np.random.default_rng(0).normal(size=(5, 2, 2)), cluster=["same"] * 5)
    with pytest.raises(BadInput, match="has 5 prompts in 1 cluster; an interval needs two"):
        table.table(confidence=0.95)
    plain = make(np.ones((2, 2)), sample_axis=None)
    assert plain.table(confidence=0.95)["low"].isna().all()  # without samples there is nothing to resample


@pytest.fixture
def by_position() -> HeadScores:
    values = np.random.default_rng(4).normal(size=(8, 2, 3, 4))
    values[:, 1, 2] = np.nan  # no such head
    values[4:, ..., 3] = np.nan  # padding
    return make(values, positions=["the", "cat", "sat", "."], cluster=list("aabbccdd"))


def test_effects_by_position_have_a_row_and_an_interval_for_each_position(by_position: HeadScores) -> None:
    rows = by_position.table()
    assert list(rows.columns) == ["stack", "layer", "head", "pos", "value", "low", "high"] and len(rows) == 5 * 4
    row = rows[(rows.layer == 1) & (rows["head"] == 0) & (rows.pos == ".")].iloc[0]
    wanted = mean_interval(by_position.samples[:, 1, 0, 3], cluster=list("aabbccdd"))
    assert (row.value, row.low, row.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    long = by_position.long()
    assert len(long) == 8 * 5 * 4 and long["value"].isna().sum() == 4 * 5


def test_the_top_heads_by_position_are_heads_once_each_by_their_foremost_position(by_position: HeadScores) -> None:
    strength = np.nan_to_num(np.abs(by_position.values)).max(-1)
    order = np.argsort(-strength.ravel(), kind="stable")[:4]
    wanted = [Head(int(place) // 3, int(place) % 3) for place in order]
    assert by_position.top_heads(4) == wanted
    helps = by_position.top(3, by="helps")
    assert (helps["value"] < 0).all() and helps["value"].is_monotonic_increasing and "pos" in helps


def test_effects_by_position_are_saved_joined_and_drawn(by_position: HeadScores, tmp_path: object) -> None:
    back = HeadScores.open(by_position.save(f"{tmp_path}/by-position.safetensors"))
    np.testing.assert_array_equal(back.samples, by_position.samples)
    assert (back.positions, back.cluster) == (by_position.positions, by_position.cluster)
    joined = HeadScores.concat([by_position, back])
    assert joined.samples.shape == (16, 2, 3, 4) and joined.cluster == by_position.cluster + back.cluster  # type: ignore[operator]
    assert np.asarray(by_position.plot().data[0].z).shape == (5, 4) and "pos" in by_position._repr_html_()
    other = make(np.ones((8, 2, 3, 4)), positions=["a", "b", "c", "d"], cluster=list("aabbccdd"))
    with pytest.raises(BadInput, match="expected tables of one positions"):
        HeadScores.concat([by_position, other])


def test_key_value_heads_say_so_and_are_not_compared_with_query_heads() -> None:
    values = np.random.default_rng(5).normal(size=(6, 2, 2))
    table = make(values, unit="kv")
    assert "2x2 KV heads" in repr(table) and set(table.long()["unit"]) == {"kv"}
    with pytest.raises(BadInput, match="not of the same heads and positions"):
        table.agreement(make(values))
