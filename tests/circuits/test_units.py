"""Units of work: kept whole, found again, redone when damaged."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pytest

import interp.files
from circuits.units import Unit, UnitStore, fingerprint_of

UNIT = Unit(experiment="test/1", key="part/0", model="m", prompts="p", batch_size=4, seed=0)


def arrays() -> dict[str, np.ndarray]:
    return {"values": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.array([1, 2], dtype=np.int64)}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("a finished unit was computed again")


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and np.array_equal(first[name], second[name]) for name in first
    )


def test_a_finished_unit_is_read_and_not_computed_again(tmp_path: Path) -> None:
    store = UnitStore(tmp_path)
    assert same(store.get(UNIT, arrays), arrays())
    assert same(UnitStore(tmp_path).get(UNIT, never), arrays())
    assert (store.computed, store.reused) == (1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "test/2"},
        {"key": "part/1"},
        {"model": "n"},
        {"prompts": "q"},
        {"batch_size": 5},
        {"seed": 1},
    ],
)
def test_every_field_makes_another_unit(tmp_path: Path, change: dict[str, object]) -> None:
    store = UnitStore(tmp_path)
    store.write(UNIT, arrays())
    other = dataclasses.replace(UNIT, **change)
    assert other.hash != UNIT.hash and other.random_seed != UNIT.random_seed
    assert store.read(other) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "renamed"])
def test_a_damaged_file_counts_as_missing_and_is_redone(tmp_path: Path, damage: str) -> None:
    store = UnitStore(tmp_path)
    store.write(UNIT, arrays())
    path = tmp_path / UNIT.file_name
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "text":
        path.write_text("no tensors here")
    else:  # another unit's file under this name
        other = dataclasses.replace(UNIT, seed=9)
        store.write(other, arrays())
        (tmp_path / other.file_name).replace(path)
    assert store.read(UNIT) is None
    assert same(store.get(UNIT, arrays), arrays())
    assert same(store.get(UNIT, never), arrays())


def test_leftovers_of_a_killed_process_are_not_read(tmp_path: Path) -> None:
    store = UnitStore(tmp_path)
    store.write(UNIT, arrays())
    path = tmp_path / UNIT.file_name
    path.replace(tmp_path / f".{path.name}.x.part")
    assert store.read(UNIT) is None


def test_a_full_disk_leaves_nothing_partial_and_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = UnitStore(tmp_path)
    store.write(UNIT, arrays())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(interp.files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.get(dataclasses.replace(UNIT, seed=1), arrays)
    assert [path.name for path in tmp_path.iterdir()] == [UNIT.file_name]
    assert same(store.get(UNIT, never), arrays())


def test_the_seed_of_a_unit_is_a_function_of_the_unit() -> None:
    assert UNIT.random_seed == dataclasses.replace(UNIT).random_seed
    assert 0 <= UNIT.random_seed < 2**63


def test_fingerprints_tell_order_shape_and_value_apart() -> None:
    assert fingerprint_of(np.array([[1, 2]])) != fingerprint_of(np.array([1, 2]))
    assert fingerprint_of(np.array([1, 2])) != fingerprint_of(np.array([2, 1]))
    assert fingerprint_of(np.array([1, 2])) == fingerprint_of(np.array([1, 2])) != fingerprint_of(np.array([1.0, 2.0]))
    assert fingerprint_of(["L0.H1"], 3) == fingerprint_of(["L0.H1"], 3) != fingerprint_of(["L0.H2"], 3)
