"""Scores with ``queries=`` compute the rows asked for, and no other; the numbers are those of all rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance.support import Case

import interp
from interp.scores import SCORES
from interp.scores.ask import Ask
from interp.scores.planning import function_of
from interp.scores.reducer import Reducer

QUERIES = {"one": slice(-2, None), "classes": {"early": slice(1, 2), "late": slice(-1, None)}}
ASKED: dict[str, dict[str, Any]] = {
    "entropy": {},
    "normalised_entropy": {},
    "effective_support": {},
    "participation_ratio": {"share": True},
    "top_mass": {"n": 2},
    "keys_for_mass": {},
    "separability": {"n": 2},
    "softmax_jacobian": {},
    "entropy_bound": {},
    "future_influence": {"low": 1, "high": 3},
    "windowed_distance": {"window": 3},
    "visual_nonsink_ratio": {"image": slice(1, 4), "dimensions": (0, 5), "tau": 0.5},
    "visual_sink_mass": {"image": slice(1, 4), "dimensions": (0, 5), "tau": 0.5},
    "image_centric": {"image": slice(1, 4), "dimensions": (0, 5), "tau": 0.5},
}
NO_CLASSES = ("future_influence", "windowed_distance", "visual_nonsink_ratio", "visual_sink_mass", "image_centric")


def measured(ask: Ask, name: str, options: dict[str, Any], *, every: bool) -> tuple[dict[int, Any], list[int]]:
    """The score, and how many rows of maps were shown at each block."""
    reducer = function_of(SCORES[name].function)(ask, **options)
    assert isinstance(reducer, Reducer)
    if every:
        reducer.rows = None
    shown: list[int] = []
    block = reducer.block

    def counting(one: Any, products: Any) -> None:
        shown.append(one.rows.shape[1])
        block(one, products)

    reducer.block = counting  # type: ignore[method-assign]
    ask.stream([reducer])
    return dict(reducer.measured().by_layer), shown


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("name", ASKED)
def test_only_the_rows_asked_for_are_computed(case_of: Callable[[str], Case], name: str, kind: str) -> None:
    if kind == "classes" and name in NO_CLASSES:
        kind = "one"
    case = case_of("llama")
    ids = case.batch(2, 9).ids
    assert ids is not None
    batch = interp.encode(case.model, [ids[0].tolist(), ids[1, :7].tolist()], padding_side="left")
    ask = Ask(name, case.model, batch, case.model.stack())
    options = {**ASKED[name], "queries": QUERIES[kind]}
    few, shown = measured(ask, name, options, every=False)
    whole, all_shown = measured(ask, name, options, every=True)
    assert max(shown) <= 2 and max(all_shown) == 9
    for layer, values in whole.items():
        torch.testing.assert_close(few[layer], values, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_bound_that_is_of_the_whole_head_sees_every_row(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    ask = Ask("entropy_bound", case.model, case.batch(2, 9), case.model.stack())
    options = {"version": "matrix", "queries": QUERIES["one"]}
    found, shown = measured(ask, "entropy_bound", options, every=False)
    assert max(shown) == 9
    whole, _ = measured(ask, "entropy_bound", options, every=True)
    assert all(torch.equal(found[layer], whole[layer]) for layer in whole)
