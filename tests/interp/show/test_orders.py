"""Charts of orders of heads and of checkpoints: they hold the tables they were given, bands and all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.show import (
    Line,
    Panel,
    active_figure,
    cohort_figure,
    curve_panels,
    greedy_figure,
    pruning_figure,
    retention_figure,
    weakening_figure,
)
from interp.show.theme import GREY

SHARE = [1.0, 0.5, 0.0]


def with_ends(**values: list[float]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for name, numbers in values.items():
        columns |= {name: numbers, f"{name}_low": [n - 1 for n in numbers], f"{name}_high": [n + 1 for n in numbers]}
    return columns


def lines(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def pruning_rows(random: list[float]) -> pd.DataFrame:
    ends = with_ends(value=[4.0, 3.0, 0.0], random=random)
    return pd.DataFrame({"share": SHARE, **ends}).rename(columns={"value_low": "low", "value_high": "high"})


def test_a_pruning_chart_runs_from_all_heads_to_none() -> None:
    rows = pruning_rows([4.0, 2.0, 0.0])
    figure = pruning_figure(rows, name="<zero>", metric="logit_difference")
    drawn = lines(figure)
    assert drawn["by &lt;zero&gt;"].y.tolist() == [4.0, 3.0, 0.0] and drawn["random orders"].line.color == GREY
    band = drawn["by &lt;zero&gt;, interval"]
    assert band.y.tolist() == [5.0, 4.0, 1.0, -1.0, 2.0, 3.0] and band.mode == "lines"
    axis, words = figure.layout["xaxis"], figure.layout["yaxis"].title.text
    assert axis.autorange == "reversed" and axis.tickformat == ".0%" and words == "logit difference"
    assert "central 95 % of the random orders" in figure.layout["title"].text


def test_without_random_orders_or_intervals_nothing_is_invented() -> None:
    rows = pruning_rows([np.nan] * 3).assign(low=np.nan, high=np.nan)
    figure = pruning_figure(rows, name="zero", metric="loss", title="mine")
    assert list(lines(figure)) == ["by zero"] and figure.layout["title"].text == "mine"


def test_a_weakening_chart_has_both_orders() -> None:
    rows = pd.DataFrame(
        {"share": SHARE, **with_ends(most=[1.0, 2.0, 3.0], least=[1.0, 1.0, 3.0], random=[1.0, 1.5, 3.0])}
    )
    drawn = lines(weakening_figure(rows, name="zero", metric="loss", confidence=0.9))
    assert drawn["by zero, most relevant first"].y.tolist() == [1.0, 2.0, 3.0]
    assert drawn["by zero, least relevant first"].y.tolist() == [1.0, 1.0, 3.0]
    assert drawn["random orders, interval"].y.tolist() == [2.0, 2.5, 4.0, 2.0, 0.5, 0.0]


def test_a_search_chart_shows_held_out_prompts_beside_those_of_the_search() -> None:
    rows = pd.DataFrame({"size": [1, 3], "value": [1.0, 2.0], "low": [0.0, 1.0], "high": [2.0, 3.0]})
    assert [name for name in lines(greedy_figure(rows, metric="loss"))] == [
        "prompts of the search, interval", "prompts of the search",
    ]  # fmt: skip
    held = rows.assign(held_out=[0.5, 0.25], held_out_low=0.0, held_out_high=1.0)
    assert lines(greedy_figure(held, metric="loss"))["held-out prompts"].y.tolist() == [0.5, 0.25]


def grid(figure: Any) -> tuple[np.ndarray, Any]:
    """The numbers and the layout of a heatmap."""
    return np.asarray(figure.data[0].z), figure.layout


def test_heatmaps_of_checkpoints_hold_their_tables() -> None:
    values = np.array([[np.nan, 1.5], [np.nan, -2.0]])
    numbers, layout = grid(active_figure(values, ["L0.H0", "L0.<b>"], ["0", "100"], name="zero"))
    np.testing.assert_array_equal(numbers, values)
    assert layout.yaxis.ticktext == ("L0.H0", "L0.&lt;b&gt;") and layout.xaxis.ticktext == ("0", "100")
    retention = np.array([[np.nan, np.nan], [0.5, 1.0]])
    figure: Any = retention_figure(retention, ["0", "100"])
    numbers, layout = grid(figure)
    np.testing.assert_array_equal(numbers, retention)
    assert (layout.coloraxis.cmin, layout.coloraxis.cmax) == (0.0, 1.0)
    assert "of those active at 100, at 0" in figure.data[0].text[1][0]
    cohorts = pd.DataFrame([[4, 4.0, 1.0], [1, np.nan, 1.0]], index=[0, 100], columns=["size", 0, 100])
    numbers, layout = grid(cohort_figure(cohorts))
    np.testing.assert_array_equal(numbers, [[1.0, 0.25], [np.nan, 1.0]])
    assert layout.yaxis.ticktext == ("0 (4 heads)", "100 (1 head)")
    assert np.isnan(grid(cohort_figure(pd.DataFrame([], columns=["size", 0, 100])))[0]).all()


def test_a_line_may_bring_its_own_colour() -> None:
    figure = curve_panels([0, 1], [Panel("loss", [Line("a", [1, 2], colour=GREY), Line("b", [1, 2])])])
    plain = curve_panels([0, 1], [Panel("loss", [Line("b", [1, 2])])])
    assert lines(figure)["a"].line.color == GREY and lines(figure)["b"].line.color == lines(plain)["b"].line.color


@pytest.mark.parametrize("share", [[1.0, 0.0]])
def test_a_chart_of_two_points_has_no_dots_along_its_band(share: list[float]) -> None:
    """Short traces get markers unless they are told not to."""
    line = Line("a", [1.0, 2.0], [0.0, 1.0], [2.0, 3.0])
    assert lines(curve_panels(share, [Panel("loss", [line])]))["a, interval"].mode == "lines"
