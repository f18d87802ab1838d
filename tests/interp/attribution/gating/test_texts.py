"""Texts with a loss mask: from lists, tables and datasets; what is refused and how it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import interp
from interp import BadInput, UnknownName

MODEL = interp.load("handmade")
TEXTS = ["the cat sat", "the dog ran on the mat"]


def predicted(batch: interp.Batch) -> list[list[str]]:
    """The words that are predicted, prompt by prompt."""
    assert batch.ids is not None
    return [
        MODEL.tokenizer.convert_ids_to_tokens(ids[span].tolist())
        for ids, span in zip(batch.ids, batch.spans["loss"], strict=True)
    ]


def test_a_whole_text_predicts_every_token_but_the_first() -> None:
    batch = interp.gating_texts(MODEL, TEXTS)
    assert predicted(batch) == [["the", "cat", "sat"], ["the", "dog", "ran", "on", "the", "mat"]]  # <bos> comes first
    assert batch.spans["loss"].sum(1).tolist() == [length - 1 for length in batch.lengths]


ROWS = [
    {"prompt": "the cat", "target": " sat on", "text": "red mat"},
    {"prompt": "the", "target": " dog", "text": "the dog"},
]


@pytest.mark.parametrize("kind", ["rows", "csv", "jsonl", "json", "frame"])
def test_a_target_column_alone_is_predicted(kind: str, tmp_path: Path) -> None:
    sources: dict[str, Any] = {"rows": ROWS, "frame": pd.DataFrame(ROWS)}
    pd.DataFrame(ROWS).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    source = sources.get(kind, tmp_path / f"t.{kind}")
    batch = interp.gating_texts(MODEL, source, target="target")
    assert predicted(batch) == [["sat", "on"], ["dog"]]
    assert batch.texts == ("the cat sat on", "the dog")
    assert predicted(interp.gating_texts(MODEL, source)) == [["red", "mat"], ["the", "dog"]]
    assert len(interp.gating_texts(MODEL, source, limit=1)) == 1
    renamed = interp.gating_texts(MODEL, source, prompt="text", target="target", limit=1)
    assert renamed.texts == ("red mat sat on",)


def test_pairs_are_prompt_and_target() -> None:
    assert predicted(interp.gating_texts(MODEL, [("the cat", " sat")])) == [["sat"]]


class Dataset:
    """What of a ``datasets`` Dataset is used."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def to_pandas(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def test_a_dataset_and_its_splits() -> None:
    splits = {"train": Dataset(ROWS), "test": Dataset(ROWS[1:])}
    assert predicted(interp.gating_texts(MODEL, splits, split="test", target="target")) == [["dog"]]
    assert len(interp.gating_texts(MODEL, splits["train"])) == 2
    with pytest.raises(BadInput, match="Known: test, train"):
        interp.gating_texts(MODEL, splits, split="valid")
    with pytest.raises(BadInput, match="Name one with split="):
        interp.gating_texts(MODEL, splits)


def test_a_dataset_of_the_package_does_as_well() -> None:
    datasets = pytest.importorskip("datasets")
    assert predicted(interp.gating_texts(MODEL, datasets.Dataset.from_list(ROWS), target="target"))[1] == ["dog"]


def test_long_texts_are_cut_where_that_is_asked() -> None:
    batch = interp.gating_texts(MODEL, TEXTS, max_tokens=3)
    assert batch.lengths == [3, 3]
    with pytest.raises(BadInput, match="leave long rows out"):
        interp.gating_texts(MODEL, ROWS, target="target", max_tokens=3)


def test_a_target_that_merges_with_its_prompt_is_refused_with_both_tokenisations() -> None:
    with pytest.raises(BadInput, match=r"row 1 merges with its prompt: \['the', '<unk>'\] alone, \['the', 'cat'\]"):
        interp.gating_texts(MODEL, [("the cat", " sat"), ("the c", "at")])


@pytest.mark.parametrize(
    "source, options, words",
    [
        ([], {}, "at least one"),
        (7, {}, "a int came"),
        ([1, "a"], {}, "rows of int, str"),
        (TEXTS, {"target": "target"}, "a list of plain texts has none"),
        (ROWS, {"target": "answer"}, "Unknown column 'answer'.*Known: prompt, target, text"),
        ([{"text": ""}], {}, "holds '' in row 0"),
        (TEXTS, {"limit": 0}, "limit=0"),
        ("nowhere.csv", {}, "is not a file"),
    ],
    ids=["none", "number", "mixed", "no columns", "column", "empty", "limit", "file"],
)
def test_what_cannot_be_is_refused(source: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        interp.gating_texts(MODEL, source, **options)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat")
    with pytest.raises(BadInput, match=r"type '\.txt'; expected one of \.csv"):
        interp.gating_texts(MODEL, tmp_path / "t.txt")
    (tmp_path / "t.jsonl").write_text("{")
    with pytest.raises(BadInput, match="cannot be read as JSONL"):
        interp.gating_texts(MODEL, tmp_path / "t.jsonl")


def test_a_fit_takes_such_a_batch_as_it_is() -> None:
    batch = interp.gating_texts(MODEL, [("the cat sat on the", " cat")])
    assert interp.fit_gates(MODEL, batch, seeds=1, updates=2).retain.shape == (1, 2, 2)


def test_an_unknown_name_stays_one() -> None:
    with pytest.raises((BadInput, UnknownName)):
        interp.gating_texts(MODEL, ROWS, text="body")
