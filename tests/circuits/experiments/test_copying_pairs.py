"""The pairs that copying tells apart, and the pieces that long experiments are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interp
from circuits.experiments.copying.pairs import CopyingPairs, copying_pairs
from circuits.experiments.pieces import Pieces, arrays_of, beside, table_of
from circuits.units import UnitStore
from interp.errors import BadInput
from interp.results import HeadScores


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.load("induction", check=False)


def pairs(model: interp.Model, n: int = 5, **changed: object) -> CopyingPairs:
    settings = {"segment": 7, "seed": 0, "purpose": "selection", **changed}
    return copying_pairs(model, n=n, **settings)  # pyright: ignore[reportArgumentType]


def test_a_pair_differs_in_its_first_half_alone(model: interp.Model) -> None:
    made = pairs(model)
    assert made.clean.shape == made.corrupted.shape == (5, 1 + 7 + 6)
    for clean, corrupted, right, wrong in zip(made.clean, made.corrupted, made.right, made.wrong, strict=True):
        own, other = clean[1:8], corrupted[1:8]
        assert len({*own, *other}) == 14, "the two halves share no token"
        assert (own[-1], other[-1]) == (right, wrong)
        assert (clean[8:] == own[:-1]).all() and (corrupted[8:] == own[:-1]).all() and clean[0] == corrupted[0]


def test_the_model_tells_the_answers_apart_in_the_clean_prompts_alone(model: interp.Model) -> None:
    made = pairs(model, n=16)
    clean, corrupted = (
        interp.logit_difference(interp.run(model, batch).logits, batch).mean()
        for batch in (made.clean_batch(model), made.corrupted_batch(model))
    )
    assert clean > 6 and abs(corrupted) < 1


def test_a_pair_is_a_function_of_its_number(model: interp.Model) -> None:
    few, many = pairs(model, n=3), pairs(model, n=6)
    assert few.fingerprint == many.select(slice(0, 3)).fingerprint == pairs(model, n=3).fingerprint
    assert few.fingerprint != pairs(model, n=3, seed=1).fingerprint
    assert few.fingerprint != pairs(model, n=3, purpose="evaluation").fingerprint
    assert [len(part) for part in many.chunks(4)] == [4, 2]


@pytest.mark.parametrize(("segment", "says"), [(300, r"at most segment=208 works"), (80, r"At most segment=64 works")])
def test_pairs_that_cannot_be_made_are_refused(model: interp.Model, segment: int, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        pairs(model, segment=segment)
    pairs(model, segment=64)


def a_table(**changed: object) -> HeadScores:
    values = np.arange(12.0).reshape(2, 2, 3)
    settings = {"name": "zero", "quantity": "effect", "sense": -1, "sample_axis": "prompt", "cluster": ["a", "b"]}
    return HeadScores.from_array(values, **{**settings, "metadata": {"kernels": ["x"]}, **changed})  # pyright: ignore[reportArgumentType]


def test_a_table_comes_back_from_its_arrays() -> None:
    for table in (a_table(), a_table(sense=0, stack="vision", default_stack="text")):
        again = table_of(arrays_of(table))
        np.testing.assert_array_equal(again.samples, table.samples)
        assert (again.cluster, again.metadata, again.sense, again.stacks) == (
            table.cluster, dict(table.metadata), table.sense, table.stacks,
        )  # fmt: skip
        assert again.default_stack == table.default_stack and again.top(1).label[0] == table.top(1).label[0]
    single = HeadScores.from_array(np.array([[1.0, np.nan]]), name="gate", exists=np.array([[True, True]]))
    again = table_of(arrays_of(single))
    assert again.sample_axis is None and again.exists["text"].all() and np.isnan(again.values[0, 1])


def test_tables_of_other_heads_are_put_beside_each_other() -> None:
    whole = a_table()
    parts = []
    for layer in range(2):
        samples = np.array(whole.samples)
        samples[:, 1 - layer] = np.nan
        parts.append(a_table().from_array(samples, name="zero", sample_axis="prompt", sense=-1, quantity="effect"))
    np.testing.assert_array_equal(beside(parts).samples, whole.samples)
    assert beside(parts).exists["text"].all()
    with pytest.raises(ValueError, match="two tables"):
        beside([parts[0], parts[0]])


def test_a_piece_is_made_once(tmp_path: Path) -> None:
    store = UnitStore(tmp_path)
    pieces = Pieces(store, "test/1", "weights", batch_size=2, seed=0)
    first = pieces.table("one", "prompts", a_table)
    second = pieces.table("one", "prompts", lambda: pytest.fail("it is there"))  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(first.samples, second.samples)
    pieces.table("one", "other prompts", a_table)
    pieces.table("two", "prompts", a_table)
    assert (store.computed, store.reused) == (3, 1)
